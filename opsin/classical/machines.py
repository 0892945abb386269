"""Classifiers of vectors: linear and kernel support vector machines, logistic regression, random forests.

Each fit gives a `Machine`: scores, probabilities, and the arrays and settings that it is saved by. Labels are int64
[N], one a picture, or float [N, K] of 1, 0 and -1, not known and left out: then every label is a problem of its own.
Support vector machines are one-vs-rest in both cases, with the squared hinge. Vectors are float [N, D] on any device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from opsin.classical import forest as forests
from opsin.classical import kernels, solver
from opsin.classical.forest import Trees
from opsin.classical.kernels import Additive, AdditiveMap
from opsin.errors import StorageError, UsageError
from opsin.recipe import check

MAX_GRAM = 30_000  # vectors of a kernel machine: 3.6 GB of float32 pairs, and as much again for their factor
ARRAYS = {  # by kind: the letters of their shapes; W numbers of a vector once it is lifted, M vectors
    "linear": {"weight": "KW", "bias": "K"},
    "kernel": {"vectors": "MD", "coefficients": "KM", "bias": "K"},
    "forest": {key: "" for key in Trees._fields},
}


@dataclass(frozen=True)
class Settings:
    """What a machine is, beside its arrays. It is saved as JSON.

    link: from scores to probabilities: "softmax" of slope · score + offset, "sigmoid" of each, or "shares", where the
    scores are probabilities already. additive, order, step: the `AdditiveMap` before a linear machine, "" for none.
    about: how it was fitted, for people.
    """

    kind: Literal["linear", "kernel", "forest"]
    link: Literal["softmax", "sigmoid", "shares"]
    features: int
    additive: Literal["", "chi2", "intersection", "jensen-shannon"] = ""
    order: int = 0
    step: float = 0.0
    kernel: Literal["", "chi2", "intersection", "rbf"] = ""
    gamma: float = 0.0
    about: dict[str, float] = field(default_factory=dict)

    @property
    def lift(self) -> AdditiveMap | None:
        return AdditiveMap(self.additive, self.order, self.step) if self.additive else None


@dataclass(frozen=True)
class Machine:
    """A fitted classifier of vectors. Made by the functions below, and again by `restored`."""

    settings: Settings
    tensors: Mapping[str, Tensor]

    @property
    def num_classes(self) -> int:
        return len(self.tensors["slope"])

    def scores(self, x: Tensor) -> Tensor:
        """float [B, D] to float32 [B, K]: the greater, the more so. Of a forest: the parts of its leaves, 0 to 1."""
        features = self.settings.features
        if x.ndim != 2 or x.shape[1] != features or not x.is_floating_point():
            raise UsageError(f"vectors: expected float [B, {features}], received {x.dtype} {tuple(x.shape)}")
        if self.settings.kind == "forest":
            return self._trees().scores(x)
        ask = self._linear if self.settings.kind == "linear" else self._kernel
        found = [ask(block) for _, block in solver.blocks(x, self.settings.lift)]
        return torch.cat(found) + self.tensors["bias"] if found else x.new_zeros(0, self.num_classes).float()

    def probabilities(self, x: Tensor) -> Tensor:
        """float [B, D] to float32 [B, K]: rows that sum to one, or of many labels each for itself."""
        return self.linked(self.scores(x))

    def linked(self, scores: Tensor) -> Tensor:
        """The probabilities that belong to scores, both [B, K]."""
        if self.settings.link == "shares":
            return scores
        logits = scores * self.tensors["slope"] + self.tensors["offset"]
        return torch.softmax(logits, 1) if self.settings.link == "softmax" else torch.sigmoid(logits)

    def arrays(self) -> dict[str, Tensor]:
        """What `storage.to_safetensors` saves."""
        return dict(self.tensors)

    def config(self) -> dict[str, Any]:
        """The rest, of what JSON has."""
        return dataclasses.asdict(self.settings)

    def to(self, device: str | torch.device) -> Machine:
        return Machine(self.settings, {key: tensor.to(device) for key, tensor in self.tensors.items()})

    def _linear(self, block: Tensor) -> Tensor:
        return block @ self.tensors["weight"].T

    def _kernel(self, block: Tensor) -> Tensor:
        vectors, coefficients = self.tensors["vectors"], self.tensors["coefficients"]
        found = block.new_zeros(len(block), self.num_classes)
        for part, some in solver.blocks(vectors):
            found += (
                kernels.gram(block, some, self.settings.kernel or "rbf", self.settings.gamma) @ coefficients[:, part].T
            )
        return found

    def _trees(self) -> Trees:
        return Trees(**{key: self.tensors[key] for key in Trees._fields})


# ---------------------------------------------------------------------------------------------------------------------
# Fitted
# ---------------------------------------------------------------------------------------------------------------------


def linear_svm(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    *,
    strength: float,
    standardise: bool = True,
    additive: Additive | Literal[""] = "",
    order: int = 1,
    tolerance: float = 0.01,
    iterations: int = 300,
    progress: Callable[[int], None] | None = None,
    start: solver.Start | None = None,
) -> Machine:
    """½‖w‖² + strength · Σ max(0, 1 - t (w · z + b))² for each class against the rest, as scikit-learn's LinearSVC but
    for an intercept without penalty. z: the vectors, with mean 0 and deviation 1 where `standardise`. Coates and Ng's
    factor of the mean loss is strength · N.

    additive: the machine is of the `AdditiveMap` of the vectors, made block by block: all but a kernel machine.
    The rest: see `solver.minimise`.
    """
    targets = _signs(_labels(x, y, num_classes), num_classes)
    return _linear(
        x,
        y,
        solver.SquaredHinge(targets),
        strength,
        standardise,
        additive,
        order,
        tolerance,
        iterations,
        progress,
        start,
    )


def logistic(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    *,
    strength: float,
    standardise: bool = True,
    additive: Additive | Literal[""] = "",
    order: int = 1,
    tolerance: float = 0.01,
    iterations: int = 300,
    progress: Callable[[int], None] | None = None,
    start: solver.Start | None = None,
) -> Machine:
    """The same with the loss of softmax regression, or, for many labels, of logistic regression for each. `UsageError`
    for a class without a picture that has it or without one that has it not: its intercept would be infinite."""
    targets = _signs(_labels(x, y, num_classes), num_classes)
    for sign, what in ((1, "of each class"), (-1, "not of it")):
        lacking = (~(targets == sign).any(0)).nonzero().flatten().tolist()
        if lacking:
            raise UsageError(f"labels: logistic regression needs a picture {what}; classes {lacking[:5]} have none")
    loss = solver.Logistic(targets) if y.ndim == 2 else solver.Softmax((targets > 0).double())
    return _linear(x, y, loss, strength, standardise, additive, order, tolerance, iterations, progress, start)


def _linear(
    x: Tensor,
    y: Tensor,
    loss: solver.Loss,
    strength: float,
    standardise: bool,
    additive: Additive | Literal[""],
    order: int,
    tolerance: float,
    iterations: int,
    progress: Callable[[int], None] | None,
    start: solver.Start | None,
) -> Machine:
    _positive("strength", strength)
    lift = AdditiveMap(additive, order) if additive else None
    found = solver.minimise(
        x,
        loss,
        strength=strength,
        standardise=standardise,
        lift=lift,
        tolerance=tolerance,
        iterations=iterations,
        progress=progress,
        start=start,
    )
    own = {"additive": lift.kind, "order": lift.order, "step": lift.step} if lift else {}
    return _machine("linear", x, y, {"weight": found.weight, "bias": found.bias}, _about(strength, found), own)


def kernel_svm(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    *,
    strength: float,
    kernel: kernels.Kind = "chi2",
    gamma: float | None = None,
    tolerance: float = 1e-3,
    iterations: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> Machine:
    """A support vector machine with a kernel of `kernels.kernel`. gamma: None is one over the mean distance.

    With G = K + εI = L Lᵀ the dual is that of the linear machine of the rows of L; and as the squared hinge only adds
    I / 2C to the kernel in the dual, ε = 1 / 4C and the strength 2C give exactly the machine of K and C, well
    conditioned. Memory: two float32 [N, N]; `UsageError` for more than `MAX_GRAM` vectors.
    """
    targets = _signs(_labels(x, y, num_classes), num_classes)
    _positive("strength", strength)
    if len(x) > MAX_GRAM:
        raise UsageError(
            f"a kernel machine of {len(x)} vectors needs {4 * len(x) ** 2 / 1e9:.0f} GB for their pairs; at most "
            f"{MAX_GRAM} are taken: fewer pictures, or a linear machine of an additive map"
        )
    x = x.float()
    gamma = kernels.usual_gamma(x, kernel) if gamma is None else gamma
    _positive("gamma", gamma)
    factor = kernels.gram(x, x, kernel, gamma)
    factor.diagonal().add_(1 / (4 * strength))
    factor, failed = torch.linalg.cholesky_ex(factor)
    if int(failed):
        raise UsageError(
            f"strength: {strength:g} is more than float32 can solve with these vectors; a smaller one can be"
        )
    loss = solver.SquaredHinge(targets)
    found = solver.minimise(
        factor,
        loss,
        strength=2 * strength,
        standardise=False,
        tolerance=tolerance,
        iterations=iterations,
        progress=progress,
    )
    coefficients = -2 * strength * loss.slope(found.margins)
    support = (coefficients != 0).any(1)
    arrays = {
        "vectors": x[support].clone(),
        "coefficients": coefficients[support].T.float().contiguous(),
        "bias": found.bias,
    }
    return _machine("kernel", x, y, arrays, _about(strength, found), {"kernel": kernel, "gamma": float(gamma)})


def forest(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    *,
    trees: int = 100,
    leaf: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Machine:
    """A random forest of scikit-learn's; for many labels one of `trees` trees each. leaf: pictures of a leaf at least.

    The same for a seed, whatever the number of threads. progress: is called with the labels done.
    """
    _labels(x, y, num_classes)
    for key, value in (("trees", trees), ("leaf", leaf)):
        if type(value) is not int or value < 1:
            raise UsageError(f"forest: {key}: expected a number of at least 1, received {value!r:.80}")
    grown = forests.grow(x, y, num_classes, trees=trees, leaf=leaf, seed=seed, progress=progress)
    arrays = {key: tensor.to(x.device) for key, tensor in grown._asdict().items()}
    return _machine("forest", x, y, arrays, {"trees": trees, "leaf": leaf, "seed": seed}, {})


def _machine(kind: str, x: Tensor, y: Tensor, arrays: dict[str, Tensor], about: dict[str, float], own: dict) -> Machine:
    """Not calibrated: slope 1 and offset 0."""
    link = "shares" if kind == "forest" else "sigmoid" if y.ndim == 2 else "softmax"
    classes = arrays["bias"].shape[0] if "bias" in arrays else arrays["values"].shape[1] * int(arrays["groups"])
    one = torch.ones(classes, device=x.device)
    settings = Settings(kind=kind, link=link, features=x.shape[1], about=about, **own)  # pyright: ignore[reportArgumentType]
    return Machine(settings, arrays | {"slope": one, "offset": torch.zeros_like(one)})


def _about(strength: float, found: solver.Solution) -> dict[str, float]:
    return {"strength": float(strength), "iterations": found.iterations, "gap": found.gap}


def _positive(key: str, value: float) -> None:
    if not 0 < value < torch.inf:
        raise UsageError(f"{key}: expected a finite number above 0, received {value!r:.80}")


def _labels(x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """y, once it fits x."""
    if x.ndim != 2 or not x.is_floating_point() or 0 in x.shape or num_classes < 1:
        raise UsageError(f"vectors: expected float [N, D], N and D >= 1, received {x.dtype} {tuple(x.shape)}")
    if y.ndim == 1 and y.dtype == torch.int64 and len(y) == len(x):
        if bool(((y < 0) | (y >= num_classes)).any()):
            raise UsageError(f"labels: expected 0 to {num_classes - 1}, received {int(y.min())} to {int(y.max())}")
    elif y.is_floating_point() and y.shape == (len(x), num_classes):
        if not bool(((y == 0) | (y.abs() == 1)).all()):
            raise UsageError("labels: expected 1, 0 and, for what is not known, -1; received other numbers")
    else:
        raise UsageError(
            f"labels: expected int64 [{len(x)}] or float [{len(x)}, {num_classes}], received {y.dtype} {tuple(y.shape)}"
        )
    return y


def _signs(y: Tensor, num_classes: int) -> Tensor:
    """float64 [N, K]: 1 of the label, -1 of the others, 0 not known."""
    there = functional.one_hot(y, num_classes).double() if y.ndim == 1 else y.double()
    return torch.where(there == 0, -1.0, torch.where(there == 1, 1.0, 0.0)).double()


# ---------------------------------------------------------------------------------------------------------------------
# Calibrated
# ---------------------------------------------------------------------------------------------------------------------


def calibrated(machine: Machine, x: Tensor, y: Tensor) -> Machine:
    """The same machine with probabilities that mean what they say, fitted on pictures that it was not fitted on.

    Many labels: Platt's sigmoid of each score (Platt 1999, with his targets; Lin, Lin and Weng 2007). One label a
    picture: these bring the scores to one scale, and their softmax, times one number, is the answer; another class may
    come out first. The mean calibration error over machines and splits was 0.020 on scikit-learn's digits and 0.030 on
    7,500 pictures of CIFAR-10 as pixels; of the number alone 0.020 and 0.036, of the sigmoids divided by their sum
    0.082 and 0.041. The number alone does not mend scores of a class that are all too low (accuracy on CIFAR-10 34.0 %
    beside 35.2 %).
    """
    _labels(x, y, machine.num_classes)
    if (y.ndim == 2) != (machine.settings.link == "sigmoid") and machine.settings.link != "shares":
        raise UsageError("labels: expected them as the machine was fitted on: one a picture, or many")
    scores = machine.scores(x).double()
    slope, offset = _platt(scores, (_signs(y, machine.num_classes) + 1) / 2 if y.ndim == 1 else y)
    if y.ndim == 1:
        factor = _temperature(scores * slope + offset, y)
        slope, offset = slope * factor, offset * factor
    link = "sigmoid" if y.ndim == 2 else "softmax"
    arrays = machine.arrays() | {"slope": slope.float(), "offset": offset.float()}
    about = machine.settings.about | {"calibrated_on": len(x)}
    return Machine(dataclasses.replace(machine.settings, link=link, about=about), arrays)


def _temperature(logits: Tensor, y: Tensor) -> Tensor:
    """The factor [1] with the least negative log-likelihood. Much as in Platt's targets, K pictures' worth of labels is
    spread over all classes: logits without an error would have it grow without end."""
    n, classes = logits.shape
    mixed = classes / (n + classes)
    targets = (1 - mixed) * functional.one_hot(y, classes).double() + mixed / classes
    zero = logits.new_zeros(1)
    return solver.line(solver.Softmax(targets), torch.zeros_like(logits), logits, 1.0, zero, zero)


def _platt(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset of each label, float64 [K], by Newton's method with halved steps."""
    known = (y >= 0).double()
    there, away = (y == 1).double().sum(0), (y == 0).double().sum(0)
    targets = torch.where(y == 1, (there + 1) / (there + 2), 1 / (away + 2))
    unit = ((scores.square() * known).sum(0) / known.sum(0).clamp(min=1)).sqrt().clamp(min=1e-12)
    scores = scores / unit
    at = torch.stack([torch.zeros_like(there), torch.log((there + 1) / (away + 1))])  # [2, K]

    def cost(at: Tensor) -> Tensor:
        logits = scores * at[0] + at[1]
        return ((functional.softplus(logits) - targets * logits) * known).sum(0)

    best = cost(at)
    for _ in range(100):
        p = torch.sigmoid(scores * at[0] + at[1])
        wrong, bend = (p - targets) * known, p * (1 - p) * known
        first = torch.stack([(wrong * scores).sum(0), wrong.sum(0)])
        a, b, c = (bend * scores**2).sum(0) + 1e-9, (bend * scores).sum(0), bend.sum(0) + 1e-9
        step = torch.stack([c * first[0] - b * first[1], a * first[1] - b * first[0]]) / (a * c - b * b)
        for _ in range(20):
            step = torch.where(cost(at - step) <= best, step, step / 2)
        value = cost(at - step)
        better = value <= best
        at = torch.where(better, at - step, at)
        gained = torch.where(better, best - value, 0)
        best = best - gained
        if float(gained.max()) < 1e-9:
            break
    return at[0] / unit, at[1]


# ---------------------------------------------------------------------------------------------------------------------
# Made again
# ---------------------------------------------------------------------------------------------------------------------


def restored(config: object, arrays: Mapping[str, Tensor], name: str) -> Machine:
    """The machine whose `config()` and `arrays()` these are. `StorageError` names the file `name` and what does not
    fit: an unknown key, a type, a shape, what is not finite, an index out of range, a loop in a tree."""
    try:
        settings = check(config, Settings, "machine")
        lift = settings.lift
    except UsageError as error:
        raise StorageError(f"{name}: {error}") from error
    if settings.features < 1 or (settings.kind == "kernel") != bool(settings.kernel) or settings.gamma < 0:
        raise StorageError(
            f"{name}: expected features, and a kernel of a kernel machine alone, received {str(config)[:80]}"
        )
    shapes = ARRAYS[settings.kind] | {"slope": "K", "offset": "K"}
    if arrays.keys() != shapes.keys():
        raise StorageError(
            f"{name}: expected the arrays {', '.join(sorted(shapes))}, received {str(sorted(arrays))[:200]}"
        )
    trees = settings.kind == "forest"
    for key, tensor in arrays.items():
        whole = trees and key in Trees._fields and key not in ("threshold", "values")
        expected = torch.int32 if whole else torch.float32
        dimensions = len(shapes[key]) or (2 if key == "values" else 1)
        if tensor.dtype != expected or tensor.ndim != dimensions or not tensor.numel():
            raise StorageError(
                f"{name}: {key}: expected {expected} of {dimensions} dimensions, "
                f"received {tensor.dtype} {tuple(tensor.shape)}"
            )
        if not whole and not bool(torch.isfinite(tensor).all()):
            raise StorageError(f"{name}: {key}: not finite")
    sizes = {"D": settings.features, "W": settings.features * (lift.widening if lift else 1)}
    if trees:
        found = forests.checked(Trees(**{key: arrays[key] for key in Trees._fields}), settings.features, name)
        sizes["K"] = found.values.shape[1] * int(found.groups)
    for key, letters in shapes.items():
        for letter, size in zip(letters, arrays[key].shape, strict=False):
            if sizes.setdefault(letter, size) != size:
                raise StorageError(
                    f"{name}: {key}: expected {sizes[letter]} for {letter} of [{', '.join(letters)}], received {size}"
                )
    return Machine(settings, dict(arrays))
