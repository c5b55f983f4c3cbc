"""The learning rate is a pure function of the step."""

from __future__ import annotations

import itertools
import math

import pytest

from goldfold.config.schema import Schedule
from goldfold.schedules import lr_factor


def test_warmup_is_linear_and_meets_the_schedule_without_a_jump() -> None:
    schedule = Schedule(name="cosine", warmup_epochs=2, min_factor=0.1)
    factors = [lr_factor(schedule, step, 50, 5) for step in range(50)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[9] == 1.0
    assert max(abs(a - b) for a, b in itertools.pairwise(factors[9:])) < 0.05
    assert factors[-1] == pytest.approx(0.1)


def test_cosine_matches_its_formula() -> None:
    schedule = Schedule(name="cosine", warmup_epochs=0, min_factor=0.0)
    for step in (0, 3, 10, 20):
        assert lr_factor(schedule, step, 21, 7) == pytest.approx((1 + math.cos(math.pi * step / 20)) / 2)


def test_linear_and_constant() -> None:
    assert lr_factor(Schedule(name="linear", warmup_epochs=0, min_factor=0), 5, 11, 1) == pytest.approx(0.5)
    assert lr_factor(Schedule(name="constant", warmup_epochs=0), 10, 11, 1) == 1.0


def test_a_run_that_is_all_warmup_never_divides_by_zero() -> None:
    assert [lr_factor(Schedule(warmup_epochs=3), step, 2, 1) for step in range(2)] == [0.5, 1.0]
    assert lr_factor(Schedule(warmup_epochs=0), 0, 1, 1) == 1.0


def test_fractions_of_an_epoch_count() -> None:
    assert lr_factor(Schedule(warmup_epochs=0.5), 1, 100, 8) == pytest.approx(0.5)
