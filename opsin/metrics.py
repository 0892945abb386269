"""How good probabilities are: functions of (probabilities, labels), with no state and no random part.

probabilities: float [N, K], each row a distribution. labels: int64 [N], the true classes. Both on one device.
Of many labels, each probability stands for itself, and labels are float [N, K] of 1, 0 and -1, not known and left out.
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


def _check_shape(probabilities: Tensor) -> None:
    if probabilities.ndim != 2 or not probabilities.is_floating_point() or 0 in probabilities.shape:
        raise UsageError(
            "probabilities: expected float [N, K] with N and K >= 1, "
            f"received {probabilities.dtype} {tuple(probabilities.shape)}"
        )


def _check(probabilities: Tensor, labels: Tensor) -> None:
    _check_shape(probabilities)
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
    return _scores(table.diagonal(), table.sum(0), table.sum(1))


def _scores(right: Tensor, called: Tensor, support: Tensor) -> PerClass:
    """From float64 [K]: pictures that are called so and are so, are called so, are so."""
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


# ---------------------------------------------------------------------------------------------------------------------
# Many labels
# ---------------------------------------------------------------------------------------------------------------------


class Ranked(NamedTuple):
    """Average precisions of one class; None without a picture that has the label."""

    area: float | None  # as PASCAL VOC since 2010: under the interpolated curve
    eleven: float | None  # as PASCAL VOC 2007: mean of the interpolated precision at recalls 0, 0.1 … 1


def _check_many(probabilities: Tensor, labels: Tensor) -> None:
    _check_shape(probabilities)
    if labels.shape != probabilities.shape or not labels.is_floating_point():
        raise UsageError(
            f"labels: expected float {list(probabilities.shape)}, received {labels.dtype} {tuple(labels.shape)}"
        )
    if not bool(((labels == 1) | (labels == 0) | (labels == -1)).all()):
        raise UsageError("labels: expected 1, 0 and -1")
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise UsageError("probabilities: expected values in 0 to 1")


def _curves(scores: np.ndarray, there: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and interpolated precision, float64 [R, steps], as the threshold falls over the different scores.

    scores: [n]; there: bool [n]; weights: [R, n], how often each picture counts. Interpolated: the best precision at
    that recall or a higher one (Everingham et al. 2010, section 4.2.1). Pictures of equal score are one step.
    """
    order_ = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order_])), len(scores) - 1)
    counts = weights[:, order_].astype(np.float64)
    called = counts.cumsum(1)[:, ends]
    right = (counts * there[order_]).cumsum(1)[:, ends]
    precision = right / np.maximum(called, 1)
    recall = right / np.maximum(right[:, -1:], 1)
    return recall, np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


def _areas(scores: np.ndarray, there: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under each interpolated curve, float64 [R]; NaN where no picture that counts has the label."""
    recall, precision = _curves(scores, there, weights)
    areas = (np.diff(recall, axis=1, prepend=0) * precision).sum(1)
    return np.where(recall[:, -1] > 0, areas, np.nan)


def _known(probabilities: Tensor, labels: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one class: scores [n], whether it is there, bool [n], and who they are, of the pictures where it is known."""
    column = labels[:, k].detach().cpu().numpy()
    places = np.flatnonzero(column >= 0)
    return probabilities[:, k].detach().cpu().numpy()[places], column[places] == 1, places


def average_precisions(probabilities: Tensor, labels: Tensor) -> list[Ranked]:
    """Of each class, over the pictures of which it is known whether they have it."""
    _check_many(probabilities, labels)
    found = []
    for k in range(labels.shape[1]):
        scores, there, _ = _known(probabilities, labels, k)
        if not there.any():
            found.append(Ranked(None, None))
            continue
        recall, precision = _curves(scores, there, np.ones((1, len(scores))))
        # 1e-9: recall 0.3 of 10 pictures is 3 / 10, which is no float.
        at = [precision[0, recall[0] >= step / 10 - 1e-9].max(initial=0) for step in range(11)]
        found.append(Ranked(float((np.diff(recall[0], prepend=0) * precision[0]).sum()), float(np.mean(at))))
    return found


def bootstrap(
    probabilities: Tensor, labels: Tensor, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[list[tuple[float, float] | None], tuple[float, float] | None]:
    """Percentile intervals of each class's average precision (area) and of their mean, over pictures drawn again.

    `resamples` draws of N pictures with replacement (Efron 1979), the same for all classes; a draw without a picture of
    a class says nothing of it. None for a class without pictures. Large sets are drawn fewer times, at least 200.
    """
    _check_many(probabilities, labels)
    n, num_classes = labels.shape
    resamples = min(resamples, max(200, 20_000_000 // n))
    generator = np.random.Generator(np.random.Philox(seed))
    times = np.stack([np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(resamples)])
    times = times.astype(np.uint16)
    areas = np.full((num_classes, resamples), np.nan)
    for k in range(num_classes):
        scores, there, places = _known(probabilities, labels, k)
        if there.any():
            for part in np.array_split(np.arange(resamples), math.ceil(resamples * n / 5_000_000)):
                areas[k, part] = _areas(scores, there, times[part][:, places])

    def interval(values: np.ndarray) -> tuple[float, float] | None:
        values = values[~np.isnan(values)]
        if not len(values):
            return None
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    counted = ~np.isnan(areas).all(1)
    whole = areas[counted][:, ~np.isnan(areas[counted]).all(0)]
    return [interval(row) for row in areas], interval(np.nanmean(whole, axis=0)) if whole.size else None


def best_thresholds(probabilities: Tensor, labels: Tensor) -> list[float]:
    """Of each class the threshold with the best F1, midway between two scores (the highest among equals); 0.5 where
    all pictures, or none, have the label."""
    _check_many(probabilities, labels)
    found = []
    for k in range(labels.shape[1]):
        scores, there, _ = _known(probabilities, labels, k)
        if there.all() or not there.any():
            found.append(0.5)
            continue
        order_ = np.argsort(-scores, kind="stable")
        ranked = scores[order_].astype(np.float64)
        f1 = 2 * there[order_].cumsum() / (np.arange(1, len(ranked) + 1) + there.sum())
        f1[np.append(ranked[1:] == ranked[:-1], False)] = -1  # equal scores are called together
        best = int(f1.argmax())
        below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
        found.append(float((ranked[best] + below) / 2))
    return found


def per_label(probabilities: Tensor, labels: Tensor, thresholds: Tensor) -> tuple[PerClass, tuple[float, float, float]]:
    """Precision, recall, F1 and support of each class at its threshold, float [K]; and the micro ones: precision,
    recall and F1 of all the decisions together."""
    _check_many(probabilities, labels)
    called, there = (probabilities >= thresholds.to(probabilities)) & (labels >= 0), labels == 1
    counts = [m.sum(0).double() for m in (called & there, called, there)]
    together = _scores(*(count.sum() for count in counts))
    return _scores(*counts), (float(together.precision), float(together.recall), float(together.f1))


def binary_nll(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels that are known, in nats; no probability counts as less than
    `NLL_FLOOR`."""
    _check_many(probabilities, labels)
    p = probabilities.to(torch.float64)
    true = torch.where(labels == 1, p, 1 - p)[labels >= 0]
    return max(0.0, -float(true.clamp(min=NLL_FLOOR).log().mean())) if len(true) else 0.0
