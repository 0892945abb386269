"""What a person uses: pictures in, class probabilities out. Also how a classifier is saved, loaded and asked.

`classifier/` holds `classifier.json` (kind, network, classes, preprocessing), `weights.safetensors`, `config.json` and
a manifest of hashes. No optimiser, no recipe, no pickle. A fused one holds the first two of each of its members, as
`0-classifier.json`, `0-weights.safetensors` …, beside its own `classifier.json`.

`config.json` is for others; `load` does not read it. It has timm's keys: its readers, and those of the Hugging Face
hub, find the network's name, the numbers of classes and features, the names of the classes, and input size, mean,
deviation, crop and interpolation. They do not find the weights: a second file of them would double the folder, and the
tensors have the names of our networks, where timm builds its own. `opsin.hub` reads such folders, ours and timm's.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, final, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from opsin import __version__, metrics, models, shipped, storage
from opsin.classical.machines import Machine, restored
from opsin.classical.pipeline import Pipeline, checked
from opsin.data.decode import _pixels, _Refused, decode
from opsin.data.index import Index, printable, read
from opsin.data.loader import decode_size
from opsin.data.sandbox import Decoders
from opsin.errors import BadInput, OpsinError, StorageError, UsageError
from opsin.preprocess import Preprocess
from opsin.recipe import MAX_MEMBERS, Classical, ModelSpec, check, to_dict
from opsin.types import Model

CONFIG, WEIGHTS = "classifier.json", "weights.safetensors"
FOR_OTHERS = "config.json"
Picture = Tensor | np.ndarray | Image.Image | str | Path | bytes
Skipped = Callable[[int, BadInput], None]  # is told the place of a picture that cannot be read, and why


@runtime_checkable
class Classifier(Protocol):
    """Pictures in, class probabilities out.

    `prepare` takes one decoded picture, uint8 [C, h, w] with C of 1 or 3, and may run in any worker thread.
    `probabilities` takes a stack of what `prepare` returned, [B, …], and runs where the weights are: float [B, K],
    each row a distribution over `classes`, the same for a picture whatever the others of its batch are.

    One for many labels also has `thresholds`, a number for each class: then each probability stands for itself, and a
    picture has the labels whose probability reaches their threshold.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...
    def prepare(self, image: Tensor) -> Tensor: ...
    def probabilities(self, prepared: Tensor) -> Tensor: ...


def thresholds(classifier: Classifier) -> tuple[float, ...] | None:
    """Those of a classifier for many labels; None for one whose pictures have one label each."""
    return getattr(classifier, "thresholds", None)


@final
class NetClassifier:
    """A network, the preprocessing it was trained with, and the names of its classes.

    model: its logits are [B, len(classes)]; asking puts it into evaluation mode and leaves it there.
    spec: how `models.build` makes the network again. thresholds: one a class, in 0 to 1, for many labels: its head is
    a sigmoid of each logit then; None: the softmax of all.
    """

    def __init__(
        self,
        model: Model,
        preprocess: Preprocess,
        classes: Sequence[str],
        spec: ModelSpec,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        self.model, self.preprocess, self.spec = model, preprocess, spec
        self.classes = _class_names(classes)
        self.thresholds = None if thresholds is None else _thresholds(thresholds, len(self.classes))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> NetClassifier:
        """Move the weights (in place) and return self; `UsageError` for a device that this machine has not."""
        try:
            self.model.to(torch.device(device))
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UsageError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error
        return self

    @property
    def stage_names(self) -> tuple[str, ...]:
        """What `features` can be asked at, in the order of the flow."""
        return tuple(getattr(self.model, "stage_names", ()))

    def prepare(self, image: Tensor) -> Tensor:
        """uint8 [1 or 3, h, w] to uint8 [C, H, W]."""
        return self.preprocess.prepare(image)

    @torch.no_grad()
    def probabilities(self, prepared: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32 [B, K] on the weights' device."""
        logits = self.model(self._input(prepared)).logits
        if logits.shape[1] != len(self.classes):
            raise UsageError(f"the network has {logits.shape[1]} outputs, but there are {len(self.classes)} classes")
        logits = logits.to(torch.float32)
        return torch.softmax(logits, dim=1) if self.thresholds is None else torch.sigmoid(logits)

    @torch.no_grad()
    def features(self, prepared: Tensor, at: str) -> Tensor:
        """uint8 [B, C, H, W] to the output of the stage `at`; `UsageError` lists the stages when it is none."""
        try:
            return self.model.features(self._input(prepared), at)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def _input(self, prepared: Tensor) -> Tensor:
        channels = self.preprocess.channels
        if prepared.dtype != torch.uint8 or prepared.ndim != 4 or prepared.shape[1] != channels:
            raise UsageError(
                f"expected prepared pictures as uint8 [B, {channels}, H, W], "
                f"received {prepared.dtype} {tuple(prepared.shape)}"
            )
        self.model.eval()
        return self.preprocess.normalize(prepared.to(self.device))


@final
class ClassicalClassifier:
    """The pipeline before 2012: pictures to vectors, vectors to a machine. machine: None for the vectors alone."""

    def __init__(
        self,
        pipeline: Pipeline,
        machine: Machine | None,
        classes: Sequence[str],
        thresholds: Sequence[float] | None = None,
    ) -> None:
        self.pipeline, self.machine, self.preprocess = pipeline, machine, pipeline.preprocess
        self.classes = _class_names(classes)
        self.thresholds = None if thresholds is None else _thresholds(thresholds, len(self.classes))
        self.stage_names = ("vector",)

    def to(self, device: str | torch.device) -> ClassicalClassifier:
        """The same with its tensors on another device; `UsageError` for one that this machine has not."""
        try:
            machine = None if self.machine is None else self.machine.to(device)
            return ClassicalClassifier(self.pipeline.to(device), machine, self.classes, self.thresholds)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UsageError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error

    def prepare(self, image: Tensor) -> Tensor:
        """uint8 [1 or 3, h, w] to uint8 [C, H, W]."""
        return self.preprocess.prepare(image)

    @torch.no_grad()
    def probabilities(self, prepared: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32 [B, K] on the device of what was learnt."""
        if self.machine is None:
            raise UsageError("this pipeline has no machine, so it makes vectors and names nothing")
        return self.machine.probabilities(self.features(prepared, "vector"))

    @torch.no_grad()
    def features(self, prepared: Tensor, at: str) -> Tensor:
        """uint8 [B, C, H, W] to the vectors that the machine sees, float32 [B, D]."""
        if at not in self.stage_names:
            raise UsageError(f"no stage {at!r}; stages: {', '.join(self.stage_names)}")
        expected = (self.preprocess.channels, *self.preprocess.size)
        if prepared.dtype != torch.uint8 or prepared.ndim != 4 or tuple(prepared.shape[1:]) != expected:
            raise UsageError(
                f"expected prepared pictures as uint8 [B, {', '.join(map(str, expected))}], "
                f"received {prepared.dtype} {tuple(prepared.shape)}"
            )
        return self.pipeline.vectors(prepared.to(next(iter(self.pipeline.tensors.values())).device))


Member = NetClassifier | ClassicalClassifier


@final
class FusedClassifier:
    """The weighted mean of what several classifiers say, each of pictures prepared as it wants them.

    members: 2 to `MAX_MEMBERS`, none of them fused, with the same names of classes in any order, all for one label a
    picture or all for many. weights: one a member, 0 or more, of sum 1; None: equal ones. classes: their names in
    another order than the first member's. thresholds: of many labels; None: 0.5 each.
    """

    def __init__(
        self,
        members: Sequence[Member],
        weights: Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        self.members = tuple(members)
        if not 2 <= len(self.members) <= MAX_MEMBERS:
            raise UsageError(f"expected 2 to {MAX_MEMBERS} classifiers to fuse, received {len(self.members)}")
        for member in self.members:
            if isinstance(member, FusedClassifier):
                raise UsageError("a fused classifier is not fused again; fuse its members")
            if not isinstance(member, Member):
                raise UsageError(f"a {type(member).__name__} cannot be fused; expected networks and classical ones")
        self.weights = _weights(weights, len(self.members))
        self.classes = _class_names(self.members[0].classes if classes is None else classes)
        self._columns = [_columns(member.classes, self.classes) for member in self.members]
        many = [member.thresholds is not None for member in self.members]
        if len({*many, thresholds is not None or many[0]}) > 1:
            raise UsageError("classifiers for one label a picture are not fused with classifiers for many")
        self.thresholds: tuple[float, ...] | None = None
        if many[0]:
            given = (0.5,) * len(self.classes) if thresholds is None else thresholds
            self.thresholds = _thresholds(given, len(self.classes))
        geometries = [_geometry(member.preprocess) for member in self.members]
        self._geometries = list(dict.fromkeys(geometries))  # members of equal ones share what is prepared
        self._own = [self._geometries.index(geometry) for geometry in geometries]

    @property
    def decode_size(self) -> tuple[int, int]:
        """(H, W) that is enough for every member, see `opsin.data.decode.decode`."""
        sizes = [decode_size(geometry) for geometry in self._geometries]
        return max(h for h, _ in sizes), max(w for _, w in sizes)

    def to(self, device: str | torch.device) -> FusedClassifier:
        """The same with its members on another device; `UsageError` for one that this machine has not."""
        moved = [member.to(device) for member in self.members]
        return FusedClassifier(moved, self.weights, self.classes, self.thresholds)

    def prepare(self, image: Tensor) -> Tensor:
        """uint8 [1 or 3, h, w] to uint8 [L]: what each way to prepare gives, flat, one after the other."""
        return torch.cat([geometry.prepare(image).flatten() for geometry in self._geometries])

    def each(self, prepared: Tensor) -> Tensor:
        """uint8 [B, L] to what each member says, float32 [B, M, K] in the order of `classes`, on the CPU."""
        shapes = [(geometry.channels, *geometry.size) for geometry in self._geometries]
        lengths = [math.prod(shape) for shape in shapes]
        if prepared.dtype != torch.uint8 or prepared.ndim != 2 or prepared.shape[1] != sum(lengths):
            raise UsageError(
                f"expected prepared pictures as uint8 [B, {sum(lengths)}], "
                f"received {prepared.dtype} {tuple(prepared.shape)}"
            )
        parts = [part.unflatten(1, shape) for part, shape in zip(prepared.split(lengths, 1), shapes, strict=True)]
        said = zip(self.members, self._own, self._columns, strict=True)
        return torch.stack([m.probabilities(parts[own])[:, columns].cpu() for m, own, columns in said], 1)

    def mean(self, said: Tensor) -> Tensor:
        """What `each` gave, float32 [B, M, K], to its weighted mean, [B, K]."""
        return (said * torch.tensor(self.weights, dtype=torch.float64)[:, None]).sum(1).float()

    def probabilities(self, prepared: Tensor) -> Tensor:
        """uint8 [B, L] to float32 [B, K] on the CPU."""
        return self.mean(self.each(prepared))


def _geometry(preprocess: Preprocess) -> Preprocess:
    """What of it decides how pictures are prepared: all but the arithmetic, which is on the device."""
    return replace(preprocess, mean=(0.0,) * preprocess.channels, std=(1.0,) * preprocess.channels)


def _columns(own: tuple[str, ...], classes: tuple[str, ...]) -> list[int]:
    """Where each of `classes` is among a member's own; `UsageError` unless they are the same names."""
    if wrong := sorted(set(own) ^ set(classes)):
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise UsageError(f"expected classifiers of the same classes; only some know: {shown}")
    return [own.index(name) for name in classes]


def _weights(given: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if given is None:
        return (1 / count,) * count
    good = isinstance(given, list | tuple) and len(given) == count
    good = good and all(type(value) in (int, float) and 0 <= value <= 1 for value in given)
    if not good or abs(sum(given) - 1) > 1e-6:
        raise UsageError(f"weights: expected {count} numbers from 0 to 1 whose sum is 1, received {given!r:.80}")
    return tuple(map(float, given))


def _thresholds(given: Sequence[float], num_classes: int) -> tuple[float, ...]:
    good = isinstance(given, list | tuple) and len(given) == num_classes
    if not good or not all(type(value) in (int, float) and 0 <= value <= 1 for value in given):
        raise UsageError(f"thresholds: expected {num_classes} numbers in 0 to 1, one a class, received {given!r:.80}")
    return tuple(map(float, given))


def _class_names(classes: Sequence[str]) -> tuple[str, ...]:
    names = tuple(classes)
    if isinstance(classes, str) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"classes: expected a list of names, received {classes!r:.80}")
    if any("\ud800" <= letter <= "\udfff" for name in names for letter in name):
        raise UsageError("classes: a name holds half a character (a surrogate), which no file can hold as text")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UsageError(f"classes: each name may occur once, but these occur again: {', '.join(twice[:5])}")
    return names


# ---------------------------------------------------------------------------------------------------------------------
# Saved and loaded
# ---------------------------------------------------------------------------------------------------------------------


def save(classifier: Classifier, folder: Path | str, *, half: bool = False) -> None:
    """Write the folder `folder`, durably, replacing an older one; `UsageError` for a kind that cannot be saved.

    half: matrices and filters as float16, half the size; `load` makes them float32 again, less exact by 2⁻¹¹ of each.
    """
    storage.write_folder(folder, _files(classifier, half))


def _files(classifier: Classifier, half: bool) -> dict[str, bytes]:
    """What a saved one's folder holds, by name."""
    if isinstance(classifier, NetClassifier):
        return _net_files(classifier, half)
    if half:
        raise UsageError("float16 is for networks; any other classifier is saved as it is")
    if isinstance(classifier, FusedClassifier):
        return _fused_files(classifier)
    if isinstance(classifier, ClassicalClassifier) and classifier.machine is not None:
        return _classical_files(classifier, classifier.machine)
    raise UsageError(
        f"a {type(classifier).__name__} cannot be saved; expected a NetClassifier, a classical one, or a fused one"
    )


def _net_files(classifier: NetClassifier, half: bool) -> dict[str, bytes]:
    preprocess, spec = classifier.preprocess, classifier.spec
    config = {
        "format": 1,
        "opsin": __version__,
        "kind": "net" if classifier.thresholds is None else "labels",
        "model": {"name": spec.name, "options": spec.options, "in_channels": preprocess.channels},
        "classes": list(classifier.classes),
        "preprocess": preprocess.to_dict(),
    }
    if classifier.thresholds is not None:
        config["thresholds"] = list(classifier.thresholds)
    theirs = {
        "architecture": spec.name,
        "num_classes": len(classifier.classes),
        "num_features": _num_features(classifier.model, len(classifier.classes)),
        "label_names": list(classifier.classes),
        "pretrained_cfg": {
            "input_size": [preprocess.channels, *preprocess.size],
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_fraction,
            "crop_mode": {"crop": "center", "pad": "border", "squash": "squash"}[preprocess.crop],
            "num_classes": len(classifier.classes),
        },
    }
    try:
        texts = [json.dumps(values, indent=1, allow_nan=False).encode() for values in (config, theirs)]
    except (TypeError, ValueError) as error:
        raise UsageError(f"model options: expected numbers, texts and lists of them: {error}") from error
    tensors = classifier.model.state_dict()
    if half:  # vectors stay: a running variance may be out of float16's range
        tensors = {key: tensor.half() if tensor.ndim > 1 else tensor for key, tensor in tensors.items()}
    weights = storage.to_safetensors(tensors)
    return {CONFIG: texts[0], WEIGHTS: weights, FOR_OTHERS: texts[1]}


def _classical_files(classifier: ClassicalClassifier, machine: Machine) -> dict[str, bytes]:
    config = {
        "format": 1,
        "opsin": __version__,
        "kind": "classical",
        "pipeline": to_dict(classifier.pipeline.classical),
        "machine": machine.config(),
        "classes": list(classifier.classes),
        "preprocess": classifier.preprocess.to_dict(),
    }
    if classifier.thresholds is not None:
        config["thresholds"] = list(classifier.thresholds)
    tensors = {f"pipeline.{key}": tensor for key, tensor in classifier.pipeline.tensors.items()}
    tensors |= {f"machine.{key}": tensor for key, tensor in machine.arrays().items()}
    return {CONFIG: json.dumps(config, indent=1, allow_nan=False).encode(), WEIGHTS: storage.to_safetensors(tensors)}


def _fused_files(classifier: FusedClassifier) -> dict[str, bytes]:
    config = {
        "format": 1,
        "opsin": __version__,
        "kind": FUSED,
        "classes": list(classifier.classes),
        "weights": list(classifier.weights),
    }
    if classifier.thresholds is not None:
        config["thresholds"] = list(classifier.thresholds)
    files = {CONFIG: json.dumps(config, indent=1, allow_nan=False).encode()}
    for i, member in enumerate(classifier.members):
        own = _files(member, half=False)
        files |= {f"{i}-{name}": own[name] for name in (CONFIG, WEIGHTS)}
    return files


def load(folder: Path | str, device: str = "cpu") -> Classifier:
    """The classifier of a run folder, of its `classifier/` folder, or a shipped one of that name, on `device`.

    In evaluation mode.

    Nothing is guessed: a damaged file, an unknown key, a missing, unexpected, misshapen or non-finite tensor is a
    `StorageError` that names it.
    """
    folder = shipped.find(folder)
    for place in (folder, folder / "classifier"):
        if storage.holds(place):
            folder = place
            break
    else:
        names = ", ".join(shipped.SHIPPED)
        raise StorageError(
            f"{folder}: no classifier here; expected a run folder, its classifier/ folder, or a shipped one: {names}"
        )
    return _made(storage.read_folder(folder), folder, device, LOADERS)


def _made(
    files: Mapping[str, bytes], folder: Path, device: str, loaders: Mapping[str, Loader], prefix: str = ""
) -> Classifier:
    """The classifier of the files whose names begin so."""
    where = folder / f"{prefix}{CONFIG}"
    if where.name not in files:
        raise StorageError(f"{folder}: expected the file {where.name}, received {sorted(files)}")
    config = storage.read_json(files[where.name], where)
    if not isinstance(config, dict) or config.get("format") != 1:
        raise StorageError(f"{where}: expected an object of format 1, received {str(config)[:80]}")
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in loaders:
        raise StorageError(f"{where}: kind: expected one of {', '.join(loaders)}, received {kind!r}")
    return loaders[kind](config, files, where, device)


def _tensors(files: Mapping[str, bytes], where: Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors that belong to the configuration `where`, and the name of their file."""
    weights = where.with_name(f"{where.name.removesuffix(CONFIG)}{WEIGHTS}")
    if weights.name not in files:
        raise StorageError(f"{where.parent}: expected the file {weights.name}, received {sorted(files)}")
    return storage.from_safetensors(files[weights.name], weights), weights


def _load_net(config: Mapping[str, Any], files: Mapping[str, bytes], where: Path, device: str) -> NetClassifier:
    model = config.get("model")
    expected = {"name": str, "options": dict, "in_channels": int}
    if not isinstance(model, dict) or {key: type(value) for key, value in model.items()} != expected:
        raise StorageError(f"{where}: model: expected name, options and in_channels, received {str(model)[:80]}")
    if not isinstance(config.get("classes"), list) or not isinstance(config.get("preprocess"), dict):
        raise StorageError(f"{where}: expected a list of classes and a table preprocess")
    try:
        classes = _class_names(config["classes"])
        own = _thresholds(config.get("thresholds", ()), len(classes)) if config["kind"] == "labels" else None
        preprocess = check(config["preprocess"], Preprocess, "preprocess")
        # Without memory and without random numbers: the file's tensors become the network's, once they fit.
        with torch.device("meta"):
            net = models.build(model["name"], len(classes), model["in_channels"], **model["options"])
    except (TypeError, ValueError, RuntimeError) as error:  # UsageError is a ValueError
        raise StorageError(f"{where}: {error}") from error
    if preprocess.channels != model["in_channels"]:
        raise StorageError(
            f"{where}: the network takes {model['in_channels']} channels, preprocess gives {preprocess.channels}"
        )
    tensors, weights = _tensors(files, where)
    tensors = {key: tensor.float() if tensor.dtype == torch.float16 else tensor for key, tensor in tensors.items()}
    set_weights(net, tensors, weights)
    net.eval()
    spec = ModelSpec(name=model["name"], options=model["options"])
    return NetClassifier(net, preprocess, classes, spec, own).to(device)


def _load_classical(
    config: Mapping[str, Any], files: Mapping[str, bytes], where: Path, device: str
) -> ClassicalClassifier:
    for key, kind in (("pipeline", dict), ("machine", dict), ("preprocess", dict), ("classes", list)):
        if not isinstance(config.get(key), kind):
            raise StorageError(f"{where}: {key}: expected a {kind.__name__}, received {str(config.get(key))[:80]}")
    try:
        classes = _class_names(config["classes"])
        own = _thresholds(config["thresholds"], len(classes)) if "thresholds" in config else None
        preprocess = check(config["preprocess"], Preprocess, "preprocess")
        pipeline = Pipeline(check(config["pipeline"], Classical, "pipeline"), preprocess)
    except (TypeError, ValueError) as error:  # UsageError is a ValueError
        raise StorageError(f"{where}: {error}") from error
    parts: dict[str, dict[str, Tensor]] = {"pipeline": {}, "machine": {}}
    tensors, weights = _tensors(files, where)
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise StorageError(f"{weights}: {key}: unexpected")
        parts[part][name] = tensor
    pipeline = checked(pipeline, parts["pipeline"], str(weights))
    machine = restored(config["machine"], parts["machine"], str(weights))
    fits = machine.settings.features == pipeline.width and machine.num_classes == len(classes)
    if (
        not fits
        or (machine.settings.link == "softmax" and own is not None)
        or (machine.settings.link == "sigmoid" and own is None)
    ):
        raise StorageError(
            f"{where}: expected a machine of {pipeline.width} numbers and {len(classes)} classes, received one of "
            f"{machine.settings.features} and {machine.num_classes}, {machine.settings.link}"
        )
    return ClassicalClassifier(pipeline, machine, classes, own).to(device)


def _load_fused(config: Mapping[str, Any], files: Mapping[str, bytes], where: Path, device: str) -> FusedClassifier:
    given, classes = config.get("weights"), config.get("classes")
    if not isinstance(given, list) or not 2 <= len(given) <= MAX_MEMBERS or not isinstance(classes, list):
        raise StorageError(
            f"{where}: expected lists of classes and of 2 to {MAX_MEMBERS} weights, received {str(config)[:80]}"
        )
    names = {CONFIG, *(f"{i}-{name}" for i in range(len(given)) for name in (CONFIG, WEIGHTS))}
    if wrong := sorted(names ^ files.keys()):
        raise StorageError(
            f"{where.parent}: expected {len(given)} members; missing or too many: {', '.join(wrong[:5])}"
        )
    alone = {kind: loader for kind, loader in LOADERS.items() if kind != FUSED}
    members = [_made(files, where.parent, device, alone, prefix=f"{i}-") for i in range(len(given))]
    if (thresholds(members[0]) is None) != (config.get("thresholds") is None):
        raise StorageError(f"{where}: expected thresholds where its members are for many labels, and only there")
    try:
        return FusedClassifier(cast(list[Member], members), given, classes, config.get("thresholds"))
    except UsageError as error:
        raise StorageError(f"{where}: {error}") from error


FUSED = "fused"
Loader = Callable[[Mapping[str, Any], Mapping[str, bytes], Path, str], Classifier]  # its path is the configuration's
# By the kind of a saved one. "labels" is a net with a sigmoid head: a version that knows only softmax refuses it.
LOADERS: dict[str, Loader] = {
    "net": _load_net,
    "labels": _load_net,
    "classical": _load_classical,
    FUSED: _load_fused,
}


def set_weights(model: nn.Module, tensors: Mapping[str, Tensor], name: Path | str) -> None:
    """Make `tensors` those of `model` once they fit exactly and are finite; `StorageError` names what is wrong."""
    own = model.state_dict()
    problems = [f"{key}: missing" for key in own if key not in tensors]
    problems += [f"{key}: unexpected" for key in tensors if key not in own]
    for key in own.keys() & tensors.keys():
        want, got = own[key], tensors[key]
        if want.shape != got.shape or want.dtype != got.dtype:
            problems.append(
                f"{key}: expected {want.dtype} {tuple(want.shape)}, received {got.dtype} {tuple(got.shape)}"
            )
        elif not bool(torch.isfinite(got).all()):
            problems.append(f"{key}: not finite")
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise StorageError(f"{name}: these weights do not fit the network: {shown}")
    model.load_state_dict(dict(tensors), assign=True)


def _num_features(model: nn.Module, num_classes: int) -> int:
    """What the last layer with weights reads (timm's `num_features`); K for a head without weights."""
    layers = [layer for layer in getattr(model, "head", model).modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        return num_classes
    return layers[-1].in_features if isinstance(layers[-1], nn.Linear) else layers[-1].in_channels


# ---------------------------------------------------------------------------------------------------------------------
# Asked
# ---------------------------------------------------------------------------------------------------------------------


class Prediction(NamedTuple):
    name: str  # of the class
    label: int  # its number
    probability: float


def predict(
    classifier: Classifier,
    images: Sequence[Picture] | Index,
    top: int = 5,
    batch_size: int = 64,
    workers: int = 2,
    decoders: Decoders | None = None,
    skipped: Skipped | None = None,
) -> list[list[Prediction]]:
    """The `top` most probable classes of each picture, best first (the lower number first among equals); of a
    classifier for many labels only those that reach their threshold, which may be none.

    images: paths, encoded bytes, Pillow images, arrays uint8 [h, w] or [h, w, C], tensors uint8 [C, h, w], mixed at
    will; or an `Index`. A picture that cannot be read is a `BadInput` that names it, or `skipped` is told of it, and it
    has no answer. decoders: for pictures of strangers; one that crashes its decoder, or lets it run away, is a
    `BadInput` too, then.
    """
    if top < 1:
        raise UsageError(f"top: expected at least 1, received {top}")
    answers = []
    options = {"batch_size": batch_size, "workers": workers, "decoders": decoders, "skipped": skipped}
    for places, prepared in prepared_batches(classifier, images, **options):
        answers += named(classifier, prepared, top, f"pictures {places[0]} to {places[-1]}")
    return answers


def named(classifier: Classifier, prepared: Tensor, top: int, where: str) -> list[list[Prediction]]:
    """What `predict` says of a batch of what `prepare` returned. where: for the message about a broken contract."""
    rows, least = ask(classifier, prepared, where), thresholds(classifier) or (0.0,) * len(classifier.classes)
    return [
        [Prediction(classifier.classes[k], k, row[k]) for k in best if row[k] >= least[k]][:top]
        for row, best in zip(rows.tolist(), metrics.ranking(rows, len(least)).tolist(), strict=True)
    ]


def features(
    classifier: Classifier,
    images: Sequence[Picture] | Index,
    at: str,
    maps: bool = False,
    batch_size: int = 64,
    workers: int = 2,
    decoders: Decoders | None = None,
    skipped: Skipped | None = None,
) -> Tensor:
    """What the stage `at` makes of each picture, float32 on the CPU. decoders, skipped: as of `predict`.

    Vectors [N, D] by default: maps are averaged over height and width. With `maps`, the stage's output as it is.
    """
    options = {"batch_size": batch_size, "workers": workers, "decoders": decoders, "skipped": skipped}
    parts = [part for _, part in feature_batches(classifier, images, at, maps, **options)]
    return torch.cat(parts) if parts else torch.empty(0, 0)


def feature_batches(
    classifier: Classifier, images: Sequence[Picture] | Index, at: str, maps: bool = False, **options: Any
) -> Iterator[tuple[list[int], Tensor]]:
    """`features` batch by batch, with the places of the pictures. options: of `prepared_batches`."""
    if not hasattr(classifier, "features"):
        raise UsageError(f"a {type(classifier).__name__} has no stages to take features from")
    for places, prepared in prepared_batches(classifier, images, **options):
        part = cast(NetClassifier, classifier).features(prepared, at).to(torch.float32)
        yield places, (part if maps or part.ndim < 3 else part.flatten(2).mean(2)).cpu()


def prepared_batches(
    classifier: Classifier,
    images: Sequence[Picture] | Index,
    *,
    batch_size: int,
    workers: int,
    skipped: Skipped | None = None,
    decoders: Decoders | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Read and prepare pictures in `workers` threads: (their places, [B, …]) in order, two batches ahead at most.

    skipped: is told of each picture that cannot be read, which is then left out; without it the `BadInput` is raised.
    decoders: decode paths and bytes there instead of in this process: for pictures that nobody has looked at.
    """
    if isinstance(images, str | bytes | Path | Image.Image):
        raise UsageError(f"expected a list of pictures, received one {type(images).__name__}; put it into a list")
    if batch_size < 1 or workers < 1:
        raise UsageError(f"expected batch_size and workers of at least 1, received {batch_size} and {workers}")

    preprocess = getattr(classifier, "preprocess", None)
    min_size = decode_size(preprocess) if isinstance(preprocess, Preprocess) else None
    if isinstance(classifier, FusedClassifier):
        min_size = classifier.decode_size

    def get(i: int) -> Tensor:
        if isinstance(images, Index):
            return classifier.prepare(images.image(i, min_size))
        return classifier.prepare(read_picture(images[i], f"picture {i}", min_size, decoders))

    n, sent = len(images), 0
    waiting: deque[tuple[int, Any]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="opsin-prepare")
    try:
        for start in range(0, n, batch_size):
            stop = min(start + batch_size, n)
            places, batch = [], []
            for i in range(start, stop):
                while sent < n and sent < i + 2 * batch_size:
                    waiting.append((sent, pool.submit(get, sent)))
                    sent += 1
                place, future = waiting.popleft()
                try:
                    batch.append(future.result())
                    places.append(place)
                except BadInput as error:
                    if skipped is None:
                        raise
                    skipped(place, error)
            if batch:
                yield places, torch.stack(batch)
    finally:
        pool.shutdown(cancel_futures=True)


def read_picture(
    image: Picture, name: str, min_size: tuple[int, int] | None = None, decoders: Decoders | None = None
) -> Tensor:
    """A picture of any kind that `predict` takes, as uint8 [1 or 3, h, w].

    name: for messages. min_size: (H, W) that is enough, see `opsin.data.decode.decode`. decoders: of paths and bytes.
    """
    decoder = decoders.decode if decoders else decode
    if isinstance(image, str | Path):
        return decoder(read(image), printable(image), min_size=min_size)
    if isinstance(image, bytes | bytearray | memoryview):
        return decoder(bytes(image), name, min_size=min_size)
    if isinstance(image, Image.Image):
        return from_pillow(image, name)
    if isinstance(image, np.ndarray):
        array = image[:, :, None] if image.ndim == 2 else image
        if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (1, 3) and array.size:
            return torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))
        raise UsageError(
            f"{name}: expected an array uint8 [h, w] or [h, w, 1 or 3], received {image.dtype} {image.shape}"
        )
    if isinstance(image, Tensor):
        if image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] in (1, 3) and image.numel():
            return image.cpu()
        raise UsageError(f"{name}: expected a tensor uint8 [1 or 3, h, w], received {image.dtype} {tuple(image.shape)}")
    raise UsageError(
        f"{name}: expected a path, bytes, a Pillow image, an array or a tensor, received {type(image).__name__}"
    )


def from_pillow(image: Image.Image, name: str) -> Tensor:
    """A Pillow image of any mode as uint8 [1 or 3, h, w], by the rules of `data.decode`, EXIF orientation applied."""
    try:
        pixels = _pixels(ImageOps.exif_transpose(image))
    except _Refused as error:
        raise BadInput(name, str(error)) from None
    except Exception as error:  # a lazily opened file shows its damage here, in as many ways as there are decoders
        raise BadInput(name, f"cannot be decoded: {error or type(error).__name__}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def ask(classifier: Classifier, prepared: Tensor, where: str) -> Tensor:
    """The probabilities, on the CPU. `OpsinError` when a classifier broke its contract: float [B, K], finite, rows that
    sum to one; of many labels 0 to 1 each. where: for the message."""
    probabilities, size, classes = classifier.probabilities(prepared).cpu(), len(prepared), len(classifier.classes)
    if tuple(probabilities.shape) != (size, classes):
        raise OpsinError(f"{where}: expected probabilities [{size}, {classes}], received {tuple(probabilities.shape)}")
    sums = probabilities.sum(1)
    if not bool(torch.isfinite(sums).all()):
        raise OpsinError(f"{where}: the classifier answered with NaN or infinity; its weights have diverged")
    if thresholds(classifier) is not None:
        if bool(((probabilities < 0) | (probabilities > 1)).any()):
            raise OpsinError(f"{where}: the classifier's probabilities are not all in 0 to 1")
    elif bool(((sums - 1).abs() > 1e-3).any()) or bool((probabilities < 0).any()):
        raise OpsinError(f"{where}: the classifier's probabilities are not distributions; rows must sum to 1")
    return probabilities
