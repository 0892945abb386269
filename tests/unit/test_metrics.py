"""Metrics against scikit-learn, against slow versions written here, and at the edges."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor

from opsin import metrics
from opsin.errors import UsageError


def some(n: int, k: int, seed: int = 0, sharp: float = 2.0) -> tuple[Tensor, Tensor]:
    """Probabilities that are right more often than not, and labels in which every class occurs when n allows it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64) + sharp * torch.eye(k)[labels]
    return torch.softmax(logits, 1), labels


@pytest.mark.parametrize(("n", "k", "seed"), [(1, 2, 0), (7, 3, 1), (500, 10, 2), (2000, 40, 3), (30, 100, 4)])
def test_against_scikit_learn(n: int, k: int, seed: int) -> None:
    probabilities, labels = some(n, k, seed)
    p, y, names = probabilities.numpy(), labels.numpy(), list(range(k))
    predicted = p.argmax(1)
    assert metrics.topk(probabilities, labels) == pytest.approx(sk.accuracy_score(y, predicted), abs=1e-12)
    for top in (1, 2, 5):
        if top < k and k > 2:
            expected = sk.top_k_accuracy_score(y, p, k=top, labels=names)
            assert metrics.topk(probabilities, labels, top) == pytest.approx(expected, abs=1e-12)
    table = sk.confusion_matrix(y, predicted, labels=names)
    assert metrics.confusion(probabilities, labels).tolist() == table.tolist()
    expected = sk.precision_recall_fscore_support(y, predicted, labels=names, zero_division=0)
    scores = metrics.per_class(probabilities, labels)
    for ours, theirs in zip(scores, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-12)
    present = sorted(set(y.tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns about labels that it was told to leave out
        macro = sk.precision_recall_fscore_support(y, predicted, labels=present, average="macro", zero_division=0)
    assert metrics.macro(scores) == pytest.approx(macro[:3], abs=1e-12)
    assert metrics.nll(probabilities, labels) == pytest.approx(sk.log_loss(y, p, labels=names), abs=1e-9)


def slow_calibration_error(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    """Guo et al. 2017, equation 3, picture by picture."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = []
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            confidence = max(row)
            if (m - 1) / bins < confidence <= m / bins:
                inside.append((confidence, row.index(confidence) == label))
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 2, 15, 40])
def test_calibration_error_against_the_definition(bins: int) -> None:
    for seed in range(4):
        probabilities, labels = some(300, 4 + seed, seed)
        expected = slow_calibration_error(probabilities, labels, bins)
        assert metrics.calibration_error(probabilities, labels, bins) == pytest.approx(expected, abs=1e-12)


def test_bins_are_closed_on_the_right_and_hold_every_picture() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25], [0.76, 0.24]], dtype=torch.float64)
    rows = metrics.reliability(probabilities, torch.tensor([0, 0, 1, 0]), bins=4)
    assert [row.n for row in rows] == [0, 1, 1, 2]
    assert rows[0] == metrics.Bin(0.0, 0.25, 0, 0.0, 0.0)
    assert (rows[1].confidence, rows[1].accuracy) == (0.5, 1.0)
    assert (rows[2].confidence, rows[2].accuracy) == (0.75, 0.0)
    probabilities, labels = some(1000, 7)
    assert sum(row.n for row in metrics.reliability(probabilities, labels)) == 1000


def test_calibrated_and_overconfident() -> None:
    n = 1000
    labels = torch.tensor([0] * 800 + [1] * 200)
    honest = torch.tensor([[0.8, 0.2]], dtype=torch.float64).expand(n, 2)
    assert metrics.calibration_error(honest, labels) == pytest.approx(0.0, abs=1e-12)
    sure = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(n, 2)
    assert metrics.calibration_error(sure, labels) == pytest.approx(0.2, abs=1e-12)


def test_ties_go_to_the_lower_number() -> None:
    probabilities = torch.full((4, 4), 0.25)
    labels = torch.arange(4)
    assert metrics.predicted(probabilities).tolist() == [0, 0, 0, 0]
    assert metrics.ranking(probabilities, 3).tolist() == [[0, 1, 2]] * 4
    assert [metrics.topk(probabilities, labels, k) for k in (1, 2, 3, 4, 9)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 10_000), st.integers(1, 9))
def test_topk_agrees_with_ranking_also_with_ties(n: int, k: int, seed: int, top: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randint(1, 4, (n, k), generator=generator).to(torch.float32)
    probabilities /= probabilities.sum(1, keepdim=True)
    labels = torch.randint(k, (n,), generator=generator)
    ranking = metrics.ranking(probabilities, top)
    assert ranking.shape == (n, min(top, k))
    inside = (ranking == labels[:, None]).any(1)
    assert metrics.topk(probabilities, labels, top) == pytest.approx(float(inside.double().mean()), abs=1e-12)
    assert torch.equal(ranking[:, 0], metrics.predicted(probabilities))
    for row, order in zip(probabilities.tolist(), ranking.tolist(), strict=True):
        assert order == sorted(range(k), key=lambda i: (-row[i], i))[:top]


def test_order_of_pictures_does_not_matter() -> None:
    probabilities, labels = some(400, 6)
    order = torch.randperm(400)
    for function in (metrics.topk, metrics.nll, metrics.calibration_error):
        assert function(probabilities, labels) == pytest.approx(
            function(probabilities[order], labels[order]), abs=1e-12
        )
    assert torch.equal(metrics.confusion(probabilities, labels), metrics.confusion(probabilities[order], labels[order]))


def test_relabelling_the_classes_permutes_the_confusion() -> None:
    probabilities, labels = some(300, 5)
    place = torch.tensor([3, 1, 4, 0, 2])  # new number → old number
    new = place.argsort()
    table = metrics.confusion(probabilities[:, place], new[labels])
    assert torch.equal(table, metrics.confusion(probabilities, labels)[place][:, place])


def test_nll_has_a_floor_and_no_negative_zero() -> None:
    probabilities = torch.tensor([[1.0, 0.0]])
    assert metrics.nll(probabilities, torch.tensor([1])) == pytest.approx(-math.log(metrics.NLL_FLOOR))
    assert math.copysign(1, metrics.nll(probabilities, torch.tensor([0]))) == 1


def test_a_class_without_pictures_counts_in_no_mean() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    scores = metrics.per_class(probabilities, torch.tensor([0, 1]))
    assert scores.support.tolist() == [1, 1, 0]
    assert (scores.precision[2], scores.recall[2], scores.f1[2]) == (0, 0, 0)
    assert metrics.macro(scores) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3 (score, without continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(right: int, n: int, low: float, high: float) -> None:
    assert metrics.wilson(right, n) == pytest.approx((low, high), abs=6e-5)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_an_interval_around_the_fraction_and_symmetric(pair: tuple[int, int]) -> None:
    right, n = pair
    low, high = metrics.wilson(right, n)
    assert 0 <= low <= high <= 1
    if n:
        assert low <= right / n <= high
    mirrored = metrics.wilson(n - right, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (torch.ones(3), torch.zeros(3, dtype=torch.int64), r"expected float \[N, K\]"),
        (torch.ones(3, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), r"expected float \[N, K\]"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.int64), "N and K >= 1"),
        (torch.ones(3, 2), torch.zeros(2, dtype=torch.int64), r"expected int64 \[3\]"),
        (torch.ones(3, 2), torch.zeros(3), r"expected int64 \[3\]"),
        (torch.ones(3, 2), torch.tensor([0, 1, 2]), "expected 0 to 1, received 0 to 2"),
        (torch.ones(3, 2), torch.tensor([0, -1, 1]), "expected 0 to 1, received -1"),
        (torch.tensor([[math.nan, 1.0]]), torch.tensor([0]), "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(probabilities: Tensor, labels: Tensor, message: str) -> None:
    for function in (metrics.topk, metrics.confusion, metrics.per_class, metrics.nll, metrics.calibration_error):
        with pytest.raises(UsageError, match=message):
            function(probabilities, labels)


def test_senseless_numbers_are_refused() -> None:
    probabilities, labels = some(4, 3)
    with pytest.raises(UsageError, match="k: expected at least 1"):
        metrics.topk(probabilities, labels, 0)
    with pytest.raises(UsageError, match="bins: expected at least 1"):
        metrics.calibration_error(probabilities, labels, 0)
    with pytest.raises(UsageError, match="0 <= right <= n"):
        metrics.wilson(5, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Many labels
# ---------------------------------------------------------------------------------------------------------------------


def many(n: int, k: int, seed: int, levels: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities better than guessing, with ties where `levels` is given; labels of which some are not known."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, k, generator=generator) < 0.3).float()
    scores = torch.sigmoid(torch.randn(n, k, generator=generator, dtype=torch.float64) + 1.5 * labels)
    if levels:
        scores = (scores * levels).round() / levels
    return scores, labels.masked_fill(torch.rand(n, k, generator=generator) < 0.1, -1)


def slow_ap(scores: list[float], there: list[bool]) -> tuple[float, float]:
    """Area and eleven points by the definition: for each recall the best precision at it or above."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        called = [there[i] for i in range(len(scores)) if scores[i] >= threshold]
        points.append((sum(called) / sum(there), sum(called) / len(called)))

    def best(recall: float) -> float:
        return max((p for r, p in points if r >= recall - 1e-9), default=0.0)

    area, before = 0.0, 0.0
    for recall, _ in points:
        area, before = area + (recall - before) * best(recall), recall
    return area, sum(best(step / 10) for step in range(11)) / 11


@pytest.mark.parametrize(("n", "levels", "seed"), [(3, 0, 1), (10, 0, 2), (60, 5, 3), (200, 0, 4), (200, 1, 5)])
def test_average_precision_equals_the_slow_version_and_scikit_learn(n: int, levels: int, seed: int) -> None:
    probabilities, labels = many(n, 4, seed, levels)
    for k, got in enumerate(metrics.average_precisions(probabilities, labels)):
        known = labels[:, k] >= 0
        scores, there = probabilities[known, k].numpy(), (labels[known, k] == 1).numpy()
        if not there.any():
            assert got == (None, None)
            continue
        area, eleven = slow_ap(scores.tolist(), there.tolist())
        assert got.area == pytest.approx(area, abs=1e-12) and got.eleven == pytest.approx(eleven, abs=1e-12)
        precision, recall, _ = sk.precision_recall_curve(there, scores)
        interpolated = np.maximum.accumulate(precision)
        assert got.area == pytest.approx(-(np.diff(recall) * interpolated[:-1]).sum(), abs=1e-12)
        assert got.area >= sk.average_precision_score(there, scores) - 1e-12  # which does not interpolate


def test_average_precision_by_hand() -> None:
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6], [0.5]])
    labels = torch.tensor([[1.0], [0], [1], [-1], [0]])
    (got,) = metrics.average_precisions(scores, labels)
    assert got.area == pytest.approx(0.5 * 1 + 0.5 * 2 / 3) and got.eleven == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    (perfect,) = metrics.average_precisions(scores, torch.tensor([[1.0], [1], [0], [0], [0]]))
    (guessing,) = metrics.average_precisions(torch.full((5, 1), 0.5), labels)
    assert perfect == (1.0, 1.0) and guessing.area == 0.5


def test_scores_at_thresholds_equal_scikit_learn() -> None:
    probabilities, labels = many(300, 5, 0)
    labels = labels.clamp(min=0)
    thresholds = torch.tensor([0.2, 0.4, 0.5, 0.7, 1.0])
    scores, micro = metrics.per_label(probabilities, labels, thresholds)
    called = (probabilities >= thresholds).int().numpy()
    expected = sk.precision_recall_fscore_support(labels.int().numpy(), called, zero_division=0)
    for got, wanted in zip(scores, expected, strict=True):
        np.testing.assert_allclose(got, wanted)
    wanted = sk.precision_recall_fscore_support(labels.int().numpy(), called, average="micro")[:3]
    assert micro == pytest.approx(wanted)
    assert metrics.macro(scores)[2] == pytest.approx(float(np.mean(expected[2])))
    log_loss = np.mean([sk.log_loss(labels[:, k], probabilities[:, k]) for k in range(5)])
    assert metrics.binary_nll(probabilities, labels) == pytest.approx(log_loss)


def test_what_is_not_known_counts_nowhere() -> None:
    probabilities, labels = many(120, 3, 6)
    for k in range(3):
        known = labels[:, k] >= 0
        p, y = probabilities[known, k : k + 1], labels[known, k : k + 1]
        one, all_ = metrics.average_precisions(p, y), metrics.average_precisions(probabilities, labels)
        assert one[0] == all_[k]
        assert metrics.best_thresholds(p, y)[0] == metrics.best_thresholds(probabilities, labels)[k]
        half = torch.full((3,), 0.5)
        alone, together = (
            metrics.per_label(p, y, half[:1])[0],
            metrics.per_label(probabilities, labels, half)[0],
        )
        assert all(a[0] == b[k] for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("levels", [0, 6])
def test_thresholds_have_the_best_f1_that_there_is(levels: int) -> None:
    probabilities, labels = many(80, 4, 7, levels)
    chosen = torch.tensor(metrics.best_thresholds(probabilities, labels), dtype=torch.float64)
    got = metrics.per_label(probabilities, labels, chosen)[0].f1
    for threshold in [*probabilities.unique().tolist(), 0.0, 1.0]:
        other = metrics.per_label(probabilities, labels, torch.full((4,), threshold, dtype=torch.float64))[0].f1
        assert bool((got >= other - 1e-12).all())
    assert bool(((chosen > 0) & (chosen < 1)).all())
    same = torch.ones(5, 1)
    assert (
        metrics.best_thresholds(torch.rand(5, 1), same) == metrics.best_thresholds(torch.rand(5, 1), 0 * same) == [0.5]
    )


def test_bootstrap_is_seeded_and_near_a_slow_one() -> None:
    probabilities, labels = many(150, 3, 8)
    intervals, whole = metrics.bootstrap(probabilities, labels, 400, seed=3)
    assert (intervals, whole) == metrics.bootstrap(probabilities, labels, 400, seed=3)
    assert whole != metrics.bootstrap(probabilities, labels, 400, seed=4)[1]
    rng, slow = np.random.default_rng(0), []
    for _ in range(400):
        rows = torch.from_numpy(rng.integers(150, size=150))
        slow.append([one.area for one in metrics.average_precisions(probabilities[rows], labels[rows])])
    table = np.array(slow, dtype=float)
    for k, values in enumerate([*table.T, table.mean(1)]):
        got = whole if k == 3 else intervals[k]
        np.testing.assert_allclose(got, np.quantile(values, [0.025, 0.975]), atol=0.03)
    labels[:, 1] = 0
    nobody, still = metrics.bootstrap(probabilities, labels, 200)
    assert nobody[1] is None and nobody[0] is not None and still is not None


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (torch.rand(3), torch.zeros(3), "probabilities: expected float"),
        (torch.rand(3, 2), torch.zeros(3, dtype=torch.int64), r"labels: expected float \[3, 2\]"),
        (torch.rand(3, 2), torch.full((3, 2), 0.5), "expected 1, 0 and -1"),
        (torch.full((3, 2), float("nan")), torch.zeros(3, 2), "expected values in 0 to 1"),
    ],
)
def test_many_labels_that_do_not_fit_are_refused(probabilities: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        metrics.average_precisions(probabilities, labels)
