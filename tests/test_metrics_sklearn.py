"""Our metrics against scikit-learn's, on random tables with ties, absent classes and few rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from goldfold.metrics import METRICS, get_metric, score
from goldfold.records import Floats
from goldfold.tasks import Task

TASKS = [
    Task("binary", ("1",), "0"),
    Task("binary", ("1",), "0", threshold=0.3),
    Task("multiclass", ("a", "b", "c")),
    Task("multiclass", tuple("abcdefgh")),
    Task("multilabel", ("x", "y", "z")),
    Task("multilabel", ("x",)),
    Task("ordinal", ("0", "1", "2", "3")),
    Task("regression", ("v",)),
    Task("regression", ("v", "w")),
]


def random_table(task: Task, rows: int, coarse: bool, seed: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    width = len(task.classes)
    if task.name == "regression":
        targets = rng.normal(size=(rows, width))
        values = targets + rng.normal(size=(rows, width))
    else:
        values = rng.random((rows, width))
        if coarse:
            values = np.round(values, 1)
        if task.name in ("multiclass", "ordinal"):
            targets = np.eye(width)[rng.integers(0, rng.integers(1, width + 1), rows)]
            values = (values + 1e-3) / (values + 1e-3).sum(axis=1, keepdims=True)
        else:
            targets = rng.integers(0, 2, (rows, width)) if rng.random() < 0.8 else np.ones((rows, width))
    return targets.astype(np.float32), values.astype(np.float32)


def labelled(name: str, **options: Any) -> Callable[[Task, Any, Any, Floats], float]:
    def function(task: Task, truth: Any, answers: Any, values: Floats) -> float:
        labels: Any = list(range(len(task.labels())))
        if task.name == "multilabel" and len(labels) == 1:
            truth, answers, labels = truth[:, 0], answers[:, 0], [1]
        return float(getattr(sk, name)(truth, answers, labels=labels, **options))

    return function


def answered(name: str, **options: Any) -> Callable[[Task, Any, Any, Floats], float]:
    return lambda task, truth, answers, values: float(getattr(sk, name)(truth, answers, **options))


def balanced(task: Task, truth: Any, answers: Any, values: Floats) -> float:
    return float(sk.recall_score(truth, answers, labels=np.unique(truth), average="macro", zero_division=0))


def log_loss(task: Task, truth: Any, answers: Any, values: Floats) -> float:
    doubles = values.astype(np.float64)
    if task.name in ("multiclass", "ordinal"):
        doubles /= doubles.sum(axis=1, keepdims=True)
        return float(sk.log_loss(truth, doubles, labels=list(range(len(task.classes)))))
    columns = np.reshape(truth, values.shape)
    return float(np.mean([sk.log_loss(columns[:, c], doubles[:, c], labels=[0, 1]) for c in range(values.shape[1])]))


def by_class(name: str, both: bool) -> Callable[[Task, Any, Any, Floats], float]:
    def function(task: Task, truth: Any, answers: Any, values: Floats) -> float:
        if task.name in ("multiclass", "ordinal"):
            truth = np.eye(len(task.classes), dtype=int)[truth]
        columns = np.reshape(truth, values.shape)
        kept = [c for c in range(values.shape[1]) if columns[:, c].any() and not (both and columns[:, c].all())]
        scores = [getattr(sk, name)(columns[:, c], values[:, c]) for c in kept]
        return float(np.mean(scores)) if scores else math.nan

    return function


def top5(task: Task, truth: Any, answers: Any, values: Floats) -> float:
    if len(task.classes) <= 5:
        return 1.0
    return float(sk.top_k_accuracy_score(truth, values, k=5, labels=list(range(len(task.classes)))))


SCIKIT_LEARN: dict[str, Callable[[Task, Any, Any, Floats], float]] = {
    "accuracy": answered("accuracy_score"),
    "balanced_accuracy": balanced,
    "f1": answered("f1_score", zero_division=np.nan),
    "macro_f1": labelled("f1_score", average="macro", zero_division=np.nan),
    "micro_f1": labelled("f1_score", average="micro", zero_division=np.nan),
    "log_loss": log_loss,
    "auc": by_class("roc_auc_score", both=True),
    "macro_auc": by_class("roc_auc_score", both=True),
    "average_precision": by_class("average_precision_score", both=False),
    "qwk": labelled("cohen_kappa_score", weights="quadratic"),
    "mae": answered("mean_absolute_error"),
    "rmse": answered("root_mean_squared_error"),
    "r2": answered("r2_score", force_finite=False),
    "top5": top5,
    "mcc": answered("matthews_corrcoef"),
}


def test_every_metric_is_compared() -> None:
    assert set(SCIKIT_LEARN) == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=40, deadline=None)
@given(task=st.sampled_from(TASKS), rows=st.integers(1, 40), coarse=st.booleans(), seed=st.integers(0, 100_000))
def test_values_are_scikit_learns(name: str, task: Task, rows: int, coarse: bool, seed: int) -> None:
    metric = get_metric(name)
    if task.name not in metric.tasks:
        return
    targets, values = random_table(task, rows, coarse, seed)
    truth, answers = task.truth(targets), task.decide(values)
    if task.name == "regression":
        truth, answers = truth.astype(np.float64), answers.astype(np.float64)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        expected = SCIKIT_LEARN[name](task, truth, answers, values)
    found = score(metric, task, targets, values)
    assert found == pytest.approx(expected if math.isfinite(expected) else math.nan, rel=1e-11, abs=1e-11, nan_ok=True)


def test_zero_of_either_sign_is_one_value() -> None:
    task = Task("binary", ("1",), "0")
    truth, values = (np.array(column, np.float32)[:, None] for column in ([1, 0, 1, 0], [0.0, -0.0, -0.0, 0.0]))
    assert score(get_metric("auc"), task, truth, values) == 0.5


def test_auc_of_values_of_any_sign_and_size() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=500) * 10.0 ** rng.integers(-30, 30, 500)).astype(np.float32)
    truth = rng.integers(0, 2, 500).astype(np.float32)
    found = score(get_metric("auc"), Task("binary", ("1",), "0"), truth[:, None], values[:, None])
    assert found == pytest.approx(sk.roc_auc_score(truth, values), abs=1e-12)
