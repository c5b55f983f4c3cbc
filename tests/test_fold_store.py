"""Folds on disk: made once, then read and checked against the train CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from goldfold import files
from goldfold.config.schema import Folds
from goldfold.errors import BadInput
from goldfold.folds import accept_source, open_folds, read_folds
from goldfold.records import FoldTable
from goldfold.tasks import encode, make_task


def table() -> pd.DataFrame:
    generator = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "id": [f"im{row:03d}" for row in generator.permutation(39)],
            "label": [("cat", "cat", "dog", "owl")[row % 4] for row in range(39)],
            "patient": [f"p{row % 13}" for row in range(39)],
            "age": [str(value) for value in generator.integers(20, 80, 39)],
            "sex": [("f", "m")[row % 2] for row in range(39)],
        }
    )


def fold_of(made: FoldTable) -> dict[str, int]:
    return dict(zip(made.ids, made.fold.tolist(), strict=True))


class Project:
    """A folder with a train CSV and its folds."""

    def __init__(self, root: Path) -> None:
        self.csv, self.path = root / "train.csv", root / "folds" / "demo.csv"
        self.write(table())

    def write(self, frame: pd.DataFrame) -> None:
        files.write_csv(self.csv, frame)

    @property
    def frame(self) -> pd.DataFrame:
        return files.read_csv(self.csv)

    def open(
        self, group: str | None = "patient", remake: bool = False, target: str = "label", **keys: Any
    ) -> list[FoldTable]:
        keys = {"scheme": "stratified_group", "n": 3} | keys
        task = make_task("multiclass", self.frame, target)
        return open_folds(
            self.path, Folds(**keys), self.frame, id_column="id", task=task, targets=encode(task, self.frame, target),
            target_columns=[target], group=group, train_csv=self.csv, remake=remake,
        )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_made_once_then_read(project: Project) -> None:
    made = project.open(repeats=2)
    before = project.path.read_bytes()
    again = project.open(repeats=2)
    assert project.path.read_bytes() == before
    for first, second in zip(made, again, strict=True):
        assert fold_of(first) == fold_of(second)
        assert first.groups == second.groups
        assert (first.seed, first.scheme, first.source_sha256) == (second.seed, second.scheme, second.source_sha256)
    assert again[1].folds == [3, 4, 5]


def test_format_on_disk(project: Project) -> None:
    made = project.open(repeats=2)
    stored = pd.read_csv(project.path)
    assert list(stored.columns) == ["id", "fold", "fold_1"]
    assert stored["id"].tolist() == project.frame["id"].tolist()
    assert sorted(stored["fold_1"].unique()) == [0, 1, 2]
    assert (stored["fold_1"] + 3).tolist() == made[1].fold.tolist()
    record = files.read_json(project.path.with_suffix(".json"))
    assert record["source_sha256"] == files.sha256_file(project.csv)
    expected = {
        "scheme": "stratified_group", "n": 3, "seed": 0, "repeats": 2, "stratify": [], "bins": 10, "column": None,
        "group": "patient", "rows": 39, "train_columns": ["id", "label", "patient", "age", "sex"],
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert set(record["column_sha256"]) == {"id", "label", "patient"}


def test_ids_stay_text(project: Project) -> None:
    frame = table()
    frame["id"] = [f"{row:04d}" for row in range(len(frame))]
    project.write(frame)
    project.open()
    assert project.open()[0].ids[7] == "0007"
    assert read_folds(project.path).tables[0].ids == tuple(frame["id"])


def test_stored_folds_are_matched_by_id_not_by_row(project: Project) -> None:
    made = fold_of(project.open()[0])
    stored = pd.read_csv(project.path).iloc[::-1]
    stored.to_csv(project.path, index=False)
    again = project.open()[0]
    assert fold_of(again) == made
    groups = dict(zip(project.frame["id"], project.frame["patient"], strict=True))
    assert again.groups == tuple(groups[name] for name in again.ids)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"n": 4}, "made with n=3, the configuration says n=4"),
        ({"seed": 2}, "seed=0, the configuration says seed=2"),
        ({"scheme": "group"}, "scheme=stratified_group, the configuration says scheme=group"),
        ({"stratify": ["sex"]}, r"stratify=\[\]"),
        ({"repeats": 2, "n": 2}, "n=3, repeats=1, the configuration says n=2, repeats=2"),
        (
            {"scheme": "stratified", "group": None},
            "group=patient, the configuration says scheme=stratified, group=null",
        ),
        ({"target": "sex"}, "made from the columns id, label, patient, the configuration names id, sex, patient"),
    ],
)
def test_changed_settings_are_named(project: Project, keys: dict[str, Any], says: str) -> None:
    project.open()
    with pytest.raises(BadInput, match=f"{says}.*--remake"):
        project.open(**keys)
    project.open(remake=True, **keys)
    project.open(**keys)


def test_settings_that_the_scheme_does_not_read_may_change(project: Project) -> None:
    project.open(bins=10)
    project.open(bins=5)


def _relabel(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(label=["dog", *frame["label"][1:]])


def _regroup(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(patient=frame["patient"].to_list()[::-1])


def _swap_ids(frame: pd.DataFrame) -> pd.DataFrame:
    """The same ids and the same labels, no longer together: what matching by position cannot see."""
    return frame.assign(id=frame["id"].to_list()[::-1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.iloc[2:], r"2 ids removed: im\d+, im\d+"),
        (lambda f: f.assign(id=["new", *f["id"][1:]]), r"1 id added: new; 1 id removed: im\d+"),
        (_relabel, "values changed in column label"),
        (_regroup, "values changed in column patient"),
        (_swap_ids, "values changed in column label, patient"),
        (lambda f: pd.concat([f, f.iloc[[0]]]), "repeat an id"),
    ],
)
def test_a_changed_train_csv_is_refused_and_says_what(project: Project, change: Any, says: str) -> None:
    project.open()
    stored = project.path.read_bytes()
    project.write(change(table()))
    with pytest.raises(BadInput, match=f"{says}.*--remake.*not comparable"):
        project.open()
    with pytest.raises(BadInput, match=says):
        accept_source(project.path, project.frame, train_csv=project.csv)
    assert project.path.read_bytes() == stored


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.sample(frac=1, random_state=5), "the same rows in another order"),
        (lambda f: f.assign(note="x"), "columns added that do not matter: note"),
        (lambda f: f.drop(columns="age"), "columns removed that did not matter: age"),
        (lambda f: f.assign(age="7"), "nothing that the folds depend on"),
    ],
)
def test_a_harmless_change_is_refused_until_accepted(project: Project, change: Any, says: str) -> None:
    made = fold_of(project.open()[0])
    project.write(change(table()))
    with pytest.raises(BadInput, match=f"{says}.*remain valid.*--accept"):
        project.open()
    assert says in accept_source(project.path, project.frame, train_csv=project.csv)[0]
    again = project.open()[0]
    assert fold_of(again) == made
    assert again.ids == tuple(project.frame["id"])
    assert again.source_sha256 == files.sha256_file(project.csv)
    assert accept_source(project.path, project.frame, train_csv=project.csv) == ()


def test_line_endings_are_harmless(project: Project) -> None:
    project.open()
    project.csv.write_bytes(project.csv.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(BadInput, match=r"line endings.*--accept"):
        project.open()


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_half_a_pair_is_refused(project: Project, suffix: str) -> None:
    project.open()
    project.path.with_suffix(suffix).unlink()
    with pytest.raises(BadInput, match=f"demo{suffix}: is missing"):
        project.open()
    project.open(remake=True)
    project.open()


def test_edited_or_broken_files_are_refused(project: Project) -> None:
    project.open()
    good = project.path.read_text()
    lines = good.splitlines()
    name, fold = lines[1].split(",")
    for line, says in (
        (f"{name},{(int(fold) + 1) % 3}", "it was edited"),
        (f"{name},7", "row 2: not a fold from 0 to 2"),
        (f"{name},x", "row 2: not a fold"),
        (lines[2], "duplicate ids"),
    ):
        project.path.write_text("\n".join([lines[0], line, *lines[2:]]))
        with pytest.raises(BadInput, match=says):
            project.open()
    project.path.write_text(good.replace("id,fold", "id,k"))
    with pytest.raises(BadInput, match="has the columns id, k"):
        project.open()
    project.path.write_text(good)
    files.write_json(project.path.with_suffix(".json"), {"n": 3})
    with pytest.raises(BadInput, match="lacks the keys scheme"):
        project.open()
