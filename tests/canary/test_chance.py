"""The permutation test: silent on predictions that know nothing, loud on those that know the labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from goldfold.canary.chance import Block, against_chance, agreement, by_rank
from goldfold.tasks import Task

MULTI = Task("multiclass", ("a", "b", "c"))


def confident(rng: np.random.Generator, rows: int, classes: int) -> np.ndarray:
    """Predictions like those of a network that has memorised other rows: sure of a random class."""
    values = rng.dirichlet(np.full(classes, 0.2), rows)
    return values.astype(np.float32)


def blocks_of(rng: np.random.Generator, share: float = 0.0, scored: int = 12) -> list[Block]:
    """Three folds of 20 rows, of which ``scored`` count; ``share`` of the truth is mixed into the predictions."""
    out = []
    for _ in range(3):
        truth = np.eye(3, dtype=np.float32)[rng.permutation(np.arange(20) % 3)]
        own = np.sort(rng.permutation(20)[:scored])
        values = (1 - share) * confident(rng, scored, 3) + share * truth[own]
        out.append(Block(agreement(MULTI, values.astype(np.float32), truth), own))
    return out


def lookalikes(rng: np.random.Generator) -> list[Block]:
    """Two folds of 30 rows; each row has a lookalike in the other fold, and its network says that one's label."""
    truth = [np.eye(3, dtype=np.float32)[rng.permutation(np.arange(30) % 3)] for _ in range(2)]
    return [Block(agreement(MULTI, truth[1 - fold], truth[fold]), np.arange(30)) for fold in range(2)]


@pytest.mark.parametrize("honest", [blocks_of, lookalikes])
def test_false_alarms_are_as_rare_as_p_says(honest: Callable[[np.random.Generator], list[Block]]) -> None:
    rng = np.random.default_rng(0)
    found = np.array([against_chance(honest(rng), 0.01, np.random.default_rng(i)).p for i in range(400)])
    for share in (0.05, 0.2):
        assert (found < share).mean() < share + 3 * np.sqrt(share * (1 - share) / 400)
    # And not for being blind: rows that speak for each other need the whole of the range.
    assert (found < 0.2).mean() > (0.12 if honest is lookalikes else 0.02)


def test_no_alarm_on_honest_predictions_and_an_alarm_on_half_a_memory() -> None:
    level = 0.001 / 12
    rng = np.random.default_rng(1)
    assert all(against_chance(blocks_of(rng), level, np.random.default_rng(i)).p > level for i in range(100))
    for seed in range(10):
        found = against_chance(blocks_of(rng, share=0.5), level, np.random.default_rng(seed))
        assert found.p < level
        assert found.above
        assert found.score > found.high


def test_shunned_labels_are_seen_too() -> None:
    truth = np.eye(3, dtype=np.float32)[np.arange(60) % 3]
    found = against_chance(
        [Block(agreement(MULTI, (1 - truth) / 2, truth), np.arange(60))], 1e-4, np.random.default_rng(0)
    )
    assert found.p < 1e-4
    assert not found.above


def test_a_constant_prediction_is_at_chance() -> None:
    truth = np.eye(3, dtype=np.float32)[np.arange(30) % 3]
    values = np.full((30, 3), (0.2, 0.3, 0.5), dtype=np.float32)
    found = against_chance([Block(agreement(MULTI, values, truth), np.arange(30))], 1e-4, np.random.default_rng(0))
    assert found.p == 1
    assert found.score == pytest.approx(found.mean)


def test_moments_are_those_of_all_orders() -> None:
    rng = np.random.default_rng(2)
    block = Block(rng.random((3, 5)), np.array([0, 2, 4]))
    sums = [
        sum(block.agreement[row, place] for row, place in enumerate(order[:3]))
        for order in itertools.permutations(range(5))
    ]
    assert block.mean == pytest.approx(np.mean(sums))
    assert block.variance == pytest.approx(np.var(sums))
    drawn = block.draw(20_000, rng)
    assert set(np.round(drawn, 9)) <= set(np.round(sums, 9))
    assert drawn.mean() == pytest.approx(block.mean, abs=0.02)


@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass", "ordinal", "regression"])
def test_a_perfect_prediction_has_the_best_agreement(task: str) -> None:
    rng = np.random.default_rng(0)
    classes = {"binary": ("b",), "regression": ("y",)}.get(task, ("a", "b", "c"))
    described = Task(task, classes, "a" if task == "binary" else None)  # type: ignore[arg-type]
    if task in ("multiclass", "ordinal"):
        targets = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 40)]
    elif task == "regression":
        targets = rng.normal(size=(40, 1)).astype(np.float32) ** 3
        targets = by_rank(targets, targets)
    else:
        targets = rng.integers(0, 2, (40, len(classes))).astype(np.float32)
    found = agreement(described, targets, targets)
    assert np.diag(found).mean() == pytest.approx(1, abs=0.01)
    chance = against_chance([Block(found, np.arange(40))], 1e-4, rng)
    assert chance.p < 1e-4
    assert chance.mean < 0.8


def test_agreement_of_each_task() -> None:
    p, yes, no = np.float32([[0.8]]), np.float32([[1]]), np.float32([[0]])
    binary = Task("binary", ("b",), "a")
    assert agreement(binary, p, np.concatenate([yes, no])).round(6).tolist() == [[0.8, 0.2]]
    several = Task("multilabel", ("a", "b"))
    assert agreement(several, np.float32([[0.8, 0.4]]), np.float32([[1, 0]]))[0, 0] == pytest.approx(0.7)
    assert agreement(Task("regression", ("y",)), np.float32([[2]]), np.float32([[0.5], [-1]])).tolist() == [[1, -2]]


def test_ranks_take_no_outlier_seriously() -> None:
    known = np.float32([[1], [2], [3], [1e6]])
    found = by_rank(np.float32([[-5], [2], [2.5], [1e9]]), known)[:, 0]
    assert found.tolist() == pytest.approx([-np.sqrt(3), -np.sqrt(3) / 4, 0, np.sqrt(3)])
    assert by_rank(known, known).mean() == pytest.approx(0)
