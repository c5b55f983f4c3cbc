"""Temperatures: known ones are found again, and the loss never rises."""

from __future__ import annotations

import numpy as np
import pytest

from goldfold.ensemble.calibration import Calibration, check_calibration, fit_calibration
from goldfold.errors import BadInput
from goldfold.metrics import get_metric, score
from goldfold.records import Floats
from goldfold.tasks import Task

BINARY = Task("binary", ("1",), "0")
THREE = Task("multiclass", ("a", "b", "c"))
TAGS = Task("multilabel", ("x", "y"))


def heated(task: Task, temperatures: list[float], rows: int = 20_000) -> tuple[Floats, Floats]:
    """Targets drawn from honest probabilities, and those probabilities made too sure by ``temperatures``."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.2, (rows, len(task.classes)))
    if task.name == "multiclass":
        honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        labels = (rng.random((rows, 1)) > honest.cumsum(axis=1)).sum(axis=1).clip(0, 2)
        targets = np.eye(3, dtype=np.float32)[labels]
        sharp = np.exp(np.log(honest) * temperatures)
        return (sharp / sharp.sum(axis=1, keepdims=True)).astype(np.float32), targets
    targets = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return (1 / (1 + np.exp(-logits * temperatures))).astype(np.float32), targets


@pytest.mark.parametrize("task", [BINARY, THREE, TAGS], ids=lambda task: task.name)
def test_a_known_temperature_is_found(task: Task) -> None:
    values, targets = heated(task, [2.5])
    found = fit_calibration("temperature", values, targets, task)
    assert found is not None
    assert found.temperatures == (pytest.approx(2.5, rel=0.05),)
    calibrated = found.apply(values, task)
    assert calibrated.dtype == np.float32
    loss = get_metric("log_loss")
    assert score(loss, task, targets, calibrated) < score(loss, task, targets, values) - 0.02


@pytest.mark.parametrize("task", [THREE, TAGS], ids=lambda task: task.name)
def test_temperatures_of_classes_are_found(task: Task) -> None:
    known = [1.0, 2.0, 3.0][: len(task.classes)]
    values, targets = heated(task, known)
    found = fit_calibration("class_temperature", values, targets, task)
    assert found is not None
    if task is TAGS:
        assert found.temperatures == pytest.approx(known, rel=0.08)
    one = fit_calibration("temperature", values, targets, task)
    assert one is not None
    loss = get_metric("log_loss")
    losses = [score(loss, task, targets, each.apply(values, task)) for each in (found, one)]
    assert losses[0] < losses[1] < score(loss, task, targets, values)


def test_one_temperature_keeps_the_answers() -> None:
    values, targets = heated(THREE, [2.0], 500)
    found = fit_calibration("temperature", values, targets, THREE)
    assert found is not None
    calibrated = found.apply(values, THREE)
    assert np.array_equal(calibrated.argmax(axis=1), values.argmax(axis=1))
    assert calibrated.sum(axis=1) == pytest.approx(np.ones(500), abs=1e-6)


def test_certain_rows_stay_finite() -> None:
    values = np.array([[0.0], [1.0]], np.float32)
    for targets in (values, 1 - values):
        found = fit_calibration("temperature", values, targets, BINARY)
        assert found is not None
        assert 0.04 < found.temperatures[0] < 21
        assert np.isfinite(found.apply(values, BINARY)).all()


def test_stored_and_read_back() -> None:
    assert fit_calibration("none", *heated(BINARY, [1.0], 10), BINARY) is None
    found = Calibration((1.5, 0.7))
    assert Calibration.from_dict(found.to_dict(), TAGS) == found
    for record in (None, {}, {"temperatures": ["warm", 1]}, {"temperatures": [0.0]}, {"temperatures": [1, 1, 1]}):
        with pytest.raises(BadInput):
            Calibration.from_dict(record, TAGS)


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(BadInput, match="regression"):
        check_calibration("temperature", "mean", Task("regression", ("y",)))
    with pytest.raises(BadInput, match="ranks"):
        check_calibration("temperature", "rank_mean", THREE)
    with pytest.raises(BadInput, match="one column"):
        check_calibration("class_temperature", "mean", BINARY)
    check_calibration("none", "rank_mean", BINARY)
    check_calibration("class_temperature", "simplex", THREE)


def test_a_class_without_rows_keeps_its_temperature() -> None:
    values, targets = heated(TAGS, [2.5], rows=2000)
    targets[:, 0] = 0
    found = fit_calibration("class_temperature", values, targets, TAGS)
    assert found is not None
    assert found.temperatures == (1.0, pytest.approx(2.5, rel=0.15))
    values, targets = heated(THREE, [2.5], rows=2000)
    rest = targets[:, 2] == 0
    found = fit_calibration("class_temperature", values[rest], targets[rest], THREE)
    assert found is not None
    assert found.temperatures[2] == 1.0
    alone = targets[:, 1] == 1
    one = fit_calibration("temperature", values[alone], targets[alone], THREE)
    assert one == Calibration((1.0,))
