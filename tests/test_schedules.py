"""The learning rate is a pure function of the step, and each schedule has the curve that its formula says."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from goldfold.config.schema import Schedule
from goldfold.errors import BadInput
from goldfold.schedules import Clock, check_schedule, lr_factor, momentum_at, plateau_factor

PHASED = Clock((0, 2, 4, 6, 16, 26, 36))
"""Three epochs of two steps, then three of ten."""


def make(name: str, **settings: Any) -> Schedule:
    alone = name in ("one_cycle", "triangular")
    given = {"milestones": (2.0, 4.0)} if name == "multi_step" else {}
    return Schedule.model_validate({"name": name, "warmup_epochs": 0.0 if alone else 1.0, **given, **settings})


def curve(schedule: Schedule, clock: Clock) -> list[float]:
    return [lr_factor(schedule, step, clock) for step in range(clock.total)]


def cos_half(begin: float, end: float, done: float) -> float:
    return end + (begin - end) * (0.5 + 0.5 * math.cos(math.pi * done))


def test_a_clock_turns_epochs_into_steps_and_back() -> None:
    assert PHASED.total == 36
    assert PHASED.epochs == 6
    for epoch, step in ((0, 0), (0.5, 1), (3, 6), (3.5, 11), (5.9, 35), (6, 36), (7, 46)):
        assert PHASED.step_at(epoch) == pytest.approx(step)
        assert PHASED.epoch_at(step) == pytest.approx(epoch)
    assert Clock.even(3, 4) == Clock((0, 4, 8, 12))
    assert Clock((0,)).total == Clock((0,)).epochs == 0


@pytest.mark.parametrize("starts", [(), (1, 2), (0, 3, 3), (0, 5, 2)])
def test_a_clock_never_stands_still(starts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rise from 0"):
        Clock(starts)


@pytest.mark.parametrize("clock", [Clock.even(6, 6), PHASED], ids=["even", "phased"])
@pytest.mark.parametrize(
    "name",
    ["constant", "linear", "cosine", "cosine_restarts", "polynomial", "step", "multi_step", "exponential", "plateau"],
)
def test_warmup_meets_every_schedule_without_a_jump(name: str, clock: Clock) -> None:
    # Two epochs of warm-up reach over the first decay of 'step', which warm-up must then rise to.
    schedule = make(name, warmup_epochs=2, decay_epochs=1.5, milestones=(1.5, 4) if name == "multi_step" else ())
    factors, warmup = curve(schedule, clock), round(clock.step_at(2))
    top = factors[warmup - 1]
    assert factors[:warmup] == pytest.approx([(step + 1) / warmup * top for step in range(warmup)])
    expected = {"step": 0.1, "multi_step": 0.1, "exponential": 0.1 ** (clock.epoch_at(warmup - 1) / 1.5)}
    assert top == pytest.approx(expected.get(name, 1.0))
    assert factors[warmup] <= top
    if name not in ("step", "multi_step", "exponential"):
        # The first step down is no larger than a straight line to zero over the shortest stretch would take.
        assert top - factors[warmup] <= 1 / (round(clock.step_at(4)) - warmup)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("constant", lambda done: 1.0),
        ("plateau", lambda done: 1.0),
        ("linear", lambda done: 0.1 + 0.9 * (1 - done)),
        ("cosine", lambda done: 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2),
        ("polynomial", lambda done: 0.1 + 0.9 * (1 - done) ** 2.5),
    ],
)
@pytest.mark.parametrize("clock", [Clock.even(4, 5), PHASED], ids=["even", "phased"])
def test_curves_from_warmup_to_the_last_step(name: str, formula: Callable[[float], float], clock: Clock) -> None:
    factors = curve(make(name, min_factor=0.1, power=2.5), clock)
    first, last = clock.starts[1] - 1, clock.total - 1
    for step in (first, first + 1, first + 7, last - 1, last):
        assert factors[step] == pytest.approx(formula((step - first) / (last - first))), step


def test_restarts_begin_anew_at_the_end_of_each_cycle() -> None:
    """Warm-up of an epoch, then cycles of 1, 2 and 4 epochs, each peak half of the one before; 4 steps an epoch."""
    schedule = make("cosine_restarts", cycle_epochs=1, cycle_mult=2, cycle_decay=0.5, min_factor=0.2)
    factors = curve(schedule, Clock.even(8, 4))
    for first, last, peak in ((3, 7, 1.0), (8, 15, 0.5), (16, 31, 0.25)):
        for step in range(first, last + 1):
            assert factors[step] == pytest.approx(cos_half(peak, 0.2, (step - first) / (last - first))), step
    long = make("cosine_restarts", cycle_epochs=1, cycle_decay=0.1, min_factor=0.2)
    assert min(curve(long, Clock.even(8, 4))[4:]) == pytest.approx(
        0.2
    )  # a peak that decays away never turns into a dip


def test_one_restart_cycle_is_the_cosine() -> None:
    assert curve(make("cosine_restarts", cycle_epochs=5), PHASED) == pytest.approx(curve(make("cosine"), PHASED))


def test_restarts_keep_to_epochs_of_different_lengths() -> None:
    factors = curve(make("cosine_restarts", warmup_epochs=0, cycle_epochs=1.5, min_factor=0), PHASED)
    assert [step for step in range(36) if factors[step] == 1.0] == [0, 3, 6, 21]
    assert factors[20] == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["cosine_restarts", "triangular"])
def test_a_cycle_shorter_than_a_step_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"schedule\.cycle_epochs: a cycle of 0\.01 epochs"):
        lr_factor(make(name, warmup_epochs=0, cycle_epochs=0.01), 0, PHASED)


def test_step_and_multi_step_count_from_the_start_of_the_training() -> None:
    steps = curve(make("step", decay_epochs=1.5, gamma=0.5, min_factor=0.2), PHASED)
    # Epochs 1.5, 3, 4.5 are steps 3, 6, 21; the fourth value would be 0.125 and meets the floor.
    expected = [0.5, 1.0, 1.0, *[0.5] * 3, *[0.25] * 15, *[0.2] * 15]
    assert steps == pytest.approx(expected)
    several = curve(make("multi_step", milestones=(2, 4.25), gamma=0.3, min_factor=0.0), PHASED)
    assert several == pytest.approx([0.5, *[1.0] * 3, *[0.3] * 15, *[0.09] * 17])  # epoch 4.25 falls between two steps
    assert curve(make("multi_step", milestones=(2, 4), min_factor=0.05), PHASED)[-1] == 0.05


def test_decays_that_are_no_whole_epochs_fall_on_the_right_step() -> None:
    """0.6 / 0.2 is below 3 in floating point, and the third decay of 0.2 epochs of ten steps is at step 6."""
    factors = curve(make("step", warmup_epochs=0, decay_epochs=0.2, gamma=0.9, min_factor=0), Clock.even(5, 10))
    assert factors == pytest.approx([0.9 ** (step // 2) for step in range(50)])


def test_exponential_falls_all_the_time() -> None:
    factors = curve(make("exponential", decay_epochs=2, gamma=0.25, min_factor=0.03), PHASED)
    for step, epoch in ((1, 0.5), (3, 1.5), (6, 3), (11, 3.5), (21, 4.5)):
        assert factors[step] == pytest.approx(0.25 ** (epoch / 2)), step
    assert factors[-1] == 0.03


def test_triangles_swing_between_start_factor_and_a_falling_peak() -> None:
    schedule = make("triangular", cycle_epochs=2, cycle_decay=0.5, start_factor=0.1)
    factors = curve(schedule, Clock.even(6, 4))  # cycles of 8 steps
    for step, expected in ((0, 0.1), (2, 0.55), (4, 1.0), (6, 0.55), (8, 0.1), (12, 0.5), (16, 0.1), (20, 0.25)):
        assert factors[step] == pytest.approx(expected), step
    phased = curve(make("triangular", cycle_epochs=3, start_factor=0.1), PHASED)
    assert phased[3] == pytest.approx(1.0)
    assert phased[6] == pytest.approx(0.1)
    assert phased[21] == pytest.approx(1.0)


def test_one_cycle_has_cosine_halves() -> None:
    factors = curve(make("one_cycle", peak_at=0.25, start_factor=0.04, min_factor=0.001), Clock.even(3, 7))
    for step in range(21):
        done = step / 20
        expected = cos_half(0.04, 1, done / 0.25) if step < 5 else cos_half(1, 0.001, (done - 0.25) / 0.75)
        assert factors[step] == pytest.approx(expected), step
    assert (factors[0], factors[5], factors[20]) == pytest.approx((0.04, 1.0, 0.001))


@pytest.mark.parametrize("name", ["one_cycle", "triangular"])
def test_momentum_falls_as_the_rate_rises(name: str) -> None:
    schedule = make(name, momentum_cycle=(0.95, 0.85), cycle_epochs=3, start_factor=0.1, min_factor=0.1)
    clock = Clock.even(6, 7)
    for step in range(clock.total):
        rate, momentum = lr_factor(schedule, step, clock), momentum_at(schedule, step, clock)
        # The same shape, upside down: both are linear in each other where both ends of the rate are alike.
        assert momentum == pytest.approx(0.95 - 0.1 * (rate - 0.1) / 0.9), step
    assert momentum_at(make(name), 3, clock) is None


def test_momentum_swings_all_the_way_in_every_cycle() -> None:
    schedule = make("triangular", momentum_cycle=(0.95, 0.85), cycle_epochs=2, cycle_decay=0.1)
    values = [momentum_at(schedule, step, Clock.even(4, 4)) for step in range(16)]
    assert values[4] == values[12] == pytest.approx(0.85)
    assert values[0] == values[8] == pytest.approx(0.95)


SCORES = [0.5, 0.6, 0.6, 0.61, 0.605, 0.6, 0.61, 0.7, 0.7, 0.69, 0.2, 0.3, 0.7, 0.71, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("greater", [True, False])
@pytest.mark.parametrize("patience", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_plateau_counts_as_torch_does(greater: bool, patience: int, threshold: float) -> None:
    scores = SCORES if greater else [1 - score for score in SCORES]
    schedule = make("plateau", gamma=0.5, patience=patience, threshold=threshold, min_factor=0.0)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max" if greater else "min",
        factor=0.5,
        patience=patience,
        threshold=threshold,
        threshold_mode="abs",
        eps=0,
    )
    for count, score in enumerate(scores, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.step(score)
        assert plateau_factor(schedule, scores[:count], greater) == optimizer.param_groups[0]["lr"], count
    assert optimizer.param_groups[0]["lr"] < 1


def test_plateau_has_a_floor_and_counts_missing_scores_as_no_gain() -> None:
    schedule = make("plateau", gamma=0.1, patience=1, min_factor=0.05)
    assert plateau_factor(schedule, [], True) == 1.0
    assert plateau_factor(schedule, [0.5, None], True) == 1.0
    assert plateau_factor(schedule, [0.5, None, None], True) == pytest.approx(0.1)
    assert plateau_factor(schedule, [0.5] * 50, True) == 0.05
    assert plateau_factor(make("cosine"), [0.5] * 50, True) == 1.0


def test_milestones_that_never_come_are_refused() -> None:
    schedule = make("multi_step", milestones=(2, 4.5))
    check_schedule(schedule, 5)
    check_schedule(make("cosine"), 1)
    with pytest.raises(BadInput, match=r"schedule\.milestones: 4\.5 never comes in 4 epochs"):
        check_schedule(schedule, 4)


def test_a_run_that_is_all_warmup_never_divides_by_zero() -> None:
    assert curve(make("cosine", warmup_epochs=3), Clock.even(2, 1)) == [0.5, 1.0]
    for name in ("cosine", "linear", "one_cycle", "triangular", "cosine_restarts", "exponential"):
        assert math.isfinite(lr_factor(make(name, warmup_epochs=0), 0, Clock((0, 1))))


def test_fractions_of_an_epoch_count() -> None:
    assert lr_factor(make("cosine", warmup_epochs=0.5), 1, Clock.even(20, 8)) == pytest.approx(0.5)
    # Half of the fourth epoch of ten steps: three epochs of two, and five more.
    assert lr_factor(make("constant", warmup_epochs=3.5), 9, PHASED) == pytest.approx(10 / 11)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "exponential", "one_cycle"])
def test_nothing_jumps_where_phases_meet(name: str) -> None:
    factors = curve(make(name, warmup_epochs=0, decay_epochs=6), Clock((0, 40, 80, 100, 120)))
    assert max(abs(a - b) for a, b in itertools.pairwise(factors)) < 0.06
