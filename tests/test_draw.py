"""The rows of an epoch: which share teachers labelled, and that the rest is dealt as the balance says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfold.balance import draw_epoch, rare_rows
from goldfold.config.schema import Balance
from goldfold.data import EXTERNAL, LABELLED, PSEUDO, counted_rows, draw_rows
from goldfold.records import Floats
from goldfold.tasks import Task

MULTI = Task("multiclass", ("a", "b", "c"))
TAGS = Task("multilabel", ("a", "b"))
NUMBER = Task("regression", ("y",))
CLASSES = np.array([0] * 60 + [1] * 30 + [2] * 10 + [2] * 300)
KIND = np.array([LABELLED] * 80 + [EXTERNAL] * 20 + [PSEUDO] * 300, dtype=np.int8)
ORDER = np.random.default_rng(0).permutation(400)
CLASSES, KIND = CLASSES[ORDER], KIND[ORDER]  # no part lies in one piece


def hot(classes: np.ndarray = CLASSES) -> Floats:
    return np.eye(3, dtype=np.float32)[classes]


def drawn(seed: int = 0, balance: Balance | None = None, **settings: float | bool | None) -> np.ndarray:
    return draw_rows(KIND, hot(), balance or Balance(), MULTI, seed, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", ["none", "oversample", "undersample"])
def test_without_a_share_every_row_takes_part_as_it_always_did(sampling: str) -> None:
    balance = Balance(sampling=sampling)  # type: ignore[arg-type]
    for seed in range(3):
        assert drawn(seed, balance).tolist() == draw_epoch(balance, hot(), MULTI, seed).tolist()


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_a_share_fixes_how_many_rows_are_pseudo_labelled(share: float, seed: int) -> None:
    rows = drawn(seed, sampling_prob=share)
    assert len(rows) == 100
    assert len(set(rows)) == 100
    assert (KIND[rows] == PSEUDO).sum() == round(share * 100)
    assert rows.tolist() == drawn(seed, sampling_prob=share).tolist()


def test_every_epoch_draws_other_rows_of_both_parts_and_mixes_them() -> None:
    first, second = drawn(1, sampling_prob=0.4), drawn(2, sampling_prob=0.4)
    for part in (KIND == PSEUDO, KIND != PSEUDO):
        assert set(first[part[first]]) != set(second[part[second]])
    ever = {int(row) for seed in range(60) for row in drawn(seed, sampling_prob=0.4)}
    assert ever == set(range(400))
    halves = [(KIND[half] == PSEUDO).sum() for half in np.split(drawn(3, sampling_prob=0.4), 2)]
    assert min(halves) > 10


def test_few_taken_images_are_drawn_again() -> None:
    kind = np.where(np.cumsum(KIND == PSEUDO) <= 5, KIND, LABELLED).astype(np.int8)
    rows = draw_rows(kind, hot(), Balance(), MULTI, 0, sampling_prob=0.5)
    assert len(rows) == 395
    taken = rows[kind[rows] == PSEUDO]
    assert len(taken) == round(0.5 * 395)
    assert set(taken) == set(np.flatnonzero(kind == PSEUDO))


@pytest.mark.parametrize("share", [None, 0.4])
def test_the_last_epochs_hold_no_pseudo_label(share: float | None) -> None:
    rows = drawn(sampling_prob=share, pseudo=False)
    assert sorted(rows) == np.flatnonzero(KIND != PSEUDO).tolist()


@pytest.mark.parametrize("pseudo", [True, False])
@pytest.mark.parametrize("share", [None, 0.4])
def test_without_any_taken_image_the_labelled_rows_are_all(share: float | None, pseudo: bool) -> None:
    kind = np.full(400, LABELLED, dtype=np.int8)
    rows = draw_rows(kind, hot(), Balance(), MULTI, 5, pseudo=pseudo, sampling_prob=share)
    assert rows.tolist() == draw_epoch(Balance(), hot(), MULTI, 5).tolist()


@pytest.mark.parametrize("pseudo", [True, False])
def test_balance_deals_the_labelled_rows_alone_where_a_share_is_set(pseudo: bool) -> None:
    """Class 2 has 10 labelled and 300 pseudo-labelled rows: counted together it would be the largest."""
    under = [drawn(seed, Balance(sampling="undersample"), sampling_prob=0.2, pseudo=pseudo) for seed in range(30)]
    assert {len(rows) for rows in under} == {30}
    assert {int((KIND[rows] == PSEUDO).sum()) for rows in under} == {6 if pseudo else 0}
    if not pseudo:
        assert all(np.bincount(CLASSES[rows]).tolist() == [10, 10, 10] for rows in under)
    over = np.concatenate(
        [drawn(seed, Balance(sampling="oversample"), sampling_prob=0.2, pseudo=pseudo) for seed in range(50)]
    )
    assert len(over) == 50 * 100
    own = CLASSES[over[KIND[over] != PSEUDO]]
    assert np.bincount(own) / len(own) == pytest.approx([1 / 3] * 3, abs=0.04)


def test_a_regression_is_drawn_by_shares_too() -> None:
    targets = np.arange(400, dtype=np.float32)[:, None]
    rows = draw_rows(KIND, targets, Balance(), NUMBER, 0, sampling_prob=0.3)
    assert (KIND[rows] == PSEUDO).sum() == 30


def test_what_is_rare_is_judged_by_the_rows_that_count() -> None:
    """The rare class's pseudo-labelled rows are rare ones, too, and do not make it common."""
    balance = Balance(rare_preset="heavy", rare_below=0.2)
    assert counted_rows(KIND, None).all()
    assert not rare_rows(balance, hot(), MULTI, counted_rows(KIND, None))[CLASSES == 2].any()
    rare = rare_rows(balance, hot(), MULTI, counted_rows(KIND, 0.5))
    assert rare[CLASSES == 2].all()
    assert not rare[CLASSES != 2].any()
    tags = np.array([[1, 1]] * 4 + [[1, 0]] * 30 + [[0, 1]] * 200, dtype=np.float32)
    kind = np.array([LABELLED] * 34 + [PSEUDO] * 200, dtype=np.int8)
    rare = rare_rows(balance, tags, TAGS, counted_rows(kind, 0.5))
    assert rare.tolist() == [True] * 4 + [False] * 30 + [True] * 200
    # A class that only teachers have named is rarest of all.
    only = rare_rows(balance, hot(np.array([0] * 10 + [2] * 3)), MULTI, np.arange(13) < 10)
    assert only.tolist() == [False] * 10 + [True] * 3
