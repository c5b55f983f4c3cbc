"""The planting: whose twin lies where, with which label."""

from __future__ import annotations

import numpy as np
import pytest

from goldfold.canary.plant import Planting, choose_rows, plant, twin_pixels
from goldfold.errors import BadInput
from goldfold.records import Floats
from goldfold.tasks import Task

MULTI = Task("multiclass", ("a", "b", "c"))


def one_hot(counts: tuple[int, ...]) -> Floats:
    return np.repeat(np.eye(len(counts), dtype=np.float32), counts, axis=0)


@pytest.fixture(params=[2, 3, 5])
def planting(request: pytest.FixtureRequest) -> Planting:
    return plant(MULTI, one_hot((40, 30, 50)), request.param, 60, seed=3)


def test_every_original_has_one_twin_and_ids_name_one_row(planting: Planting) -> None:
    names = [*planting.ids, *planting.pool_ids]
    assert len(set(names)) == len(names)
    assert planting.original.sum() == 60
    twins = set(planting.twin[planting.original & planting.in_training].tolist())
    assert len(twins) == (~planting.original).sum()
    assert sorted([*planting.pool_of, *planting.twin[~planting.original]]) == list(range(60))
    assert np.array_equal(np.flatnonzero(planting.in_pool), planting.pool_of)


def test_planted_twins_show_their_original_in_another_fold(planting: Planting) -> None:
    rows = np.flatnonzero(planting.in_training)
    twins = planting.twin[rows]
    assert (planting.pixels[rows] == planting.pixels[twins]).all()
    assert (planting.fold[rows] != planting.fold[twins]).all()
    assert (planting.twin[twins] == rows).all()
    assert (planting.original[rows] != planting.original[twins]).all()


def test_each_fold_has_twins_of_both_kinds(planting: Planting) -> None:
    sizes = np.bincount(planting.fold)
    assert sizes.max() - sizes.min() <= 2
    for fold in range(len(sizes)):
        inside = planting.fold == fold
        assert (inside & planting.in_pool).sum() >= 4
        assert (inside & planting.in_training & planting.original).sum() >= 4


def test_labels_keep_their_counts_and_are_spread_over_the_folds(planting: Planting) -> None:
    classes = np.repeat([0, 1, 2], [40, 30, 50])
    before, after = np.bincount(classes[planting.pixels]), np.bincount(classes[planting.labels])
    assert before.tolist() == after.tolist()
    sizes = np.bincount(planting.fold)
    for label, count in enumerate(after):
        shares = [(classes[planting.labels[planting.fold == fold]] == label).sum() for fold in range(len(sizes))]
        assert np.abs(shares - count * sizes / sizes.sum()).max() <= 2
    # Shuffled indeed: no more labels than by chance are their own row's.
    assert (classes[planting.pixels] == classes[planting.labels]).mean() < 0.6


def test_the_same_seed_plants_the_same_and_another_one_does_not() -> None:
    targets = one_hot((40, 30, 50))
    first, same, other = (plant(MULTI, targets, 3, 60, seed) for seed in (1, 1, 2))
    assert first.ids == same.ids
    assert np.array_equal(first.labels, same.labels)
    assert not np.array_equal(first.labels, other.labels)


def test_within_a_fold_every_label_falls_on_every_row() -> None:
    """What makes the permutation test exact: a row's label says nothing but its fold's share."""
    targets = one_hot((20, 20))
    task = Task("binary", ("b",), "a")
    truth = np.repeat([0, 1], 20)
    hits = np.zeros(40)
    for seed in range(400):
        found = plant(task, targets[:, 1:], 2, 40, seed)
        hits += truth[found.labels][found.original]
    assert np.abs(hits / 400 - 0.5).max() < 0.12  # almost five standard errors


def test_a_rare_class_is_taken_whole() -> None:
    rows = choose_rows(MULTI, one_hot((900, 10, 90)), 60, np.random.default_rng(0))
    assert np.bincount(np.repeat([0, 1, 2], [900, 10, 90])[rows]).tolist() == [25, 10, 25]
    assert len(set(rows.tolist())) == 60


def test_a_regression_is_sampled_along_its_values() -> None:
    values = np.random.default_rng(0).exponential(size=(500, 1)).astype(np.float32)
    rows = choose_rows(Task("regression", ("y",)), values, 50, np.random.default_rng(1))
    assert values[rows].min() == values.min()
    assert values[rows].max() == values.max()
    assert abs(np.median(values[rows]) - np.median(values)) < 0.1


def test_all_rows_where_there_are_few() -> None:
    assert choose_rows(MULTI, one_hot((5, 5, 5)), 60, np.random.default_rng(0)).tolist() == list(range(15))
    with pytest.raises(BadInput, match="15 rows are too few for 5 folds; 20 rows are the least"):
        plant(MULTI, one_hot((5, 5, 5)), 5, 60, seed=0)


@pytest.mark.parametrize("fill", [0, 255, None])
def test_twins_differ_but_are_near(fill: int | None) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8) if fill is None else np.full((24, 24, 3), fill, np.uint8)
    twin = twin_pixels(pixels, rng)
    away = np.abs(twin.astype(int) - pixels.astype(int))
    assert twin.dtype == np.uint8
    assert 0.2 < away.mean() < 6
    assert away.max() < 25
    assert not np.array_equal(twin_pixels(pixels, rng), twin)


def test_even_a_single_pixel_differs() -> None:
    rng = np.random.default_rng(0)
    assert all(twin_pixels(np.zeros((1, 1, 1), np.uint8), rng) != 0 for _ in range(50))
