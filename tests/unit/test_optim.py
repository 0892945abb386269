from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from opsin import optim, recipe
from opsin.errors import UsageError
from opsin.recipe import Group
from opsin.types import Progress


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4 * 4, 5))


def gradients(model, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def take(model, optimizer, steps=5):
    for grads in gradients(model, steps):
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name].clone()
        optimizer.step()


def test_muon_and_sgd_in_one_optimizer_equal_a_slow_float64_version():
    model = network()
    spec = recipe.Muon(lr=0.1, momentum=0.6, sgd_lr=0.05, sgd_momentum=0.85, weight_decay=0.01)
    weights = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    buffers = {name: np.zeros_like(w) for name, w in weights.items()}
    for grads in gradients(model, 5):
        for name, w in weights.items():
            muon = name == "0.weight"
            g = grads[name].double().numpy() + 0.01 * w
            m = 0.6 if muon else 0.85
            buffers[name] = m * buffers[name] + g
            update = g + m * buffers[name]
            if muon:
                w *= np.sqrt(len(w)) / np.sqrt((w**2).sum())
                x = update.reshape(len(w), -1)
                x = x / np.sqrt((x**2).sum())
                for _ in range(3):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                update = x.reshape(w.shape)
            w -= (0.1 if muon else 0.05) * update
    take(model, optim.build(model, spec))
    for name, parameter in model.named_parameters():
        expected = weights[name]
        assert np.abs(parameter.detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max(), name


def test_orthogonalize_is_close_to_the_singular_vectors_product():
    for shape in ((8, 72), (72, 8)):
        u, _, vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        matrix = u @ torch.diag(torch.linspace(0.5, 1, 8)) @ vt
        singular = torch.linalg.svdvals(optim.orthogonalize(matrix, steps=5))
        assert singular.min() > 0.6 and singular.max() < 1.3
        assert ((u @ vt) * optim.orthogonalize(matrix, 5)).sum() / 8 > 0.8


@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        (
            recipe.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
        ),
        (recipe.Adam(lr=0.01, weight_decay=1e-2), lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2)),
        (recipe.AdamW(lr=0.01, weight_decay=1e-2), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-2)),
    ],
)
def test_the_others_are_torchs_own(spec, theirs):
    ours, reference = network(), network()
    take(ours, optim.build(ours, spec))
    take(reference, theirs(reference.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), reference.parameters(), strict=True))


def test_groups_have_their_own_rate_and_decay_and_the_first_match_wins():
    model = network()
    groups = (Group(match="*.bias", lr_scale=64.0, weight_decay=0.0), Group(match="3.*", lr_scale=0.5))
    built = optim.build(model, recipe.SGD(lr=0.1, weight_decay=0.01, groups=groups))
    found = {}
    for group in built.param_groups:
        for parameter in group["params"]:
            name = next(n for n, p in model.named_parameters() if p is parameter)
            found[name] = (round(group["base_lr"], 6), group["weight_decay"])
    assert found == {
        "0.weight": (0.1, 0.01),
        "1.weight": (0.1, 0.01),
        "1.bias": (6.4, 0.0),
        "3.weight": (0.05, 0.01),
        "3.bias": (6.4, 0.0),
    }


def test_a_pattern_that_matches_nothing_is_a_mistake():
    with pytest.raises(UsageError, match=r"no parameter's name matches 'heed\.\*'"):
        optim.build(network(), recipe.SGD(groups=(Group(match="heed.*"),)))


def test_a_group_stops_learning_when_its_time_is_over():
    model = network()
    built = optim.build(model, recipe.SGD(lr=0.1, momentum=0.0, groups=(Group(match="0.*", until=0.5),)))
    optim.set_rates(built, 1.0, 0.25)
    rates = sorted(group["lr"] for group in built.param_groups)
    assert rates == pytest.approx([0.05, 0.1])
    optim.set_rates(built, 1.0, 0.5)
    assert not model[0].weight.requires_grad
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert model[0].weight.grad is None and model[3].weight.grad is not None


def test_ema_is_the_recursion_with_a_warm_start_and_copies_counters():
    model = network()
    ema = optim.EMA(model, 0.9)
    expected = model[3].weight.detach().double().clone()
    for step in range(1, 30):
        with torch.no_grad():
            model[3].weight.add_(0.1)
            model[1].num_batches_tracked += 1
        ema.update(model, Progress(step=step))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[3].weight.detach().double()
    torch.testing.assert_close(ema.tensors["3.weight"].double(), expected, rtol=1e-5, atol=1e-5)
    assert ema.tensors["1.num_batches_tracked"] == 29
