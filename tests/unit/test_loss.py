from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from opsin.errors import UsageError
from opsin.loss import Classify, Labels, class_weights, compare, of_ignorance
from opsin.recipe import BinaryCrossEntropy, CrossEntropy, Focal
from opsin.types import Output


def slow(logits, targets, smoothing):
    """Float64, one picture at a time; returns the loss and its gradient."""
    loss, gradient = 0.0, np.zeros_like(logits)
    n, k = logits.shape
    for i in range(n):
        e = np.exp(logits[i] - logits[i].max())
        p = e / e.sum()
        q = (1 - smoothing) * targets[i] + smoothing / k
        loss -= (q * np.log(p)).sum() / n
        gradient[i] = (p * q.sum() - q) / n
    return loss, gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True])
def test_loss_and_gradient_equal_the_slow_version(smoothing, soft):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(7, 5)) * 3
    targets = rng.dirichlet(np.ones(5), 7) if soft else np.eye(5)[rng.integers(0, 5, 7)]
    loss, gradient = slow(logits, targets, smoothing)
    tensor = torch.tensor(logits, requires_grad=True)
    got, _ = compare(Output(tensor), torch.tensor(targets), CrossEntropy(label_smoothing=smoothing))
    got.backward()
    assert got.item() == pytest.approx(loss, rel=1e-10)
    np.testing.assert_allclose(tensor.grad.numpy(), gradient, atol=1e-12)


def test_auxiliary_heads_count_by_their_weights_and_must_all_have_one():
    logits, targets = torch.randn(4, 3), torch.eye(3)[[0, 1, 2, 0]]
    output = Output(logits, (logits * 2, logits * 3))
    parts = [compare(Output(logits * k), targets, CrossEntropy())[0] for k in (1, 2, 3)]
    whole, heads = compare(output, targets, CrossEntropy(aux_weights=(0.3, 0.2)))
    torch.testing.assert_close(whole, parts[0] + 0.3 * parts[1] + 0.2 * parts[2])
    torch.testing.assert_close(heads, parts)
    with pytest.raises(UsageError, match="expected 2 weights"):
        compare(output, targets, CrossEntropy(aux_weights=(0.3,)))


# ---------------------------------------------------------------------------------------------------------------------
# Class weights, logit adjustment, focal losses, many labels
# ---------------------------------------------------------------------------------------------------------------------

SINGLE = Labels.of(torch.tensor([0] * 60 + [1] * 30 + [2] * 10), 3)


def many(n=9, k=4, seed=0):
    """Logits, soft targets of which some are not known, and labels."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n, k))
    targets[rng.random((n, k)) < 0.3] = -1
    hard = torch.tensor(np.where(targets < 0, -1, targets > 0.7), dtype=torch.float32)
    return rng.normal(size=(n, k)) * 3, targets, Labels.of(hard, k)


def slow_single(logits, targets, gamma, weights, tau, priors):
    """Float64, one picture and one class at a time."""
    total = 0.0
    for x, q in zip(logits, targets, strict=True):
        x = x + tau * np.log(priors)
        p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
        total += sum(-weights[k] * q[k] * (1 - p[k]) ** gamma * np.log(p[k]) for k in range(len(x)))
    return total / len(logits)


def slow_many(logits, targets, gamma, weights, smoothing):
    total, known = 0.0, 0
    for x_row, t_row in zip(logits, targets, strict=True):
        for x, t, w in zip(x_row, t_row, weights, strict=True):
            if t >= 0:
                p, q = 1 / (1 + np.exp(-x)), (1 - smoothing) * t + smoothing / 2
                total -= w * q * (1 - p) ** gamma * np.log(p) + (1 - q) * p**gamma * np.log(1 - p)
                known += 1
    return total / known


@pytest.mark.parametrize("weights", ["", "balanced", "effective"])
@pytest.mark.parametrize(("gamma", "tau"), [(0.0, 0.0), (0.0, 1.0), (2.0, 0.0), (0.5, 0.0)])
def test_losses_of_one_label_equal_the_slow_version(weights, gamma, tau):
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(8, 3)) * 2, rng.dirichlet(np.ones(3), 8)
    spec = Focal(gamma=gamma, class_weights=weights) if gamma else CrossEntropy(class_weights=weights, tau=tau)
    of_class = class_weights(weights, SINGLE)
    numbers = np.ones(3) if of_class is None else of_class.double().numpy()
    tensor = torch.tensor(logits, requires_grad=True)
    got, _ = compare(Output(tensor), torch.tensor(targets), spec, SINGLE_64)
    assert got.item() == pytest.approx(slow_single(logits, targets, gamma, numbers, tau, [0.6, 0.3, 0.1]), rel=1e-6)
    got.backward()
    assert bool(torch.isfinite(tensor.grad).all())


SINGLE_64 = Labels(False, SINGLE.present.double(), SINGLE.absent.double())


@pytest.mark.parametrize("weights", ["", "balanced", "effective"])
@pytest.mark.parametrize("spec", [BinaryCrossEntropy(), BinaryCrossEntropy(label_smoothing=0.2), Focal(gamma=2.0)])
def test_losses_of_many_labels_equal_the_slow_version(weights, spec):
    logits, targets, labels = many()
    spec = replace(spec, class_weights=weights)
    of_class = class_weights(weights, labels)
    numbers = np.ones(4) if of_class is None else of_class.double().numpy()
    tensor = torch.tensor(logits, requires_grad=True)
    got, _ = compare(Output(tensor), torch.tensor(targets), spec, labels)
    gamma, smoothing = getattr(spec, "gamma", 0.0), getattr(spec, "label_smoothing", 0.0)
    assert got.item() == pytest.approx(slow_many(logits, targets, gamma, numbers, smoothing), rel=1e-6)
    got.backward()
    assert torch.equal(tensor.grad == 0, torch.tensor(targets < 0))  # what is not known teaches nothing


def test_binary_cross_entropy_is_that_of_torch_where_all_is_known():
    logits, targets = torch.randn(6, 5), torch.rand(6, 5).round()
    labels = Labels.of(targets, 5)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(compare(Output(logits), targets, BinaryCrossEntropy(), labels)[0], expected)
    nothing = compare(Output(logits.requires_grad_()), torch.full((6, 5), -1.0), BinaryCrossEntropy(), labels)[0]
    nothing.backward()
    assert nothing.item() == 0 and bool((logits.grad == 0).all())
    huge = compare(
        Output(torch.tensor([[1e4, -1e4]])), torch.tensor([[0.0, 1.0]]), Focal(), Labels.of(targets[:, :2], 2)
    )
    assert huge[0].item() == pytest.approx(1e4)


def test_class_weights_are_those_of_scikit_learn_and_of_the_paper():
    y = np.repeat([0, 1, 2], [60, 30, 10])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(class_weights("balanced", SINGLE), expected, rtol=1e-6)
    n = np.array([60.0, 30.0, 10.0])
    effective = (1 - 0.999) / (1 - 0.999**n)
    effective *= 100 / (effective * n).sum()
    np.testing.assert_allclose(class_weights("effective", SINGLE), effective, rtol=1e-4)
    labels = Labels.of(torch.tensor([[1.0, 0], [0, 0], [0, -1], [0, 1]]), 2)
    assert class_weights("balanced", labels).tolist() == [3.0, 2.0]
    assert class_weights("", SINGLE) is None
    with pytest.raises(UsageError, match="need the labels"):
        compare(Output(torch.zeros(1, 3)), torch.eye(3)[:1], CrossEntropy(tau=1.0))


def test_logit_adjustment_learns_what_the_frequencies_do_not_explain():
    """Of pictures that say nothing the plain loss learns the frequencies, the adjusted one nothing."""
    targets = torch.tensor([[0.6, 0.3, 0.1]])
    for tau, best in ((0.0, np.log([0.6, 0.3, 0.1])), (1.0, np.zeros(3))):
        logits = torch.tensor(best[None], dtype=torch.float32, requires_grad=True)
        compare(Output(logits), targets, CrossEntropy(tau=tau), SINGLE)[0].backward()
        assert float(logits.grad.abs().max()) < 1e-6


def test_the_loss_of_a_network_that_knows_nothing():
    labels = many()[2]
    assert of_ignorance(CrossEntropy(label_smoothing=0.1), SINGLE) == pytest.approx(math.log(3), rel=1e-6)
    assert of_ignorance(CrossEntropy(class_weights="balanced"), SINGLE) == pytest.approx(math.log(3), rel=1e-6)
    assert of_ignorance(BinaryCrossEntropy(label_smoothing=0.1), labels) == pytest.approx(math.log(2), rel=1e-6)
    assert of_ignorance(Focal(gamma=2.0), labels) == pytest.approx(math.log(2) / 4, rel=1e-6)
    entropy = -sum(p * math.log(p) for p in (0.6, 0.3, 0.1))
    assert of_ignorance(CrossEntropy(tau=1.0), SINGLE) == pytest.approx(entropy, rel=1e-5)


def test_a_loss_for_other_labels_is_refused():
    for spec, labels, instead in (
        (CrossEntropy(), many()[2], "BinaryCrossEntropy"),
        (BinaryCrossEntropy(), SINGLE, "CrossEntropy"),
    ):
        with pytest.raises(UsageError, match=f"--set loss={instead} or --set loss=Focal"):
            Classify(lambda batch, progress: (batch.images, batch.labels), spec, labels)
