"""Weights that others have trained: read without running their code, renamed by tables, and never adapted silently."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import BadInput, StorageError, UsageError
from opsin.models.vgg import CONVOLUTIONS
from opsin.storage import from_safetensors

MAX_BYTES = 4 << 30
TORCH_SUFFIXES = (".pth", ".pt", ".th", ".tar", ".bin")
WRAPPERS = ("state_dict", "model", "state_dict_ema")  # under which training scripts keep the tensors; first found wins
PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and by torch.compile

# ---------------------------------------------------------------------------------------------------------------------
# Key maps: a foreign module (a regular expression for all of its path) → ours. The tensor's own name stays.
# ---------------------------------------------------------------------------------------------------------------------


def _conv_bn(units: Mapping[str, str]) -> dict[str, str]:
    """The entries of modules that are a convolution and a normalisation: `conv` and `bn` for our 0 and 1."""
    parts = (("conv", 0), ("bn", 1))
    return {rf"{theirs}\.{part}": f"{ours}.{place}" for theirs, ours in units.items() for part, place in parts}


# torchvision's and timm's names, and those of the public CIFAR ResNets (`linear` and `shortcut` for `fc`, `downsample`)
RESNET = {
    r"conv1": "stages.stem.0",
    r"bn1": "stages.stem.1",
    r"layer(\d)\.(\d+)\.conv1": r"stages.stage\1.\2.body.0.0",
    r"layer(\d)\.(\d+)\.bn1": r"stages.stage\1.\2.body.0.1",
    r"layer(\d)\.(\d+)\.conv2": r"stages.stage\1.\2.body.1.0",
    r"layer(\d)\.(\d+)\.bn2": r"stages.stage\1.\2.body.1.1",
    r"layer(\d)\.(\d+)\.conv3": r"stages.stage\1.\2.body.2.0",
    r"layer(\d)\.(\d+)\.bn3": r"stages.stage\1.\2.body.2.1",
    r"layer(\d)\.(\d+)\.(?:downsample|shortcut)\.([01])": r"stages.stage\1.\2.shortcut.\3",
    r"fc|linear": "head.linear",
}


def _vgg(depth: int, *, norm: bool) -> dict[str, str]:
    """`features` is our five stages in one row; then torchvision's `classifier`, or timm's names of the same layers.

    Of maps larger than 7×7, which 224 does not give, torchvision and we take the mean first; timm slides fc1 over them.
    """
    table, offset = {}, 0
    for i, count in enumerate(CONVOLUTIONS[depth], 1):
        length = count * (3 if norm else 2) + 1
        table |= {rf"features\.{offset + j}": f"stages.stage{i}.{j}" for j in range(length)}
        offset += length
    return table | {
        r"classifier\.0|pre_logits\.fc1": "stages.fc1.linear",
        r"classifier\.3|pre_logits\.fc2": "stages.fc2.linear",
        r"classifier\.6|head\.fc": "head",
    }


ALEXNET = {  # torchvision's
    **{rf"features\.{place}": f"stages.conv{i}.conv" for i, place in enumerate((0, 3, 6, 8, 10), 1)},
    r"classifier\.1": "stages.fc1.linear",
    r"classifier\.4": "stages.fc2.linear",
    r"classifier\.6": "head",
}

GOOGLENET = _conv_bn(  # torchvision's
    {
        "conv1": "stages.stem.0",
        "conv2": "stages.stem.2",
        "conv3": "stages.stem.3",
        r"inception(\d\w)\.branch1": r"stages.\1.0",
        r"inception(\d\w)\.branch2\.([01])": r"stages.\1.1.\2",
        r"inception(\d\w)\.branch3\.([01])": r"stages.\1.2.\2",
        r"inception(\d\w)\.branch4\.1": r"stages.\1.3.1",
        r"aux1\.conv": "aux.4a.conv",
        r"aux2\.conv": "aux.4d.conv",
    }
) | {
    r"aux1\.fc1": "aux.4a.fc",
    r"aux1\.fc2": "aux.4a.linear",
    r"aux2\.fc1": "aux.4d.fc",
    r"aux2\.fc2": "aux.4d.linear",
    r"fc": "head.linear",
}


def _inception_v3() -> dict[str, str]:
    """torchvision's names, which are timm's too, module by module: theirs count layers from 1 on."""
    stem = zip(("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"), (0, 1, 2, 4, 5), strict=True)
    units = {f"Conv2d_{theirs}": f"stages.stem.{place}" for theirs, place in stem}

    def chain(module: str, theirs: str, branch: int, count: int) -> None:
        for i in range(count):
            units[rf"Mixed_{module}\.{theirs}_{i + 1}"] = f"stages.{module}.{branch}.{i}"

    for module in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b", "7c"):
        units[rf"Mixed_{module}\.branch1x1"] = f"stages.{module}.0.0"
        units[rf"Mixed_{module}\.branch_pool"] = f"stages.{module}.3.1"
        if module < "6":
            chain(module, "branch5x5", 1, 2)
            chain(module, "branch3x3dbl", 2, 3)
        elif module < "7":
            chain(module, "branch7x7", 1, 3)
            chain(module, "branch7x7dbl", 2, 5)
        else:
            chain(module, "branch3x3", 1, 1)
            chain(module, "branch3x3dbl", 2, 2)
            for i, fork in enumerate("ab"):
                units[rf"Mixed_{module}\.branch3x3_2{fork}"] = f"stages.{module}.1.1.{i}"
                units[rf"Mixed_{module}\.branch3x3dbl_3{fork}"] = f"stages.{module}.2.2.{i}"
    units[r"Mixed_6a\.branch3x3"] = "stages.6a.0.0"
    chain("6a", "branch3x3dbl", 1, 3)
    chain("7a", "branch3x3", 0, 2)
    chain("7a", "branch7x7x3", 1, 4)
    units |= {r"AuxLogits\.conv0": "aux.6e.conv1", r"AuxLogits\.conv1": "aux.6e.conv2"}
    return _conv_bn(units) | {r"AuxLogits\.fc": "aux.6e.linear", r"fc": "head.linear"}


def _inception_v4() -> dict[str, str]:
    """timm's names: `features` is our stages in one row, after three layers of the stem."""
    units = {r"features\.([012])": r"stages.stem.\1", r"features\.3\.conv": "stages.3a.0.0"}
    units[r"features\.5\.conv"] = "stages.5a.0.0"
    modules = ("4a", "5a", *(f"5{x}" for x in "bcde"), *(f"6{x}" for x in "abcdefgh"), *(f"7{x}" for x in "abcd"))
    for place, module in enumerate(modules, 4):
        units[rf"features\.{place}\.branch0"] = f"stages.{module}.0.0"
        units[rf"features\.{place}\.branch(\d)[._](\d)"] = rf"stages.{module}.\1.\2"
        for i, fork in enumerate("ab"):
            units[rf"features\.{place}\.branch([12])_([13]){fork}"] = rf"stages.{module}.\1.\2.{i}"
    return _conv_bn(units) | {"last_linear": "head.linear"}


def _inception_resnet_v2() -> dict[str, str]:
    """timm's names."""
    stem = {"1a": 0, "2a": 1, "2b": 2, "3b": 4, "4a": 5}
    units = {f"conv2d_{theirs}": f"stages.stem.{place}" for theirs, place in stem.items()} | {"conv2d_7b": "stages.7d"}
    for module in ("5b", "6a", "7a"):
        units[rf"mixed_{module}\.branch0"] = f"stages.{module}.0.0"
        units[rf"mixed_{module}\.branch(\d)\.(\d)"] = rf"stages.{module}.\1.\2"
    table = {"classif": "head.linear"}
    for theirs, ours in {
        r"repeat\.(?P<n>\d+)": "stages.5c.\\g<n>",
        r"repeat_1\.(?P<n>\d+)": "stages.6b.\\g<n>",
        r"repeat_2\.(?P<n>\d+)": "stages.7b.\\g<n>",
        "block8": "stages.7c.0",
    }.items():
        units[rf"{theirs}\.branch0"] = f"{ours}.body.0.0.0"
        units[rf"{theirs}\.branch(?P<b>\d)\.(?P<i>\d)"] = rf"{ours}.body.0.\g<b>.\g<i>"
        table[rf"{theirs}\.conv2d"] = f"{ours}.body.1"
    return _conv_bn(units) | table


KEY_MAPS: dict[str, dict[str, str]] = {
    "resnet": RESNET,
    "alexnet_owt": ALEXNET,
    "googlenet_bn": GOOGLENET,
    "inception_v3": _inception_v3(),
    "inception_v4": _inception_v4(),
    "inception_resnet_v2": _inception_resnet_v2(),
    **{f"vgg{depth}": _vgg(depth, norm=False) for depth in CONVOLUTIONS},
    **{f"vgg{depth}_bn": _vgg(depth, norm=True) for depth in CONVOLUTIONS},
}

# Foreign tensors (a regular expression for all of their names) of another form than ours, and how they take it on.
# timm's VGG applies fc1 and fc2 as convolutions. Its Inception v4 joins pooling and convolution of 3a in that order,
# the paper (and we) draw the convolution first: the 64 of 160 channels that 4a's first layers read first are our last.
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    r"pre_logits\.fc[12]\.weight": lambda weight: weight.flatten(1),
    r"features\.4\.branch[01]\.0\.conv\.weight": lambda weight: weight.roll(-(weight.shape[1] * 2 // 5), 1),
}

# The last layer of networks without a fully-connected one
LAST = {"nin_cifar": "stages.mlpconv3.cccp2", "nin": "stages.mlpconv4.cccp2"}
# The first layer: one of these
FIRST = tuple(
    f"stages.{s}.weight" for s in ("stem.0", "stem.0.0", "whiten.0", "conv1.conv", "mlpconv1.conv", "stage1.0")
)


def key_map(name: str) -> dict[str, str]:
    """The table for the network `name` of `opsin.models.MODELS`; empty where only our own names are known."""
    return KEY_MAPS["resnet"] if name.startswith("resnet") else KEY_MAPS.get(name, {})


def translate(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The same tensors under our names; a key that the table does not know stays as it is."""
    table = [(re.compile(pattern), ours) for pattern, ours in key_map(name).items()]
    translated: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, leaf = key.rpartition(".")
        matches = ((pattern.fullmatch(module), ours) for pattern, ours in table)
        new = next((f"{match.expand(ours)}.{leaf}" for match, ours in matches if match), key)
        if new != key and tensor.ndim == 4:
            tensor = next((form(tensor) for pattern, form in FORMS.items() if re.fullmatch(pattern, key)), tensor)
        if new in translated:
            raise UsageError(f"the weights do not fit {name}: two tensors are for {new}, one of them {key}")
        translated[new] = tensor
    return translated


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def load_foreign(path: Path | str, *, max_bytes: int = MAX_BYTES, notes: list[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a weights file by the names that they have there, on the CPU.

    .safetensors, or .pth .pt .th .tar .bin as PyTorch writes them; the latter are read as tensors only, so that no
    code in them runs. What training scripts wrap around the tensors is taken off, and so are the prefixes `module.`
    and `_orig_mod.` where all names have them; each is said in `notes`.
    `BadInput` when the file is missing, larger than `max_bytes` (also once unpacked), damaged, or holds anything else,
    also a number that is not finite.
    """
    path, notes = Path(path), [] if notes is None else notes
    check_file(path, max_bytes)
    if path.suffix.lower() == ".safetensors":
        try:
            return _finite(_strip_prefixes(from_safetensors(path.read_bytes(), path), notes), path)
        except StorageError as error:
            raise BadInput(path, f"not a safetensors file, or damaged: {error.__cause__ or error}") from error
    if path.suffix.lower() not in TORCH_SUFFIXES:
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise BadInput(path, f"expected a weights file ({known}), received {path.suffix or 'no suffix'}")
    return _finite(_strip_prefixes(_unwrap(_load_tensors_only(path, max_bytes), path, notes), notes), path)


def check_file(path: Path, max_bytes: int) -> None:
    """`BadInput` for what is missing, no regular file (a pipe would be waited for), or larger than `max_bytes`."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise BadInput(path, "expected a file, this is not a file")
    except OSError as error:
        raise BadInput(path, error.strerror or str(error)) from error
    if size > max_bytes:
        raise BadInput(path, f"{size} bytes; at most {max_bytes} are read")


def _finite(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BadInput(path, f"{key[:80]!r} holds NaN or infinite values")
    return tensors


def _load_tensors_only(path: Path, max_bytes: int) -> Any:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > max_bytes:
                raise BadInput(path, f"{unpacked} bytes once unpacked; at most {max_bytes} are read")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice about other ways to load; we say our own below
            return torch.load(path, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except Exception as error:  # a file from outside: whatever the parsers trip over, it is this file that is bad
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it holds a Python object, {found[1]}" if found else f"{type(error).__name__} while reading it"
        raise BadInput(
            path,
            f"cannot be read as tensors only: {what}. Reading more could run code from the file, so it is refused; "
            "where you trust it, save its state_dict as .safetensors with the program that made it",
        ) from error


def _unwrap(contents: Any, path: Path, notes: list[str]) -> dict[str, Tensor]:
    if isinstance(contents, Mapping):
        found = [key for key in WRAPPERS if isinstance(contents.get(key), Mapping)]
        if found:
            others = f" (not {', '.join(found[1:])})" if found[1:] else ""
            notes.append(f"took the tensors under {found[0]!r}{others}")
            contents = contents[found[0]]
    if not isinstance(contents, Mapping) or not contents:
        raise BadInput(path, f"expected named tensors, received {_kind(contents)}")
    for key, value in contents.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise BadInput(path, f"expected named tensors, received {_kind(value)} under {str(key)[:80]!r}")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise BadInput(path, f"expected plain dense tensors, {key[:80]!r} is {value.layout} of {value.dtype}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise BadInput(path, f"{key[:80]!r} claims {value.numel()} values that the file does not hold")
    return {key: value.detach() for key, value in contents.items()}


def _kind(value: Any) -> str:
    return "an empty mapping" if isinstance(value, Mapping) and not value else f"a value of type {type(value).__name__}"


def _strip_prefixes(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    while tensors:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None)
        if prefix is None:
            break
        notes.append(f"took off the prefix {prefix!r}")
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


# ---------------------------------------------------------------------------------------------------------------------
# Using
# ---------------------------------------------------------------------------------------------------------------------


def classes_and_channels(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """(num_classes, in_channels) that the network `name` must be built with for these tensors."""
    ours = translate(tensors, name)
    heads = [t for key, t in ours.items() if (key.startswith("head.") and t.ndim == 2) or key == _last_weight(name)]
    inputs = [ours[key] for key in FIRST if key in ours and ours[key].ndim == 4]
    if len(heads) != 1 or not inputs:
        missing = "last layer" if len(heads) != 1 else "first convolution"
        raise UsageError(f"the weights do not fit {name}: no {missing} among {_some(list(tensors))}")
    return heads[0].shape[0], inputs[0].shape[1]


def _last_weight(name: str) -> str:
    return f"{LAST[name]}.weight" if name in LAST else ""


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], name: str, *, adapt: bool = False) -> list[str]:
    """Put foreign (or our own) tensors into a network built as `name`; returns what was done, in words.

    All or nothing: one `UsageError` lists every tensor that is missing, not expected, or of another shape or kind, and
    the network is then untouched. Only the batch counters that old files lack may be absent, and that is said.
    adapt: for training on other pictures. Layers that answer with another number of classes keep the network's own
    values, and the first convolution is fitted to another number of channels; each is said.
    """
    ours = translate(tensors, name)
    theirs = dict(zip(ours, tensors, strict=True))
    expected = model.state_dict()
    adapted = _adapt(ours, expected, name) if adapt else []
    counters = [key for key in expected if key.endswith(".num_batches_tracked") and key not in ours]
    missing = [key for key in expected if key not in ours and key not in counters]
    unexpected = [theirs[key] for key in ours if key not in expected]
    shared = [key for key in ours if key in expected]
    shapes = [key for key in shared if ours[key].shape != expected[key].shape]
    kinds = [key for key in shared if ours[key].is_floating_point() != expected[key].is_floating_point()]

    problems = []
    if missing:
        problems.append(f"missing: {_some(missing)}")
    if unexpected:
        problems.append(f"not expected: {_some(unexpected)}")
    if shapes:
        pairs = [f"{k} (expected {_shape(expected[k])}, received {_shape(ours[k])})" for k in shapes]
        problems.append(f"of another shape: {_some(pairs)}")
    if kinds:
        problems.append(f"of another kind: {_some([f'{k} ({_dtype(ours[k])})' for k in kinds])}")
    if problems:
        raise UsageError(
            f"the weights do not fit {name}. {'. '.join(problems)}.{_hint(name, missing, unexpected, shapes)}"
        )

    model.load_state_dict(ours, strict=not counters)
    renamed = sum(key != old for key, old in theirs.items())
    notes = [f"loaded {len(ours)} tensors into {name}" + (f", {renamed} of them renamed" if renamed else "")]
    converted = Counter((_dtype(ours[k]), _dtype(expected[k])) for k in shared if ours[k].dtype != expected[k].dtype)
    notes += [f"converted {count} tensors from {old} to {new}" for (old, new), count in converted.items()]
    if counters:
        notes.append(f"the file has no num_batches_tracked; the {len(counters)} counters stay at 0")
    return notes + adapted


def _adapt(ours: dict[str, Tensor], expected: Mapping[str, Tensor], name: str) -> list[str]:
    """Make `ours` fit another number of classes and of input channels, and nothing else; what was done, in words."""
    notes, differ = [], [key for key in expected if key in ours and ours[key].shape != expected[key].shape]
    answering = re.compile(rf"head\.(.+\.)?\w+|aux\.\w+\.linear\.\w+|{re.escape(LAST.get(name, 'head'))}\.\w+")
    fresh = [k for k in differ if answering.fullmatch(k) and _but_for(0, ours[k], expected[k])]
    if fresh:
        old, new = len(ours[fresh[0]]), len(expected[fresh[0]])
        notes.append(f"the weights are for {old} classes, here are {new}: not taken, but new, are {_some(fresh)}")
        ours |= {key: expected[key] for key in fresh}
    for key in (key for key in differ if key in FIRST):
        weight, channels = ours[key], expected[key].shape[1]
        if _but_for(1, weight, expected[key]) and weight.numel():
            given = weight.shape[1]
            if channels == 1:  # grey pictures are what colour ones with three equal channels are
                ours[key], how = weight.sum(1, keepdim=True), "summed"
            else:
                places = torch.arange(channels) % given
                ours[key], how = (
                    weight[:, places] * (given / channels),
                    f"repeated and multiplied by {given}/{channels}",
                )
            notes.append(f"the weights are for {given} channels, the pictures have {channels}: {key} is {how}")
    return notes


def _but_for(dim: int, one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, dimension `dim` aside."""
    rests = [(*tensor.shape[:dim], *tensor.shape[dim + 1 :]) for tensor in (one, other)]
    return one.ndim == other.ndim and rests[0] == rests[1]


def _hint(name: str, missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[str]) -> str:
    if any(re.search(r"\.(downsample|shortcut)\.", key) for key in unexpected) and name.startswith("resnet"):
        return ' The file has projection shortcuts: build the network with shortcut="B".'
    if any(".shortcut." in key for key in missing) and not unexpected:
        return ' The file has no projection shortcuts: build the network with shortcut="A".'
    if missing and not unexpected and all(key.startswith("aux.") for key in missing):
        return " The file has no auxiliary heads: build the network with aux=false."
    if shapes and not missing and not unexpected and all(key.startswith("head.") for key in shapes):
        return " Only the last layer differs: build the network with as many classes as the file has."
    return ""


def _some(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(name[:200] for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one value"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
