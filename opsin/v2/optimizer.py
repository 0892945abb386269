"""Paddle's update rules and learning-rate schedules.

Everywhere: η the schedule's rate × the parameter's own factor, g the gradient summed over the mini-batch, d the decay,
m the momentum, w the parameter, v its velocity. Unlike in torch's SGD the rate is inside the velocity: after a drop of
the rate the old velocity keeps the old one. The rules are those of PaddlePaddle 0.11; `docs/v2.md` lists what differs.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opsin.errors import UsageError, near
from opsin.v2.graph import ParameterConf
from opsin.v2.parameters import with_defaults

__all__ = [
    "AdaDelta",
    "AdaGrad",
    "Adam",
    "Adamax",
    "DecayedAdaGrad",
    "L2Regularization",
    "ModelAverage",
    "Momentum",
    "Optimizer",
    "RMSProp",
]

SCHEDULES = ("constant", "poly", "caffe_poly", "exp", "discexp", "linear", "manual", "pass_manual")
Tensors = list[Tensor]
each: Any = torch  # its functions over lists of tensors have names that begin with an underscore


@dataclass(frozen=True)
class L2Regularization:
    """Adds rate · w to the gradient of every parameter that has no rate of its own, biases and scales too."""

    rate: float


@dataclass(frozen=True)
class ModelAverage:
    """`trainer.save_parameter_to_tar` writes each parameter's mean over a window of the last updates.

    The window starts anew once it holds min(10000, updates) values and min(max_average_window, updates ·
    average_window) of them; what is written is the mean over it and the one before. max_average_window: None for the
    number of batches in the last pass.
    """

    average_window: float
    max_average_window: int | None = None
    do_average_in_cpu: bool = False
    min_average_window: int = 10_000


class Optimizer:
    """The settings that every optimiser takes; a subclass is one update rule.

    `batch_size` is taken and not used, as in 2017: gradients are sums over however many samples a batch has.
    """

    momentum: float | None = None
    scheduled = True  # False: the rate stays `learning_rate`

    def __init__(
        self,
        *,
        learning_rate: float = 1e-3,
        learning_rate_decay_a: float = 0.0,
        learning_rate_decay_b: float = 0.0,
        learning_rate_schedule: str | None = "poly",
        learning_rate_args: str = "",
        regularization: L2Regularization | Sequence[L2Regularization] | None = None,
        is_async: bool = False,
        model_average: ModelAverage | None = None,
        gradient_clipping_threshold: float | None = None,
        batch_size: int | None = None,
    ) -> None:
        if is_async:
            raise UsageError("is_async: training over several machines is not part of opsin.v2")
        self.learning_rate, self.a, self.b = learning_rate, learning_rate_decay_a, learning_rate_decay_b
        self.schedule = learning_rate_schedule or "constant"
        if self.schedule not in SCHEDULES:
            raise UsageError(f"learning_rate_schedule: no {self.schedule!r}; {near(self.schedule, SCHEDULES)}")
        if self.schedule in ("exp", "discexp") and not self.b:
            raise UsageError(f"learning_rate_schedule {self.schedule!r} divides by learning_rate_decay_b, which is 0")
        self.segments = _segments(learning_rate_args) if self.schedule in ("manual", "pass_manual") else []
        given = regularization if isinstance(regularization, list | tuple) else [regularization]
        if not all(isinstance(part, L2Regularization | None) for part in given):
            raise UsageError(f"regularization: expected L2Regularization or a list of it, received {regularization!r}")
        self.decay = sum(part.rate for part in given if isinstance(part, L2Regularization)) or None
        self.clip = gradient_clipping_threshold
        self.model_average = model_average

    def rate(self, samples: int, passes: int) -> float:
        """The global learning rate of a batch. samples: seen so far, this batch included; passes: finished."""
        lr, a, b, n = self.learning_rate, self.a, self.b, samples
        if not self.scheduled:
            return lr
        match self.schedule:
            case "poly":
                return lr * math.pow(1 + a * n, -b)
            case "caffe_poly":
                return 0.0 if n > a else lr * math.pow(1 - n / a, b)
            case "exp":
                return lr * math.pow(a, n / b)
            case "discexp":
                return lr * math.pow(a, math.floor(n / b))
            case "linear":
                return max(lr - a * n, b)
            case "manual" | "pass_manual":
                place = n if self.schedule == "manual" else passes
                return lr * next((rate for end, rate in self.segments if place <= end), self.segments[-1][1])
        return lr

    def configured(self, conf: ParameterConf) -> ParameterConf:
        """A parameter's configuration with the optimiser's own values where it has none; 0 counts as none."""
        return with_defaults(conf, momentum=self.momentum, decay_rate=self.decay, clip=self.clip)

    def bind(self, pairs: Sequence[tuple[ParameterConf, Tensor]]) -> Updater:
        """The rule over some parameters, static ones left out, as the training loop takes it.

        The loop's factor is the global rate itself; a group's `base_lr` is the factor that its parameters ask for.
        """
        groups: dict[tuple[float, ...], Tensors] = {}
        for conf, tensor in pairs:
            if not conf.is_static:
                conf = self.configured(conf)
                key = (conf.learning_rate, conf.momentum or 0.0, conf.decay_rate or 0.0, conf.clip or 0.0)
                groups.setdefault(key, []).append(tensor)
        if not groups:
            raise UsageError("all parameters are static: there is nothing to train")
        return Updater(self, groups)

    def update(self, group: Group) -> None:
        """Move the group's parameters by the rule."""
        raise NotImplementedError


def _segments(text: str) -> list[tuple[int, float]]:
    """`"1000:1.0,2000:0.5"` → [(1000, 1.0), (2000, 0.5)]."""
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return [(int(end), float(rate)) for end, rate in pairs]
    except ValueError as error:
        raise UsageError(f"learning_rate_args: expected 'end:rate,end:rate…', received {text!r}") from error


@dataclass
class Group:
    """Parameters of like settings in one update, all at once.

    grads: used up by the rule. state: a name → the tensors of that name, zeros at first. count: of updates, from 1.
    """

    params: Tensors
    grads: Tensors
    state: Callable[[str], Tensors]
    lr: float
    momentum: float
    decay: float
    count: int

    def descend(self, scale: Tensors | None = None) -> None:
        """v = m·v − η·s·(g + d·w); w += v, with s of 1 where there is no `scale`."""
        if self.decay:
            each._foreach_add_(self.grads, self.params, alpha=self.decay)
        if scale is not None:
            each._foreach_mul_(self.grads, scale)
        if not self.momentum:
            each._foreach_add_(self.params, self.grads, alpha=-self.lr)
            return
        velocity = self.state("velocity")
        each._foreach_mul_(velocity, self.momentum)
        each._foreach_add_(velocity, self.grads, alpha=-self.lr)
        each._foreach_add_(self.params, velocity)

    def mean_square(self, rho: float, *, first: float | None = None) -> Tensors:
        """E = ρE + (1 − ρ)g², or in the first update ρE + `first`·g²."""
        squares = self.state("mean_square")
        each._foreach_mul_(squares, rho)
        value = first if first is not None and self.count == 1 else 1 - rho
        each._foreach_addcmul_(squares, self.grads, self.grads, value=value)
        return squares

    def mean(self, name: str, rho: float) -> Tensors:
        """f = ρf + (1 − ρ)g."""
        means = self.state(name)
        each._foreach_mul_(means, rho)
        each._foreach_add_(means, self.grads, alpha=1 - rho)
        return means


def _inverse_root(squares: Tensors, epsilon: float) -> Tensors:
    """1 / √(x + ε)."""
    roots = each._foreach_add(squares, epsilon)
    each._foreach_sqrt_(roots)
    each._foreach_reciprocal_(roots)
    return list(roots)


class Momentum(Optimizer):
    """v = m·v − η(g + d·w); w += v."""

    def __init__(self, momentum: float | None = None, sparse: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        if sparse:
            raise UsageError("Momentum(sparse=True): sparse updates are not part of opsin.v2")
        self.momentum = momentum

    def update(self, group: Group) -> None:
        group.descend()


class AdaGrad(Optimizer):
    """G += g²; s = 1/√(G + 1e-6). The schedule has no effect, as in the original."""

    scheduled = False

    def update(self, group: Group) -> None:
        squares = group.state("squares")
        each._foreach_addcmul_(squares, group.grads, group.grads)
        group.descend(_inverse_root(squares, 1e-6))


class _Decayed(Optimizer):
    def __init__(self, rho: float = 0.95, epsilon: float = 1e-6, **settings: Any) -> None:
        super().__init__(**settings)
        self.rho, self.epsilon = rho, epsilon


class DecayedAdaGrad(_Decayed):
    """E = ρE + (1 − ρ)g², the first g² whole; s = 1/√(E + ε)."""

    def update(self, group: Group) -> None:
        group.descend(_inverse_root(group.mean_square(self.rho, first=1.0), self.epsilon))


class RMSProp(_Decayed):
    """E as in `DecayedAdaGrad`, f = ρf + (1 − ρ)g; s = 1/√(E − f² + ε): centred, unlike torch's default."""

    def update(self, group: Group) -> None:
        squares = group.mean_square(self.rho, first=1.0)
        means = group.mean("mean", self.rho)
        variance = list(each._foreach_addcmul(squares, means, means, value=-1))
        group.descend(_inverse_root(variance, self.epsilon))


class AdaDelta(_Decayed):
    """E = ρE + (1 − ρ)g²; s = √((D + ε)/(E + ε)); D = ρD + (1 − ρ)(g·s)²."""

    def update(self, group: Group) -> None:
        scale = _inverse_root(group.mean_square(self.rho), self.epsilon)
        steps = group.state("mean_step")
        roots = each._foreach_add(steps, self.epsilon)
        each._foreach_sqrt_(roots)
        each._foreach_mul_(scale, roots)
        moved = each._foreach_mul(group.grads, scale)
        each._foreach_mul_(steps, self.rho)
        each._foreach_addcmul_(steps, moved, moved, value=1 - self.rho)
        group.descend(scale)


class Adam(Optimizer):
    """M = β₁M + (1 − β₁)g, V = β₂V + (1 − β₂)g²; w −= η·√(1 − β₂ᵗ)/(1 − β₁ᵗ) · M/(√V + ε). Ignores L2."""

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, **settings: Any) -> None:
        super().__init__(**settings)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon

    def update(self, group: Group) -> None:
        means = group.mean("mean", self.beta1)
        roots = each._foreach_sqrt(group.mean_square(self.beta2))
        each._foreach_add_(roots, self.epsilon)
        alpha = group.lr * math.sqrt(1 - self.beta2**group.count) / (1 - self.beta1**group.count)
        each._foreach_addcdiv_(group.params, means, roots, value=-alpha)


class Adamax(Optimizer):
    """M as in `Adam`; u = max(β₂u, |g|); w −= η/(1 − β₁ᵗ) · M/u, and 0 where u is. Ignores L2 and the schedule."""

    scheduled = False

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, **settings: Any) -> None:
        super().__init__(**settings)
        self.beta1, self.beta2 = beta1, beta2

    def update(self, group: Group) -> None:
        means, largest = group.mean("mean", self.beta1), group.state("largest")
        each._foreach_mul_(largest, self.beta2)
        each._foreach_maximum_(largest, each._foreach_abs(group.grads))
        divisors = each._foreach_clamp_min(largest, torch.finfo(torch.float32).tiny)
        alpha = group.lr / (1 - self.beta1**group.count)
        each._foreach_addcdiv_(group.params, means, divisors, value=-alpha)


class Updater(torch.optim.Optimizer):
    """A rule and the parameters it moves, with their velocities and moments in `state`.

    counts: "updates" since the last `restart`; of the moving average, "averaged" and "previous": how many values its
    two windows hold, "largest": the most it may hold. All that a checkpoint needs besides `state`.
    """

    def __init__(self, rule: Optimizer, groups: dict[tuple[float, ...], Tensors]) -> None:
        self.rule = rule
        self.counts: dict[str, int] = {}
        super().__init__(
            [
                {"params": params, "lr": 0.0, "base_lr": lr, "momentum": m, "decay": d, "clip": clip, "until": 1.0}
                for (lr, m, d, clip), params in groups.items()
            ],
            {},
        )
        self.restart()

    def restart(self) -> None:
        """Count from 0 again, as each `trainer.train` does. Velocities and moments stay."""
        self.counts = {"updates": 0, "averaged": 0, "previous": 0, "largest": 0}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the training loop computes the gradients itself"
        self.counts["updates"] += 1
        for group in self.param_groups:
            params = group["params"]
            grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in params]
            if group["clip"]:
                each._foreach_clamp_max_(grads, group["clip"])
                each._foreach_clamp_min_(grads, -group["clip"])

            state = functools.partial(self._state, params=params)
            settings = (group["lr"], group["momentum"], group["decay"], self.counts["updates"])
            self.rule.update(Group(params, grads, state, *settings))
        if self.rule.model_average is not None:
            self._average(self.rule.model_average)

    def _state(self, name: str, params: Tensors) -> Tensors:
        """The tensors called `name` of these parameters; zeros where there are none yet."""
        for w in params:
            if name not in self.state[w]:
                self.state[w][name] = torch.zeros_like(w)
        return [self.state[w][name] for w in params]

    def _params(self) -> Tensors:
        return [w for group in self.param_groups for w in group["params"]]

    def _average(self, spec: ModelAverage) -> None:
        counts, params = self.counts, self._params()
        window = self._state("window", params)
        counts["averaged"] += 1
        each._foreach_lerp_(window, params, 1 / counts["averaged"])  # the mean so far; the first replaces what was
        largest = spec.max_average_window or counts["largest"] or math.inf
        limit = min(largest, counts["updates"] * spec.average_window)
        if counts["averaged"] >= min(spec.min_average_window, counts["updates"]) and counts["averaged"] >= limit:
            each._foreach_copy_(self._state("window_before", params), window)
            counts["previous"], counts["averaged"] = counts["averaged"], 0

    def end_pass(self, batches: int) -> None:
        """After a pass of so many batches, which bounds the window of the average from now on."""
        self.counts["largest"] = batches

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """While it lasts the parameters have their averages as values, where an average was asked for."""
        total = self.counts["averaged"] + self.counts["previous"]
        if self.rule.model_average is None or not total:
            yield
            return
        params = self._params()
        with torch.no_grad():
            kept = [w.detach().clone() for w in params]
            part = self.counts["previous"] / total
            means = each._foreach_lerp(self._state("window", params), self._state("window_before", params), part)
            each._foreach_copy_(params, means)
        try:
            yield
        finally:
            with torch.no_grad():
                each._foreach_copy_(params, kept)
