"""The worst mistakes are those of the largest loss, and of wrong answers only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from goldfold.tasks import Task
from goldfold.tracking import worst_mistakes

IDS = ("a", "b", "c", "d")


def table(*rows: list[float]) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def found(task: Task, targets: npt.NDArray[np.float32], values: npt.NDArray[np.float32], most: int = 9) -> list[str]:
    return [f"{row.id}: {row.caption}" for row in worst_mistakes(task, IDS, targets, values, most)]


def test_multiclass() -> None:
    task = Task("multiclass", ("cat", "dog", "fox"))
    targets = table([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0])
    values = table([0.9, 0.05, 0.05], [0.6, 0.3, 0.1], [0.97, 0.02, 0.01], [0.3, 0.4, 0.3])
    assert found(task, targets, values) == ["c: fox, predicted cat (0.97)", "b: dog, predicted cat (0.60)"]
    assert found(task, targets, values, 1) == ["c: fox, predicted cat (0.97)"]
    assert worst_mistakes(task, IDS, targets, values, 1)[0].loss == pytest.approx(-np.log(0.01), rel=1e-5)
    assert found(task, targets, targets) == []


def test_binary_goes_by_the_threshold() -> None:
    task = Task("binary", ("ill",), "well", threshold=0.3)
    targets = table([1], [1], [0], [0])
    values = table([0.4], [0.1], [0.35], [0.2])
    assert found(task, targets, values) == ["b: ill, predicted well (0.90)", "c: well, predicted ill (0.35)"]


def test_multilabel_names_the_wrong_labels_alone() -> None:
    task = Task("multilabel", ("hat", "scarf"))
    targets = table([1, 0], [1, 1], [0, 0], [0, 1])
    values = table([0.9, 0.2], [0.9, 0.1], [0.99, 0.8], [0.1, 0.9])
    assert found(task, targets, values) == [
        "c: no hat, predicted 0.99; no scarf, predicted 0.80",
        "b: scarf, predicted 0.10",
    ]


def test_ordinal_goes_by_distance() -> None:
    task = Task("ordinal", ("0", "1", "2", "3"))
    targets = np.eye(4, dtype=np.float32)[[0, 3, 1, 2]]
    values = table([0.4, 0.6, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.2, 0.8])
    assert [row.id for row in worst_mistakes(task, IDS, targets, values, 9)] == ["b", "d", "a"]
    assert found(task, targets, values, 1) == ["b: 3, predicted 0 (1.00)"]


def test_regression_scales_its_columns() -> None:
    task = Task("regression", ("age", "weight"))
    targets = table([10, 1000], [20, 2000], [30, 3000], [40, 4000])
    values = targets + table([0, 100], [5, 0], [0, 0], [0, 300])
    assert found(task, targets, values, 2) == [
        "b: age: 20, predicted 25; weight: 2000, predicted 2000",
        "d: age: 40, predicted 40; weight: 4000, predicted 4300",
    ]
