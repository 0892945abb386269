"""Machines against scikit-learn, float64 optima and slow kernels; and what they are saved by, when it is not theirs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn import datasets, ensemble, linear_model, svm
from sklearn.metrics import pairwise
from torch import Tensor

from opsin import metrics, storage
from opsin.classical import kernels, machines, solver
from opsin.classical.kernels import AdditiveMap
from opsin.classical.machines import Machine, restored
from opsin.errors import StorageError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def digits() -> tuple[Tensor, Tensor]:
    """float32 [1797, 64], 0 to 16, and int64 [1797], in an order of their own."""
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return torch.from_numpy(x[order]).float(), torch.from_numpy(y[order]).long()


def standardised(x: Tensor) -> np.ndarray:
    z = x.double().numpy()
    std = z.std(0)
    return (z - z.mean(0)) / np.where(std > 1e-6 * std.max(), std, np.inf)


def many(y: Tensor, unknown: float = 0.2) -> Tensor:
    """Digits as pictures of three labels: even, above 4, a 3 or an 8. Some are not known."""
    labels = torch.stack([y % 2 == 0, y > 4, (y == 3) | (y == 8)], 1).float()
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < unknown] = -1
    return labels


def hinge(weight: np.ndarray, bias: np.ndarray, z: np.ndarray, signs: np.ndarray, strength: float) -> np.ndarray:
    """The objective of each class, float64 [K]."""
    short = np.maximum(0, 1 - signs * (z @ weight.T + bias)) ** 2
    return 0.5 * (weight**2).sum(1) + strength * (short * (signs != 0)).sum(0)


# ---------------------------------------------------------------------------------------------------------------------
# Linear
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paired", [0, 10_000])
@pytest.mark.parametrize("strength", [1e-3, 0.1])
def test_a_linear_svm_is_liblinears(strength: float, paired: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "PAIRED", paired)
    x, y = digits()
    x, y = x[:600], y[:600]
    z = standardised(x)
    # liblinear penalises its intercept; scaled by so much the penalty is nothing.
    theirs = svm.LinearSVC(C=strength, dual=False, tol=1e-8, max_iter=20_000, intercept_scaling=1e3).fit(z, y.numpy())
    ours = machines.linear_svm(x, y, 10, strength=strength, tolerance=1e-7, iterations=2000)
    scores = ours.scores(x).double().numpy()
    assert np.abs(scores - theirs.decision_function(z)).max() < 2e-3 * np.abs(scores).max()
    assert (scores.argmax(1) == theirs.predict(z)).all()
    assert ours.settings.about["gap"] <= 1e-7


def test_the_gap_that_is_stated_bounds_what_is_lost() -> None:
    x, y = digits()
    z, signs = standardised(x), np.where(y.numpy()[:, None] == np.arange(10), 1, -1)
    loss = solver.SquaredHinge(torch.from_numpy(signs).double())

    def objective(tolerance: float, iterations: int = 3000) -> tuple[np.ndarray, solver.Solution]:
        found = solver.minimise(x, loss, strength=0.01, tolerance=tolerance, iterations=iterations)
        std = x.double().numpy().std(0)
        weight = found.weight.double().numpy() * std
        bias = found.bias.double().numpy() + found.weight.double().numpy() @ x.double().numpy().mean(0)
        return hinge(weight, bias, z, signs, 0.01), found

    best, _ = objective(1e-9)
    for tolerance in (0.1, 0.01, 1e-4):
        value, found = objective(tolerance)
        assert found.gap <= tolerance
        assert (value <= best * (1 + tolerance)).all() and (value >= best * (1 - 1e-6)).all()
    value, found = objective(1e-9, iterations=3)
    assert found.iterations == 3 and 1e-9 < float(((value - best) / value).max()) <= found.gap


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("fit", [machines.linear_svm, machines.logistic])
def test_features_that_go_together_take_tens_of_steps(
    fit: Callable[..., Machine], standardise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    causes = torch.randn(1000, 60, generator=generator)
    y = (causes[:, 20:30] + 2 * torch.randn(1000, 10, generator=generator)).argmax(1)
    x = (causes / torch.arange(1, 61)) @ torch.randn(60, 100, generator=generator)  # what tells is a small part of it
    x += 0.01 * torch.randn(1000, 100, generator=generator) + 3
    options: dict[str, Any] = {"strength": 1.0, "standardise": standardise, "tolerance": 1e-3, "iterations": 400}
    ours = fit(x, y, 10, **options)
    monkeypatch.setattr(solver, "PAIRED", 0)
    plain = fit(x, y, 10, **options)
    assert ours.settings.about["gap"] <= 1e-3
    assert 4 * ours.settings.about["iterations"] < plain.settings.about["iterations"]


def test_what_is_nearly_the_same_begins_where_the_other_ended() -> None:
    x, y = digits()
    start = solver.Start()
    machines.linear_svm(x[:1700], y[:1700], 10, strength=0.01, start=start)
    assert start.factor is not None
    again = machines.linear_svm(x, y, 10, strength=0.01, start=start, tolerance=1e-9)
    anew = machines.linear_svm(x, y, 10, strength=0.01, tolerance=1e-9)
    assert torch.allclose(again.scores(x), anew.scores(x), atol=1e-3)
    assert again.settings.about["iterations"] < anew.settings.about["iterations"]


def test_softmax_regression_is_scikit_learns() -> None:
    x, y = digits()
    x, y = x[:500], y[:500]
    z = standardised(x)
    theirs = linear_model.LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(z, y.numpy())
    ours = machines.logistic(x, y, 10, strength=0.1, tolerance=1e-8, iterations=2000)
    assert np.abs(ours.probabilities(x).numpy() - theirs.predict_proba(z)).max() < 1e-3


@pytest.mark.parametrize("fit", [machines.linear_svm, machines.logistic])
def test_each_of_many_labels_is_a_problem_of_its_own_without_what_is_not_known(fit: Callable[..., Machine]) -> None:
    x, y = digits()
    x = torch.from_numpy(standardised(x)[:400]).float()
    labels = many(y[:400])
    ours = fit(x, labels, 3, strength=0.05, standardise=False, tolerance=1e-7, iterations=2000)
    for k in range(3):
        known = labels[:, k] >= 0
        rows, truth = x[known].double().numpy(), labels[known, k].numpy()
        if fit is machines.logistic:
            theirs = linear_model.LogisticRegression(C=0.05, tol=1e-8, max_iter=5000).fit(rows, truth)
        else:
            theirs = svm.LinearSVC(C=0.05, dual=False, tol=1e-7, max_iter=5000, intercept_scaling=1e3).fit(rows, truth)
        expected = theirs.decision_function(x.double().numpy())
        assert np.abs(ours.scores(x)[:, k].numpy() - expected).max() < 5e-3 * np.abs(expected).max()
    assert ours.settings.link == "sigmoid"


def test_rows_are_read_in_blocks_and_never_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = digits()
    before, whole = x.clone(), machines.linear_svm(x, y, 10, strength=0.01, tolerance=1e-9)
    largest = []
    blocks = solver.blocks

    def watched(x: Tensor, lift: AdditiveMap | None = None) -> Any:
        for part, block in blocks(x, lift):
            largest.append(block.numel())
            assert block.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            yield part, block

    monkeypatch.setattr(solver, "BLOCK", 64 * 100)
    monkeypatch.setattr(solver, "blocks", watched)
    parts = machines.linear_svm(x, y, 10, strength=0.01, tolerance=1e-9)
    assert max(largest) == 64 * 100 and torch.equal(x, before)
    assert torch.allclose(whole.scores(x), parts.scores(x), atol=1e-3)


def test_a_feature_that_never_varies_and_one_far_from_zero_change_nothing() -> None:
    x, y = digits()
    x, y = x[:500], y[:500]
    plain = machines.linear_svm(x, y, 10, strength=0.01, tolerance=1e-6)
    odd = torch.cat([x * 50 + 1000, torch.full((500, 1), 7.0)], 1)
    other = machines.linear_svm(odd, y, 10, strength=0.01, tolerance=1e-6)
    assert torch.allclose(plain.scores(x), other.scores(odd), atol=2e-3)
    assert not other.tensors["weight"][:, -1].any()


def test_a_class_without_pictures_is_never_found() -> None:
    x, y = digits()
    machine = machines.linear_svm(x[y < 9], y[y < 9], 10, strength=0.01)
    assert ((machine.scores(x)[:, 9] + 1).abs() < 1e-5).all()
    with pytest.raises(UsageError, match=r"classes \[9\] have none"):
        machines.logistic(x[y < 9], y[y < 9], 10, strength=0.01)


def test_progress_says_how_far_it_is() -> None:
    x, y = digits()
    seen: list[int] = []
    machine = machines.linear_svm(x, y, 10, strength=0.01, progress=seen.append)
    assert seen == [*range(1, len(seen) + 1)] and len(seen) == machine.settings.about["iterations"]


# ---------------------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------------------


def histograms(n: int, seed: int) -> Tensor:
    x = torch.rand(n, 30, generator=torch.Generator().manual_seed(seed))
    x[x < 0.4] = 0
    return x / x.sum(1, keepdim=True)


def test_kernels_are_the_slow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TILE", 30 * 7)
    monkeypatch.setattr(kernels, "ROWS", 16)
    a, b = histograms(50, 0), histograms(33, 1)
    a[0] = 0
    wide, other = a.double().numpy(), b.double().numpy()
    expected = {
        "chi2": pairwise.chi2_kernel(wide, other, gamma=0.7),
        "rbf": pairwise.rbf_kernel(wide, other, gamma=0.7),
        "intersection": np.minimum(wide[:, None], other).sum(2),
    }
    for kind, kernel in expected.items():
        found = kernels.gram(a, b, cast(kernels.Kind, kind), 0.7).numpy()
        assert np.abs(found - kernel).max() <= 1e-5 * np.abs(kernel).max()


@pytest.mark.parametrize("kind", kernels.SPECTRA)
def test_the_additive_map_comes_nearer_with_its_order(kind: kernels.Additive) -> None:
    a, b = histograms(40, 0), histograms(40, 1)
    exact = kernels.additive(a.double()[:, None], b.double(), kind).sum(2)
    assert torch.allclose(kernels.additive(a.double(), a.double(), kind), a.double())  # k(x, x) = x
    errors = []
    for order in (1, 2, 4, 8):
        lifted = [kernels.additive_map(x, kind, order).double() for x in (a, b)]
        assert lifted[0].shape == (40, (2 * order + 1) * 30)
        errors.append(float((lifted[0] @ lifted[1].T - exact).abs().max()))
    assert errors == sorted(errors, reverse=True)
    # Of a minimum, whose spectrum falls off slowly, little is gained.
    assert errors[1] < (0.08 if kind == "intersection" else 0.01) and not kernels.additive_map(0 * a, kind).any()


@pytest.mark.parametrize("kind", ["chi2", "intersection", "rbf"])
def test_a_kernel_svm_is_libsvms(kind: kernels.Kind) -> None:
    x, y = digits()
    x, rest, y = x[:300] / 16, x[300:400] / 16, y[:300]
    ours = machines.kernel_svm(x, y, 10, strength=2.0, kernel=kind, tolerance=1e-6, iterations=5000)
    gamma = ours.settings.gamma
    # The squared hinge is the hinge of a kernel with 1 / 2C on its diagonal, no error allowed.
    gram = kernels.gram(x, x, kind, gamma).double().numpy() + np.eye(300) / 4
    across = kernels.gram(rest, x, kind, gamma).double().numpy()
    scores = ours.scores(rest)
    for k in (0, 5, 8):
        theirs = svm.SVC(kernel="precomputed", C=1e6, tol=1e-6).fit(gram, (y == k).numpy())
        expected = theirs.decision_function(across)
        assert np.abs(scores[:, k].numpy() - expected).max() < 2e-3 * np.abs(expected).max()


def test_what_a_kernel_machine_keeps_is_what_it_needs() -> None:
    x, y = digits()
    x, y = x / 16, many(y)
    machine = machines.kernel_svm(x[:600], y[:600], 3, strength=10.0, kernel="rbf")
    assert len(machine.tensors["vectors"]) < 600
    labels = y[600:]
    known = labels >= 0
    right = ((machine.scores(x[600:]) > 0) == (labels > 0))[known]
    assert float(right.float().mean()) > 0.95


def test_a_linear_machine_of_an_additive_map_is_nearly_the_kernel_machine() -> None:
    x, y = digits()
    x = x / x.sum(1, keepdim=True)
    x, rest, y = x[:300], x[300:500], y[:300]
    ours = machines.linear_svm(x, y, 10, strength=20.0, standardise=False, additive="chi2", order=3, tolerance=1e-3)
    lifted = [kernels.additive_map(each, "chi2", 3) for each in (x, rest)]
    same = machines.linear_svm(lifted[0], y, 10, strength=20.0, standardise=False, tolerance=1e-3)
    assert torch.allclose(ours.scores(rest), same.scores(lifted[1]), atol=1e-4)
    gram, across = (kernels.additive(each.double()[:, None], x.double(), "chi2").sum(2).numpy() for each in (x, rest))
    for k in (0, 8):
        theirs = svm.SVC(kernel="precomputed", C=1e6, tol=1e-6).fit(gram + np.eye(300) / 40, (y == k).numpy())
        expected = theirs.decision_function(across)
        assert np.abs(ours.scores(rest)[:, k].numpy() - expected).max() < 0.02 * np.abs(expected).max()


# ---------------------------------------------------------------------------------------------------------------------
# Forests
# ---------------------------------------------------------------------------------------------------------------------


def test_a_forest_answers_as_scikit_learns_to_the_bit() -> None:
    x, y = digits()
    x = x + torch.rand(x.shape)
    theirs = ensemble.RandomForestClassifier(20, random_state=3).fit(x[:900].numpy(), y[:900].numpy())
    ours = machines.forest(x[:900], y[:900], 10, trees=20, seed=3)
    assert np.abs(ours.probabilities(x).numpy() - theirs.predict_proba(x.numpy())).max() < 1e-6
    # On the very thresholds too: a float32 at one, the next below and the next above.
    at, feature = ours.tensors["threshold"][:50], ours.tensors["feature"][:50].long()
    for move in (at, torch.nextafter(at, at - 1), torch.nextafter(at, at + 1)):
        moved = x[:50].clone()
        moved[range(50), feature] = move
        assert np.abs(ours.probabilities(moved).numpy() - theirs.predict_proba(moved.numpy())).max() < 1e-6


def test_a_forest_of_many_labels_and_of_classes_without_pictures() -> None:
    x, y = digits()
    labels = many(y)
    ours = machines.forest(x[:600], labels[:600], 3, trees=10, leaf=3)
    for k in range(3):
        known = labels[:600, k] >= 0
        theirs = ensemble.RandomForestClassifier(10, min_samples_leaf=3, random_state=k)
        theirs.fit(x[:600][known].numpy(), labels[:600][known, k].numpy())
        found = ours.probabilities(x)[:, k].numpy()
        assert np.abs(found - theirs.predict_proba(x.numpy())[:, 1]).max() < 1e-6
    some = machines.forest(x[y > 1][:300], y[y > 1][:300], 10, trees=5)
    assert not some.scores(x)[:, :2].any() and torch.allclose(some.scores(x).sum(1), torch.ones(len(x)))
    with pytest.raises(UsageError, match="label 1, received none"):
        machines.forest(x[:9], torch.tensor([[1.0, -1.0]]).repeat(9, 1), 2, trees=2)


# ---------------------------------------------------------------------------------------------------------------------
# Calibrated
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["svm", "kernel", "forest", "logistic"])
def test_calibrated_probabilities_mean_what_they_say(kind: str) -> None:
    x, y = digits()
    fit = {
        "svm": lambda *a: machines.linear_svm(*a, strength=0.01),
        "kernel": lambda *a: machines.kernel_svm(*a, strength=1.0, kernel="rbf"),
        "forest": lambda *a: machines.forest(*a, trees=50),
        "logistic": lambda *a: machines.logistic(*a, strength=1e-3),
    }[kind]
    raw = fit(x[:600], y[:600], 10)
    machine = machines.calibrated(raw, x[600:1100], y[600:1100])
    rest, truth = x[1100:], y[1100:]
    before, after = raw.probabilities(rest), machine.probabilities(rest)
    assert torch.allclose(after.sum(1), torch.ones(len(rest)))
    assert torch.equal(machine.scores(rest), raw.scores(rest))
    assert metrics.topk(after, truth) > metrics.topk(before, truth) - 0.01
    assert metrics.calibration_error(after, truth) < 0.05 < metrics.calibration_error(before, truth)
    assert metrics.nll(after, truth) < metrics.nll(before, truth)


def test_the_temperature_is_the_best_one_and_finite_for_scores_without_an_error() -> None:
    x, y = digits()
    machine = machines.calibrated(machines.linear_svm(x[:300], y[:300], 10, strength=0.01), x[300:], y[300:])
    logits = torch.log(machine.probabilities(x[300:]).double())
    targets = torch.nn.functional.one_hot(y[300:], 10) * (1 - 10 / 1507) + 1 / 1507

    def cost(factor: float) -> float:
        return float(-(torch.log_softmax(logits * factor, 1) * targets).sum())

    assert cost(1) < min(cost(0.98), cost(1.02))
    perfect = Machine(machine.settings, machine.tensors | {"weight": torch.eye(10, 64), "bias": torch.zeros(10)})
    sure = machines.calibrated(perfect, torch.eye(10, 64), torch.arange(10))
    assert 0.5 < float(sure.probabilities(torch.eye(10, 64)).diagonal().min()) < 0.99


def test_platts_sigmoids_are_scikit_learns() -> None:
    from sklearn.calibration import _sigmoid_calibration  # pyright: ignore[reportAttributeAccessIssue]

    x, y = digits()
    labels = many(y)
    raw = machines.linear_svm(x[:500], labels[:500], 3, strength=0.01)
    machine = machines.calibrated(raw, x[500:], labels[500:])
    scores = raw.scores(x[500:]).double().numpy()
    for k in range(3):
        known = (labels[500:, k] >= 0).numpy()
        a, b = _sigmoid_calibration(scores[known, k], labels[500:][known, k].numpy())
        expected = 1 / (1 + np.exp(a * scores[:, k] + b))
        assert np.abs(machine.probabilities(x[500:])[:, k].numpy() - expected).max() < 1e-3
    blind = torch.cat([labels[500:, :2], torch.full((len(y) - 500, 1), -1.0)], 1)  # of the third nothing is known
    assert (machines.calibrated(raw, x[500:], blind).probabilities(x[500:])[:, 2] == 0.5).all()


# ---------------------------------------------------------------------------------------------------------------------
# Saved
# ---------------------------------------------------------------------------------------------------------------------


@cache
def some(kind: str) -> Machine:
    x, y = digits()
    x, y = x[:200] / 16, y[:200]
    if kind == "kernel":
        return machines.kernel_svm(x, y, 10, strength=1.0)
    if kind == "forest":
        return machines.calibrated(machines.forest(x, y, 10, trees=3), x, y)
    return machines.linear_svm(x, many(y), 3, strength=1.0, additive="intersection" if kind == "lifted" else "")


def through_files(machine: Machine) -> tuple[Any, dict[str, Tensor]]:
    arrays = storage.from_safetensors(storage.to_safetensors(machine.arrays()), "weights")
    return storage.read_json(json.dumps(machine.config()).encode(), "config"), arrays


@pytest.mark.parametrize("kind", ["linear", "lifted", "kernel", "forest"])
def test_a_machine_comes_back_the_same(kind: str) -> None:
    machine, x = some(kind), digits()[0] / 16
    again = restored(*through_files(machine), "here")
    assert again.settings == machine.settings and again.num_classes == machine.num_classes
    assert torch.equal(again.probabilities(x), machine.probabilities(x))
    assert torch.equal(again.to("cpu").scores(x[:0]), torch.zeros(0, machine.num_classes))
    one = torch.cat([machine.scores(x[i : i + 1]) for i in range(20)])
    assert torch.allclose(one, machine.scores(x)[:20], atol=1e-5)


def change(key: str, at: int, value: float) -> Callable[[Any, dict[str, Tensor]], None]:
    def changed(config: Any, arrays: dict[str, Tensor]) -> None:
        arrays[key].view(-1)[at] = value

    return changed


def set_to(key: str, value: Any) -> Callable[[Any, dict[str, Tensor]], None]:
    return lambda config, arrays: config.update({key: value})


def swap(key: str, make: Callable[[Tensor], Tensor]) -> Callable[[Any, dict[str, Tensor]], None]:
    return lambda config, arrays: arrays.update({key: make(arrays[key])})


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("linear", set_to("kind", "magic"), "kind"),
        ("linear", set_to("kind", "kernel"), "kernel"),
        ("linear", set_to("kind", ["linear"]), "kind"),
        ("linear", set_to("link", 1), "link"),
        ("linear", set_to("more", 1), "more"),
        ("linear", set_to("features", 63), "weight"),
        ("linear", set_to("features", 0), "features"),
        ("linear", set_to("features", True), "features"),
        ("lifted", set_to("order", 2), "weight"),
        ("lifted", set_to("order", 10**9), "order"),
        ("lifted", set_to("step", -1.0), "step"),
        ("lifted", set_to("step", float("nan")), "step"),
        ("linear", change("weight", 5, float("nan")), "weight: not finite"),
        ("linear", change("slope", 0, float("inf")), "slope: not finite"),
        ("linear", swap("bias", lambda t: t[:2]), "bias"),
        ("linear", swap("weight", lambda t: t.double()), "float32"),
        ("linear", swap("weight", lambda t: t[0]), "dimensions"),
        ("linear", lambda config, arrays: arrays.pop("bias"), "expected the arrays"),
        ("linear", lambda config, arrays: arrays.update(other=torch.zeros(1)), "expected the arrays"),
        ("kernel", set_to("kernel", ""), "kernel"),
        ("kernel", set_to("gamma", -1.0), "kernel"),
        ("kernel", swap("coefficients", lambda t: t[:, 1:]), "coefficients"),
        ("forest", change("left", 0, 0), "left, right"),
        ("forest", change("left", 5, 1), "loop"),
        ("forest", change("right", 0, 10**9), "right"),
        ("forest", change("left", 0, 2), "belongs to no tree"),
        ("forest", change("feature", 0, 64), "feature"),
        ("forest", change("feature", 0, -1), "feature"),
        ("forest", change("leaf", 3, -1), "leaf"),
        ("forest", change("roots", 1, 1), "belongs to no tree"),
        ("forest", change("roots", 1, 10**9), "roots"),
        ("forest", change("groups", 0, 0), "groups"),
        ("forest", change("groups", 0, 2), "groups"),
        ("forest", change("values", 0, 2.0), "values"),
        ("forest", swap("leaf", lambda t: t[1:]), "leaf"),
        ("forest", swap("left", lambda t: t.float()), "int32"),
        ("forest", swap("groups", lambda t: t.repeat(2)), "groups"),
    ],
)
def test_what_is_not_a_machine_is_refused(
    kind: str, damage: Callable[[Any, dict[str, Tensor]], None], message: str
) -> None:
    config, arrays = through_files(some(kind))
    damage(config, arrays)
    with pytest.raises(StorageError, match="here.safetensors: .*" + message):
        restored(config, arrays, "here.safetensors")


@pytest.mark.parametrize("config", [None, [], "linear", {}, {"kind": "linear"}, 3])
def test_settings_that_are_none_are_refused(config: Any) -> None:
    with pytest.raises(StorageError, match="here"):
        restored(config, {}, "here")


def test_a_tree_that_is_too_deep_is_refused() -> None:
    n = 1001  # a chain: 1001 splits, each with a leaf to its left
    own, inner = torch.arange(2 * n + 1), torch.arange(2 * n + 1) % 2 == 0
    inner[-1] = False
    left, right = torch.where(inner, own + 1, own).int(), torch.where(inner, own + 2, own).int()
    zeros = torch.zeros(2 * n + 1, dtype=torch.int32)
    tree = {"feature": zeros, "threshold": zeros.float(), "left": left, "right": right, "leaf": zeros}
    tree |= {"roots": zeros[:1], "values": torch.ones(1, 1), "groups": torch.ones(1, dtype=torch.int32)}
    config = dataclasses.asdict(machines.Settings("forest", "shares", 1))
    with pytest.raises(StorageError, match="levels"):
        restored(config, tree | {"slope": torch.ones(1), "offset": torch.zeros(1)}, "here")


# ---------------------------------------------------------------------------------------------------------------------
# Refused
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: machines.linear_svm(x, y, 9, strength=1.0), "0 to 8"),
        (lambda x, y: machines.linear_svm(x, y.int(), 10, strength=1.0), "int64"),
        (lambda x, y: machines.linear_svm(x, y[1:], 10, strength=1.0), r"int64 \[50\]"),
        (lambda x, y: machines.linear_svm(x, many(y) + 1, 3, strength=1.0), "1, 0 and"),
        (lambda x, y: machines.linear_svm(x, y, 10, strength=0.0), "strength"),
        (lambda x, y: machines.linear_svm(x, y, 10, strength=float("nan")), "strength"),
        (lambda x, y: machines.linear_svm(x.long(), y, 10, strength=1.0), "vectors"),
        (lambda x, y: machines.linear_svm(x / 0, y, 10, strength=1.0), "finite"),
        (lambda x, y: machines.linear_svm(x / 0, y, 10, strength=1.0, standardise=False), "finite"),
        (lambda x, y: machines.linear_svm(x, y, 10, strength=1.0, additive=cast(Any, "chi")), "additive map"),
        (lambda x, y: machines.linear_svm(x - 1, y, 10, strength=1.0, additive="chi2"), "negative"),
        (lambda x, y: machines.kernel_svm(x - 1, y, 10, strength=1.0), "negative"),
        (lambda x, y: machines.kernel_svm(x, y, 10, strength=1.0, kernel="rbf", gamma=-1.0), "gamma"),
        (lambda x, y: machines.kernel_svm(x.repeat(4, 1), y.repeat(4), 10, strength=1e12), "smaller one"),
        (
            lambda x, y: machines.kernel_svm(torch.zeros(30_001, 1), torch.zeros(30_001).long(), 1, strength=1.0),
            "30000",
        ),
        (lambda x, y: machines.forest(x, y, 10, trees=0), "trees"),
        (lambda x, y: some("linear").scores(x[:, 1:]), r"\[B, 64\]"),
        (lambda x, y: machines.calibrated(some("linear"), x, y % 3), "one a picture, or many"),
    ],
)
def test_what_cannot_be_fitted_says_why(call: Callable[[Tensor, Tensor], Any], message: str) -> None:
    x, y = digits()
    with pytest.raises(UsageError, match=message):
        call(x[:50], y[:50])
