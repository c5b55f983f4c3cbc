"""The tables between the stages: written, read back equal, refused when they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfold import files
from goldfold.errors import BadInput
from goldfold.records import FoldTable, Predictions, SoftLabels, average, concatenate

IDS = ("007", "b", "ü.png")


def predictions(ids: tuple[str, ...] = IDS, fold: int | None = 0, **changes: Any) -> Predictions:
    keys: dict[str, Any] = {
        "values": np.arange(2 * len(ids), dtype=np.float32).reshape(-1, 2) / 10,
        "classes": ("cat", "a b"),
        "run": "run",
        "fold": None if fold is None else np.full(len(ids), fold, dtype=np.int64),
    }
    return Predictions(ids, **keys | changes)


def soft_labels(**changes: Any) -> SoftLabels:
    keys: dict[str, Any] = {
        "ids": IDS,
        "targets": np.array([[0.25, 0.75], [1, 0], [0.5, 0.5]], dtype=np.float32),
        "weights": np.array([1, 0, 0.5], dtype=np.float32),
        "excluded_fold": 2,
    }
    return SoftLabels(**keys | changes)


def fold_table(**changes: Any) -> FoldTable:
    keys: dict[str, Any] = {
        "ids": IDS, "fold": np.array([0, 1, -1]), "scheme": "kfold", "seed": 0, "source_sha256": "0" * 64,
    }  # fmt: skip
    return FoldTable(**keys | changes)


class TestPredictions:
    @pytest.mark.parametrize("fold", [0, None])
    def test_written_and_read_back_equal(self, tmp_path: Path, fold: int | None) -> None:
        made = predictions(fold=fold)
        made.write(tmp_path / "oof.parquet", "image_id")
        read = Predictions.read(tmp_path / "oof.parquet", "run")
        assert (read.ids, read.classes, read.run) == (made.ids, made.classes, made.run)
        np.testing.assert_array_equal(read.values, made.values)
        assert read.values.dtype == np.float32
        assert (read.fold is None) == (fold is None)
        if read.fold is not None:
            assert read.fold.tolist() == [0, 0, 0]

    def test_columns_on_disk(self, tmp_path: Path) -> None:
        predictions().write(tmp_path / "oof.parquet", "image_id")
        frame = pd.read_parquet(tmp_path / "oof.parquet")
        assert list(frame.columns) == ["image_id", "fold", "p_cat", "p_a b"]
        assert [str(frame[name].dtype) for name in frame.columns[1:]] == ["int64", "float32", "float32"]
        assert frame["image_id"].tolist() == list(IDS)
        predictions(fold=None).write(tmp_path / "test.parquet", "id")
        assert list(pd.read_parquet(tmp_path / "test.parquet").columns) == ["id", "p_cat", "p_a b"]

    def test_an_id_column_may_look_like_a_probability(self, tmp_path: Path) -> None:
        predictions().write(tmp_path / "oof.parquet", "p_x")
        read = Predictions.read(tmp_path / "oof.parquet", "run")
        assert (read.ids, read.classes) == (IDS, ("cat", "a b"))

    @pytest.mark.parametrize("name", ["fold", "p_cat"])
    @pytest.mark.parametrize("fold", [0, None])
    def test_an_id_column_that_would_be_overwritten_is_refused(
        self, tmp_path: Path, name: str, fold: int | None
    ) -> None:
        with pytest.raises(BadInput, match=f"id column named '{name}' clashes"):
            predictions(fold=fold).write(tmp_path / "oof.parquet", name)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"ids": ("a", "a", "b")}, "duplicate ids: a"),
            ({"ids": ("a", "", "b")}, "empty or non-text id in row 1"),
            ({"ids": ("a", 3, "b")}, "empty or non-text id in row 1"),
            ({"values": np.zeros((2, 2), dtype=np.float32)}, r"values of shape \(2, 2\)"),
            ({"values": np.zeros((3, 3), dtype=np.float32)}, r"values of shape \(3, 3\)"),
            ({"values": np.zeros((3, 2))}, "float64, expected .* float32"),
            ({"values": np.array([[0, 0], [0, np.nan], [0, 0]], dtype=np.float32)}, "NaN .* ids b"),
            ({"values": np.array([[0, 0], [0, 0], [np.inf, 0]], dtype=np.float32)}, "infinite .* ids ü"),
            ({"classes": ("cat", "cat")}, "doubled"),
            ({"classes": (), "values": np.zeros((3, 0), dtype=np.float32)}, "classes are empty"),
            ({"fold": np.zeros(2, dtype=np.int64)}, "fold of shape"),
            ({"fold": np.zeros(3)}, "fold of shape .* float64"),
        ],
    )
    def test_refused(self, changes: dict[str, Any], says: str) -> None:
        with pytest.raises(BadInput, match=says):
            Predictions(
                ids=changes.get("ids", ("a", "b", "ü")),
                values=changes.get("values", np.zeros((3, 2), dtype=np.float32)),
                classes=changes.get("classes", ("cat", "dog")),
                run="run",
                fold=changes.get("fold"),
            )

    @pytest.mark.parametrize(
        ("frame", "says"),
        [
            (pd.DataFrame({"id": ["a"], "fold": [0]}), "are not one id column"),
            (pd.DataFrame({"id": ["a"], "note": ["x"], "p_a": [0.5]}), "are not one id column"),
            (pd.DataFrame({"id": ["a"], "fold": [0.5], "p_a": [0.5]}), "whole numbers"),
            (pd.DataFrame({"id": [1, 2], "p_a": [0.5, 0.5]}), "non-text id"),
            (pd.DataFrame({"id": ["a", None], "p_a": [0.5, 0.5]}), "non-text id in row 1"),
            (pd.DataFrame({"id": ["a"], "p_a": [None]}, dtype=object), "NaN|not"),
        ],
    )
    def test_files_that_are_no_predictions(self, tmp_path: Path, frame: pd.DataFrame, says: str) -> None:
        files.write_parquet(tmp_path / "x.parquet", frame)
        with pytest.raises(BadInput, match=says):
            Predictions.read(tmp_path / "x.parquet", "run")

    def test_missing_and_broken_files(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="does not exist"):
            Predictions.read(tmp_path / "x.parquet", "run")
        (tmp_path / "x.parquet").write_text("id,p_a")
        with pytest.raises(BadInput, match="not a readable Parquet file"):
            Predictions.read(tmp_path / "x.parquet", "run")

    @settings(max_examples=30, deadline=None)
    @given(st.permutations(list("abcdef")))
    def test_take_goes_by_id_not_by_row(self, order: list[str]) -> None:
        made = predictions(tuple("abcdef"))
        taken = made.take(order)
        assert taken.ids == tuple(order)
        by_id = dict(zip(made.ids, made.values.tolist(), strict=True))
        assert dict(zip(taken.ids, taken.values.tolist(), strict=True)) == by_id

    def test_take_refuses_missing_and_doubled_ids(self) -> None:
        with pytest.raises(BadInput, match="1 ids are missing: zebra"):
            predictions().take(["b", "zebra"])
        with pytest.raises(BadInput, match="duplicate ids: b"):
            predictions().take(["b", "b"])


class TestTogether:
    def test_concatenate_keeps_each_rows_fold(self) -> None:
        whole = concatenate([predictions(("a", "b"), 0), predictions(("c",), 1)], "run")
        assert whole.ids == ("a", "b", "c")
        assert whole.fold is not None
        assert whole.fold.tolist() == [0, 0, 1]

    def test_concatenate_refuses_an_id_of_two_folds_and_other_classes(self) -> None:
        with pytest.raises(BadInput, match="duplicate ids: b"):
            concatenate([predictions(("a", "b"), 0), predictions(("b",), 1)], "run")
        with pytest.raises(BadInput, match="different classes"):
            concatenate([predictions(("a",)), predictions(("b",), classes=("cat", "owl"))], "run")

    def test_average_aligns_by_id(self) -> None:
        first = predictions()
        second = first.take(IDS[::-1])
        np.testing.assert_allclose(average([first, second], "run").values, first.values)

    def test_average_refuses_other_ids_and_classes(self) -> None:
        with pytest.raises(BadInput, match="ids differ"):
            average([predictions(("a", "b")), predictions(("a", "c"))], "run")
        with pytest.raises(BadInput, match="ids differ"):
            average([predictions(("a", "b")), predictions(("a",))], "run")
        with pytest.raises(BadInput, match="differ from cat"):
            average([predictions(), predictions(classes=("a b", "cat"))], "run")


class TestSoftLabels:
    def test_written_and_read_back_equal(self, tmp_path: Path) -> None:
        made = soft_labels()
        made.write(tmp_path / "soft.parquet", "id", ["cat", "dog"])
        read = SoftLabels.read(tmp_path / "soft.parquet")
        assert (read.ids, read.excluded_fold) == (made.ids, 2)
        np.testing.assert_array_equal(read.targets, made.targets)
        np.testing.assert_array_equal(read.weights, made.weights)
        frame = pd.read_parquet(tmp_path / "soft.parquet")
        assert list(frame.columns) == ["id", "excluded_fold", "weight", "p_cat", "p_dog"]

    @pytest.mark.parametrize("name", ["excluded_fold", "weight", "p_cat"])
    def test_an_id_column_that_would_be_overwritten_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(BadInput, match=f"id column named '{name}' clashes"):
            soft_labels().write(tmp_path / "soft.parquet", name, ["cat", "dog"])

    def test_files_of_two_folds_or_other_columns_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "soft.parquet"
        soft_labels().write(path, "id", ["cat", "dog"])
        frame = pd.read_parquet(path)
        files.write_parquet(path, frame.assign(excluded_fold=[0, 1, 1]))
        with pytest.raises(BadInput, match="soft labels of 2 folds in one file"):
            SoftLabels.read(path)
        files.write_parquet(path, frame.drop(columns="excluded_fold"))
        with pytest.raises(BadInput, match="'excluded_fold'"):
            SoftLabels.read(path)
        with pytest.raises(BadInput, match="3 classes for 2 target columns"):
            soft_labels().write(path, "id", ["a", "b", "c"])

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"ids": ("a", "a", "b")}, "duplicate ids"),
            ({"targets": np.zeros((2, 2), dtype=np.float32)}, "targets of shape"),
            ({"targets": np.zeros(3, dtype=np.float32)}, "targets of shape"),
            ({"targets": np.zeros((3, 2))}, "float64"),
            ({"weights": np.ones(3)}, "weights of shape .* float64"),
            ({"weights": np.ones(2, dtype=np.float32)}, "weights of shape"),
            ({"weights": np.array([1, -1, 1], dtype=np.float32)}, "not negative"),
            ({"weights": np.array([1, np.nan, 1], dtype=np.float32)}, "finite"),
            ({"targets": np.full((3, 2), np.nan, dtype=np.float32)}, "finite"),
            ({"excluded_fold": -1}, "must name the fold"),
        ],
    )
    def test_refused(self, changes: dict[str, Any], says: str) -> None:
        with pytest.raises(BadInput, match=says):
            soft_labels(**changes)


class TestFoldTable:
    def test_train_and_valid(self) -> None:
        made = fold_table()
        assert made.folds == [0, 1]
        assert (made.valid_ids(0), made.train_ids(0)) == (("007",), ("b", "ü.png"))

    def test_rows_go_by_id(self) -> None:
        made = fold_table()
        assert made.fold[made.rows(["ü.png", "007"])].tolist() == [-1, 0]
        with pytest.raises(BadInput, match="2 ids are missing: c, d"):
            made.rows(["c", "b", "d"])

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"ids": ("a", "b", "a")}, "duplicate ids: a"),
            ({"fold": np.array([0, 1])}, r"folds of shape \(2,\)"),
            ({"fold": np.array([0.0, 1.0, 1.0])}, "float64"),
            ({"fold": np.array([0, 1, -2])}, "fold numbers must be"),
            ({"fold": np.array([-1, -1, -1])}, "at least one fold"),
            ({"groups": ("p", "q")}, "2 groups for 3 ids"),
            ({"groups": ("p", "p", "q")}, "groups lie in two folds: p"),
            ({"groups": ("p", "q", "p")}, "groups lie in two folds: p"),
        ],
    )
    def test_refused(self, changes: dict[str, Any], says: str) -> None:
        with pytest.raises(BadInput, match=says):
            fold_table(**changes)
