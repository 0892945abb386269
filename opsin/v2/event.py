"""What a training tells its event handler. Metrics and costs are plain floats of the moment: events can be kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opsin.v2.machine import Machine

Metrics = dict[str, float]


@dataclass(frozen=True)
class BeginPass:
    pass_id: int


@dataclass(frozen=True)
class BeginIteration:
    pass_id: int
    batch_id: int


@dataclass(frozen=True)
class EndForwardBackward:
    """The gradients are there, the parameters not yet changed."""

    pass_id: int
    batch_id: int
    gm: Machine = field(repr=False)


@dataclass(frozen=True)
class EndIteration:
    """cost: mean over the samples of this batch, extra layers left out. metrics: of this batch alone."""

    pass_id: int
    batch_id: int
    cost: float
    metrics: Metrics
    gm: Machine = field(repr=False)


@dataclass(frozen=True)
class EndPass:
    """metrics: over the whole pass."""

    pass_id: int
    metrics: Metrics
    gm: Machine = field(repr=False)


@dataclass(frozen=True)
class TestResult:
    """cost: mean over all samples. metrics: over all of them."""

    metrics: Metrics
    cost: float
    __test__ = False  # not a test of pytest's
