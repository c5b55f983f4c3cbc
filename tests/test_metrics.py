from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from goldfold.errors import BadInput
from goldfold.metrics import METRICS, better, get_metric, require_task, score
from goldfold.records import Floats
from goldfold.tasks import Task

BINARY = Task("binary", ("pos",), "neg")
MULTI = Task("multiclass", ("a", "b", "c"))
TAGS = Task("multilabel", ("x", "y", "z"))
GRADES = Task("ordinal", ("0", "1", "2", "3"))
VALUE = Task("regression", ("v",))
TWO = Task("regression", ("v", "w"))
TASKS = {task.name: task for task in (BINARY, MULTI, TAGS, GRADES, VALUE)}


def sample(task: Task, rows: int = 60, seed: int = 0) -> tuple[Floats, Floats]:
    """Targets and noisy predictions that lean towards them."""
    generator = np.random.default_rng(seed)
    n = len(task.classes)
    if task.name == "regression":
        targets = generator.normal(size=(rows, n))
        return targets.astype(np.float32), (targets + generator.normal(size=(rows, n))).astype(np.float32)
    if task.name in ("multiclass", "ordinal"):
        targets = np.eye(n)[np.arange(rows) % n]
        raw = targets + generator.random((rows, n)) * 2
        return targets.astype(np.float32), (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)
    targets = generator.integers(0, 2, (rows, n))
    return targets.astype(np.float32), ((targets + generator.random((rows, n)) * 2) / 3).astype(np.float32)


def column(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)[:, None]


def one_hot(task: Task, *classes: int) -> Floats:
    return np.eye(len(task.classes), dtype=np.float32)[list(classes)]


def grade(probabilities: Floats) -> np.ndarray[Any, Any]:
    return np.floor(probabilities.astype(float) @ np.arange(4) + 0.5)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_on_every_task_it_suits(name: str) -> None:
    metric = get_metric(name)
    assert metric.name == name
    for task in TASKS.values():
        targets, values = sample(task)
        if task.name not in metric.tasks:
            with pytest.raises(BadInput, match=f"'{name}' does not suit a {task.name} task; these do: ") as caught:
                score(metric, task, targets, values)
            for other in str(caught.value).rsplit(": ", 1)[1].split(", "):
                require_task(get_metric(other), task.name)
            continue
        mine, perfect = score(metric, task, targets, values), score(metric, task, targets, targets)
        assert math.isfinite(mine)
        assert type(mine) is float
        assert better(metric, perfect, mine) or perfect == mine == 1  # top5 of three classes
        assert perfect == pytest.approx(1 if metric.greater_is_better else 0, abs=1e-6)


def test_values_are_scikit_learns() -> None:
    t, p = sample(MULTI)
    y, hard = t.argmax(1), p.argmax(1)
    expected = {
        "accuracy": sk.accuracy_score(y, hard),
        "balanced_accuracy": sk.balanced_accuracy_score(y, hard),
        "macro_f1": sk.f1_score(y, hard, average="macro"),
        "micro_f1": sk.f1_score(y, hard, average="micro"),
        "log_loss": -np.log(p[np.arange(60), y]).mean(),
        "macro_auc": sk.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        "mcc": sk.matthews_corrcoef(y, hard),
        "qwk": sk.cohen_kappa_score(y, hard, weights="quadratic"),
    }
    assert {name: score(get_metric(name), MULTI, t, p) for name in expected} == pytest.approx(expected, rel=1e-5)

    t, p = sample(BINARY)
    y, hard = t[:, 0].astype(int), (p[:, 0] >= 0.5).astype(int)
    expected = {
        "auc": sk.roc_auc_score(y, p[:, 0]),
        "average_precision": sk.average_precision_score(y, p[:, 0]),
        "log_loss": sk.log_loss(y, p[:, 0].astype(float)),
        "f1": sk.f1_score(y, hard),
        "macro_f1": sk.f1_score(y, hard, average="macro"),
    }
    assert {name: score(get_metric(name), BINARY, t, p) for name in expected} == pytest.approx(expected, rel=1e-5)

    t, p = sample(TAGS)
    y, hard = t.astype(int), (p >= 0.5).astype(int)
    expected = {
        "macro_auc": sk.roc_auc_score(y, p, average="macro"),
        "average_precision": sk.average_precision_score(y, p, average="macro"),
        "macro_f1": sk.f1_score(y, hard, average="macro"),
        "micro_f1": sk.f1_score(y, hard, average="micro"),
        "log_loss": np.mean([sk.log_loss(y[:, c], p[:, c].astype(float)) for c in range(3)]),
    }
    assert {name: score(get_metric(name), TAGS, t, p) for name in expected} == pytest.approx(expected, rel=1e-5)

    t, p = sample(TWO)
    expected = {
        "mae": np.abs(t - p).mean(),
        "rmse": np.sqrt(((t - p) ** 2).mean(axis=0)).mean(),
        "r2": sk.r2_score(t, p),
    }
    assert {name: score(get_metric(name), TWO, t, p) for name in expected} == pytest.approx(expected, rel=1e-5)


def test_ordinal_metrics_use_the_rounded_expected_grade() -> None:
    t, p = sample(GRADES)
    truth, answer = t.argmax(1), grade(p)
    assert (answer != p.argmax(1)).any()  # else the test could not tell them apart
    assert score(get_metric("mae"), GRADES, t, p) == pytest.approx(np.abs(truth - answer).mean())
    assert score(get_metric("rmse"), GRADES, t, p) == pytest.approx(np.sqrt(((truth - answer) ** 2).mean()))
    assert score(get_metric("qwk"), GRADES, t, p) == pytest.approx(
        sk.cohen_kappa_score(truth, answer.astype(int), weights="quadratic")
    )


def test_top5() -> None:
    task = Task("multiclass", tuple("abcdefgh"))
    targets, values = sample(task, 200)
    expected = sk.top_k_accuracy_score(targets.argmax(1), values, k=5)
    assert 0.6 < expected < 1
    assert score(get_metric("top5"), task, targets, values) == pytest.approx(expected)
    # A fold without the last class, and one with five classes only.
    assert score(get_metric("top5"), task, targets[:7], values[:7]) <= 1
    five = Task("multiclass", tuple("abcde"))
    assert score(get_metric("top5"), five, *sample(five)) == 1


class TestAFoldWithoutAClass:
    """scikit-learn alone fails, shifts columns or counts an absent class as 0."""

    def test_macro_f1_is_over_the_classes_there(self) -> None:
        targets = one_hot(MULTI, 0, 0, 1, 1)
        assert score(get_metric("macro_f1"), MULTI, targets, targets) == 1
        # A class that is only answered counts, with 0.
        assert score(get_metric("macro_f1"), MULTI, targets, one_hot(MULTI, 0, 0, 1, 2)) == pytest.approx(
            (1 + 2 / 3 + 0) / 3
        )

    def test_macro_auc_keeps_the_columns(self) -> None:
        targets = one_hot(MULTI, 0, 2, 0, 2)
        values = np.array([[0.6, 0.3, 0.1], [0.1, 0.5, 0.4], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], dtype=np.float32)
        assert score(get_metric("macro_auc"), MULTI, targets, values) == 1

    def test_log_loss_keeps_the_columns(self) -> None:
        targets = one_hot(MULTI, 0, 2)
        values = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], dtype=np.float32)
        expected = -(math.log(0.5) + math.log(0.25)) / 2
        assert score(get_metric("log_loss"), MULTI, targets, values) == pytest.approx(expected)

    def test_qwk_keeps_the_grades_apart(self) -> None:
        targets, values = one_hot(GRADES, 0, 0, 3, 3), one_hot(GRADES, 0, 3, 3, 3)
        expected = sk.cohen_kappa_score([0, 0, 3, 3], [0, 3, 3, 3], labels=[0, 1, 2, 3], weights="quadratic")
        assert score(get_metric("qwk"), GRADES, targets, values) == pytest.approx(expected)

    def test_balanced_accuracy_is_over_the_true_classes(self) -> None:
        assert score(
            get_metric("balanced_accuracy"), MULTI, one_hot(MULTI, 0, 0, 1), one_hot(MULTI, 0, 2, 1)
        ) == pytest.approx(0.75)

    @pytest.mark.parametrize("name", METRICS)
    @pytest.mark.parametrize("rows", [1, 2, 5])
    def test_one_class_neither_fails_nor_warns(self, name: str, rows: int) -> None:
        metric = get_metric(name)
        for task in TASKS.values():
            if task.name not in metric.tasks:
                continue
            targets, values = sample(task, rows)
            for truth in (np.repeat(targets[:1], rows, axis=0), np.zeros_like(targets)):
                if truth.sum() == 0 and task.name in ("multiclass", "ordinal"):
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    assert isinstance(score(metric, task, truth, values), float)

    @pytest.mark.parametrize(
        ("name", "task", "truth"),
        [
            ("auc", BINARY, column(1, 1)),
            ("auc", BINARY, column(0, 0)),
            ("average_precision", BINARY, column(0, 0)),
            ("macro_auc", MULTI, one_hot(MULTI, 1, 1)),
            ("macro_auc", TAGS, np.zeros((2, 3), dtype=np.float32)),
            ("r2", VALUE, column(2, 2)),
            ("accuracy", BINARY, np.zeros((0, 1), dtype=np.float32)),
        ],
    )
    def test_undefined_is_nan(self, name: str, task: Task, truth: Floats) -> None:
        values = np.linspace(0, 1, truth.size, dtype=np.float32).reshape(truth.shape)
        assert math.isnan(score(get_metric(name), task, truth, values))

    def test_macro_auc_of_labels_skips_only_the_undefined_ones(self) -> None:
        truth = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]], dtype=np.float32)
        values = np.array([[0.9, 0.1, 0.5], [0.1, 0.9, 0.5], [0.8, 0.1, 0.5]], dtype=np.float32)
        assert score(get_metric("macro_auc"), TAGS, truth, values) == 1


def test_one_label_alone_is_scored_as_that_label() -> None:
    task = Task("multilabel", ("x",))
    truth, values = column(1, 1, 0, 0, 0, 0), column(0.9, 0.1, 0.1, 0.1, 0.1, 0.1)
    for name in ("macro_f1", "micro_f1"):
        assert score(get_metric(name), task, truth, values) == pytest.approx(2 / 3)


def test_the_threshold_decides_hard_answers_only() -> None:
    truth, values = column(1, 1, 0, 0), column(0.4, 0.35, 0.31, 0.1)
    low = Task("binary", ("pos",), "neg", threshold=0.33)
    assert score(get_metric("accuracy"), BINARY, truth, values) == 0.5
    assert score(get_metric("accuracy"), low, truth, values) == 1
    assert score(get_metric("auc"), BINARY, truth, values) == score(get_metric("auc"), low, truth, values) == 1


def test_log_loss_takes_float32_rounding_and_certainty_but_no_logits() -> None:
    metric = get_metric("log_loss")
    thirds = np.full((2, 3), np.float32(0.333334))
    assert score(metric, MULTI, one_hot(MULTI, 0, 1), thirds) == pytest.approx(math.log(3), rel=1e-5)
    assert score(metric, BINARY, column(1), column(0)) > 30
    assert score(metric, MULTI, one_hot(MULTI, 0), np.zeros((1, 3), dtype=np.float32)) == pytest.approx(math.log(3))
    with pytest.raises(BadInput, match="-2 is no probability"):
        score(metric, BINARY, column(1, 0), column(-2, 0.5))


@settings(max_examples=30, deadline=None)
@given(st.permutations(list(range(12))), st.sampled_from(METRICS))
def test_row_order_does_not_matter(order: list[int], name: str) -> None:
    metric = get_metric(name)
    for task in TASKS.values():
        if task.name in metric.tasks:
            targets, values = sample(task, 12)
            assert score(metric, task, targets[order], values[order]) == pytest.approx(
                score(metric, task, targets, values), nan_ok=True
            )


def test_every_row_counts() -> None:
    """A validation loop that scores its last batch alone would pass on a metric of the first rows."""
    targets, values = sample(MULTI, 30)
    wrong = values.copy()
    wrong[0] = np.roll(targets[0], 1)
    for name in ("accuracy", "macro_f1", "log_loss", "macro_auc"):
        metric = get_metric(name)
        assert score(metric, MULTI, targets, np.vstack([targets[:1], values[1:]])) != score(
            metric, MULTI, targets, np.vstack([wrong[:1], values[1:]])
        )


def test_bad_tables_are_refused() -> None:
    metric = get_metric("accuracy")
    targets, values = sample(MULTI, 6)
    with pytest.raises(BadInput, match="do not belong together"):
        score(metric, MULTI, targets[:5], values)
    with pytest.raises(BadInput, match="do not belong together"):
        score(metric, MULTI, targets[:, :2], values[:, :2])
    values[2, 1] = np.nan
    with pytest.raises(BadInput, match="NaN"):
        score(metric, MULTI, targets, values)


def test_unknown_names() -> None:
    with pytest.raises(BadInput, match="unknown metric 'macrof1'; did you mean 'macro_f1'"):
        get_metric("macrof1")
    with pytest.raises(BadInput, match="unknown metric 'zzzzzz'; the metrics are accuracy, "):
        get_metric("zzzzzz")
    with pytest.raises(BadInput, match="contradicts 'log_loss', of which less is better"):
        get_metric("log_loss", "max")
    with pytest.raises(BadInput, match="neither 'max' nor 'min'"):
        get_metric("m:f", "up")
    assert get_metric("rmse", "min").greater_is_better is False


def test_better() -> None:
    more, less, nan = get_metric("auc"), get_metric("rmse"), math.nan
    assert better(more, 0.9, 0.8)
    assert not better(more, 0.8, 0.8)
    assert better(less, 0.1, 0.2)
    assert not better(less, 0.2, 0.1)
    assert not better(more, nan, 0.1)
    assert not better(more, nan, nan)
    assert better(more, 0.1, nan)
    assert better(less, 0.1, -math.nan)


class TestUsersMetric:
    @pytest.fixture(autouse=True)
    def _forget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.startswith("own_metric")]:
            monkeypatch.delitem(sys.modules, name)

    def write(self, root: Path, text: str, name: str = "own_metric.py") -> Path:
        (root / name).write_text(text)
        return root

    def test_receives_truth_and_probabilities(self, tmp_path: Path) -> None:
        root = self.write(
            tmp_path, "seen = []\ndef f(y_true, y_pred):\n    seen.append((y_true, y_pred))\n    return 1\n"
        )
        metric = get_metric("own_metric:f", "max", root)
        for task, shapes in (
            (BINARY, ((9,), (9,))),
            (MULTI, ((9,), (9, 3))),
            (TAGS, ((9, 3), (9, 3))),
            (GRADES, ((9,), (9, 4))),
            (VALUE, ((9,), (9,))),
            (TWO, ((9, 2), (9, 2))),
        ):
            targets, values = sample(task, 9)
            assert score(metric, task, targets, values) == 1.0
            truth, given_values = sys.modules["own_metric"].seen[-1]
            assert (truth.shape, given_values.shape) == shapes
            np.testing.assert_array_equal(given_values.reshape(values.shape), values)

    def test_direction_and_neighbours(self, tmp_path: Path) -> None:
        self.write(tmp_path, "def half(x):\n    return x / 2\n", "own_metric_parts.py")
        root = self.write(
            tmp_path, "def f(y, p):\n    from own_metric_parts import half\n    return half(abs(y - p).mean())\n"
        )
        before = list(sys.path)
        metric = get_metric("own_metric:f", "min", root)
        assert score(metric, VALUE, column(1, 3), column(2, 2)) == 0.5
        assert sys.path == before
        assert better(metric, 0.1, 0.2)
        with pytest.raises(BadInput, match=r"metric_direction: is needed .* set it to 'max' or 'min'"):
            get_metric("own_metric:f", None, root)

    @pytest.mark.parametrize(
        ("text", "name", "says"),
        [
            ("", "own_metric:f", "has no function 'f'"),
            ("f = 3", "own_metric:f", "has no function 'f'"),
            ("def f(:", "own_metric:f", "cannot import own_metric .SyntaxError"),
            ("1 / 0", "own_metric:f", "cannot import own_metric .ZeroDivisionError"),
            ("raise SystemExit(1)", "own_metric:f", "cannot import own_metric .SystemExit"),
            ("", "own_metric_nope:f", "cannot import own_metric_nope .ModuleNotFoundError"),
            ("", "own/metric.py:f", "is not a module's name"),
            ("", ":f", "is not a module's name"),
        ],
    )
    def test_bad_modules(self, tmp_path: Path, text: str, name: str, says: str) -> None:
        with pytest.raises(BadInput, match=says) as caught:
            get_metric(name, "max", self.write(tmp_path, text))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("body", ["return 'a'", "return None", "raise ValueError('two\\nlines')", "return [1, 2]"])
    def test_a_failing_function_is_one_line(self, tmp_path: Path, body: str) -> None:
        metric = get_metric("own_metric:f", "max", self.write(tmp_path, f"def f(y, p):\n    {body}\n"))
        with pytest.raises(BadInput, match="metric 'own_metric:f': failed with") as caught:
            score(metric, VALUE, column(1), column(1))
        assert "\n" not in str(caught.value)

    def test_infinity_is_nan(self, tmp_path: Path) -> None:
        metric = get_metric("own_metric:f", "max", self.write(tmp_path, "def f(y, p): return float('inf')"))
        assert math.isnan(score(metric, VALUE, column(1), column(1)))

    def test_a_name_that_is_taken_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"the name json already belongs to .*; rename json\.py"):
            get_metric("json:loads", "max", self.write(tmp_path, "def loads(y, p): return 0", "json.py"))
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        get_metric("own_metric:f", "max", self.write(tmp_path / "a", "def f(y, p): return 1"))
        get_metric("own_metric:f", "max", tmp_path / "a")
        with pytest.raises(BadInput, match="the name own_metric already belongs to"):
            get_metric("own_metric:f", "max", self.write(tmp_path / "b", "def f(y, p): return 2"))
