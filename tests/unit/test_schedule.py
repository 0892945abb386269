from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin.errors import UsageError
from opsin.schedule import Constant, Cosine, DiscreteExponential, Linear, MultiStep, OneCycle
from opsin.types import Progress

TOTAL = 1000


def at(schedule, step, samples=0):
    return schedule(Progress(step=step, samples=samples), TOTAL)


def test_multistep_drops_at_its_milestones():
    schedule = MultiStep(milestones=(0.5, 0.75), gamma=0.1)
    assert [round(at(schedule, step), 6) for step in (0, 499, 500, 749, 750, 999)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_discrete_exponential_is_the_chapters_formula():
    schedule = DiscreteExponential(a=0.1, b=5_000_000)
    assert at(schedule, 0, samples=4_999_999) == 1
    assert at(schedule, 0, samples=5_000_000) == pytest.approx(0.1)
    assert at(schedule, 0, samples=10_000_001) == pytest.approx(0.01)


def test_cosine_is_half_a_cosine_after_the_warm_up():
    schedule = Cosine(warmup=0.1, final=0.2)
    assert at(schedule, 0) == pytest.approx(1 / 101)
    assert at(schedule, 100) == pytest.approx(1)
    assert at(schedule, 550) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert at(schedule, 1000) == pytest.approx(0.2)


def test_linear_and_one_cycle_reach_their_ends():
    assert at(Linear(final=0.0), 0) == 1
    assert at(Linear(final=0.0), 500) == pytest.approx(0.5)
    assert at(Linear(final=0.0), 1000) == pytest.approx(0)
    cycle = OneCycle(peak=0.25, start=0.04, final=0.01)
    assert at(cycle, 0) == pytest.approx(0.04)
    assert at(cycle, 250) == pytest.approx(1)
    assert at(cycle, 1000) == pytest.approx(0.01)


@given(
    st.integers(0, 3000), st.sampled_from([Constant(warmup=0.2), Cosine(), Linear(warmup=0.3), OneCycle(), MultiStep()])
)
def test_factors_stay_between_zero_and_one(step, schedule):
    assert 0 <= at(schedule, step) <= 1


def test_a_warm_up_of_the_whole_training_is_refused():
    with pytest.raises(UsageError, match=r"schedule\.warmup: expected a part of the training"):
        Cosine(warmup=1.0)
