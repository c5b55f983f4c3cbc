"""The plan: gain per second, what fits, what is needed; and the deadline."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from goldfold.inference.budget import Candidate, Deadline, Step, plan

SCORES = {"": 0.2, "a": 0.6, "b": 0.7, "c": 0.5, "ab": 0.75, "ac": 0.62, "bc": 0.71, "abc": 0.76}


def quality(members: frozenset[str]) -> float:
    return SCORES["".join(sorted(members))]


def weights(members: frozenset[str]) -> Mapping[str, float]:
    return {name: 1 / len(members) for name in members}


def planned(
    seconds: Mapping[str, float],
    limit: float,
    folds: int = 2,
    needed: str = "abc",
    reading: float = 0.0,
    done: Mapping[str, int] | None = None,
) -> list[Step]:
    done = done or {}
    candidates = [
        Candidate(name, (each,) * (folds - done.get(name, 0)), done.get(name, 0)) for name, each in seconds.items()
    ]
    return plan(candidates, quality, weights, limit, needed, reading)


def order(steps: list[Step]) -> str:
    return " ".join(f"{step.member}{step.number}" for step in steps)


def test_with_ample_time_everything_needed_is_done_and_nothing_else() -> None:
    steps = planned({"a": 1, "b": 1, "c": 1}, 100, needed="ab")
    assert sorted(order(steps).split()) == ["a1", "a2", "b1", "b2"]
    assert [step.ends for step in steps] == [1, 2, 3, 4]


def test_the_first_is_the_one_with_the_best_gain_a_second() -> None:
    assert order(planned({"a": 1, "b": 1, "c": 1}, 100))[:2] == "b1"
    assert order(planned({"a": 1, "b": 3, "c": 1}, 100))[:2] == "a1"  # 0.4 a second against 0.17


def test_every_member_has_a_network_before_dear_ones_have_a_second() -> None:
    steps = planned({"a": 1, "b": 1, "c": 1}, 100)
    assert order(steps).split()[:2] == ["b1", "a1"]
    assert [step.quality for step in steps[:2]] == [0.7, 0.75]


def test_a_cheap_second_network_comes_before_a_dear_first_one_of_little_gain() -> None:
    # c adds 0.01 to ab in 1000 seconds; a further network of a and b takes one.
    assert order(planned({"a": 1, "b": 1, "c": 1000}, 1e9)) == "b1 a1 a2 b2 c1 c2"


def test_a_member_that_gains_nothing_comes_last_and_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORES, "abc", 0.74)
    assert order(planned({"a": 1, "b": 1, "c": 1}, 100)).endswith("c1 c2")
    assert "c" not in order(planned({"a": 1, "b": 1, "c": 1}, 100, needed="ab"))


def test_what_does_not_fit_is_left_out_and_what_is_quicker_still_runs() -> None:
    steps = planned({"a": 10, "b": 60, "c": 10}, 50)
    assert order(steps).split()[0] == "a1"
    assert "b" not in order(steps)
    assert steps[-1].ends <= 50
    assert len(steps) == 4


def test_a_cheap_member_does_not_keep_out_one_that_is_much_better() -> None:
    # By gain a second a comes first (0.4 / 20), and leaves no room for b (0.5 / 40); b alone is better than a and c.
    steps = planned({"a": 20, "b": 40, "c": 15}, 50, folds=1)
    assert order(steps) == "b1"


@pytest.mark.parametrize("limit", [0.5, 1, 3, 10, 37, 100, 400])
def test_a_plan_ends_in_time(limit: float) -> None:
    steps = planned({"a": 1, "b": 30, "c": 5}, limit, folds=3)
    assert all(step.ends <= limit for step in steps)
    assert steps or limit < 1
    assert steps == sorted(steps, key=lambda step: step.ends)


def test_more_time_never_means_a_worse_plan() -> None:
    reached = []
    for limit in range(1, 200):
        steps = planned({"a": 7, "b": 30, "c": 5}, limit, folds=2)
        reached.append(max((step.quality for step in steps), default=0.2))
    assert reached == sorted(reached)
    assert reached[0] == 0.2
    assert reached[-1] == 0.76


def test_what_is_done_is_gone_on_with() -> None:
    steps = planned({"a": 1, "b": 1, "c": 1}, 100, done={"b": 1})
    assert order(steps).split() == ["a1", "c1", "a2", "b2", "c2"] or order(steps).split()[0] == "a1"
    assert next(step for step in steps if step.member == "b").number == 2


def test_nothing_ends_before_the_images_are_read() -> None:
    steps = planned({"a": 1, "b": 1, "c": 1}, 1000, reading=50)
    assert [step.ends for step in steps][:3] == [50, 51, 52]
    assert planned({"a": 1, "b": 1, "c": 1}, 40, reading=50) == []


def test_while_images_are_read_the_best_that_keeps_up_runs() -> None:
    assert order(planned({"a": 1, "b": 3, "c": 1}, 1000))[:2] == "a1"
    assert order(planned({"a": 1, "b": 3, "c": 1}, 1000, reading=20))[:2] == "b1"


def test_scores_that_are_undefined_leave_the_given_order() -> None:
    candidates = [Candidate(name, (1.0, 1.0)) for name in "cab"]
    steps = plan(candidates, lambda members: math.nan, weights, 100, "cab")
    assert sorted(order(steps).split()) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert steps[0].member == "c"


def test_a_prior_without_a_score_does_not_keep_members_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORES, "", math.nan)
    assert len(planned({"a": 1, "b": 1, "c": 1}, 100)) == 6


def test_nine_hours_keep_a_reserve_and_a_short_time_keeps_a_tenth() -> None:
    assert Deadline(9 * 3600, 0.0).margin == pytest.approx(648)
    assert Deadline(600, 0.0).margin == pytest.approx(60)
    assert Deadline(100, 0.0).margin == pytest.approx(10)


def test_the_deadline_counts_from_the_kernels_start() -> None:
    now = 1000.0
    deadline = Deadline(100, 950.0, lambda: now)
    assert deadline.used() == 50
    assert deadline.left() == pytest.approx(40)
    now = 1041.0
    assert deadline.left() < 0
