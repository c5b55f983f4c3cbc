"""Rows, their order and their weights; the leak rule; errors out of loader processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from goldfold.augment import make_augmenter
from goldfold.config.schema import Augment
from goldfold.data import (
    EXTERNAL,
    LABELLED,
    PSEUDO,
    EpochOrder,
    Examples,
    FeatureBatches,
    JoinedImages,
    LeakError,
    PixelBatches,
    add_external,
    add_soft_labels,
    add_teacher,
    labelled,
    parts_of,
    plain_loader,
    rows_of,
    train_loader,
)
from goldfold.data.loaders import Request
from goldfold.errors import BadInput, GoldfoldError
from goldfold.images import LazyImages, UnreadableImage
from goldfold.images.decode import ImageSpec
from goldfold.records import Floats, Ints, SoftLabels

SIZE = 4


class Painted:
    """Images whose every pixel is the number in their id."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = tuple(ids)
        self.shape = (SIZE, SIZE, 1)
        self.digest = "numbered"

    def read(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        values = np.array([int(self.ids[row][1:]) for row in rows], dtype=np.uint8)
        return np.broadcast_to(values[:, None, None, None], (len(values), *self.shape)).copy()


def names(*numbers: int) -> list[str]:
    return [f"n{number}" for number in numbers]


def soft(ids: Sequence[str], excluded_fold: int | None, value: float = 0.25) -> SoftLabels:
    targets = np.full((len(ids), 3), value, dtype=np.float32)
    return SoftLabels(tuple(ids), targets, np.full(len(ids), 0.5, dtype=np.float32), excluded_fold)


def hot(*classes: int) -> Floats:
    return np.eye(3, dtype=np.float32)[list(classes)]


Way = Callable[[Examples, SoftLabels, int, bool], Examples]


def by_pseudo_labels(examples: Examples, labels: SoftLabels, fold: int, leaky: bool) -> Examples:
    return add_soft_labels(examples, Painted(labels.ids), labels, fold, leaky=leaky)


def by_distillation(examples: Examples, labels: SoftLabels, fold: int, leaky: bool) -> Examples:
    return add_teacher(examples, [labels], fold, leaky=leaky)


def by_a_later_view(examples: Examples, labels: SoftLabels, fold: int, leaky: bool) -> Examples:
    return add_teacher(examples, [soft(labels.ids, fold), labels], fold, leaky=leaky)


@pytest.mark.parametrize("path", [by_pseudo_labels, by_distillation, by_a_later_view])
@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("fold", range(3))
@pytest.mark.parametrize("excluded", [*range(3), None])
def test_only_the_teacher_that_left_out_a_fold_may_teach_its_student(
    excluded: int | None, fold: int, leaky: bool, path: Way
) -> None:
    """``leaky`` admits teachers that left out no fold, and not those of another fold, which would be a mistake."""
    examples = labelled(Painted(names(1, 2)), names(1, 2), hot(0, 1))
    if excluded == fold or (leaky and excluded is None):
        assert len(path(examples, soft(names(2, 1), excluded), fold, leaky)) >= 2
        return
    who = "no fold" if excluded is None else f"fold {excluded}"
    says = f"labels: teachers that left out {who} may not teach the student of fold {fold}"
    with pytest.raises(LeakError, match=says) as caught:
        path(examples, soft(names(2, 1), excluded), fold, leaky)
    assert len(str(caught.value).splitlines()) == 1


def test_rows_are_found_by_id_and_a_missing_one_is_named() -> None:
    images = Painted(names(5, 6, 7))
    assert rows_of(images, names(7, 5)).tolist() == [2, 0]
    with pytest.raises(GoldfoldError, match="n9"):
        rows_of(images, names(5, 9))


def test_joined_images_read_the_right_rows_of_both_parts() -> None:
    joined = JoinedImages(Painted(names(1, 2, 3)), Painted(names(10, 20)))
    assert joined.ids == ("n1", "n2", "n3", "n10", "n20")
    pixels = joined.read([4, 0, 3, 2, 4])
    assert pixels.shape == (5, SIZE, SIZE, 1)
    assert pixels[:, 0, 0, 0].tolist() == [20, 1, 10, 3, 20]
    assert joined.read([]).shape == (0, SIZE, SIZE, 1)


def test_soft_labels_are_joined_by_id_with_their_weights() -> None:
    examples = labelled(Painted(names(1, 2, 3)), names(3, 1), hot(2, 0))
    student = add_soft_labels(examples, Painted(names(10, 20, 30)), soft(names(30, 10), 0), 0)
    assert student.images.read(student.rows)[:, 0, 0, 0].tolist() == [3, 1, 30, 10]
    assert student.weights.tolist() == [1, 1, 0.5, 0.5]
    assert student.targets[:2].tolist() == hot(2, 0).tolist()
    assert (student.targets[2:] == 0.25).all()


def test_a_teachers_probabilities_are_matched_by_id_and_leave_the_labels_alone() -> None:
    examples = labelled(Painted(names(1, 2, 3)), names(1, 2, 3), hot(0, 1, 2))
    teacher = SoftLabels(("n3", "n9", "n1"), hot(1, 0, 2), np.array([0.5, 1, 0.25], dtype=np.float32), 0)
    taught = add_teacher(examples, [teacher], 0)
    assert taught.targets.tolist() == hot(0, 1, 2).tolist()
    assert taught.teacher[:, 0].tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert taught.teacher_weights.tolist() == [0.25, 0, 0.5]
    assert examples.teacher.shape == (3, 0, 3)
    assert not examples.teacher_weights.any()
    with pytest.raises(GoldfoldError, match="none of the 3 training rows"):
        add_teacher(examples, [soft(names(9), 0)], 0)
    with pytest.raises(GoldfoldError, match="under different ids"):
        add_teacher(examples, [soft(names(1, 2), 0), soft(names(2, 1), 0)], 0)


def test_labels_of_other_classes_are_refused() -> None:
    """One column would spread over all classes without a word."""
    examples = labelled(Painted(names(1)), names(1), hot(0))
    other = SoftLabels(("n1",), np.ones((1, 1), dtype=np.float32), np.ones(1, dtype=np.float32), 0)
    with pytest.raises(GoldfoldError, match="labels of 1 classes for a student of 3"):
        add_teacher(examples, [soft(names(1), 0), other], 0)
    with pytest.raises(GoldfoldError, match="labels of 1 classes for a student of 3"):
        add_soft_labels(examples, Painted(names(1)), other, 0)


def test_rows_remember_where_their_labels_come_from_whatever_the_order() -> None:
    examples = labelled(Painted(names(1, 2)), names(2, 1), hot(0, 1))
    examples = add_teacher(examples, [soft(names(1, 2), 0)], 0)
    examples = add_soft_labels(examples, Painted(names(7, 8)), soft(names(8), 0), 0)
    examples = add_external(examples, Painted(names(9)), names(9), hot(2), 1.0)
    examples = add_soft_labels(examples, Painted(names(5)), soft(names(5), 0), 0)
    assert examples.kind.tolist() == [LABELLED, LABELLED, PSEUDO, EXTERNAL, PSEUDO]
    assert examples.ids == ("n2", "n1", "n8", "n9", "n5")
    assert examples.teacher_weights.tolist() == [0.5, 0.5, 0, 0, 0]
    assert examples.teacher.shape == (5, 1, 3)
    assert [part.ids for part in parts_of(examples.images)] == [("n1", "n2"), ("n7", "n8"), ("n9",), ("n5",)]
    assert examples.images.read(examples.rows)[:, 0, 0, 0].tolist() == [2, 1, 8, 9, 5]


class Numbered:
    """Stored features that say which row and view they are."""

    n_views, first, shape = 4, 0, (2,)

    def read(self, rows: Ints, views: Ints) -> npt.NDArray[np.float16]:
        return np.stack([rows, views], axis=1).astype(np.float16)


def test_a_stored_view_comes_with_what_the_teacher_said_of_that_view() -> None:
    images = Painted(names(*range(6)))
    examples = labelled(images, images.ids, np.zeros((6, 1), dtype=np.float32))
    views = [
        SoftLabels(images.ids, np.full((6, 1), view, dtype=np.float32), np.ones(6, dtype=np.float32), 0)
        for view in range(4)
    ]
    taught = add_teacher(examples, views, 0)
    store: Any = Numbered()
    seen = set()
    for seed in range(4):
        batch = FeatureBatches(taught, store).__getitems__(Request(np.array([5, 0, 3]), seed))
        assert not isinstance(batch, GoldfoldError)
        assert batch.pixels[:, 0].tolist() == [5, 0, 3]
        assert batch.teacher[:, 0].tolist() == batch.pixels[:, 1].tolist()
        seen |= set(batch.teacher[:, 0].tolist())
    assert seen == {0, 1, 2, 3}
    single = FeatureBatches(add_teacher(examples, views[2:3], 0), store).__getitems__(Request(np.array([5, 0]), 0))
    assert not isinstance(single, GoldfoldError)
    assert single.teacher.tolist() == [[2], [2]]
    with pytest.raises(ValueError, match="2 views of a teacher for 4 stored"):
        FeatureBatches(add_teacher(examples, views[:2], 0), store)
    with pytest.raises(ValueError, match="augmented by chance"):
        PixelBatches(taught, make_augmenter(Augment(preset="none"), SIZE))


def test_external_rows_have_their_own_weight_and_no_auxiliary_label() -> None:
    examples = labelled(
        Painted(names(1, 2)),
        names(1, 2),
        hot(0, 1),
        auxiliary=np.ones((2, 2), dtype=np.float32),
        auxiliary_weights=np.ones((2, 1), dtype=np.float32),
    )
    more = add_external(examples, Painted(names(30, 40)), names(40, 30), hot(2, 1), 0.5)
    assert more.images.read(more.rows)[:, 0, 0, 0].tolist() == [1, 2, 40, 30]
    assert more.weights.tolist() == [1, 1, 0.5, 0.5]
    assert more.targets.tolist() == hot(0, 1, 2, 1).tolist()
    assert more.auxiliary_weights[:, 0].tolist() == [1, 1, 0, 0]


def test_further_images_without_the_metadata_that_the_network_needs_are_refused() -> None:
    examples = labelled(Painted(names(1)), names(1), hot(0), metadata=np.ones((1, 3), dtype=np.float32))
    with pytest.raises(GoldfoldError, match="no metadata"):
        add_external(examples, Painted(names(2)), names(2), hot(1), 1.0)
    more = add_external(examples, Painted(names(2)), names(2), hot(1), 1.0, np.zeros((1, 3), dtype=np.float32))
    assert more.metadata.tolist() == [[1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("transform", [{"RandAugment": {}}, {"TrivialAugment": {}}, {"HueSaturationValue": {"p": 1}}])
def test_draws_differ_between_batches_and_epochs_and_not_with_the_workers(transform: dict[str, Any]) -> None:
    """A forked worker repeats its neighbour's draws, and every epoch's, where generators are copied (a common bug)."""

    class Same(Painted):
        def read(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
            picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            return np.stack([picture] * len(rows))

    images = Same(names(*range(8)))
    images.shape = (32, 32, 3)
    examples = labelled(images, images.ids, np.eye(8, dtype=np.float32))
    seen = {}
    for workers in (0, 2):
        order = EpochOrder(ordered(8), 2, 0)
        batches = PixelBatches(examples, make_augmenter(Augment(preset="none", add=(transform,)), 32))
        loader = train_loader(batches, order, workers=workers, pin_memory=False)
        seen[workers] = []
        for number in range(2):
            order.epoch = number
            seen[workers] += [picture.numpy().tobytes() for batch in loader for picture in batch.pixels]
    assert seen[0] == seen[2]
    assert len(set(seen[0])) > 8  # of 16 pictures; a repeated epoch or worker would leave 8 or fewer


def test_rare_rows_are_augmented_by_their_own_transforms() -> None:
    images = Painted(names(*range(10)))
    examples = labelled(images, images.ids, np.eye(10, dtype=np.float32))
    rare = np.arange(10) >= 8
    inverted = make_augmenter(Augment(train=({"InvertImg": {"p": 1}},)), SIZE)
    batches = PixelBatches(examples, make_augmenter(Augment(preset="none"), SIZE), rare, inverted)
    (batch,) = train_loader(batches, EpochOrder(ordered(10), 10, 0), workers=0, pin_memory=False)
    number = batch.targets.argmax(dim=1)
    expected = torch.where(number >= 8, 255 - number, number)
    assert (batch.pixels[:, 0, 0, 0] == expected).all()


def ordered(n: int) -> Callable[[int], Ints]:
    return lambda seed: np.random.default_rng(seed).permutation(n)


def epoch(order: EpochOrder, number: int) -> list[tuple[list[int], int]]:
    order.epoch = number
    return [(request.rows.tolist(), request.seed) for request in order]


def test_an_epochs_order_is_a_pure_function_of_seed_and_epoch() -> None:
    order = EpochOrder(ordered(20), 4, 3, 1)
    first, second = epoch(order, 0), epoch(order, 1)
    assert first != second
    assert epoch(order, 0) == first
    assert epoch(EpochOrder(ordered(20), 4, 3, 1), 1) == second
    assert epoch(EpochOrder(ordered(20), 4, 3, 2), 0) != first
    assert len({seed for _, seed in first + second}) == 10


def test_an_epoch_shows_every_row_once_but_for_those_that_fill_no_batch() -> None:
    order = EpochOrder(ordered(22), 4, 0)
    assert len(order) == 5
    shown = [row for rows, _ in epoch(order, 0) for row in rows]
    assert len(shown) == len(set(shown)) == 20
    ever = {row for number in range(8) for rows, _ in epoch(order, number) for row in rows}
    assert ever == set(range(22))
    assert sorted(epoch(EpochOrder(ordered(3), 8, 0), 0)[0][0]) == [0, 1, 2]


def test_the_ranks_share_out_each_global_batch() -> None:
    alone = epoch(EpochOrder(ordered(26), 6, 5), 2)
    ranks = [epoch(EpochOrder(ordered(26), 3, 5, rank=rank, world=2), 2) for rank in (0, 1)]
    assert len(alone) == len(ranks[0]) == len(ranks[1]) == 4
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert sorted(whole[0]) == sorted(first[0] + second[0])
        assert len(first[0]) == len(second[0]) == 3
        assert first[1] != second[1]  # their augmentation differs


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_what_was_asked_for_whatever_the_workers(workers: int) -> None:
    images = Painted(names(*range(10)))
    examples = labelled(images, images.ids, np.eye(10, dtype=np.float32))
    order = EpochOrder(ordered(10), 4, 0)
    batches = PixelBatches(examples, make_augmenter(Augment(preset="none"), SIZE))
    loader = train_loader(batches, order, workers=workers, pin_memory=False)
    assert len(loader) == 2
    for batch in loader:
        assert batch.pixels.shape == (4, SIZE, SIZE, 1)
        assert batch.pixels[:, 0, 0, 0].tolist() == batch.targets.argmax(dim=1).tolist()
        assert batch.weights.tolist() == [1, 1, 1, 1]
        assert batch.metadata.shape == batch.auxiliary.shape == batch.teacher.shape == (4, 0)
        assert batch.teacher_weights.tolist() == [0, 0, 0, 0]
    rows: Ints = np.array([7, 1, 3, 2, 9])
    plain = plain_loader(images, rows, SIZE, 2, workers=workers, pin_memory=False)
    assert [int(value) for pixels in plain for value in pixels[:, 0, 0, 0]] == rows.tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_loader_process_arrives_as_it_was_raised(workers: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    spec = ImageSpec(SIZE, 3, "squash", "area", "full")
    images = LazyImages(["a"], [tmp_path / "a.png"], spec)
    with pytest.raises(UnreadableImage, match=r"a\.png") as plain:
        list(plain_loader(images, np.zeros(1, dtype=np.int64), SIZE, 1, workers=workers, pin_memory=False))
    examples = labelled(images, ["a"], hot(0))
    batches = PixelBatches(examples, make_augmenter(Augment(), SIZE))
    with pytest.raises(UnreadableImage) as train:
        list(train_loader(batches, EpochOrder(ordered(1), 1, 0), workers=workers, pin_memory=False))
    for caught in (plain, train):
        assert caught.value.exit_code == 2
        assert len(str(caught.value).splitlines()) == 1
        assert caught.value.path == tmp_path / "a.png"


def test_errors_survive_pickling() -> None:
    for error in (
        BadInput("here", "is wrong", "mend it"),
        UnreadableImage(Path("a.png"), "is torn"),
        GoldfoldError("failed"),
        LeakError("leak"),
    ):
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert vars(back) == vars(error)
