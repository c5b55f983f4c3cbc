"""Which images get a pseudo-label: a pure function of what the members say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goldfold.config.schema import Pseudo
from goldfold.errors import BadInput
from goldfold.records import Floats
from goldfold.rounds import Selection, class_counts, imbalance, select, thresholds
from goldfold.tasks import Task

MULTI = Task("multiclass", ("a", "b", "c"))
BINARY = Task("binary", ("1",), "0", threshold=0.6)
LABELS = Task("multilabel", ("a", "b"))
GRADES = Task("ordinal", ("0", "1", "2"))
VALUE = Task("regression", ("y",))

VALUES = [[0.8, 0.1, 0.1], [0.4, 0.35, 0.25], [0.05, 0.9, 0.05]]


def choose(values: Any, task: Task = MULTI, ids: str = "", voices: Any = (), **settings: Any) -> Selection:
    array = np.array(values, dtype=np.float32)
    said = [np.array(voice, dtype=np.float32) for voice in voices] or [array, array]
    names = tuple(ids or "pqrstuvwxyz"[: len(array)])
    return select(names, array, said, task, Pseudo(labels=settings.pop("labels", "soft"), **settings))


def test_only_sure_images_are_taken() -> None:
    found = choose(VALUES, min_prob=0.75)
    assert (found.ids, found.candidates, found.classes) == (("p", "r"), 3, {"a": 1, "b": 1, "c": 0})
    assert found.mean_confidence == pytest.approx(0.85)
    assert found.targets.tolist() == np.array(VALUES, dtype=np.float32)[[0, 2]].tolist()
    assert found.weights.tolist() == [1, 1]
    nothing = choose(VALUES, min_prob=0.95)
    assert (nothing.ids, nothing.mean_confidence, nothing.targets.shape) == ((), None, (0, 3))


@pytest.mark.parametrize(
    ("task", "values", "sure", "hard", "classes"),
    [
        (MULTI, VALUES, "r", [[1, 0, 0], [1, 0, 0], [0, 1, 0]], {"a": 2, "b": 1, "c": 0}),
        # The likeliest grade, although the mean of grades 0 and 2 is 1.
        (GRADES, [[0.5, 0.1, 0.4], [0.02, 0.03, 0.95]], "q", [[1, 0, 0], [0, 0, 1]], {"0": 1, "1": 0, "2": 1}),
        # 0.55 is below the task's threshold, so the class is 0, of which it is 45 % sure.
        (BINARY, [[0.95], [0.55], [0.08]], "pr", [[1], [0], [0]], {"0": 2, "1": 1}),
        (LABELS, [[0.95, 0.02], [0.95, 0.55], [0.1, 0.1]], "pr", [[1, 0], [1, 1], [0, 0]], {"a": 2, "b": 1}),
    ],
)
def test_sureness_and_hard_labels_by_task(
    task: Task, values: Any, sure: str, hard: Any, classes: dict[str, int]
) -> None:
    assert choose(values, task, min_prob=0.9).ids == tuple(sure)
    found = choose(values, task, labels="hard")
    assert (found.targets.tolist(), found.classes) == (hard, classes)


def test_a_threshold_a_class() -> None:
    assert choose(VALUES, min_prob={"a": 0.9, "b": 0.5}).ids == ("r",)
    assert choose(VALUES, min_prob={"b": 0.95}).ids == ("p", "q")
    values = [[0.95], [0.02]]
    assert choose(values, BINARY, min_prob={"1": 0.96}).ids == ("q",)
    assert choose(values, BINARY, min_prob={"0": 0.99}).ids == ("p",)
    # Every label must be sure, by its own threshold.
    assert choose([[0.95, 0.4], [0.6, 0.02]], LABELS, min_prob={"a": 0.9}).ids == ("p",)
    assert choose([[0.95, 0.4], [0.6, 0.02]], LABELS, min_prob={"b": 0.9}).ids == ("q",)


def test_an_unknown_class_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"teacher\.pseudo\.min_prob: there is no class d; the classes are a, b, c"):
        choose(VALUES, min_prob={"a": 0.5, "d": 0.5})
    with pytest.raises(BadInput, match="the classes are none"):
        choose([[1.0]], VALUE, min_prob={"y": 0.5})
    assert thresholds(Pseudo(labels="soft", min_prob={"1": 0.7}), BINARY).tolist() == pytest.approx([0, 0.7])


def test_the_surest_of_each_class() -> None:
    values = [[0.6, 0.3, 0.1], [0.9, 0.05, 0.05], [0.7, 0.2, 0.1], [0.1, 0.5, 0.4]]
    assert choose(values, top_k=2).ids == ("q", "r", "s")
    assert choose(values, top_k=1, min_prob=0.55).ids == ("q",)
    assert choose([[0.9], [0.8], [0.1], [0.3]], BINARY, top_k=1).ids == ("p", "r")
    # q is the likeliest for a, p for b; s has no label.
    assert choose([[0.7, 0.9], [0.9, 0.2], [0.8, 0.7], [0.0, 0.0]], LABELS, top_k=1).ids == ("p", "q")


def test_the_surest_values_are_those_on_which_members_agree() -> None:
    voices = [[[1.0], [5.0], [9.0]], [[1.5], [5.1], [7.0]]]
    values = np.mean(voices, axis=0)
    assert choose(values, VALUE, voices=voices, top_k=2).ids == ("p", "q")
    assert choose(values, VALUE, voices=voices, margin=0.2).ids == ("q",)
    found = choose(values, VALUE, voices=voices)
    assert (found.targets.tolist(), found.classes, found.mean_confidence) == (
        values.astype(np.float32).tolist(),
        {},
        None,
    )
    with pytest.raises(BadInput, match=r"teacher\.pseudo\.top_k: .*there is a single one; name more teachers"):
        choose(values, VALUE, voices=voices[:1], top_k=2)


def test_regression_targets_of_other_units_weigh_alike() -> None:
    task = Task("regression", ("small", "large"))
    # In units of each column's deviation p is off by far, though q's difference is the larger number.
    first = [[0.0, 1000.0], [0.01, 3000.0], [0.02, 5000.0]]
    second = [[0.02, 1000.0], [0.01, 3100.0], [0.02, 5000.0]]
    values = np.mean([first, second], axis=0)
    assert choose(values, task, voices=[first, second], top_k=2).ids == ("q", "r")


def test_members_that_disagree_are_not_heard() -> None:
    others = [[0.7, 0.2, 0.1], [0.1, 0.65, 0.25], [0.05, 0.9, 0.05]]
    mean = np.mean([VALUES, others], axis=0)
    assert choose(mean, voices=[VALUES, others], margin=0.2).ids == ("p", "r")
    assert choose(mean, voices=[VALUES, others], margin=0.01).ids == ("r",)
    assert choose(mean, voices=[VALUES, others], margin=0.5).ids == ("p", "q", "r")
    with pytest.raises(BadInput, match=r"teacher\.pseudo\.margin: a single network agrees with itself"):
        choose(mean, voices=[VALUES], margin=0.2)


def test_power_sharpens_and_trim_cuts() -> None:
    found = choose([[0.6, 0.3, 0.1]], power=2)
    assert found.targets[0].tolist() == pytest.approx([0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46], abs=1e-6)
    assert choose([[0.2]], BINARY, power=2).targets[0, 0] == pytest.approx(0.04 / 0.68)
    assert choose([[0.2, 0.9]], LABELS, power=0.5).targets[0].tolist() == pytest.approx(
        [0.2**0.5 / (0.2**0.5 + 0.8**0.5), 0.9**0.5 / (0.9**0.5 + 0.1**0.5)]
    )
    assert choose([[0.85, 0.1, 0.05]], trim=0.08).targets[0].tolist() == pytest.approx([0.85 / 0.95, 0.1 / 0.95, 0])
    assert choose([[0.95, 0.03, 0.02]], trim=0.1).targets[0].tolist() == [1, 0, 0]
    assert choose([[0.04, 0.97]], LABELS, trim=0.05).targets[0].tolist() == [0, 1]
    # Nothing would be left of this row.
    flat = np.full((1, 3), 1 / 3, dtype=np.float32)
    assert choose(flat, trim=0.4).targets.tolist() == flat.tolist()
    assert choose([[0.5, 0.3, 0.2]], power=5000).targets.tolist() == [[1, 0, 0]]


def test_weights_follow_the_confidence_before_it_is_sharpened() -> None:
    assert choose(VALUES, weight=0.5, weighting="confidence", power=3).weights.tolist() == pytest.approx(
        [0.4, 0.2, 0.45]
    )
    assert choose([[0.95, 0.4]], LABELS, weighting="confidence").weights.tolist() == pytest.approx([0.6])


def test_one_class_that_takes_nearly_all_is_told() -> None:
    labelled = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    text = imbalance({"a": 9, "b": 1, "c": 0}, 10, labelled, MULTI)
    assert text == "class 'a' takes 90% of the pseudo-labels and has 50% of the labelled rows"
    assert imbalance({"a": 8, "b": 2, "c": 0}, 10, labelled, MULTI) is None
    assert imbalance({"a": 10, "b": 0, "c": 0}, 10, np.eye(3, dtype=np.float32)[[0] * 19 + [1]], MULTI) is None
    assert imbalance({"a": 4}, 4, labelled, MULTI) is None
    assert "'b' takes 100%" in str(imbalance({"a": 3, "b": 6}, 6, np.array([[1, 0], [0, 1]], np.float32), LABELS))
    assert imbalance({}, 10, np.zeros((3, 1), np.float32), VALUE) is None
    assert class_counts(np.array([[0.7], [0.59]], dtype=np.float32), BINARY) == {"0": 1, "1": 1}


# --- properties -------------------------------------------------------------------------------------------------------


@st.composite
def said(draw: st.DrawFn) -> tuple[Task, list[Floats]]:
    """A task and what two members say of up to 12 images; few distinct values, so that ties are common."""
    task = draw(st.sampled_from([MULTI, BINARY, LABELS, GRADES, VALUE]))
    n, members = draw(st.integers(1, 12)), []
    for _ in range(2):
        cells = draw(st.lists(st.integers(0, 6), min_size=n * len(task.classes), max_size=n * len(task.classes)))
        values = (np.array(cells, dtype=np.float32) + 0.5).reshape(n, -1) / 7
        members.append(task.normalise(values))
    return task, members


@given(said(), st.randoms(use_true_random=False), st.sampled_from([None, 1, 2, 5]), st.sampled_from([None, 0.2]))
def test_the_order_of_rows_changes_nothing(said: Any, random: Any, top_k: int | None, margin: float | None) -> None:
    task, members = said
    ids = [f"i{row}" for row in range(len(members[0]))]
    settings = Pseudo(labels="soft", top_k=top_k, margin=margin, weight=0.5)
    order = list(range(len(ids)))
    random.shuffle(order)
    mean = task.normalise(np.mean(members, axis=0, dtype=np.float64))
    one = select(ids, mean, members, task, settings)
    other = select([ids[row] for row in order], mean[order], [part[order] for part in members], task, settings)
    assert one.ids == other.ids == tuple(sorted(one.ids))
    assert np.array_equal(one.targets, other.targets)
    assert np.array_equal(one.weights, other.weights)
    assert (one.classes, one.mean_confidence) == (other.classes, other.mean_confidence)


@given(said(), st.integers(1, 4))
def test_top_k_takes_so_many_of_each_class_and_no_less_sure_ones(said: Any, top_k: int) -> None:
    task, members = said
    ids = [f"i{row}" for row in range(len(members[0]))]
    every = select(ids, members[0], members, task, Pseudo(labels="soft"))
    found = select(ids, members[0], members, task, Pseudo(labels="soft", top_k=top_k))
    assert set(found.ids) <= set(every.ids)
    if task.name == "regression":
        assert len(found.ids) == min(top_k, len(ids))
    elif task.one_class_each:
        assert found.classes == {name: min(count, top_k) for name, count in every.classes.items()}
    else:
        assert all(count >= min(top_k, every.classes[name]) for name, count in found.classes.items())
        assert len(found.ids) <= top_k * len(task.classes)


@given(said(), st.floats(0, 1), st.floats(0, 1), st.sampled_from([None, 2]))
def test_a_higher_threshold_takes_a_subset(said: Any, one: float, other: float, top_k: int | None) -> None:
    task, members = said
    if task.name in ("multilabel", "regression"):
        top_k = None  # an image that drops out for one label makes room for another of a second label
    ids = [f"i{row}" for row in range(len(members[0]))]
    low, high = sorted((one, other))
    few, more = (
        set(select(ids, members[0], members, task, Pseudo(labels="soft", min_prob=value, top_k=top_k)).ids)
        for value in (high, low)
    )
    assert few <= more
    wide = set(select(ids, members[0], members, task, Pseudo(labels="soft", margin=high)).ids)
    assert set(select(ids, members[0], members, task, Pseudo(labels="soft", margin=low)).ids) <= wide
