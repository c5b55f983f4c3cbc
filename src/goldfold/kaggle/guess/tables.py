"""Which of a competition's CSVs is which."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from goldfold import files
from goldfold.errors import BadInput, some
from goldfold.kaggle.guess.pictures import Pictures

LARGEST = 500_000_000
"""Bytes: larger CSVs are no list of images."""
DEEPEST = 3
ID_NAMES = re.compile(r"^(id|.*[_ ]?id|image|img|file|filename|file_name|image_name|name|uuid|key)$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Table:
    """A CSV as text; ``name`` is its path within the folder."""

    path: Path
    name: str
    frame: pd.DataFrame = field(repr=False)

    @property
    def stem(self) -> str:
        return self.path.stem.lower()

    def has_word(self, *words: str) -> bool:
        """Whether the file's name holds one of these words."""
        return any(re.search(rf"(^|[^a-z]){word}([^a-z]|$)", self.stem) for word in words)


@dataclass(frozen=True, eq=False)
class Roles:
    """The tables, and the column of ``train`` that names the images; ``notes`` say what was odd."""

    train: Table
    id: str
    id_why: str
    test: Table | None = None
    sample: Table | None = None
    unsure: bool = False
    notes: tuple[str, ...] = ()


def read_tables(folder: Path) -> list[Table]:
    """The CSVs under ``folder``. Raises BadInput when there are none."""
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or len(inside.parts) > DEEPEST or path.suffix.lower() != ".csv" or not path.is_file():
            continue
        if 0 < path.stat().st_size <= LARGEST:
            frame = files.read_csv(path)
            if len(frame.columns):
                found.append(Table(path, inside.as_posix(), frame))
    if not found:
        raise BadInput(
            folder, "there is no CSV file under it", "name the folder that the competition was unpacked into"
        )
    return found


def find_roles(tables: list[Table], pictures: Pictures, folder: Path) -> Roles:
    """Train, test and sample submission by names and columns. Raises BadInput when no CSV lists the images."""
    sample = _sample(tables)
    rest = [table for table in tables if table is not sample]
    test = _test(rest, sample)
    ranked: list[tuple[float, Table, str, str]] = []
    doubled: list[str] = []
    for table in rest:
        if table is test or table.has_word("test") or len(table.frame.columns) < 2 or table.frame.empty:
            continue
        for column in table.frame.columns:
            score, why = _as_id(table, str(column), pictures, test, sample)
            if score > 0 and not _is_key(table.frame[column]):
                doubled.append(f"'{column}' of {table.name}")
            elif score > 0:
                ranked.append((score + _as_train(table, sample, test), table, str(column), why))
    if not ranked and doubled:
        raise BadInput(
            folder, f"{some(doubled)} names images several times", "make a CSV with one row an image for training"
        )
    if not ranked:
        raise BadInput(
            folder,
            f"no CSV lists the images (CSVs: {some(table.name for table in tables)}; images such as {pictures.example})",
            "make a train.csv with a column of image names and one of labels",
        )
    _, train, column, why = max(ranked, key=lambda item: item[0])
    notes, unsure = [], False
    others = sorted({table.name for _, table, _, _ in ranked if table is not train})
    if others:
        notes.append(f"{some(others)} could be the training table too; {train.name} fits best")
    if sample is not None and column not in sample.frame:
        unsure = True
        notes.append(
            f"{sample.name} calls the ids otherwise ({some(sample.frame.columns)}); Goldfold wants one name, '{column}', in "
            "all CSVs, so the file is left out here: rename its column in a copy and name that as sample_submission"
        )
        sample = None
    if test is not None and column not in test.frame:
        unsure = True
        notes.append(f"{test.name} has no column '{column}', so it is left out; rename its id column in a copy")
        test = None
    return Roles(train, column, why, test, sample, unsure, tuple(notes))


def _sample(tables: list[Table]) -> Table | None:
    named = [table for table in tables if "sub" in table.stem and ("sample" in table.stem or "submi" in table.stem)]
    named = [table for table in named if len(table.frame.columns) > 1]
    return min(named, key=lambda table: ("sample" not in table.stem, len(table.name)), default=None)


def _test(tables: list[Table], sample: Table | None) -> Table | None:
    named = [table for table in tables if table.has_word("test")]
    known = set(sample.frame.columns) if sample is not None else set()
    return min(
        named,
        key=lambda table: (not known & set(table.frame.columns), table.stem != "test", len(table.name)),
        default=None,
    )


def _is_key(column: pd.Series[str]) -> bool:
    return bool(column.is_unique) and not bool((column.str.strip() == "").any())


def _as_id(
    table: Table, column: str, pictures: Pictures, test: Table | None, sample: Table | None
) -> tuple[float, str]:
    """How well a column names the images; 0: not at all."""
    values = table.frame[column]
    reasons, score = [], 0.0
    share = pictures.share_named(values)
    if share > 0.5:
        score += 4 * share
        reasons.append("its values are names of image files")
    if sample is not None and column in sample.frame:
        score += 3 + (sample.frame.columns[0] == column)
        reasons.append(f"{sample.name} has it")
    if test is not None and column in test.frame:
        score += 1
        reasons.append(f"{test.name} has it")
    if share <= 0.5 and (sample is None or sample.frame.columns[0] != column):
        return 0.0, ""
    score += bool(ID_NAMES.match(column)) + 0.5 * (table.frame.columns[0] == column)
    return score, ", ".join(["no value stands twice", *reasons])


def _as_train(table: Table, sample: Table | None, test: Table | None) -> float:
    """How much a table looks like the labelled one."""
    score = 3.0 * (table.stem == "train") + 2.0 * table.has_word("train", "training") + 1.0 * table.has_word("labels?")
    score -= 2.0 * table.has_word("meta", "metadata", "folds?", "bbox", "boxes", "masks?", "external", "extra")
    if sample is not None:
        score += 2.0 * bool(set(sample.frame.columns[1:]) & set(table.frame.columns))
    if test is not None:
        score += 1.0 * bool(set(table.frame.columns) - set(test.frame.columns))
    return score
