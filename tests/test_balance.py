"""Class weights, over- and undersampling reach what they promise; soft targets pass everywhere."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goldfold.balance import class_weights, draw_epoch, rare_rows, row_classes, sampling_weights
from goldfold.config.schema import Balance
from goldfold.errors import BadInput
from goldfold.records import Floats
from goldfold.tasks import Task

MULTI = Task("multiclass", ("a", "b", "c"))
BINARY = Task("binary", ("1",), "0")
TAGS = Task("multilabel", ("a", "b"))
NUMBER = Task("regression", ("y",))
CLASSES = np.array([0] * 80 + [1] * 15 + [2] * 5)


def hot(classes: npt.ArrayLike) -> Floats:
    return np.eye(3, dtype=np.float32)[np.asarray(classes)]


def column(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)[:, None]


def test_without_sampling_every_row_comes_once_in_another_order_each_epoch() -> None:
    first, again, second = (draw_epoch(Balance(), hot(CLASSES), MULTI, seed).tolist() for seed in (3, 3, 4))
    assert first == again
    assert first != second
    assert sorted(first) == sorted(second) == list(range(100))
    assert sorted(draw_epoch(Balance(), column(0.5, 1.5), NUMBER, 0).tolist()) == [0, 1]


@pytest.mark.parametrize("task", [MULTI, BINARY])
def test_oversampling_shows_each_class_equally_often(task: Task) -> None:
    targets = hot(CLASSES) if task is MULTI else (CLASSES == 2).astype(np.float32)[:, None]
    labels = CLASSES if task is MULTI else (CLASSES == 2).astype(np.int64)
    groups = labels.max() + 1
    balance = Balance(sampling="oversample")
    assert sampling_weights(Balance(), targets, task) is None
    assert sampling_weights(Balance(sampling="undersample"), targets, task) is None
    weights = sampling_weights(balance, targets, task)
    assert weights is not None
    mass = np.array([weights[labels == group].sum() for group in range(groups)])
    assert mass / mass.sum() == pytest.approx(np.full(groups, 1 / groups))
    shown = np.concatenate([draw_epoch(balance, targets, task, seed) for seed in range(200)])
    assert len(shown) == 200 * 100
    assert np.bincount(labels[shown]) / len(shown) == pytest.approx(np.full(groups, 1 / groups), abs=0.02)
    # Within a class its rows come equally often too.
    common = np.bincount(shown, minlength=100)[labels == 0]
    assert common.min() > 0.5 * common.mean()
    assert draw_epoch(balance, targets, task, 7).tolist() == draw_epoch(balance, targets, task, 7).tolist()


def test_oversampling_knows_rows_of_several_labels_and_of_none() -> None:
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=np.float32)
    weights = sampling_weights(Balance(sampling="oversample"), targets, TAGS)
    assert weights is not None
    assert np.allclose(weights, [1 / 3, 1 / 3, 1, 1 / 4])


def test_oversampling_draws_a_soft_row_by_its_share_of_each_class() -> None:
    targets = np.concatenate([hot([0] * 8 + [1] * 2), np.array([[0.5, 0, 0.5]], dtype=np.float32)])
    weights = sampling_weights(Balance(sampling="oversample"), targets, MULTI)
    assert weights is not None
    # The class that half a row hints at does not take a third of the epoch.
    assert weights[-1] == pytest.approx(0.5 / 8.5 + 0.5)
    assert weights[0] == pytest.approx(1 / 8.5)
    assert weights[8] == pytest.approx(1 / 2)
    yes = sampling_weights(Balance(sampling="oversample"), column(0, 0, 0, 0.5, 1), BINARY)
    assert yes is not None
    assert yes == pytest.approx([1 / 3.5] * 3 + [0.5 / 3.5 + 0.5 / 1.5, 1 / 1.5])


@pytest.mark.parametrize("task", [MULTI, BINARY, Task("ordinal", ("a", "b", "c"))])
def test_undersampling_takes_as_many_of_each_class_and_others_each_epoch(task: Task) -> None:
    targets = (CLASSES > 0).astype(np.float32)[:, None] if task is BINARY else hot(CLASSES)
    labels = (CLASSES > 0).astype(np.int64) if task is BINARY else CLASSES
    least, groups = (20, 2) if task is BINARY else (5, 3)
    balance = Balance(sampling="undersample")
    epochs = [draw_epoch(balance, targets, task, seed) for seed in range(100)]
    for rows in epochs:
        assert len(set(rows.tolist())) == len(rows) == least * groups
        assert np.bincount(labels[rows]).tolist() == [least] * groups
    assert {row for rows in epochs for row in rows.tolist()} == set(range(100))
    assert epochs[0].tolist() == draw_epoch(balance, targets, task, 0).tolist()
    # The classes are shuffled into one another.
    assert (labels[epochs[0]] != np.sort(labels[epochs[0]])).any()


def test_undersampling_leaves_absent_classes_out_and_deals_soft_rows_to_their_likeliest() -> None:
    targets = np.array([[0.6, 0.4, 0], [1, 0, 0], [0.9, 0, 0.1], [0.2, 0.8, 0]], dtype=np.float32)
    assert row_classes(targets, MULTI).tolist() == [0, 0, 0, 1]
    rows = draw_epoch(Balance(sampling="undersample"), targets, MULTI, 0)
    assert len(rows) == 2
    assert 3 in rows
    assert row_classes(column(0.4, 0.5, 0.9), BINARY).tolist() == [0, 1, 1]


def test_multilabel_rows_are_dealt_to_their_rarest_label() -> None:
    targets = np.array([[1, 0]] * 4 + [[1, 1]] * 2 + [[0, 0]] * 3 + [[0.4, 0.9]], dtype=np.float32)
    assert row_classes(targets, TAGS).tolist() == [0] * 4 + [1] * 2 + [2] * 3 + [1]
    rows = draw_epoch(Balance(sampling="undersample"), targets, TAGS, 0)
    assert np.bincount(row_classes(targets, TAGS)[rows]).tolist() == [3, 3, 3]


def test_class_weights_are_the_published_formulas() -> None:
    targets = hot([0] * 6 + [1] * 3 + [2])
    count = np.array([6.0, 3.0, 1.0])
    inverse = class_weights(Balance(loss_weights="inverse"), targets, MULTI)
    assert inverse is not None
    assert np.allclose(inverse / inverse[0], count[0] / count)
    assert (targets @ inverse).mean() == pytest.approx(1)  # the mean loss keeps its size
    for beta in (0.5, 0.9, 0.999, 1 - 1e-9):
        effective = class_weights(Balance(loss_weights="effective", beta=beta), targets, MULTI)
        assert effective is not None
        number = np.array([sum(beta**k for k in range(int(n))) for n in count])  # (1 - beta^n) / (1 - beta)
        assert np.allclose(effective / effective[0], number[0] / number)
        assert (targets @ effective).mean() == pytest.approx(1)
    assert class_weights(Balance(), targets, MULTI) is None


def test_soft_rows_weigh_by_their_shares() -> None:
    targets = np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 0.25, 0.75]], dtype=np.float32)
    weights = class_weights(Balance(loss_weights="inverse"), targets, MULTI)
    assert weights is not None
    assert weights / weights[0] == pytest.approx([1, 1.5, 1.5])  # a class of less than one row counts as one row


def test_a_binary_class_weighs_its_positives_against_its_negatives() -> None:
    inverse, effective = Balance(loss_weights="inverse"), Balance(loss_weights="effective", beta=0.5)
    assert class_weights(inverse, column(1, 0, 0, 0), BINARY) == pytest.approx([3.0])
    assert class_weights(effective, column(1, 0, 0, 0), BINARY) == pytest.approx([1.75])
    absent = class_weights(inverse, np.zeros((4, 1), dtype=np.float32), BINARY)
    assert absent is not None
    assert np.isfinite(absent).all()


def test_rare_rows_are_those_of_small_classes() -> None:
    rare = rare_rows(Balance(rare_below=0.1), hot(CLASSES), MULTI)
    assert rare.dtype == np.bool_
    assert np.flatnonzero(rare).tolist() == list(range(95, 100))
    assert rare_rows(Balance(rare_below=0.2), hot(CLASSES), MULTI).sum() == 20
    assert not rare_rows(Balance(rare_below=15 / 80), hot(CLASSES), MULTI)[80:95].any()  # below, not at
    assert rare_rows(Balance(), column(0, 0, 0, 0.2, 0.7), BINARY).tolist() == [False] * 4 + [True]
    tags = np.array([[1, 0]] * 9 + [[1, 1]] * 2 + [[0, 0]] * 3, dtype=np.float32)
    assert rare_rows(Balance(rare_below=0.25), tags, TAGS).tolist() == [False] * 9 + [True] * 2 + [False] * 3


def test_a_regression_has_no_classes_to_balance() -> None:
    targets = column(0.5, 1.5, 9)
    assert class_weights(Balance(), targets, NUMBER) is None
    for attempt in (
        lambda: class_weights(Balance(loss_weights="inverse"), targets, NUMBER),
        lambda: draw_epoch(Balance(sampling="oversample"), targets, NUMBER, 0),
        lambda: draw_epoch(Balance(sampling="undersample"), targets, NUMBER, 0),
        lambda: rare_rows(Balance(), targets, NUMBER),
    ):
        with pytest.raises(BadInput, match="regression"):
            attempt()


@given(
    counts=st.lists(st.integers(0, 12), min_size=3, max_size=3).filter(any),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_counts_are_balanced(counts: list[int], seed: int) -> None:
    classes = np.repeat(np.arange(3), counts)
    present = [count for count in counts if count]
    rows = draw_epoch(Balance(sampling="undersample"), hot(classes), MULTI, seed)
    assert len(set(rows.tolist())) == len(rows) == min(present) * len(present)
    weights = sampling_weights(Balance(sampling="oversample"), hot(classes), MULTI)
    assert weights is not None
    for group in np.unique(classes):
        assert weights[classes == group].sum() / weights.sum() == pytest.approx(1 / len(present), rel=1e-5)
    assert len(draw_epoch(Balance(sampling="oversample"), hot(classes), MULTI, seed)) == len(classes)
