"""How good probabilities are: functions of (probabilities, labels), with no state and no random part.

probabilities: float [N, K], each row a distribution. labels: int64 [N], the true classes. Both on one device.
Every function refuses shapes, labels and values that do not fit with a `UsageError`.

Ties are broken the same way everywhere: of classes with equal probability the lower number ranks first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opsin.errors import UsageError

NLL_FLOOR = float(torch.finfo(torch.float32).tiny)  # 1.2e-38: a picture costs at most 87.3 nats
Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution


class PerClass(NamedTuple):
    """One value a class, float64 [K] (support int64 [K]); 0 where a ratio has nothing below the line."""

    precision: Tensor  # of the pictures called so, the part that is so
    recall: Tensor  # of the pictures that are so, the part called so
    f1: Tensor  # harmonic mean of the two
    support: Tensor  # pictures that are so


class Bin(NamedTuple):
    """The pictures whose confidence (highest probability) lies in (low, high]."""

    low: float
    high: float
    n: int
    confidence: float  # mean confidence, 0 for an empty bin
    accuracy: float  # fraction right, 0 for an empty bin


def _check(probabilities: Tensor, labels: Tensor) -> None:
    if probabilities.ndim != 2 or not probabilities.is_floating_point() or 0 in probabilities.shape:
        raise UsageError(
            "probabilities: expected float [N, K] with N and K >= 1, "
            f"received {probabilities.dtype} {tuple(probabilities.shape)}"
        )
    if labels.dtype != torch.int64 or labels.shape != probabilities.shape[:1]:
        raise UsageError(
            f"labels: expected int64 [{len(probabilities)}], received {labels.dtype} {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= probabilities.shape[1]:
        raise UsageError(f"labels: expected 0 to {probabilities.shape[1] - 1}, received {low} to {high}")
    if not bool(torch.isfinite(probabilities).all()):
        raise UsageError("probabilities: expected finite values, received NaN or infinity")


def predicted(probabilities: Tensor) -> Tensor:
    """The most probable class of each row, int64 [N]; the lowest number among equals."""
    # torch.argmax leaves open which of several equal maxima it returns; numpy promises the first.
    return torch.from_numpy(np.argmax(probabilities.detach().cpu().numpy(), axis=1)).to(probabilities.device)


def ranking(probabilities: Tensor, k: int) -> Tensor:
    """The k most probable classes of each row, best first, int64 [N, min(k, K)]; lower number first among equals."""
    return torch.sort(probabilities, dim=1, descending=True, stable=True).indices[:, : max(0, k)]


def topk(probabilities: Tensor, labels: Tensor, k: int = 1) -> float:
    """The fraction of pictures whose true class is among the `k` most probable; 1.0 where k >= K."""
    _check(probabilities, labels)
    if k < 1:
        raise UsageError(f"k: expected at least 1, received {k}")
    true = probabilities.gather(1, labels[:, None])
    numbers = torch.arange(probabilities.shape[1], device=probabilities.device)
    before = (probabilities > true) | ((probabilities == true) & (numbers < labels[:, None]))
    return int((before.sum(1) < k).sum()) / len(labels)


def confusion(probabilities: Tensor, labels: Tensor) -> Tensor:
    """int64 [K, K]: how many pictures of the class of the row were taken for the class of the column."""
    _check(probabilities, labels)
    num_classes = probabilities.shape[1]
    pairs = labels * num_classes + predicted(probabilities)
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def per_class(probabilities: Tensor, labels: Tensor) -> PerClass:
    """Precision, recall, F1 and support of each class, from the most probable class of each picture."""
    table = confusion(probabilities, labels).to(torch.float64)
    right, called, support = table.diagonal(), table.sum(0), table.sum(1)
    return PerClass(
        precision=right / called.clamp(min=1),
        recall=right / support.clamp(min=1),
        f1=2 * right / (called + support).clamp(min=1),  # = 2pr / (p + r), also where p or r is undefined
        support=support.to(torch.int64),
    )


def macro(scores: PerClass) -> tuple[float, float, float]:
    """Precision, recall and F1 averaged over the classes that have pictures, each class counting alike."""
    present = scores.support > 0
    return (
        float(scores.precision[present].mean()),
        float(scores.recall[present].mean()),
        float(scores.f1[present].mean()),
    )


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the true classes in nats. No probability counts as less than `NLL_FLOOR`."""
    _check(probabilities, labels)
    true = probabilities.gather(1, labels[:, None]).to(torch.float64)
    return max(0.0, -float(true.clamp(min=NLL_FLOOR).log().mean()))


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> list[Bin]:
    """Confidence against accuracy in `bins` equal-width bins, closed on the right (Guo et al. 2017, section 2)."""
    _check(probabilities, labels)
    if bins < 1:
        raise UsageError(f"bins: expected at least 1, received {bins}")
    confidence = probabilities.max(1).values.to(torch.float64).cpu()
    right = (predicted(probabilities) == labels).to(torch.float64).cpu()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = (torch.searchsorted(edges, confidence) - 1).clamp(0, bins - 1)
    n = torch.bincount(place, minlength=bins)
    confidences = torch.bincount(place, confidence, minlength=bins) / n.clamp(min=1)
    accuracies = torch.bincount(place, right, minlength=bins) / n.clamp(min=1)
    columns = edges[:-1].tolist(), edges[1:].tolist(), n.tolist(), confidences.tolist(), accuracies.tolist()
    return [Bin(*row) for row in zip(*columns, strict=True)]


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean |accuracy - confidence| over the bins, weighted by their pictures.

    Guo et al. 2017, equation 3. 0 is a classifier that is right as often as it says.
    """
    rows = reliability(probabilities, labels, bins)
    return sum(row.n * abs(row.accuracy - row.confidence) for row in rows) / len(labels)


def wilson(right: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval (95 % by default) of a fraction `right / n` (Wilson 1927); (0, 1) when n is 0."""
    if not 0 <= right <= n:
        raise UsageError(f"expected 0 <= right <= n, received {right} of {n}")
    if n == 0:
        return 0.0, 1.0
    p, square = right / n, z * z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(p * (1 - p) / n + square / (4 * n * n)) / (1 + square / n)
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)
