"""Correlation of errors and marginal gains: known values, and what leaving a member out means."""

from __future__ import annotations

import numpy as np
import pytest

from goldfold.config.schema import BlendMethod
from goldfold.ensemble import cross_fit
from goldfold.ensemble import diversity as room
from goldfold.ensemble.diversity import correlation_table, error_correlation, measure_diversity
from goldfold.metrics import get_metric
from goldfold.records import Floats
from goldfold.tasks import Task

BINARY = Task("binary", ("1",), "0")
THREE = Task("multiclass", ("a", "b", "c"))
TAGS = Task("multilabel", ("x", "y"))
POINT = Task("regression", ("x", "y"))
FOLDS = np.arange(60) % 3
NAMES = ["good", "twin", "other", "noise"]


def members() -> tuple[list[Floats], Floats]:
    """A good member and its near twin, one that errs elsewhere, and one that knows nothing."""
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 1)) < 0.5).astype(np.float32)
    good = 2 * targets - 1 + rng.normal(0, 1.3, (60, 1))
    other = 2 * targets - 1 + rng.normal(0, 1.3, (60, 1))
    logits = [good, good + rng.normal(0, 0.05, (60, 1)), other, rng.normal(0, 1, (60, 1))]
    return [(1 / (1 + np.exp(-each))).astype(np.float32) for each in logits], targets


def test_errors_by_hand() -> None:
    targets = np.array([[1.0], [0.0], [1.0]], np.float32)
    first, second = (np.array(column, np.float32)[:, None] for column in ([0.9, 0.4, 0.2], [0.8, 0.1, 0.6]))
    expected = np.corrcoef([0.1, 0.4, 0.8], [0.2, 0.1, 0.4])[0, 1]
    found = error_correlation([first, second], targets, BINARY)
    assert found == pytest.approx(np.array([[1, expected], [expected, 1]]), abs=1e-4)


@pytest.mark.parametrize("task", [THREE, TAGS, POINT], ids=lambda task: task.name)
def test_opposite_errors_and_constant_ones(task: Task) -> None:
    rng = np.random.default_rng(1)
    classes = len(task.classes)
    if task is THREE:
        targets = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 40)]
        step = (rng.uniform(-0.2, 0.2, (40, 1)) * (targets - (1 - targets) / 2)).astype(np.float32)
        centre = np.where(targets == 1, 0.5, 0.25).astype(np.float32)
    else:
        targets = rng.integers(0, 2, (40, classes)).astype(np.float32)
        step = rng.uniform(-0.2, 0.2, (40, classes)).astype(np.float32)
        centre = np.where(targets == 1, 0.7, 0.3).astype(np.float32)
        if task is POINT:
            centre, step = targets, step * np.array([100, 1], np.float32) * targets.std(axis=0)
    found = error_correlation([centre + step, centre - step, targets], targets, task)
    assert found[0, 1] == pytest.approx(-1, abs=1e-3)
    assert np.isnan(found[2]).all()


def test_a_twin_is_worth_nothing_and_noise_correlates_least() -> None:
    values, targets = members()
    fitted = cross_fit("simplex", NAMES, values, targets, FOLDS, BINARY, get_metric("log_loss"))
    found = measure_diversity(NAMES, values, targets, FOLDS, fitted, BINARY, get_metric("log_loss"))
    assert found.way == "refitted"
    assert found.correlation[0, 1] > 0.95
    assert found.correlation[0, 2] < 0.5
    gains = dict(zip(NAMES, found.gains, strict=True))
    # Log loss: lower is better, and a gain is still positive.
    assert gains["other"] > 0.02
    assert abs(gains["twin"]) < gains["other"] / 2
    kept = [0, 1, 3]
    rest = cross_fit(
        "simplex", [NAMES[k] for k in kept], [values[k] for k in kept], targets, FOLDS, BINARY, get_metric("log_loss")
    )
    assert rest.score is not None
    assert fitted.score is not None
    assert gains["other"] == pytest.approx(rest.score - fitted.score, abs=1e-9)
    together = found.correlation[0, 1:].mean()
    assert found.mean_correlation[0] == pytest.approx(together)


@pytest.mark.parametrize("method", ["mean", "gmean", "rank_mean"])
def test_equal_weights_need_no_refit(method: BlendMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaling up equal weights is what a refit gives, so the short way is called refitted."""
    values, targets = members()
    metric = get_metric("auc")
    fitted = cross_fit(method, NAMES, values, targets, FOLDS, BINARY, metric)
    found = measure_diversity(NAMES, values, targets, FOLDS, fitted, BINARY, metric)
    assert found.way == "refitted"
    for number in range(4):
        kept = [k for k in range(4) if k != number]
        rest = cross_fit(method, [NAMES[k] for k in kept], [values[k] for k in kept], targets, FOLDS, BINARY, metric)
        assert rest.score is not None
        assert fitted.score is not None
        assert found.gains[number] == pytest.approx(fitted.score - rest.score, abs=2e-3)


@pytest.mark.parametrize("method", ["simplex", "greedy", "stacking"])
def test_many_members_are_only_scaled(method: BlendMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    values, targets = members()
    metric = get_metric("auc")
    fitted = cross_fit(method, NAMES, values, targets, FOLDS, BINARY, metric)
    monkeypatch.setattr(room, "REFITTED_MEMBERS", 3)
    monkeypatch.setattr(room, "fit_rows", None)
    found = measure_diversity(NAMES, values, targets, FOLDS, fitted, BINARY, metric)
    assert found.way == "renormalised"
    assert found.gains[2] > 0
    unused = np.all([blend.weights == 0 for blend in fitted.fold_blends.values()], axis=0)
    assert (found.gains[unused] == 0).all()


def test_one_member_or_one_fold_has_no_gain() -> None:
    values, targets = members()
    for count, folds in ((1, FOLDS), (3, np.zeros(60, np.int64))):
        fitted = cross_fit("mean", NAMES[:count], values[:count], targets, folds, BINARY, get_metric("auc"))
        found = measure_diversity(NAMES[:count], values[:count], targets, folds, fitted, BINARY, get_metric("auc"))
        assert found.way is None
        assert np.isnan(found.gains).all()
        assert found.correlation.shape == (count, count)
    assert np.isnan(found.mean_correlation).sum() == 0


def test_a_member_called_name_has_its_column() -> None:
    table = correlation_table(["name", "b"], np.array([[1.0, 0.5], [0.5, 1.0]]))
    assert list(table.columns) == ["name", "name", "b"]
