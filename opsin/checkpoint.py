"""What is needed to go on: network, optimiser, counters, random state; saved through `storage`, restored bit for bit.

    checkpoints/step-00000123/   tensors.safetensors   state.json   manifest.json

The newest folder that verifies wins. Order is by step, never by clock. The last `keep` that verify are kept, and the
damaged ones among them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opsin import storage
from opsin.errors import NonFiniteLoss, StorageError
from opsin.train import Precision, TrainState
from opsin.types import Progress

KEEP = 2  # with one that is lost, there is another


class Restored(NamedTuple):
    """What a checkpoint held besides the training state itself."""

    notes: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def save(
    state: TrainState[Any],
    folder: Path,
    *,
    precision: Precision,
    notes: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    keep: int = KEEP,
    verified: set[str] | None = None,
) -> None:
    """Write a checkpoint into `folder`, then remove those older than the last `keep` that verify.

    notes: anything JSON can hold. tensors: named sets of tensors beside the model's (moving averages, best weights).
    verified: names of checkpoints that this process has read whole, which need not be read again; added to.
    `NonFiniteLoss` when a number is NaN or infinite: nothing is written then.
    """
    verified = set() if verified is None else verified
    held: dict[str, Tensor] = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    numbers: dict[str, Any] = {}
    for index, parameter in enumerate(_parameters(state.optimizer)):
        for key, value in state.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                held[f"optimizer/{index}/{key}"] = value
            elif value is not None:
                numbers[f"{index}/{key}"] = value
    for name, group in tensors.items():
        held.update({f"{name}/{key}": tensor for key, tensor in group.items()})
    for name, tensor in held.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteLoss(
                f"{name.replace('/', ' ', 1)} became NaN or infinite in step {state.progress.step}; "
                "a lower learning rate usually helps"
            )
    held["random/cpu"] = torch.get_rng_state()
    device = next(state.model.parameters()).device
    if device.type == "cuda":
        held["random/cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        held["random/mps"] = torch.mps.get_rng_state()
    document = {
        "version": 1,
        "progress": state.progress._asdict(),
        "optimizer": numbers,
        "scaler": precision.scaler.state_dict(),
        "sets": sorted(tensors),
        "notes": dict(notes),
    }
    new = folder / f"step-{state.progress.step:08d}"
    storage.write_folder(
        new,
        {
            "tensors.safetensors": storage.to_safetensors(held),
            "state.json": json.dumps(document, allow_nan=False).encode(),
        },
    )
    verified.add(new.name)  # `write_folder` has read it back
    good = 0
    for path in reversed(steps(folder)):
        # Later steps are there only when they were damaged and passed over: they count for nothing.
        if step_of(path) > state.progress.step or good >= max(KEEP, keep):
            storage.discard(path)
            verified.discard(path.name)
        elif path.name in verified or _whole(path):
            verified.add(path.name)
            good += 1
    storage.sweep(folder)  # of a process that was killed; the run's lock keeps others away


def _whole(path: Path) -> bool:
    try:
        storage.read_folder(path)
    except StorageError:
        return False
    return True


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder, from its name; -1 for any other name."""
    match = re.fullmatch(r"step-([0-9]{8,})(\.old)?", path.name)
    return int(match[1]) if match else -1


def steps(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest step first."""
    names = {path.name.removesuffix(".old") for path in folder.glob("step-*") if step_of(path) >= 0}
    return sorted((folder / name for name in names), key=step_of)


def restore(
    state: TrainState[Any],
    folder: Path,
    *,
    precision: Precision,
    warn: Callable[[str], None],
    verified: set[str] | None = None,
) -> Restored | None:
    """Put the newest checkpoint that verifies into `state`; None when there is none at all.

    A damaged one is named through `warn` and the one before it is taken. When all are damaged, `StorageError`:
    a training never starts afresh over what somebody believes to be saved. verified: the name taken is added.
    """
    storage.sweep(folder)
    found = steps(folder)
    for path in reversed(found):
        try:
            files = storage.read_folder(path)
            document = storage.read_json(files["state.json"], path / "state.json")
            if not isinstance(document, dict) or document.get("version") != 1:
                raise StorageError(f"{path / 'state.json'}: expected version 1, received {str(document)[:80]}")
            tensors = storage.from_safetensors(files["tensors.safetensors"], path / "tensors.safetensors")
        except (StorageError, KeyError) as error:
            warn(f"checkpoint {path.name} cannot be used and is passed over: {error}")
            continue
        if verified is not None:
            verified.add(path.name)
        return _apply(state, document, tensors, precision, path)
    if found:
        raise StorageError(
            f"none of the {len(found)} checkpoints in {folder} can be read; "
            "start a new run, or put back a copy of one of them"
        )
    return None


def _apply(
    state: TrainState[Any], document: dict[str, Any], tensors: dict[str, Tensor], precision: Precision, path: Path
) -> Restored:
    """`_put`; `StorageError` for files that are whole, but not a checkpoint of this training."""
    try:
        return _put(state, document, tensors, precision, path)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise StorageError(f"{path}: not a checkpoint of this training: {type(error).__name__} {error}") from error


def _put(
    state: TrainState[Any], document: dict[str, Any], tensors: dict[str, Tensor], precision: Precision, path: Path
) -> Restored:
    sets: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, key = name.partition("/")
        sets.setdefault(group, {})[key] = tensor
    try:
        state.model.load_state_dict(sets["model"])
    except (RuntimeError, KeyError) as error:
        raise StorageError(f"{path}: not a checkpoint of this network: {error}") from error
    parameters = _parameters(state.optimizer)
    state.optimizer.state.clear()
    entries = {**sets.get("optimizer", {}), **document["optimizer"]}
    for name, value in entries.items():
        index, _, key = name.partition("/")
        parameter = parameters[int(index)]
        if not isinstance(value, Tensor | int | float) or not index.isdecimal():
            raise ValueError(f"{name} of the optimiser: received {value!r:.80}")
        if isinstance(value, Tensor):
            if value.shape == parameter.shape:
                # The parameter's own memory layout, so that sums run in the same order as in the uninterrupted run.
                value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
            elif key != "step":
                value = value.to(parameter.device)
        state.optimizer.state[parameter][key] = value
    state.progress = Progress(**document["progress"])
    if any(type(count) is not int or not 0 <= count < 1 << 63 for count in state.progress):
        raise ValueError(f"progress: received {document['progress']}")
    if not isinstance(document["notes"], dict):
        raise ValueError(f"notes: received {document['notes']!r:.80}")
    if document["scaler"]:
        precision.scaler.load_state_dict(document["scaler"])
    torch.set_rng_state(sets["random"]["cpu"])
    device = next(state.model.parameters()).device
    if device.type == "cuda" and "cuda" in sets["random"]:
        torch.cuda.set_rng_state(sets["random"]["cuda"], device)
    elif device.type == "mps" and "mps" in sets["random"]:
        torch.mps.set_rng_state(sets["random"]["mps"])
    return Restored(document["notes"], {name: sets.get(name, {}) for name in document["sets"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
