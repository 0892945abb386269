"""Every rule and schedule against a slow version in float64 NumPy, driven by the one training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from opsin.train import StepEnd, TrainState, train
from opsin.types import Progress
from opsin.v2 import optimizer as paddle
from opsin.v2.graph import ParameterConf
from opsin.v2.optimizer import L2Regularization, ModelAverage, Optimizer, Updater

Array = NDArray[np.float64]
STEPS, ROWS = 7, 5
CONFS = {
    "plain": ParameterConf(name="plain", size=12),
    "own": ParameterConf(name="own", size=5, learning_rate=2.0, momentum=0.3, decay_rate=0.5, clip=0.7),
    "zero is unset": ParameterConf(name="zero is unset", size=4, momentum=0.0, decay_rate=0.0),
    "static": ParameterConf(name="static", size=3, is_static=True),
}


def start() -> dict[str, Array]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=conf.size).astype(np.float32).astype(float) for name, conf in CONFS.items()}


def gradients() -> dict[str, list[Array]]:
    """Sums over a batch, as large as those; "plain" has an element whose gradient is always 0."""
    generator = np.random.default_rng(1)
    made = {name: [3 * generator.normal(size=conf.size) for _ in range(STEPS)] for name, conf in CONFS.items()}
    for gradient in made["plain"]:
        gradient[0] = 0.0
    return {name: [g.astype(np.float32).astype(float) for g in each] for name, each in made.items()}


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tensors = [nn.Parameter(torch.tensor(w, dtype=torch.float32)) for w in start().values()]
        for i, tensor in enumerate(self.tensors):
            self.register_parameter(str(i), tensor)

    def named(self) -> dict[str, Tensor]:
        return dict(zip(CONFS, self.tensors, strict=True))


def driven(rule: Optimizer, *, passes: int = 1, model: Weights | None = None) -> Iterator[tuple[Weights, Updater]]:
    """After each step of the loop: the weights and the bound optimiser. Gradients are those of `gradients`."""
    model = model or Weights()
    updater = rule.bind([(CONFS[name], tensor) for name, tensor in model.named().items()])
    each = gradients()

    def objective(model: Weights, batch: Any, progress: Progress) -> tuple[Tensor, None]:
        step = progress.batch
        parts = [(w * torch.tensor(each[n][step], dtype=torch.float32)).sum() for n, w in model.named().items()]
        return torch.stack(parts).sum(), None

    events = train(
        TrainState(model, updater),
        lambda epoch, start: [([None] * ROWS,) for _ in range(STEPS)],
        objective,
        total_steps=0,
        until=lambda progress: progress.epoch >= passes,
        schedule=lambda progress, total: rule.rate(progress.samples + ROWS, progress.epoch),
    )
    for event in events:
        if isinstance(event, StepEnd):
            yield model, updater
        else:
            updater.end_pass(STEPS)


def check(found: Tensor, expected: Array) -> None:
    assert np.abs(found.detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


# ---------------------------------------------------------------------------------------------------------------------
# Rules: each a generator of what multiplies (g + d·w), or of the whole step where there is no decay
# ---------------------------------------------------------------------------------------------------------------------


def momentum(g: Array, s: dict[str, Any], t: int) -> Array:
    return np.ones_like(g)


def adagrad(g: Array, s: dict[str, Any], t: int) -> Array:
    s["G"] = s.get("G", 0) + g**2
    return 1 / np.sqrt(s["G"] + 1e-6)


def decayed_adagrad(g: Array, s: dict[str, Any], t: int) -> Array:
    s["E"] = 0.9 * s.get("E", 0) + (g**2 if t == 1 else 0.1 * g**2)
    return 1 / np.sqrt(s["E"] + 1e-4)


def rmsprop(g: Array, s: dict[str, Any], t: int) -> Array:
    s["E"] = 0.9 * s.get("E", 0) + (g**2 if t == 1 else 0.1 * g**2)
    s["f"] = 0.9 * s.get("f", 0) + 0.1 * g
    return 1 / np.sqrt(s["E"] - s["f"] ** 2 + 1e-4)


def adadelta(g: Array, s: dict[str, Any], t: int) -> Array:
    s["E"] = 0.9 * s.get("E", 0) + 0.1 * g**2
    scale = np.sqrt((s.get("D", 0) + 1e-4) / (s["E"] + 1e-4))
    s["D"] = 0.9 * s.get("D", 0) + 0.1 * (g * scale) ** 2
    return scale


SCALED: dict[str, tuple[Callable[..., Optimizer], Callable[..., Array]]] = {
    "Momentum": (paddle.Momentum, momentum),
    "AdaGrad": (paddle.AdaGrad, adagrad),
    "DecayedAdaGrad": (lambda **rest: paddle.DecayedAdaGrad(rho=0.9, epsilon=1e-4, **rest), decayed_adagrad),
    "RMSProp": (lambda **rest: paddle.RMSProp(rho=0.9, epsilon=1e-4, **rest), rmsprop),
    "AdaDelta": (lambda **rest: paddle.AdaDelta(rho=0.9, epsilon=1e-4, **rest), adadelta),
}
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.05,
    "learning_rate_schedule": "discexp",
    "learning_rate_decay_a": 0.5,
    "learning_rate_decay_b": 3 * ROWS,
    "regularization": L2Regularization(rate=0.2),
    "gradient_clipping_threshold": 4.0,
    "batch_size": 128,  # taken and not used
}


def rates(scheduled: bool) -> list[float]:
    """n is 5, 10, 15 …: the third batch is the first at half the rate, since it counts itself."""
    return [0.05 * (0.5 ** math.floor(ROWS * t / (3 * ROWS)) if scheduled else 1) for t in range(1, STEPS + 1)]


@pytest.mark.parametrize("name", SCALED)
def test_rules_with_velocity_equal_the_slow_version(name: str) -> None:
    make, scale = SCALED[name]
    rule = make(**SETTINGS, **({"momentum": 0.9} if name == "Momentum" else {}))
    etas, grads, weights = rates(name != "AdaGrad"), gradients(), start()
    velocity = {n: np.zeros_like(w) for n, w in weights.items()}
    state: dict[str, dict[str, Any]] = {n: {} for n in weights}
    global_momentum = 0.9 if name == "Momentum" else 0.0
    step = 0
    for model, _ in driven(rule):
        for n, w in weights.items():
            if n == "static":
                continue
            factor, m, d, clip = (2.0, 0.3, 0.5, 0.7) if n == "own" else (1.0, global_momentum, 0.2, 4.0)
            g = np.clip(grads[n][step], -clip, clip)
            s = scale(g, state[n], step + 1)
            velocity[n] = m * velocity[n] - etas[step] * factor * s * (g + d * w)
            weights[n] = w + velocity[n]
        step += 1
        for n, tensor in model.named().items():
            check(tensor, weights[n])
    assert step == STEPS


@pytest.mark.parametrize("name", ["Adam", "Adamax"])
def test_adam_and_adamax_equal_the_slow_version_and_ignore_decay_and_momentum(name: str) -> None:
    if name == "Adam":
        rule: Optimizer = paddle.Adam(beta1=0.8, beta2=0.95, epsilon=1e-3, **SETTINGS)
    else:
        rule = paddle.Adamax(beta1=0.8, beta2=0.95, **SETTINGS)
    etas, grads, weights = rates(name == "Adam"), gradients(), start()
    first = {n: np.zeros_like(w) for n, w in weights.items()}
    second = {n: np.zeros_like(w) for n, w in weights.items()}
    for t, (model, _) in enumerate(driven(rule), 1):
        for n, w in weights.items():
            if n == "static":
                continue
            factor, clip = (2.0, 0.7) if n == "own" else (1.0, 4.0)
            eta, g = etas[t - 1] * factor, np.clip(grads[n][t - 1], -clip, clip)
            first[n] = 0.8 * first[n] + 0.2 * g
            if name == "Adam":
                second[n] = 0.95 * second[n] + 0.05 * g**2
                alpha = eta * math.sqrt(1 - 0.95**t) / (1 - 0.8**t)
                weights[n] = w - alpha * first[n] / (np.sqrt(second[n]) + 1e-3)
            else:
                second[n] = np.maximum(0.95 * second[n], np.abs(g))
                ratio = np.divide(first[n], second[n], out=np.zeros_like(w), where=second[n] > 0)
                weights[n] = w - eta / (1 - 0.8**t) * ratio
        for n, tensor in model.named().items():
            check(tensor, weights[n])
            if n == "plain":
                assert tensor[0] == start()[n][0]  # 0/0 is no step


# ---------------------------------------------------------------------------------------------------------------------
# What is peculiar to Paddle
# ---------------------------------------------------------------------------------------------------------------------


def test_the_old_velocity_keeps_the_old_rate() -> None:
    """Rate 1, then 0: the second step is momentum × the first. In torch's SGD there would be none."""
    rule = paddle.Momentum(
        momentum=0.5,
        learning_rate=1.0,
        learning_rate_schedule="manual",
        learning_rate_args=f"{ROWS}:1,{2 * ROWS}:0",
    )
    w = torch.nn.Parameter(torch.zeros(2))
    updater = rule.bind([(ParameterConf(name="w", size=2), w)])
    seen = []
    for step in range(3):
        for group in updater.param_groups:
            group["lr"] = group["base_lr"] * rule.rate((step + 1) * ROWS, 0)
        w.grad = torch.ones(2)
        updater.step()
        seen.append(w.tolist()[0])
    assert seen == [-1.0, -1.5, -1.75]


def test_without_a_gradient_a_parameter_still_decays() -> None:
    w = torch.nn.Parameter(torch.full((2,), 4.0))
    rule = paddle.Momentum(learning_rate=1.0, regularization=[L2Regularization(0.25), L2Regularization(0.25)])
    updater = rule.bind([(ParameterConf(name="w", size=2), w)])
    updater.param_groups[0]["lr"] = 1.0
    updater.step()
    assert w.tolist() == [2.0, 2.0]


def test_the_configuration_gets_what_it_lacks_also_that_of_biases_and_static_ones() -> None:
    rule = paddle.Momentum(momentum=0.9, regularization=L2Regularization(rate=0.0002 * 128))
    for name in ("plain", "zero is unset", "static"):
        conf = rule.configured(CONFS[name])
        assert (conf.momentum, conf.decay_rate) == (0.9, 0.0256)
    own = rule.configured(CONFS["own"])
    assert (own.momentum, own.decay_rate, own.clip) == (0.3, 0.5, 0.7)
    # Another optimiser in the same process knows nothing of it.
    bare = paddle.Adam().configured(CONFS["plain"])
    assert (bare.momentum, bare.decay_rate, bare.clip) == (None, None, None)


def test_counting_starts_anew_and_moments_stay() -> None:
    rule = paddle.Adam(learning_rate=0.1)
    updater = list(driven(rule))[-1][1]
    assert updater.counts["updates"] == STEPS
    w = updater.param_groups[0]["params"][0]
    before = updater.state[w]["mean"].clone()
    updater.restart()
    assert updater.counts["updates"] == 0 and torch.equal(updater.state[w]["mean"], before)


# ---------------------------------------------------------------------------------------------------------------------
# Schedules
# ---------------------------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, tuple[dict[str, Any], Callable[[int, int], float]]] = {
    "constant": ({}, lambda n, p: 0.3),
    "poly": ({"a": 0.02, "b": 0.75}, lambda n, p: 0.3 / (1 + 0.02 * n) ** 0.75),
    "caffe_poly": ({"a": 40, "b": 2}, lambda n, p: 0.3 * (1 - n / 40) ** 2 if n <= 40 else 0.0),
    "exp": ({"a": 0.5, "b": 10}, lambda n, p: 0.3 * 0.5 ** (n / 10)),
    "discexp": ({"a": 0.5, "b": 10}, lambda n, p: 0.3 * 0.5 ** (n // 10)),
    "linear": ({"a": 0.01, "b": 0.05}, lambda n, p: max(0.3 - 0.01 * n, 0.05)),
    "manual": ({"args": "10:1.0,20:0.5,30:0.25"}, lambda n, p: 0.3 * (1 if n <= 10 else 0.5 if n <= 20 else 0.25)),
    "pass_manual": ({"args": "0:1.0,1:0.5"}, lambda n, p: 0.3 * (1 if p == 0 else 0.5)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_count_the_batch_that_runs(name: str) -> None:
    given, expected = SCHEDULES[name]
    rule = paddle.Momentum(
        learning_rate=0.3, learning_rate_schedule=name, **{f"learning_rate_{key}": v for key, v in renamed(given)}
    )
    seen = [updater.param_groups[0]["lr"] for _, updater in driven(rule, passes=2)]
    wanted = [expected((i + 1) * ROWS, i // STEPS) for i in range(2 * STEPS)]
    assert seen == pytest.approx(wanted, rel=1e-12)


def renamed(given: dict[str, Any]) -> list[tuple[str, Any]]:
    return [("args" if key == "args" else f"decay_{key}", value) for key, value in given.items()]


def test_no_schedule_is_poly_without_effect() -> None:
    assert paddle.Momentum(learning_rate=0.3).rate(10**9, 99) == 0.3


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="no 'discxep'; did you mean discexp"):
        paddle.Momentum(learning_rate_schedule="discxep")
    with pytest.raises(ValueError, match="divides by learning_rate_decay_b"):
        paddle.Adam(learning_rate_schedule="discexp", learning_rate_decay_a=0.1)
    with pytest.raises(ValueError, match=r"expected 'end:rate,end:rate…', received '10-1\.0'"):
        paddle.Adam(learning_rate_schedule="manual", learning_rate_args="10-1.0")
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rates'"):
        paddle.Momentum(learning_rates=0.1)
    with pytest.raises(ValueError, match="expected L2Regularization"):
        paddle.Adam(regularization=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to train"):
        paddle.Adam().bind([(CONFS["static"], torch.zeros(3))])


# ---------------------------------------------------------------------------------------------------------------------
# Model average
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [None, 3])
def test_the_average_is_over_this_window_and_the_one_before(most: int | None) -> None:
    spec = ModelAverage(average_window=0.5, max_average_window=most, min_average_window=2)
    rule = paddle.Momentum(momentum=0.9, learning_rate=0.01, model_average=spec)
    current: list[Array] = []
    before: list[Array] = []
    sizes = set()
    for update, (model, updater) in enumerate(driven(rule, passes=2), 1):
        raw = model.named()["plain"].detach().numpy().copy()
        current.append(raw.astype(float))
        limit = most or (math.inf if update <= STEPS else STEPS)
        if len(current) >= min(2, update) and len(current) >= min(limit, 0.5 * update):
            before, current = current, []
        with updater.averaged():
            check(model.named()["plain"], np.mean(before + current, axis=0))
        assert np.array_equal(model.named()["plain"].detach().numpy(), raw)
        sizes.add((len(before), len(current)))
    assert len(sizes) > 4


def test_without_an_average_the_weights_are_written_as_they_are() -> None:
    model, updater = list(driven(paddle.Momentum(learning_rate=0.01)))[-1]
    raw = model.named()["plain"].detach().clone()
    with updater.averaged():
        assert torch.equal(model.named()["plain"], raw)
