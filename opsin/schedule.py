"""Learning-rate schedules: pure functions of how far a training is. No torch here, so that help and checks are instant.

A schedule is called with the progress and the whole training's steps, and returns the factor by which every
parameter group's own rate is multiplied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opsin.errors import UsageError

if TYPE_CHECKING:
    from opsin.types import Progress


def _warmup(progress: Progress, total_steps: int, part: float) -> float | None:
    """The factor while the rate still rises linearly over the first `part` of the training, else None."""
    steps = part * total_steps
    return (progress.step + 1) / (steps + 1) if progress.step < steps else None


def _check_part(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{name}: expected a part of the training, 0 <= x < 1, received {value}")


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The rate as it is, after an optional linear warm-up over the first `warmup` part of the training."""

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_part("schedule.warmup", self.warmup)

    def __call__(self, progress: Progress, total_steps: int) -> float:
        rising = _warmup(progress, total_steps, self.warmup)
        return 1.0 if rising is None else rising


@dataclass(frozen=True, kw_only=True)
class MultiStep:
    """× gamma at each of `milestones` (parts of the training), as in He et al. 2015, section 4.2 (0.5 and 0.75)."""

    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_part("schedule.warmup", self.warmup)

    def __call__(self, progress: Progress, total_steps: int) -> float:
        rising = _warmup(progress, total_steps, self.warmup)
        passed = sum(progress.step >= milestone * total_steps for milestone in self.milestones)
        return self.gamma**passed * (1.0 if rising is None else rising)


@dataclass(frozen=True, kw_only=True)
class DiscreteExponential:
    """lr0 · a^⌊n / b⌋, n the samples seen: the chapter's `discexp` (a = 0.1, b = 5,000,000)."""

    a: float = 0.1
    b: int = 5_000_000

    def __call__(self, progress: Progress, total_steps: int) -> float:
        return self.a ** (progress.samples // self.b)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Warm-up, then half a cosine from 1 to `final` (Loshchilov and Hutter 2016, equation 5, without restarts)."""

    warmup: float = 0.05
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_part("schedule.warmup", self.warmup)

    def __call__(self, progress: Progress, total_steps: int) -> float:
        rising = _warmup(progress, total_steps, self.warmup)
        if rising is not None:
            return rising
        start = self.warmup * total_steps
        part = min(1.0, (progress.step - start) / max(1.0, total_steps - start))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * part))


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """Cosine up from `start` over the first `peak` part, cosine down to `final` (Smith and Topin 2017)."""

    peak: float = 0.3
    start: float = 0.04
    final: float = 0.0001

    def __post_init__(self) -> None:
        _check_part("schedule.peak", self.peak)

    def __call__(self, progress: Progress, total_steps: int) -> float:
        top = self.peak * total_steps
        if progress.step < top:
            part, low = progress.step / top, self.start
        else:
            part, low = 1 - min(1.0, (progress.step - top) / max(1.0, total_steps - top)), self.final
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * part))


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Warm-up, then a straight line from 1 to `final`."""

    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_part("schedule.warmup", self.warmup)

    def __call__(self, progress: Progress, total_steps: int) -> float:
        rising = _warmup(progress, total_steps, self.warmup)
        if rising is not None:
            return rising
        start = self.warmup * total_steps
        part = min(1.0, (progress.step - start) / max(1.0, total_steps - start))
        return 1 + (self.final - 1) * part


Schedule = Constant | MultiStep | DiscreteExponential | Cosine | OneCycle | Linear
