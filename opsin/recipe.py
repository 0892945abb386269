"""A recipe: every value that a training depends on, as frozen dataclasses; to and from TOML; single fields replaced.

Nothing here imports torch, so help, validation and `--dry-run` are instant. The modules that do the work
(`data.loader`, `augment`, `loss`, `optim`, `run`) interpret these values.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
import tomllib
import types
import typing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from opsin import schedule
from opsin.errors import UsageError, near
from opsin.preprocess import Preprocess
from opsin.schedule import Cosine, Schedule


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which pictures, and how they are drawn.

    name: a named data set, or the path of a folder, a list or a tar. data_dir: where a named data set lies, when not
    in the cache.
    validation: the part of the training pictures held out for choosing (0: none; the last epoch is reported).
    loader: "memory" (uint8 on the device), "disk" (threads decode while training runs) or "auto" (by size).
    workers: threads that decode; 0: the calling one does. No number changes the result.
    on_bad_image: "error" stops at the first picture that cannot be read, "skip" leaves it out, counted and reported.
    balance: how often a picture comes in a pass: "" once; "classes" so that each class comes alike often; "root" by the
    inverse root of the class's frequency, between the two.
    """

    name: str
    data_dir: str = ""
    validation: float = 0.0
    batch_size: int = 128
    loader: Literal["auto", "memory", "disk"] = "auto"
    workers: int = 2
    on_bad_image: Literal["error", "skip"] = "error"
    balance: Literal["", "classes", "root"] = ""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A network of the table `opsin.models.MODELS`.

    options: its builder's keyword arguments. weights: a file to start from instead of random values.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str = ""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to training batches, in this order. Zero, None or "" switches a part off.

    crop: random-resized-crop of this least area (0–1). shift: pad-and-crop by so many pixels, with `padding`.
    flip: left-right. "alternating" mirrors a picture every second epoch after a random first one.
    rotate, zoom: degrees and relative size, uniform in ±, about the centre. colour: brightness, contrast and saturation
    jitter, uniform in 1 ± colour. trivial: TrivialAugment (Müller and Hutter 2021). erase: probability of random
    erasing. cutout: side in pixels. mixup, cutmix: alpha of the beta distribution; with both, each batch takes one of
    them at even odds. sizes: progressive resolution as (part of the training from which it holds, side in pixels).
    """

    crop: float = 0.0
    shift: int = 0
    padding: Literal["reflect", "zero"] = "reflect"
    flip: Literal["", "random", "alternating"] = ""
    rotate: float = 0.0
    zoom: float = 0.0
    colour: float = 0.0
    trivial: bool = False
    erase: float = 0.0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    sizes: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters whose name matches `match` (shell pattern) get their own rate and decay; the first match wins.

    since, until: the parts of the training between which they learn. The rate falls linearly to 0 by `until` (1.0: as
    the schedule says). Before `since` the values stay as they are; running statistics of norms do not.
    """

    match: str
    lr_scale: float = 1.0
    weight_decay: float | None = None
    until: float = 1.0
    since: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent; L2 is added to the gradient."""

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Kingma and Ba 2014, algorithm 1; L2 is added to the gradient."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Loshchilov and Hutter 2017: Adam with decoupled weight decay."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Orthogonalised momentum for the convolution filters (Jordan 2024), Nesterov SGD for everything else.

    lr, momentum: of the filters. sgd_lr, sgd_momentum: of the rest. weight_decay: L2 in the gradient, of all.
    """

    lr: float = 0.24
    momentum: float = 0.6
    sgd_lr: float = 0.05
    sgd_momentum: float = 0.85
    weight_decay: float = 0.0
    groups: tuple[Group, ...] = ()


MAX_TOML = 1 << 20  # characters
LARGEST = (1 << 63) - 1  # of whole numbers

Optimizer = SGD | Adam | AdamW | Muon


Weights = Literal["", "balanced", "effective"]  # of classes, from how many training pictures each has


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Softmax cross-entropy, mean over the batch. label_smoothing: ε of Szegedy et al. 2015, section 7.

    class_weights: "balanced" by inverse frequency, "effective" by the effective number of pictures (Cui et al. 2019).
    tau: of logit adjustment (Menon et al. 2020): 1 aims at the mean over classes, 0 is off; with it no weights are
    needed. aux_weights: of the auxiliary heads, deepest last.
    """

    label_smoothing: float = 0.0
    aux_weights: tuple[float, ...] = ()
    class_weights: Weights = ""
    tau: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy:
    """Sigmoid cross-entropy for many labels, mean over those that are known. Fields as of `CrossEntropy`; class weights
    are of a label that is there beside the same where it is not."""

    label_smoothing: float = 0.0
    aux_weights: tuple[float, ...] = ()
    class_weights: Weights = ""


@dataclass(frozen=True, kw_only=True)
class Focal:
    """Cross-entropy in which what is known well counts less, by (1 - p)^gamma (Lin et al. 2017): by softmax for one
    label a picture, by sigmoid for many."""

    gamma: float = 2.0
    aux_weights: tuple[float, ...] = ()
    class_weights: Weights = ""

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise UsageError(f"loss.gamma: expected at least 0, received {self.gamma}")


Loss = CrossEntropy | BinaryCrossEntropy | Focal


@dataclass(frozen=True, kw_only=True)
class Tune:
    """What of a network learns that starts from weights.

    freeze: stages that stay as the weights have them, running statistics of norms too. probe: the whole network does;
    a linear layer in place of its last one is fitted to its features.
    """

    freeze: tuple[str, ...] = ()
    probe: bool = False


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When training ends before its last epoch. minutes: of wall clock, 0 for none.

    patience: passes without a lower validation error after which training stops and the best weights are taken; 0: off.
    """

    minutes: float = 0.0
    patience: int = 0


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """One kind of local descriptor on a grid (`opsin.classical.descriptors`).

    space: the planes that each is taken of: "grey", "rgb" or "opponent". step: pixels from one to the next. sizes: of
    SIFT's bins, HOG's cells, LBP's squares or patches, in pixels; each is a scale of its own. flat, root: SIFT's faster
    window, and RootSIFT. project: directions of a PCA; 0: none, -1: ZCA whitening, all directions kept. unit: to length
    1 after that: of whitened patches a few are several times as long as the others, and would get most of the centres.
    """

    kind: Literal["sift", "hog", "lbp", "patches"]
    space: Literal["grey", "rgb", "opponent"] = "grey"
    step: int = 4
    sizes: tuple[int, ...] = (4, 6)
    flat: bool = True
    root: bool = False
    project: int = 0
    unit: bool = False

    def __post_init__(self) -> None:
        small = 1 <= self.step <= 256 and 1 <= len(self.sizes) <= 16 and all(1 <= size <= 256 for size in self.sizes)
        if not small or not -1 <= self.project <= 4096:
            raise UsageError(
                "classical.descriptors: expected step and 1 to 16 sizes of 1 to 256 pixels, and project of -1 to 4096, "
                f"received {self.step}, {self.sizes} and {self.project}"
            )
        if self.kind == "patches" and len(self.sizes) != 1:
            raise UsageError("classical.descriptors: patches of several sizes are of several lengths: name each apart")


Encoding = Literal["hard", "triangle", "omp", "fista", "llc", "fisher"]


@dataclass(frozen=True, kw_only=True)
class Classical:
    """The pipeline before 2012: descriptors → codes → pooled over a pyramid → a machine. Nothing in it is a network.

    descriptors: each kind has its own vocabulary. words: centres or atoms of it. gaussians: of a Fisher vector's
    mixture. encoders: their vectors stand one after the other. pyramid: boxes, as "1x1+2x2". pooling: of codes; a
    Fisher vector is an average. power, norm: v → sign(v) |v|^power, then to length 1 by region or as a whole.
    mirror: the vector is the mean of a picture's and its mirror image's; a linear machine then says the same of both,
    as one that is fitted to both does. sparsity, penalty, neighbours: of OMP, FISTA and LLC.
    machine: "svm" and "logistic" are linear, of standardised features where `standardise`, and of the map of an
    `additive` kernel where that is named; "kernel" is a support vector machine with `kernel`. strength: how much errors
    cost beside large weights. held: the part of the training pictures by which probabilities are calibrated when there
    is no validation part. samples: descriptors that the vocabulary is learnt from. passes: over these, at most.
    """

    descriptors: tuple[Descriptor, ...]
    words: int = 1024
    gaussians: int = 64
    encoders: tuple[Encoding, ...] = ("hard",)
    pyramid: str = "1x1+2x2"
    pooling: Literal["max", "average", "sum"] = "average"
    power: float = 1.0
    norm: Literal["none", "region", "whole"] = "none"
    mirror: bool = False
    sparsity: int = 5
    penalty: float = 0.15
    neighbours: int = 5
    machine: Literal["svm", "logistic", "kernel", "forest"] = "svm"
    additive: Literal["", "chi2", "intersection", "jensen-shannon"] = ""
    kernel: Literal["chi2", "intersection", "rbf"] = "chi2"
    strength: float = 1.0
    standardise: bool = False
    trees: int = 100
    held: float = 0.1
    samples: int = 200_000
    passes: int = 20

    def __post_init__(self) -> None:
        for key, most in (
            ("words", 1 << 16),
            ("gaussians", 1 << 12),
            ("sparsity", 64),
            ("neighbours", 64),
            ("trees", 10_000),
            ("samples", 10_000_000),
            ("passes", 1000),
        ):
            if not 1 <= getattr(self, key) <= most:
                raise UsageError(f"classical.{key}: expected 1 to {most:,}, received {getattr(self, key)}")
        if len(self.pyramid) > 100:
            raise UsageError(f"classical.pyramid: expected at most 100 letters, received {len(self.pyramid)}")
        if not 1 <= len(self.descriptors) <= 16 or not 1 <= len(self.encoders) <= 6:
            raise UsageError("classical: expected 1 to 16 descriptors and 1 to 6 encoders")
        if len(set(self.encoders)) < len(self.encoders) or {"omp", "fista"} <= set(self.encoders):
            raise UsageError(
                "classical.encoders: expected each once, and one of omp and fista: they share a dictionary"
            )
        if not 0 < self.power <= 1 or not self.penalty > 0 or not self.strength > 0 or not 0 <= self.held < 1:
            raise UsageError(
                "classical: expected 0 < power <= 1, penalty and strength above 0, and 0 <= held < 1, "
                f"received {self.power}, {self.penalty}, {self.strength} and {self.held}"
            )
        signed = {"omp", "fista", "llc", "fisher"} & set(self.encoders)
        if signed and (self.additive or (self.machine == "kernel" and self.kernel != "rbf")):
            kernel = self.additive or self.kernel
            raise UsageError(
                f"classical: the kernel {kernel} is of histograms, and vectors of {', '.join(sorted(signed))} have "
                "negative numbers; hard or triangle have none, and a kernel machine takes them by rbf"
            )
        if "llc" in self.encoders and self.neighbours > self.words:
            raise UsageError(f"classical.neighbours: expected at most the {self.words} words, got {self.neighbours}")
        if "omp" in self.encoders and self.sparsity > self.words:
            raise UsageError(f"classical.sparsity: expected at most the {self.words} words, got {self.sparsity}")


MAX_MEMBERS = 16  # of a fusion


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """The weighted mean of what trained classifiers say. members: run folders, classifier folders, shipped names."""

    members: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.members) <= MAX_MEMBERS:
            raise UsageError(f"fusion.members: expected 2 to {MAX_MEMBERS} classifiers, received {len(self.members)}")
        if len(set(self.members)) < len(self.members):
            raise UsageError(f"fusion.members: expected each once, received {', '.join(self.members)}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a training depends on. The same recipe, versions and thread count give the same weights."""

    data: Data
    model: ModelSpec
    preprocess: Preprocess
    augment: Augment = Augment()
    optimizer: Optimizer = SGD()
    schedule: Schedule = Cosine()
    loss: Loss = CrossEntropy()
    tune: Tune = Tune()
    classical: Classical | None = None  # in place of a network; then all that is about networks is not read
    fusion: Fusion | None = None  # in place of any training; then only data, seed and device are read
    stop: Stop = Stop()
    epochs: int = 10
    seed: int = 0
    device: str = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: Literal["auto", "on", "off"] = "auto"
    compile: bool = False
    accumulate: int = 1
    clip: float = 0.0
    ema: float = 0.0
    save_every: int = 0  # steps between checkpoints within an epoch; 0: at the end of each epoch only
    keep: int = 2  # checkpoints kept, the newest that verify

    def __post_init__(self) -> None:
        for key, value, least in (
            ("epochs", self.epochs, 1),
            ("data.batch_size", self.data.batch_size, 1),
            ("accumulate", self.accumulate, 1),
            ("keep", self.keep, 2),
            ("save_every", self.save_every, 0),
            ("data.workers", self.data.workers, 0),
        ):
            if value < least:
                raise UsageError(f"{key}: expected at least {least}, received {value}")
        if not 0 <= self.data.validation < 1:
            raise UsageError(f"data.validation: expected 0 <= x < 1, received {self.data.validation}")
        if (self.tune.probe or self.tune.freeze) and not self.model.weights:
            what = "probe" if self.tune.probe else "freeze"
            raise UsageError(f"tune.{what}: keeps what weights brought; name them: --weights FILE")
        if not 0 <= self.ema < 1:
            raise UsageError(f"ema: expected 0 <= x < 1, received {self.ema}")

    @property
    def network(self) -> bool:
        """Whether it trains a network."""
        return self.classical is None and self.fusion is None


# ---------------------------------------------------------------------------------------------------------------------
# One field at a time: `--set optimizer.lr=0.2` and TOML go through the same door
# ---------------------------------------------------------------------------------------------------------------------

PARTS: dict[str, type] = {
    part.__name__: part for forms in (Optimizer, Schedule, Loss) for part in typing.get_args(forms)
}
SHARED = ("groups", "aux_weights")  # fields that belong to the network, whatever the form of the part


def override(value: Any, key: str, text: str) -> Any:
    """`value` with the one field that the dotted `key` names replaced by `text`, read by that field's type.

    A part that has several forms is chosen by its name, keeping what both forms share:
    `override(recipe, "optimizer", "AdamW")`, then `override(recipe, "optimizer.lr", "1e-3")`.
    An unknown key is a `UsageError` that names the near ones.
    """
    return _override(value, key, key.split("."), text)


def _override(value: Any, key: str, path: list[str], text: str) -> Any:
    name, rest = path[0], path[1:]
    if isinstance(value, dict):
        if rest:
            raise UsageError(f"{key}: {name} has no fields of its own")
        return {**value, name: _literal(text)}
    hints = typing.get_type_hints(type(value), vars(schedule) | globals())
    if name not in hints:
        raise UsageError(f"{key}: no field {name!r}; {near(name, hints)}")
    if rest:
        inner = getattr(value, name)
        if inner is None:
            raise UsageError(f"{key}: this recipe has no {name}; it is another kind of recipe")
        if not (dataclasses.is_dataclass(inner) or isinstance(inner, dict)):
            raise UsageError(f"{key}: {name} has no fields of its own")
        return replace(value, **{name: _override(inner, key, rest, text)})
    return replace(value, **{name: _parse(text, hints[name], key, getattr(value, name))})


def _literal(text: str) -> Any:
    """A number, a boolean, a list or, failing these, the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _parse(text: str, kind: Any, key: str, current: Any) -> Any:
    """`text` as a value of the annotated type `kind`."""
    kinds: tuple[Any, ...] = typing.get_args(kind) or (kind,)
    forms: list[Any] = [form for form in kinds if dataclasses.is_dataclass(form)]
    if forms and typing.get_origin(kind) is not tuple:
        chosen = {form.__name__.lower(): form for form in forms}.get(text.lower())
        if chosen is None:
            raise UsageError(f"{key}: expected one of {', '.join(form.__name__ for form in forms)}, received {text!r}")
        shared = {
            f.name: getattr(current, f.name)
            for f in dataclasses.fields(chosen)
            if f.name in SHARED and hasattr(current, f.name)
        }
        return chosen(**shared)
    value = text if kind is str or typing.get_origin(kind) is Literal else _literal(text)
    return check(value, kind, key)


def check(value: Any, kind: Any, key: str) -> Any:
    """`value` as the annotated type `kind`, or a `UsageError` that says what was expected."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [argument for argument in arguments if argument is not type(None)]
        if isinstance(value, dict) and len(kinds) > 1:
            by_name = {argument.__name__: argument for argument in kinds}
            # A loss of before it had several forms is the first of them.
            name = value.get("kind", CrossEntropy.__name__ if CrossEntropy in kinds else None)
            if name not in by_name:
                raise UsageError(f"{key}.kind: expected one of {', '.join(by_name)}, received {name!r}")
            return _build(by_name[name], {k: v for k, v in value.items() if k != "kind"}, key)
        return check(value, kinds[0], key)
    if origin is Literal:
        if value in arguments:
            return value
        raise UsageError(f"{key}: expected one of {', '.join(map(repr, arguments))}, received {value!r}")
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if isinstance(value, dict):
            return _build(kind, value, key)
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not abs(value) <= sys.float_info.max:  # NaN is not either
                raise UsageError(f"{key}: expected a finite number, received {str(value)[:40]}")
            return float(value)
    elif kind is int:
        if type(value) is int:
            if not -LARGEST <= value <= LARGEST:
                raise UsageError(f"{key}: expected a number of at most 19 digits, received a larger one")
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            repeated = len(arguments) == 2 and arguments[1] is Ellipsis
            if repeated or len(value) == len(arguments):
                inner = [arguments[0]] * len(value) if repeated else arguments
                return tuple(check(v, k, f"{key}[{i}]") for i, (v, k) in enumerate(zip(value, inner, strict=True)))
    elif origin is dict:
        if isinstance(value, dict):
            return value
    elif type(value) is kind:
        return value
    expected = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise UsageError(f"{key}: expected {expected}, received {value!r}")


def _build(kind: type, values: dict[str, Any], key: str) -> Any:
    hints = typing.get_type_hints(kind, vars(schedule) | globals())
    for name in values:
        if name not in hints:
            raise UsageError(f"{key}.{name}: no such field; {near(name, hints)}")
    try:
        return kind(**{name: check(value, hints[name], f"{key}.{name}") for name, value in values.items()})
    except TypeError as error:
        raise UsageError(f"{key}: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# TOML
# ---------------------------------------------------------------------------------------------------------------------


def to_dict(value: Any) -> Any:
    """A recipe or one of its parts as plain dicts, lists and scalars; a part with several forms names its `kind`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return ({"kind": type(value).__name__} if type(value).__name__ in PARTS else {}) | fields
    if isinstance(value, dict):
        return {key: to_dict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(inner) for inner in value]
    return value


def from_dict(values: dict[str, Any]) -> Recipe:
    """The recipe that `to_dict` wrote; `UsageError` names the first key that does not fit."""
    return _build(Recipe, values, "recipe")


def to_toml(recipe: Recipe) -> str:
    """Every value, defaults written out. TOML has no null: an absent `weight_decay` of a group is left out, and so are
    `classical` and `fusion` of a network."""
    values = {key: value for key, value in to_dict(recipe).items() if value is not None}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{key}]"] + [f"{k} = {_toml(v)}" for k, v in table.items() if v is not None]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


def from_toml(text: str, name: str = "recipe") -> Recipe:
    """The recipe written by `to_toml`, or by hand (what is left out has its default)."""
    if len(text) > MAX_TOML:
        raise UsageError(f"{name}: {len(text):,} characters; expected at most {MAX_TOML:,}")
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError is a ValueError, and so is one about long numbers
        raise UsageError(f"{name}: not TOML: {error}") from error
    return from_dict(values)
