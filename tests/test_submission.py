"""Submissions: every shape there and back, in the sample's order, and every fault as one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfold import files
from goldfold.errors import BadInput
from goldfold.metrics import get_metric
from goldfold.records import Floats, Predictions
from goldfold.submission import (
    SubmissionFormat,
    check_submission,
    decide_format,
    format_submission,
    read_answers,
    score_submission,
    write_submission,
)
from goldfold.tasks import Task

BINARY = Task("binary", ("dog",), "cat")
DIGITS = Task("binary", ("1",), "0")
THREE = Task("multiclass", ("ant", "bee", "cow"))
GRADES = Task("ordinal", ("0", "1", "2"))
TAGS = Task("multilabel", ("red", "green", "blue"))
PRICE = Task("regression", ("price",))
POINT = Task("regression", ("x", "y"))
IDS = ("07", "7", "a b", "9")


def text(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({name: [str(cell) for cell in cells] for name, cells in columns.items()}, dtype=str)


def sample(task_columns: dict[str, str], ids: tuple[str, ...] = IDS) -> pd.DataFrame:
    return text(id=ids, **{name: [cell] * len(ids) for name, cell in task_columns.items()})


def predict(task: Task, rows: list[list[float]], ids: tuple[str, ...] = IDS) -> Predictions:
    return Predictions(ids, np.array(rows, dtype=np.float32), task.classes, "run", where="run")


def through_disk(tmp_path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    write_submission(tmp_path / "sub.csv", frame, {"source": "run"})
    return files.read_csv(tmp_path / "sub.csv")


def refused(frame: pd.DataFrame, like: pd.DataFrame, shape: SubmissionFormat, task: Task, *words: str) -> None:
    with pytest.raises(BadInput) as caught:
        check_submission(frame, like, shape, task, "my.csv")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("my.csv: ")
    assert all(word in line for word in words), line


HALVES = [[0.9], [0.2], [0.5], [0.1]]
THIRDS = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.5, 0.25, 0.25]]
LIKELY = [[0.9, 0.1, 0.6], [0.2, 0.7, 0.4], [0.8, 0.8, 0.8], [0.3, 0.1, 0.2]]

# task, what the metric needs, sample columns, predictions, shape, first row as text, values read back
SHAPES = [
    (BINARY, "label", {"label": "cat"}, HALVES, "label", ["dog"], [[1], [0], [1], [0]]),
    (BINARY, "label", {"label": "0"}, HALVES, "label", ["1"], [[1], [0], [1], [0]]),
    (DIGITS, "label", {"label": "0"}, HALVES, "label", ["1"], [[1], [0], [1], [0]]),
    (DIGITS, "label", {"label": "0.5"}, HALVES, "probability", ["0.9"], HALVES),
    (DIGITS, "probability", {"label": "0"}, HALVES, "probability", ["0.9"], HALVES),
    (BINARY, "probability", {"p_dog": "0", "p_cat": "1"}, HALVES, "columns", ["0.9", "0.1"], HALVES),
    (THREE, "label", {"kind": "bee"}, THIRDS, "label", ["ant"], np.eye(3)[[0, 1, 2, 0]]),
    (THREE, "probability", {"prob_cow": "0", "prob_ant": "0", "prob_bee": "1"}, THIRDS, "columns",
     ["0.1", "0.7", "0.2"], THIRDS),
    (GRADES, "label", {"grade": "0"}, THIRDS, "label", ["0"], np.eye(3)[[0, 1, 1, 1]]),
    (GRADES, "probability", {"c0": "0", "c1": "0", "c2": "1"}, THIRDS, "columns", ["0.7", "0.2", "0.1"], THIRDS),
    (TAGS, "probability", {"red": "0", "green": "0", "blue": "0"}, LIKELY, "columns", ["0.9", "0.1", "0.6"], LIKELY),
    (TAGS, "label", {"blue": "0", "green": "0", "red": "0"}, LIKELY, "columns", ["1", "0", "1"],
     [[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]]),
    (TAGS, "label", {"tags": "red"}, LIKELY, "string", ["red blue"], [[1, 0, 1], [0, 1, 0], [1, 1, 1], [1, 0, 0]]),
    (PRICE, "value", {"any": "0"}, [[-3.5], [1e6], [0], [0.1]], "columns", ["-3.5"], [[-3.5], [1e6], [0], [0.1]]),
    (POINT, "value", {"y": "0", "x": "0"}, [[1, 2], [3, 4], [5, 6], [7, 8]], "columns", ["2.0", "1.0"],
     [[1, 2], [3, 4], [5, 6], [7, 8]]),
]  # fmt: skip


@pytest.mark.parametrize(("task", "needs", "columns", "rows", "shape", "first", "back"), SHAPES)
def test_every_shape_there_and_back(
    tmp_path: Path,
    task: Task,
    needs: str,
    columns: dict[str, str],
    rows: list[list[float]],
    shape: str,
    first: list[str],
    back: list[list[float]],
) -> None:
    like = sample(columns)
    decided = decide_format(task, needs, like, "id")
    assert decided.shape == shape
    assert decided.columns == tuple(columns)
    frame = format_submission(predict(task, rows), task, decided, like)
    check_submission(frame, like, decided, task)
    written = through_disk(tmp_path, frame)
    check_submission(written, like, decided, task)
    assert list(written["id"]) == list(IDS)
    cells = list(written.iloc[0, 1:])
    if shape == "columns":
        assert [float(cell) for cell in cells] == pytest.approx([float(cell) for cell in first], abs=1e-6)
    else:
        assert cells == first
    assert np.array_equal(read_answers(written, task, decided), np.array(back, dtype=np.float32))


def test_the_samples_order_of_rows_and_columns_is_restored() -> None:
    like = text(p_cow=[0, 0], id=["z", "a"], p_ant=[0, 0], p_bee=[1, 1])
    decided = decide_format(THREE, "probability", like, "id")
    frame = format_submission(predict(THREE, THIRDS[:2], ("a", "z")), THREE, decided, like)
    assert list(frame.columns) == ["p_cow", "id", "p_ant", "p_bee"]
    assert frame.astype(str).to_numpy().tolist() == [["0.3", "z", "0.1", "0.6"], ["0.1", "a", "0.7", "0.2"]]


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)), seed=st.integers(0, 1000))
def test_row_order_never_matters(order: list[int], seed: int) -> None:
    ids = tuple(f"i{row}" for row in range(6))
    values = np.random.default_rng(seed).random((6, 3)).astype(np.float32)
    like = sample({"red": "0", "green": "0", "blue": "0"}, ids)
    decided = decide_format(TAGS, "probability", like, "id")
    straight = format_submission(Predictions(ids, values, TAGS.classes, "run"), TAGS, decided, like)
    mixed = Predictions(tuple(ids[row] for row in order), values[order], TAGS.classes, "run")
    pd.testing.assert_frame_equal(format_submission(mixed, TAGS, decided, like), straight)
    assert np.array_equal(read_answers(straight, TAGS, decided), values)


@pytest.mark.parametrize(
    ("task", "needs", "target", "columns"),
    [
        (BINARY, "probability", "animal", ["id", "animal"]),
        (BINARY, "label", "animal", ["id", "animal"]),
        (THREE, "label", "animal", ["id", "animal"]),
        (THREE, "probability", "animal", ["id", "ant", "bee", "cow"]),
        (TAGS, "label", "tags", ["id", "tags"]),
        (TAGS, "label", ("red", "green", "blue"), ["id", "red", "green", "blue"]),
        (POINT, "value", ("x", "y"), ["id", "x", "y"]),
    ],
)
def test_without_a_sample(task: Task, needs: str, target: str | tuple[str, ...], columns: list[str]) -> None:
    decided = decide_format(task, needs, None, "id", target=target)
    rows = [[0.6] * len(task.classes)] * 2
    frame = format_submission(predict(task, rows, ("b", "a")), task, decided, None)
    assert list(frame.columns) == columns
    assert list(frame["id"]) == ["b", "a"]
    check_submission(frame, None, decided, task)


@pytest.mark.parametrize(
    ("classes", "columns", "found"),
    [
        (("cat", "wild_cat"), ("p_wild_cat", "p_cat"), ("wild_cat", "cat")),
        (("1", "11", "2"), ("class_1", "class_2", "class_11"), ("1", "2", "11")),
        (("0", "1"), ("c1", "c0"), ("1", "0")),
        (("Cat", "Dog"), ("cat score", "dog score"), ("Cat", "Dog")),
    ],
)
def test_columns_find_their_class(classes: tuple[str, ...], columns: tuple[str, ...], found: tuple[str, ...]) -> None:
    like = sample(dict.fromkeys(columns, "0"))
    assert decide_format(Task("multiclass", classes), "probability", like, "id").classes == found


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (("p_ant", "p_bee", "p_fly"), "no column for class 'cow'"),
        (("p_ant", "q_ant", "p_cow"), "may all be class 'ant'|no column for class 'bee'"),
        (("ant", "bee"), "2 columns .* for 3 classes"),
        (("antelope", "bee", "cow"), "no column for class 'ant'"),
    ],
)
def test_columns_without_a_class_ask_for_the_setting(columns: tuple[str, ...], words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        decide_format(THREE, "probability", sample(dict.fromkeys(columns, "0")), "id")
    assert "competition.submission_columns" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_chosen_columns_win() -> None:
    like = sample({"u": "0", "v": "0", "bee": "0"})
    assert decide_format(THREE, "probability", like, "id", "auto", {"ant": "v", "cow": "u"}).classes == (
        "cow",
        "ant",
        "bee",
    )
    with pytest.raises(BadInput, match="unknown class 'fly'"):
        decide_format(THREE, "probability", like, "id", "auto", {"fly": "u"})
    with pytest.raises(BadInput, match="no column 'w'"):
        decide_format(THREE, "probability", like, "id", "auto", {"ant": "w"})
    with pytest.raises(BadInput, match="same column"):
        decide_format(THREE, "probability", like, "id", "auto", {"ant": "u", "cow": "u"})


def test_a_lone_column_named_after_the_negative_class_gets_its_probability() -> None:
    """The positive class of cat and dog is dog; a column 'cat' must not be filled with P(dog)."""
    like = sample({"is_cat": "0.5"})
    decided = decide_format(BINARY, "probability", like, "id")
    frame = format_submission(predict(BINARY, HALVES), BINARY, decided, like)
    assert frame["is_cat"].tolist() == pytest.approx([0.1, 0.8, 0.5, 0.9])
    assert read_answers(frame, BINARY, decided) == pytest.approx(np.array(HALVES))


def test_override_of_the_shape() -> None:
    like = sample({"label": "0"})
    assert decide_format(DIGITS, "label", like, "id", "probability").shape == "probability"
    assert decide_format(DIGITS, "probability", like, "id", "label").shape == "label"
    with pytest.raises(BadInput, match=re.escape("use 'label' or 'columns'")):
        decide_format(THREE, "label", like, "id", "string")
    with pytest.raises(BadInput, match="'label' needs one"):
        decide_format(THREE, "label", sample({"ant": "0", "bee": "0", "cow": "0"}), "id", "label")


def test_a_broken_sample_is_refused() -> None:
    with pytest.raises(BadInput, match="has no id column 'image'; its columns are: id, label"):
        decide_format(THREE, "label", sample({"label": "ant"}), "image")
    with pytest.raises(BadInput, match="duplicate ids: 7"):
        decide_format(THREE, "label", sample({"label": "ant"}, ("7", "7")), "id")
    with pytest.raises(BadInput, match="no column beside the ids"):
        decide_format(THREE, "label", sample({}), "id")


def test_other_ids_than_the_samples_are_refused() -> None:
    like = sample({"label": "ant"}, ("07", "7", "new"))
    decided = decide_format(THREE, "label", like, "id")
    with pytest.raises(BadInput) as caught:
        format_submission(predict(THREE, THIRDS), THREE, decided, like)
    line = str(caught.value)
    assert "1 ids of the sample submission are missing: new" in line
    assert "2 ids are not in the sample submission: a b, 9" in line
    with pytest.raises(BadInput, match="predicts the classes"):
        format_submission(predict(TAGS, THIRDS), THREE, decided, like)


def test_tiny_overshoot_is_clipped_and_more_is_refused() -> None:
    like = sample({"label": "0.5"}, ("1", "2"))
    decided = decide_format(DIGITS, "probability", like, "id")
    frame = format_submission(predict(DIGITS, [[1 + 5e-7], [-5e-7]], ("1", "2")), DIGITS, decided, like)
    assert frame["label"].tolist() == [1, 0]
    check_submission(frame, like, decided, DIGITS)
    frame = format_submission(predict(DIGITS, [[1.01], [0]], ("1", "2")), DIGITS, decided, like)
    refused(frame, like, decided, DIGITS, "'1.0099", "id 1", "a probability from 0 to 1")


def test_an_image_without_labels_gets_its_likeliest(capsys: pytest.CaptureFixture[str]) -> None:
    predictions = predict(TAGS, [[0.3, 0.4, 0.2], [0.9, 0.1, 0.1]], ("1", "2"))
    full, blank = text(id=["1", "2"], tags=["red", "blue"]), text(id=["1", "2"], tags=["red", ""])
    decided = decide_format(TAGS, "label", full, "id")
    assert format_submission(predictions, TAGS, decided, full)["tags"].tolist() == ["green", "red"]
    assert "1 images have no label" in capsys.readouterr().err
    # Where the sample itself has empty cells, they are an answer.
    frame = format_submission(predictions, TAGS, decided, blank)
    assert frame["tags"].tolist() == ["", "red"]
    check_submission(frame, blank, decided, TAGS)
    refused(frame, full, decided, TAGS, "1 empty cells in column 'tags', ids 1")


def test_check_names_the_first_fault() -> None:
    like = sample({"ant": "0", "bee": "0", "cow": "1"})
    shape = decide_format(THREE, "probability", like, "id")
    good = format_submission(predict(THREE, THIRDS), THREE, shape, like).astype(str)
    check_submission(good.iloc[::-1], like, shape, THREE)

    refused(good[["id", "bee", "ant", "cow"]], like, shape, THREE, "columns are id, bee, ant, cow", "id, ant, bee, cow")
    refused(good.drop(columns="cow"), like, shape, THREE, "the sample's are")
    refused(good.iloc[:-1], like, shape, THREE, "1 ids of the sample submission are missing: 9")
    refused(pd.concat([good, good.iloc[:1]]), like, shape, THREE, "duplicate ids: 07")
    refused(good.assign(id=["07", "7", "a b", "10"]), like, shape, THREE, "missing: 9", "not in the sample", "10")
    refused(good.assign(bee=["0.1", "", "0.1", " "]), like, shape, THREE, "2 empty cells in column 'bee', ids 7, 9")
    refused(good.assign(bee=["0.1", "x", "0.1", "0"]), like, shape, THREE, "'x' in column 'bee', id 7")
    refused(good.assign(bee=["0.1", "inf", "0.1", "0"]), like, shape, THREE, "'inf' in column 'bee', id 7")
    refused(good.assign(cow=["0.1", "0", "-0.1", "0"]), like, shape, THREE, "'-0.1' in column 'cow', id a b")
    refused(good.assign(ant=["0.1", "0", "1.5", "0"]), like, shape, THREE, "'1.5' in column 'ant', id a b")
    numeric = format_submission(predict(THREE, THIRDS), THREE, shape, like)
    refused(numeric.assign(ant=[0.1, np.nan, 0.2, 0.3]), like, shape, THREE, "1 empty cells in column 'ant', ids 7")


def test_check_knows_labels_and_answers() -> None:
    like = sample({"kind": "ant"})
    shape = decide_format(THREE, "label", like, "id")
    refused(text(id=IDS, kind=["ant", "fly", "bee", "cow"]), like, shape, THREE, "unknown label 'fly'", "row 3")
    tags = sample({"tags": "red"})
    shape = decide_format(TAGS, "label", tags, "id")
    refused(text(id=IDS, tags=["red", "red pink", "blue", "red"]), tags, shape, TAGS, "unknown label 'pink'")
    flags = sample({"red": "0", "green": "0", "blue": "0"})
    shape = decide_format(TAGS, "label", flags, "id")
    refused(text(id=IDS, red=[0, 0.5, 0, 1], green=[0] * 4, blue=[0] * 4), flags, shape, TAGS, "'0.5'", "0 or 1")
    price = sample({"price": "0"})
    shape = decide_format(PRICE, "value", price, "id")
    check_submission(text(id=IDS, price=[-5, 1e9, 0, 3]), price, shape, PRICE)
    refused(text(id=IDS, price=[-5, "much", 0, 3]), price, shape, PRICE, "'much'", "a number")


def test_rows_that_do_not_sum_to_one_only_warn(capsys: pytest.CaptureFixture[str]) -> None:
    like = sample({"ant": "0", "bee": "0", "cow": "1"})
    shape = decide_format(THREE, "probability", like, "id")
    good = format_submission(predict(THREE, THIRDS), THREE, shape, like)
    check_submission(good, like, shape, THREE)
    assert capsys.readouterr().err == ""
    check_submission(good.assign(ant=0.9), like, shape, THREE)
    assert "rows do not sum to 1" in capsys.readouterr().err


def test_write_keeps_a_record_of_the_very_file(tmp_path: Path) -> None:
    path = tmp_path / "submissions" / "best.csv"
    frame = text(id=["007", "8"], label=["ant", "bee"])
    record = write_submission(path, frame, {"source": "mix", "fingerprint": "f", "score": float("nan")})
    assert path.read_bytes() == b"id,label\n007,ant\n8,bee\n"
    assert record == json.loads((tmp_path / "submissions" / "best.json").read_text())
    assert record == {
        "source": "mix",
        "fingerprint": "f",
        "score": None,
        "rows": 2,
        "columns": ["id", "label"],
        "sha256": files.sha256_file(path),
    }
    with pytest.raises(BadInput, match=r"must end in \.csv"):
        write_submission(tmp_path / "best.json", frame, {})


def score_files(tmp_path: Path, answers: pd.DataFrame, solution: pd.DataFrame, task: Task = THREE,
                needs: str = "label", metric: str = "accuracy", extra: tuple[str, ...] = ()) -> dict[str, float | None]:  # fmt: skip
    files.write_csv(tmp_path / "sub.csv", answers)
    files.write_csv(tmp_path / "solution.csv", solution)
    shape = decide_format(task, needs, answers, "id")
    others = [get_metric(name) for name in extra]
    return score_submission(
        tmp_path / "sub.csv", tmp_path / "solution.csv", task, get_metric(metric), others, "id", "label", shape
    )


def test_score_matches_by_id(tmp_path: Path) -> None:
    answers = text(id=["1", "2", "3", "4"], kind=["ant", "bee", "cow", "ant"])
    solution = text(id=["4", "3", "2", "1"], note=["x"] * 4, label=["bee", "cow", "bee", "ant"])
    # Three of four by id; by row it would be one.
    assert score_files(tmp_path, answers, solution, extra=("micro_f1",)) == {"accuracy": 0.75, "micro_f1": 0.75}


def test_score_of_probabilities_by_hand(tmp_path: Path) -> None:
    answers = text(id=["1", "2"], p=[0.8, 0.4])
    solution = text(id=["2", "1"], label=["0", "1"])
    found = score_files(tmp_path, answers, solution, DIGITS, "probability", "log_loss")
    assert found["log_loss"] == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2, abs=1e-6)


def test_score_of_public_and_private_parts(tmp_path: Path) -> None:
    answers = text(id=["1", "2", "3", "4", "5"], kind=["ant"] * 5)
    solution = text(
        id=["1", "2", "3", "4", "5"],
        label=["ant", "bee", "ant", "ant", "bee"],
        Usage=["Public", "Public", "Private", "Private", "Ignored"],
    )
    assert score_files(tmp_path, answers, solution) == {
        "accuracy": 0.75,
        "public_accuracy": 0.5,
        "private_accuracy": 1.0,
    }


def test_an_undefined_score_is_none(tmp_path: Path) -> None:
    found = score_files(
        tmp_path, text(id=["1"], p=[0.8]), text(id=["1"], label=["1"]), DIGITS, "probability", "auc", ("log_loss",)
    )
    assert found["auc"] is None
    assert found["log_loss"] == pytest.approx(-np.log(0.8), abs=1e-6)


@pytest.mark.parametrize(
    ("answers", "solution", "words"),
    [
        (text(id=["1"], k=["ant"]), text(id=["1", "2"], label=["ant", "bee"]), r"sub\.csv: 1 ids of .* missing: 2"),
        (text(id=["1", "3"], k=["ant", "ant"]), text(id=["1"], label=["ant"]), r"1 ids are not in .*solution\.csv: 3"),
        (text(id=["1"], k=["ant"]), text(id=["1", "1"], label=["ant", "ant"]), r"solution\.csv: duplicate ids"),
        (text(id=["1"], k=["ant"]), text(id=["1"], label=["fly"]), r"solution\.csv: unknown label 'fly'"),
        (text(id=["1"], k=["fly"]), text(id=["1"], label=["ant"]), r"sub\.csv: unknown label 'fly'"),
        (text(id=["1"], k=["ant"]), text(id=["1"], kind=["ant"]), r"target column label is missing"),
        (text(id=["1"], k=["ant"]), text(no=["1"], label=["ant"]), r"solution\.csv: has no id column 'id'"),
    ],
)
def test_files_that_do_not_belong_together(
    tmp_path: Path, answers: pd.DataFrame, solution: pd.DataFrame, words: str
) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        score_files(tmp_path, answers, solution)
    assert "\n" not in str(caught.value)


def test_scoring_what_was_formatted_equals_the_metric_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    ids = tuple(f"n{row}" for row in range(40))
    values: Floats = rng.dirichlet(np.ones(3), 40).astype(np.float32)
    truth = rng.integers(0, 3, 40)
    like = sample({"ant": "0", "bee": "0", "cow": "0"}, ids)
    shape = decide_format(THREE, "probability", like, "id")
    frame = format_submission(Predictions(ids, values, THREE.classes, "run"), THREE, shape, like)
    solution = text(id=ids, label=[THREE.classes[number] for number in truth]).iloc[::-1]
    found = score_files(tmp_path, frame, solution, THREE, "probability", "log_loss")
    assert found["log_loss"] == pytest.approx(-np.log(values[np.arange(40), truth]).mean(), rel=1e-5)
