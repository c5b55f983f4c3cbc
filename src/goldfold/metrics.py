"""Metrics: one number for a table of predictions, and which way is better.

All are scikit-learn's, told the task's labels, so that a fold without some class neither fails nor shifts columns.
A metric that is undefined for the rows at hand (AUC with one class) is NaN.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from goldfold.errors import BadInput
from goldfold.records import Floats
from goldfold.tasks import ACTIVATIONS, Task

Doubles = npt.NDArray[np.float64]
Function = Callable[[Task, Floats, Floats], float]
Needs = Literal["probability", "label", "value"]
Direction = Literal["max", "min"]

SINGLE = frozenset({"binary", "multiclass", "ordinal"})
"""Tasks with one class a row."""


@dataclass(frozen=True)
class Metric:
    """A metric. ``needs``: what a submission for it holds; ``tasks``: the tasks it suits.

    ``function(task, targets, values)`` takes (N, C) targets and (N, C) probabilities or values; call it by ``score``.
    """

    name: str
    greater_is_better: bool
    needs: Needs
    tasks: frozenset[str]
    function: Function


def get_metric(name: str, direction: str | None = None, root: Path | None = None) -> Metric:
    """A metric by its name, or ``module:function`` of the user's own, imported with ``root`` (else the working folder).

    The user's ``function(y_true, y_pred) -> float`` receives ``Task.truth(targets)`` and the probabilities: (N,) of the
    positive class for binary, (N, C) for multiclass, multilabel and ordinal, the values (N,) or (N, T) for regression.
    ``direction`` ('max' or 'min') is needed for it. Raises BadInput when the metric is unknown or cannot be imported.
    """
    if direction not in (None, "max", "min"):
        raise BadInput("competition.metric_direction", f"'{direction}' is neither 'max' nor 'min'")
    if ":" in name:
        if direction is None:
            raise BadInput(
                "competition.metric_direction", f"is needed for the metric '{name}'", "set it to 'max' or 'min'"
            )
        function = _users_function(name, root or Path.cwd())
        return Metric(name, direction == "max", "probability", frozenset(ACTIVATIONS), function)
    if name not in _TABLE:
        near = difflib.get_close_matches(name, METRICS, 1, 0.5)
        guess = f"did you mean '{near[0]}'? " if near else ""
        raise BadInput(
            "competition.metric",
            f"unknown metric '{name}'",
            f"{guess}the metrics are {', '.join(METRICS)}, or module:function of your own",
        )
    metric = _TABLE[name]
    if direction is not None and (direction == "max") != metric.greater_is_better:
        raise BadInput(
            "competition.metric_direction",
            f"'{direction}' contradicts '{name}', of which {'more' if metric.greater_is_better else 'less'} is better",
            "remove it",
        )
    return metric


def require_task(metric: Metric, task: str) -> None:
    """Raises BadInput, naming the metrics that suit, when ``metric`` does not suit the task of that name."""
    if task not in metric.tasks:
        suits = ", ".join(name for name in METRICS if task in _TABLE[name].tasks)
        raise BadInput("competition.metric", f"'{metric.name}' does not suit a {task} task", f"these do: {suits}")


def score(metric: Metric, task: Task, targets: Floats, values: Floats) -> float:
    """The metric of (N, C) probabilities or values against (N, C) targets; NaN where it is undefined.

    Raises BadInput when the metric does not suit the task, on unequal shapes and on NaN.
    """
    require_task(metric, task.name)
    if targets.shape != values.shape or targets.ndim != 2 or targets.shape[1] != len(task.classes):
        raise BadInput(
            metric.name,
            f"targets of shape {targets.shape} and predictions of shape {values.shape} do not belong together",
        )
    if not (np.isfinite(targets).all() and np.isfinite(values).all()):
        raise BadInput(metric.name, "NaN or infinite targets or predictions")
    if len(targets) == 0:
        return math.nan
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # scikit-learn warns where a metric is undefined; here that is the NaN that comes back.
        warnings.simplefilter("ignore")
        result = metric.function(task, targets, values)
    return result if math.isfinite(result) else math.nan


def better(metric: Metric, a: float, b: float) -> bool:
    """Whether score ``a`` is better than ``b``. NaN is never better, and any number is better than NaN."""
    if math.isnan(a):
        return False
    if math.isnan(b):
        return True
    return a > b if metric.greater_is_better else a < b


def _by_labels(name: str, **options: Any) -> Function:
    """A scikit-learn metric of hard answers that takes ``labels``."""

    def function(task: Task, targets: Floats, values: Floats) -> float:
        from sklearn import metrics

        truth, answers = task.truth(targets), task.decide(values)
        labels = list(range(len(task.labels())))
        if task.name == "multilabel" and len(labels) == 1:
            # scikit-learn takes one column of 0 and 1 for two classes; the label's own class is 1.
            truth, answers, labels = truth[:, 0], answers[:, 0], [1]
        return float(getattr(metrics, name)(truth, answers, labels=labels, **options))

    return function


def _plain(name: str, **options: Any) -> Function:
    """A scikit-learn metric of answers or values that takes no ``labels``."""

    def function(task: Task, targets: Floats, values: Floats) -> float:
        from sklearn import metrics

        truth, answers = task.truth(targets), task.decide(values)
        if task.name == "regression":
            truth, answers = truth.astype(np.float64), answers.astype(np.float64)
        return float(getattr(metrics, name)(truth, answers, **options))

    return function


def _balanced_accuracy(task: Task, targets: Floats, values: Floats) -> float:
    from sklearn.metrics import recall_score

    truth = task.truth(targets)
    # The mean recall over the classes that the truth holds, as balanced_accuracy_score has it.
    return float(recall_score(truth, task.decide(values), labels=np.unique(truth), average="macro", zero_division=0))


def _log_loss(task: Task, targets: Floats, values: Floats) -> float:
    from sklearn.metrics import log_loss

    # In float64 scikit-learn clips at 2e-16; in float32 a certain and wrong answer would cost only 16.
    probabilities = values.astype(np.float64)
    if probabilities.min() < -1e-6 or probabilities.max() > 1 + 1e-6:
        raise BadInput("log_loss", f"a prediction of {_outside(probabilities):g} is no probability", "give 0 to 1")
    probabilities = probabilities.clip(0, 1)
    if task.name in ("multiclass", "ordinal"):
        totals = probabilities.sum(axis=1, keepdims=True)
        probabilities = np.where(totals > 0, probabilities / totals, 1 / len(task.classes))
        return float(log_loss(task.truth(targets), probabilities, labels=list(range(len(task.classes)))))
    truth = (targets >= 0.5).astype(np.int64)
    columns = range(len(task.classes))
    return float(np.mean([log_loss(truth[:, c], probabilities[:, c], labels=[0, 1]) for c in columns]))


def _outside(probabilities: Doubles) -> float:
    low, high = float(probabilities.min()), float(probabilities.max())
    return low if low < 0 else high


def _one_by_one(name: str, both: bool) -> Function:
    """The mean over classes (one against the rest) of a binary ranking metric, over the classes present.

    A class counts when the truth has a row of it and, with ``both``, a row that is not of it.
    """

    def function(task: Task, targets: Floats, values: Floats) -> float:
        from sklearn import metrics

        truth = targets >= 0.5
        present = truth.any(axis=0) & (~truth.all(axis=0) if both else True)
        scores = [getattr(metrics, name)(truth[:, c], values[:, c]) for c in np.flatnonzero(present)]
        return float(np.mean(scores)) if scores else math.nan

    return function


def _top5(task: Task, targets: Floats, values: Floats) -> float:
    from sklearn.metrics import top_k_accuracy_score

    if len(task.classes) <= 5:
        return 1.0
    return float(top_k_accuracy_score(task.truth(targets), values, k=5, labels=list(range(len(task.classes)))))


def _r2(task: Task, targets: Floats, values: Floats) -> float:
    # Not forced to a finite number: R² of a constant truth is undefined, not 0 or 1.
    return _plain("r2_score", force_finite=False)(task, targets, values)


def _users_function(name: str, root: Path) -> Function:
    module_name, _, attribute = name.partition(":")
    where = f"metric '{name}'"
    module = _import(where, module_name, root)
    users = getattr(module, attribute, None)
    if not callable(users):
        raise BadInput(where, f"the module {module_name} has no function '{attribute}'", f"it is {module.__file__}")

    def function(task: Task, targets: Floats, values: Floats) -> float:
        flat = task.name == "binary" or (task.name == "regression" and values.shape[1] == 1)
        try:
            with _on_path(root):
                result = users(task.truth(targets), values[:, 0] if flat else values)
            return float(result)
        except Exception as error:
            raise BadInput(where, f"failed with {type(error).__name__}: {error}") from error

    return function


def _import(where: str, name: str, root: Path) -> ModuleType:
    """The module ``name``; ``root``'s own comes first. A name that is taken by another file is refused."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise BadInput(where, f"'{name}' is not a module's name", "write module:function")
    own = [root.joinpath(*name.split(".")).with_suffix(".py"), root.joinpath(*name.split("."), "__init__.py")]
    importlib.invalidate_caches()  # the file may be younger than the last look into its folder
    try:
        with _on_path(root):
            module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise BadInput(where, f"cannot import {name} ({type(error).__name__}: {error})", f"looked in {root}") from error
    loaded = Path(module.__file__).resolve() if module.__file__ else None
    expected = [path.resolve() for path in own if path.is_file()]
    if expected and loaded not in expected:
        raise BadInput(
            where, f"the name {name} already belongs to {loaded or 'a built-in module'}", f"rename {expected[0].name}"
        )
    return module


@contextlib.contextmanager
def _on_path(root: Path) -> Iterator[None]:
    """``root`` first on the import path for a moment, so that its files shadow nothing elsewhere."""
    entry = str(root.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have removed it
            sys.path.remove(entry)


def _metric(name: str, more: bool, needs: Needs, tasks: frozenset[str] | set[str], function: Function) -> Metric:
    return Metric(name, more, needs, frozenset(tasks), function)


# zero_division=nan leaves a class that neither truth nor answers hold out of the mean.
_TABLE: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _metric("accuracy", True, "label", SINGLE, _plain("accuracy_score")),
        _metric("balanced_accuracy", True, "label", SINGLE, _balanced_accuracy),
        _metric("f1", True, "label", {"binary"}, _plain("f1_score", zero_division=np.nan)),
        _metric(
            "macro_f1", True, "label", SINGLE | {"multilabel"},
            _by_labels("f1_score", average="macro", zero_division=np.nan),
        ),
        _metric(
            "micro_f1", True, "label", SINGLE | {"multilabel"},
            _by_labels("f1_score", average="micro", zero_division=np.nan),
        ),
        _metric("log_loss", False, "probability", SINGLE | {"multilabel"}, _log_loss),
        _metric("auc", True, "probability", {"binary"}, _one_by_one("roc_auc_score", both=True)),
        _metric(
            "macro_auc", True, "probability", {"multiclass", "multilabel", "ordinal"},
            _one_by_one("roc_auc_score", both=True),
        ),
        _metric(
            "average_precision", True, "probability", {"binary", "multilabel"},
            _one_by_one("average_precision_score", both=False),
        ),
        _metric("qwk", True, "label", SINGLE, _by_labels("cohen_kappa_score", weights="quadratic")),
        _metric("mae", False, "value", {"regression", "ordinal"}, _plain("mean_absolute_error")),
        _metric("rmse", False, "value", {"regression", "ordinal"}, _plain("root_mean_squared_error")),
        _metric("r2", True, "value", {"regression"}, _r2),
        _metric("top5", True, "probability", {"multiclass"}, _top5),
        _metric("mcc", True, "label", SINGLE, _plain("matthews_corrcoef")),
    )
}  # fmt: skip
METRICS: tuple[str, ...] = tuple(_TABLE)
"""The names of the built-in metrics."""
