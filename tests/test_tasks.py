from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goldfold.errors import BadInput
from goldfold.tasks import ACTIVATIONS, DEFAULT_LOSSES, Task, encode, make_task, sorted_labels


def frame(**columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns)


LABELS = frame(
    label=["dog", "cat", "dog"],
    grade=["10", "2", "0"],
    tags=["x y", "", "y"],
    a=["1", "0", "1"],
    b=["0", "1", "1.0"],
    v=["1.5", "-2", "1e3"],
)


@pytest.mark.parametrize(
    ("name", "target", "classes", "n_logits", "targets"),
    [
        ("binary", "label", ("dog",), 1, [[1], [0], [1]]),
        ("multiclass", "label", ("cat", "dog"), 2, [[0, 1], [1, 0], [0, 1]]),
        ("ordinal", "grade", ("0", "2", "10"), 2, [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
        ("multilabel", "tags", ("x", "y"), 2, [[1, 1], [0, 0], [0, 1]]),
        ("multilabel", ["a", "b"], ("a", "b"), 2, [[1, 0], [0, 1], [1, 1]]),
        ("regression", "v", ("v",), 1, [[1.5], [-2], [1000]]),
        ("regression", ["v", "a"], ("v", "a"), 2, [[1.5, 1], [-2, 0], [1000, 1]]),
    ],
)
def test_labels_become_targets(name: Any, target: Any, classes: Any, n_logits: int, targets: Any) -> None:
    task = make_task(name, LABELS, target)
    assert (task.classes, task.n_logits) == (classes, n_logits)
    assert (task.activation, task.default_loss) == (ACTIVATIONS[name], DEFAULT_LOSSES[name])
    encoded = encode(task, LABELS, target)
    assert encoded.dtype == np.float32
    assert encoded.tolist() == targets


@given(st.lists(st.sampled_from(["cat", "dog", "owl", "10", "9"]), min_size=2).filter(lambda x: len(set(x)) > 1))
def test_encoding_is_by_label_and_reversible(labels: list[str]) -> None:
    table = frame(label=labels)
    for name in ("multiclass", "ordinal"):
        task = make_task(name, table, "label")  # type: ignore[arg-type]
        indices = task.class_index(encode(task, table, "label"))
        assert [task.labels()[index] for index in indices] == labels


def test_binary_labels_and_negative() -> None:
    task = make_task("binary", frame(y=["1", "0"]), "y")
    assert (task.classes, task.negative, task.labels()) == (("1",), "0", ["0", "1"])
    chosen = make_task("binary", LABELS, "label", classes=["dog", "cat"])
    assert (chosen.classes, chosen.negative) == (("cat",), "dog")
    assert encode(chosen, LABELS, "label").ravel().tolist() == [0, 1, 0]


def test_given_classes_keep_their_order_and_may_be_absent() -> None:
    task = make_task("multiclass", LABELS, "label", classes=["owl", "dog", "cat"])
    assert task.classes == ("owl", "dog", "cat")
    assert encode(task, LABELS, "label").tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_separator() -> None:
    task = make_task("multilabel", frame(t=["big cat|dog", "|"]), "t", separator="|")
    assert task.classes == ("big cat", "dog")


def test_numbers_sort_by_value() -> None:
    assert sorted_labels({"10", "2", "1.5"}) == ["1.5", "2", "10"]
    assert sorted_labels({"10", "2", "x"}) == ["10", "2", "x"]


@pytest.mark.parametrize(
    ("name", "target", "says"),
    [
        ("binary", "nope", "target column nope is missing; the columns are: label, grade"),
        ("binary", "grade", "needs two labels in 'grade', found 3: 0, 2, 10"),
        ("multiclass", ["a", "b"], "one target column, not 2"),
    ],
)
def test_labels_that_do_not_suit_the_task(name: Any, target: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        make_task(name, LABELS, target)
    with pytest.raises(BadInput, match="at least two classes"):
        make_task("multiclass", frame(y=["1", "1"]), "y")


@pytest.mark.parametrize(
    ("name", "target", "value", "says"),
    [
        ("multiclass", "label", "wolf", "unknown label 'wolf' in column 'label', row 3; known: cat, dog"),
        ("binary", "label", "", "unknown label '' in column 'label', row 3"),
        ("multilabel", "tags", "x z", "unknown label 'z' in column 'tags', row 3; known: x, y"),
        ("multilabel", ["a", "b"], "2", "'2' in column '[ab]', row 3, is not 0 or 1"),
        ("regression", "v", "high", "'high' in column 'v', row 3, is not a number"),
        ("regression", "v", "inf", "'inf' in column 'v', row 3, is not a number"),
        ("regression", "v", "", "row 3, is not a number"),
    ],
)
def test_labels_that_the_task_does_not_know(name: Any, target: Any, value: str, says: str) -> None:
    task = make_task(name, LABELS, target)
    changed = LABELS.copy()
    changed.loc[1, target] = value
    with pytest.raises(BadInput, match=says):
        encode(task, changed, target)


def test_truth_and_decisions_have_the_same_shapes() -> None:
    values = np.array([[0.2, 0.7, 0.1], [0.6, 0.1, 0.6]], dtype=np.float32)
    assert Task("multiclass", tuple("abc")).decide(values).tolist() == [1, 0]
    assert Task("multilabel", tuple("abc")).decide(values).tolist() == [[0, 1, 0], [1, 0, 1]]
    assert Task("multilabel", tuple("abc"), threshold=0.65).decide(values).tolist() == [[0, 1, 0], [0, 0, 0]]
    assert Task("binary", ("a",), "b").decide(values[:, :1]).tolist() == [0, 1]
    assert Task("binary", ("a",), "b", threshold=0.1).decide(values[:, :1]).tolist() == [1, 1]
    assert Task("regression", ("a",)).truth(values[:, :1]).shape == (2,)
    assert Task("regression", tuple("abc")).truth(values).shape == (2, 3)
    assert Task("multilabel", tuple("abc")).truth(values).dtype == np.int64


def test_ranks_have_an_expected_grade_too() -> None:
    task = Task("ordinal", ("0", "1", "2"))
    rows = np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], dtype=np.float32)
    assert task.expected_grade(2 * rows) == pytest.approx(task.expected_grade(rows))
    assert task.expected_grade(rows) == pytest.approx([1.1, 1.7])


def test_ordinal_answers_are_the_rounded_expected_grade() -> None:
    task = Task("ordinal", tuple("0123"))
    values = np.array([[0.4, 0, 0, 0.6], [0.5, 0.5, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]], dtype=np.float32)
    assert task.decide(values).tolist() == [2, 1, 3, 0]  # 1.8, 0.5 (up), 3, 0
    assert task.truth(np.eye(4, dtype=np.float32)).tolist() == [0, 1, 2, 3]


def test_normalise() -> None:
    values = np.array([[0.2, 0.2], [0.0, 0.0], [3.0, 1.0]])
    result = Task("multiclass", ("a", "b")).normalise(values)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [[0.5, 0.5], [0, 0], [0.75, 0.25]])
    np.testing.assert_allclose(Task("multilabel", ("a", "b")).normalise(values), values.astype(np.float32))
