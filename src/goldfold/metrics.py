"""Metrics: one number for a table of predictions, and which way is better.

All have scikit-learn's values (tests compare them), for all of the task's labels, so that a fold without some class
neither fails nor shifts columns. They are written out here because blends are scored thousands of times on many rows,
and scikit-learn's checks of its arguments take ten times as long as the arithmetic. A metric that is undefined for the
rows at hand (AUC with one class) is NaN.
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
from typing import Literal

import numpy as np
import numpy.typing as npt

from goldfold.errors import BadInput
from goldfold.records import Floats, Ints
from goldfold.tasks import ACTIVATIONS, Task

Doubles = npt.NDArray[np.float64]
Function = Callable[[Task, Floats, Floats], float]
Needs = Literal["probability", "label", "value"]
Direction = Literal["max", "min"]

SINGLE = frozenset({"binary", "multiclass", "ordinal"})
"""Tasks with one class a row."""
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Metric:
    """A metric. ``needs``: what a submission for it holds; ``tasks``: the tasks it suits; ``by_column``: whether it sees
    only in which order each class's values put the images, so that rows need not sum to 1.

    ``function(task, targets, values)`` takes (N, C) targets and (N, C) probabilities or values; call it by ``score``.
    """

    name: str
    greater_is_better: bool
    needs: Needs
    tasks: frozenset[str]
    function: Function
    by_column: bool = False


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


def _confusion(task: Task, targets: Floats, values: Floats) -> Doubles:
    """The rows (K, K) of each true class (first axis) that got each answer, over all K labels of a one-class task."""
    size = len(task.labels())
    pairs = task.class_index(targets) if task.name != "binary" else (targets[:, 0] >= 0.5).astype(np.int64)
    pairs = pairs * size + task.class_index(values)
    return np.bincount(pairs, minlength=size * size).reshape(size, size).astype(np.float64)


def _accuracy(task: Task, targets: Floats, values: Floats) -> float:
    return float(np.trace(_confusion(task, targets, values)) / len(targets))


def _balanced_accuracy(task: Task, targets: Floats, values: Floats) -> float:
    table = _confusion(task, targets, values)
    # The mean recall over the classes that the truth holds, as balanced_accuracy_score has it.
    rows = table.sum(axis=1)
    return float((np.diag(table)[rows > 0] / rows[rows > 0]).mean())


def _f1(average: Literal["macro", "micro", "positive"]) -> Function:
    """F1 of hard answers. A class that neither truth nor answers hold is left out of the mean."""

    def function(task: Task, targets: Floats, values: Floats) -> float:
        if task.name == "multilabel":
            truth, answers = targets >= 0.5, values >= task.threshold
            hits, rows = (truth & answers).sum(axis=0), truth.sum(axis=0) + answers.sum(axis=0)
        else:
            table = _confusion(task, targets, values)
            hits, rows = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
        if average == "positive":
            hits, rows = hits[-1:], rows[-1:]
        if average == "micro":
            hits, rows = hits.sum(keepdims=True), rows.sum(keepdims=True)
        scores = 2 * hits[rows > 0] / rows[rows > 0]
        return float(scores.mean()) if len(scores) else math.nan

    return function


def _qwk(task: Task, targets: Floats, values: Floats) -> float:
    table = _confusion(task, targets, values)
    steps = np.arange(len(table))
    costs = (steps[:, None] - steps) ** 2
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return float(1 - (costs * table).sum() / (costs * expected).sum())


def _mcc(task: Task, targets: Floats, values: Floats) -> float:
    table = _confusion(task, targets, values)
    rows, columns, total = table.sum(axis=1), table.sum(axis=0), table.sum()
    scale = (total**2 - (rows * rows).sum()) * (total**2 - (columns * columns).sum())
    # One class alone in the truth or in the answers: no correlation, as matthews_corrcoef has it.
    return float((np.trace(table) * total - (rows * columns).sum()) / math.sqrt(scale)) if scale > 0 else 0.0


def _log_loss(task: Task, targets: Floats, values: Floats) -> float:
    low, high = float(values.min()), float(values.max())
    if low < -1e-6 or high > 1 + 1e-6:
        raise BadInput("log_loss", f"a prediction of {low if low < 0 else high:g} is no probability", "give 0 to 1")
    if task.name in ("multiclass", "ordinal"):
        own = np.take_along_axis(values, task.class_index(targets)[:, None], axis=1)[:, 0].astype(np.float64).clip(0, 1)
        totals = np.zeros(len(values))
        for column in range(values.shape[1]):
            totals += values[:, column].clip(0, 1)
        chances = np.divide(own, totals, out=np.full(len(own), 1 / values.shape[1]), where=totals > 0)
    else:
        chances = values.astype(np.float64).clip(0, 1)
        chances = np.where(targets >= 0.5, chances, 1 - chances)
    # In float64 this clips at 2e-16; in float32 a certain and wrong answer would cost only 16.
    return -float(np.log(chances.clip(EPS, 1 - EPS)).mean())


def _ranked(truth: npt.NDArray[np.bool_], values: Floats) -> tuple[Ints, Ints]:
    """The running numbers of positives and of all rows at the end of each run of equal ``values``, highest first."""
    bits = (np.float32(0) - values).view(np.uint32)  # a difference from 0 makes -0 and 0 one value
    # As whole numbers of the same order, sorted by their lower and then by their upper half: for 16 bits NumPy's stable
    # sort is a radix sort, and two of them take half the time of one comparison sort.
    bits ^= np.where(bits >> np.uint32(31) == 1, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    order = np.argsort(bits.astype(np.uint16), kind="stable")
    order = order[np.argsort((bits >> np.uint32(16)).astype(np.uint16)[order], kind="stable")]
    ordered = bits[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    return np.cumsum(truth[order])[ends], ends + 1


def _auc(truth: npt.NDArray[np.bool_], values: Floats) -> float:
    positives, rows = _ranked(truth, values)
    negatives = rows - positives
    # Whole numbers up to the last step: twice the area of the trapezoids under the curve.
    area = (np.diff(negatives, prepend=0) * (positives + np.append(0, positives[:-1]))).sum()
    return float(area / (2 * positives[-1] * negatives[-1]))


def _average_precision(truth: npt.NDArray[np.bool_], values: Floats) -> float:
    positives, rows = _ranked(truth, values)
    return float((np.diff(positives, prepend=0) * (positives / rows)).sum() / positives[-1])


def _one_by_one(one: Callable[[npt.NDArray[np.bool_], Floats], float], both: bool) -> Function:
    """The mean over classes (one against the rest) of a binary ranking metric, over the classes present.

    A class counts when the truth has a row of it and, with ``both``, a row that is not of it.
    """

    def function(task: Task, targets: Floats, values: Floats) -> float:
        truth = targets >= 0.5
        present = truth.any(axis=0) & (~truth.all(axis=0) if both else True)
        scores = [one(truth[:, c], values[:, c].astype(np.float32)) for c in np.flatnonzero(present)]
        return float(np.mean(scores)) if scores else math.nan

    return function


def _errors(task: Task, targets: Floats, values: Floats) -> Doubles:
    """Answers less truth (N, T), in float64."""
    if task.name == "regression":
        return values.astype(np.float64) - targets
    return (task.class_index(values) - task.class_index(targets)).astype(np.float64)[:, None]


def _mae(task: Task, targets: Floats, values: Floats) -> float:
    return float(np.abs(_errors(task, targets, values)).mean(axis=0).mean())


def _rmse(task: Task, targets: Floats, values: Floats) -> float:
    return float(np.sqrt((_errors(task, targets, values) ** 2).mean(axis=0)).mean())


def _r2(task: Task, targets: Floats, values: Floats) -> float:
    # Not forced to a finite number: R² of a constant truth is undefined, not 0 or 1.
    truth = targets.astype(np.float64)
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    return float((1 - (_errors(task, targets, values) ** 2).sum(axis=0) / spread).mean())


def _top5(task: Task, targets: Floats, values: Floats) -> float:
    if len(task.classes) <= 5:
        return 1.0
    truth = task.class_index(targets)[:, None]
    own = np.take_along_axis(values, truth, axis=1)
    # Of equal values the later class comes first, as in top_k_accuracy_score.
    ahead = (values > own) | ((values == own) & (np.arange(values.shape[1]) > truth))
    return float((ahead.sum(axis=1) < 5).mean())


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


def _metric(
    name: str, more: bool, needs: Needs, tasks: frozenset[str] | set[str], function: Function, by_column: bool = False
) -> Metric:
    return Metric(name, more, needs, frozenset(tasks), function, by_column)


_TABLE: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _metric("accuracy", True, "label", SINGLE, _accuracy),
        _metric("balanced_accuracy", True, "label", SINGLE, _balanced_accuracy),
        _metric("f1", True, "label", {"binary"}, _f1("positive")),
        _metric("macro_f1", True, "label", SINGLE | {"multilabel"}, _f1("macro")),
        _metric("micro_f1", True, "label", SINGLE | {"multilabel"}, _f1("micro")),
        _metric("log_loss", False, "probability", SINGLE | {"multilabel"}, _log_loss),
        _metric("auc", True, "probability", {"binary"}, _one_by_one(_auc, both=True), by_column=True),
        _metric(
            "macro_auc", True, "probability", {"multiclass", "multilabel", "ordinal"},
            _one_by_one(_auc, both=True), by_column=True,
        ),
        _metric(
            "average_precision", True, "probability", {"binary", "multilabel"},
            _one_by_one(_average_precision, both=False), by_column=True,
        ),
        _metric("qwk", True, "label", SINGLE, _qwk),
        _metric("mae", False, "value", {"regression", "ordinal"}, _mae),
        _metric("rmse", False, "value", {"regression", "ordinal"}, _rmse),
        _metric("r2", True, "value", {"regression"}, _r2),
        _metric("top5", True, "probability", {"multiclass"}, _top5),
        _metric("mcc", True, "label", SINGLE, _mcc),
    )
}  # fmt: skip
METRICS: tuple[str, ...] = tuple(_TABLE)
"""The names of the built-in metrics."""
