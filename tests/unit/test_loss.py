from __future__ import annotations

import numpy as np
import pytest
import torch

from opsin.errors import UsageError
from opsin.loss import compare
from opsin.recipe import CrossEntropy
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
