"""The tables that pass between stages. Each is keyed by image id and checked when it is made.

Nothing in Goldfold is matched by row position: two tables meet through ``take``, which refuses a missing id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold import files
from goldfold.errors import BadInput, some

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

TRAIN_ONLY = -1
"""The fold number of rows that are never validated (the training part of a fixed holdout)."""


def check_ids(ids: Sequence[str], where: object) -> None:
    """Raises BadInput when an id is empty, not text, or appears twice."""
    index = pd.Index(ids)
    # The quick question first: tables have hundreds of thousands of ids, and are checked often.
    if len(ids) and (pd.api.types.infer_dtype(list(ids), skipna=False) != "string" or "" in index):
        wrong = [row for row, value in enumerate(ids) if not isinstance(value, str) or value == ""]
        if wrong:
            raise BadInput(where, f"empty or non-text id in row {some(wrong)}")
    if index.has_duplicates:
        raise BadInput(where, f"duplicate ids: {some(index[index.duplicated()].unique())}")


def _check_id_column(where: object, id_column: str, others: Sequence[str]) -> None:
    """Refuses an id column that another column of the table would overwrite."""
    if id_column in others:
        raise BadInput(where, f"an id column named '{id_column}' clashes with the table's own", "rename the id column")


class _Keyed:
    """What the id-keyed tables share."""

    ids: tuple[str, ...]

    @cached_property
    def _index(self) -> pd.Index[str]:
        return pd.Index(self.ids)

    def rows(self, ids: Sequence[str], where: object = "lookup") -> Ints:
        """Row numbers of ``ids`` in this table. Raises BadInput when one is missing."""
        found = self._index.get_indexer(pd.Index(ids))
        if (found < 0).any():
            missing = [name for name, row in zip(ids, found, strict=True) if row < 0]
            raise BadInput(where, f"{len(missing)} ids are missing: {some(missing)}")
        return found.astype(np.int64)


@dataclass(frozen=True, eq=False)
class FoldTable(_Keyed):
    """Which fold validates each training row.

    ``fold`` (N,) int64: 0 to ``n_folds - 1``, or -1 for rows that are only ever trained on. With repeats, table ``r``
    of a competition numbers its folds from ``r * n`` on, so that a fold number is unique in a run.
    """

    ids: tuple[str, ...]
    fold: Ints
    scheme: str
    seed: int
    source_sha256: str
    groups: tuple[str, ...] | None = None
    where: object = field(default="fold table", repr=False)

    def __post_init__(self) -> None:
        check_ids(self.ids, self.where)
        if self.fold.shape != (len(self.ids),) or self.fold.dtype != np.int64:
            raise BadInput(
                self.where, f"folds of shape {self.fold.shape} and type {self.fold.dtype} for {len(self.ids)} ids"
            )
        if (self.fold < TRAIN_ONLY).any() or not (self.fold >= 0).any():
            raise BadInput(
                self.where, "fold numbers must be 0 or more (or -1 for training only), with at least one fold"
            )
        if self.groups is not None:
            if len(self.groups) != len(self.ids):
                raise BadInput(self.where, f"{len(self.groups)} groups for {len(self.ids)} ids")
            spread = pd.Series(self.fold).groupby(pd.Series(self.groups)).nunique()
            if (spread > 1).any():
                raise BadInput(self.where, f"groups lie in two folds: {some(spread.index[spread > 1])}")

    @property
    def folds(self) -> list[int]:
        return [int(value) for value in np.unique(self.fold) if value != TRAIN_ONLY]

    def valid_ids(self, fold: int) -> tuple[str, ...]:
        return tuple(name for name, value in zip(self.ids, self.fold, strict=True) if value == fold)

    def train_ids(self, fold: int) -> tuple[str, ...]:
        return tuple(name for name, value in zip(self.ids, self.fold, strict=True) if value != fold)


@dataclass(frozen=True, eq=False)
class Predictions(_Keyed):
    """Probabilities (or regression values) of a model, a row an image.

    ``values`` (N, C) float32, a column a class of ``classes``; ``fold`` (N,) int64 for out-of-fold predictions, else None.
    Raises BadInput on NaN or infinity, duplicate ids, or a wrong shape.
    """

    ids: tuple[str, ...]
    values: Floats
    classes: tuple[str, ...]
    run: str
    fold: Ints | None = None
    where: object = field(default="predictions", repr=False)

    def __post_init__(self) -> None:
        check_ids(self.ids, self.where)
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise BadInput(self.where, f"classes are empty or doubled: {some(self.classes)}")
        shape = (len(self.ids), len(self.classes))
        if self.values.shape != shape or self.values.dtype != np.float32:
            raise BadInput(
                self.where,
                f"values of shape {self.values.shape} and type {self.values.dtype}, expected {shape} float32",
            )
        broken = ~np.isfinite(self.values).all(axis=1)
        if broken.any():
            raise BadInput(
                self.where, f"NaN or infinite predictions for ids {some(np.array(self.ids, dtype=object)[broken])}"
            )
        if self.fold is not None and (self.fold.shape != (len(self.ids),) or self.fold.dtype != np.int64):
            raise BadInput(
                self.where, f"fold of shape {self.fold.shape} and type {self.fold.dtype} for {len(self.ids)} ids"
            )

    def take(self, ids: Sequence[str]) -> Predictions:
        """The same predictions in the order of ``ids``. Raises BadInput when one is missing."""
        rows = self.rows(ids, self.where)
        fold = None if self.fold is None else self.fold[rows]
        return Predictions(tuple(ids), self.values[rows], self.classes, self.run, fold, self.where)

    def write(self, path: Path, id_column: str) -> None:
        """Raises BadInput when the id column has the name of another column."""
        _check_id_column(path, id_column, ("fold", *(f"p_{name}" for name in self.classes)))
        frame = pd.DataFrame({id_column: pd.Series(self.ids, dtype=object)})
        if self.fold is not None:
            frame["fold"] = self.fold
        for column, name in enumerate(self.classes):
            frame[f"p_{name}"] = self.values[:, column]
        files.write_parquet(path, frame)

    @classmethod
    def read(cls, path: Path, run: str) -> Predictions:
        frame = files.read_parquet(path)
        key, *rest = frame.columns
        probabilities = [name for name in rest if name.startswith("p_")]
        if not probabilities or len(rest) - len(probabilities) - ("fold" in rest):
            raise BadInput(path, f"columns {some(frame.columns)} are not one id column, 'fold' and 'p_<class>' columns")
        if "fold" in frame and not pd.api.types.is_integer_dtype(frame["fold"]):
            raise BadInput(path, "the column 'fold' must hold whole numbers")
        return cls(
            ids=tuple(frame[key].to_numpy(dtype=object)),  # Arrow text is slow to iterate
            values=np.ascontiguousarray(frame[probabilities].to_numpy(dtype=np.float32)),
            classes=tuple(name.removeprefix("p_") for name in probabilities),
            run=run,
            fold=frame["fold"].to_numpy(dtype=np.int64) if "fold" in frame else None,
            where=path,
        )


def concatenate(parts: Sequence[Predictions], run: str) -> Predictions:
    """Out-of-fold predictions of several folds as one table. An id that is in two folds is refused."""
    if len({part.classes for part in parts}) != 1:
        raise BadInput(run, "folds predict different classes", "delete the run's folder and train again")
    folds = [part.fold for part in parts if part.fold is not None]
    return Predictions(
        ids=tuple(name for part in parts for name in part.ids),
        values=np.concatenate([part.values for part in parts]),
        classes=parts[0].classes,
        run=run,
        fold=np.concatenate(folds) if len(folds) == len(parts) else None,
        where=run,
    )


def average(parts: Sequence[Predictions], run: str) -> Predictions:
    """The mean of predictions of the same ids (seeds, repeats, or folds on the test set), aligned by id."""
    first = parts[0]
    for part in parts[1:]:
        if part.classes != first.classes:
            raise BadInput(part.where, f"classes {some(part.classes)} differ from {some(first.classes)}")
        if set(part.ids) != set(first.ids):
            raise BadInput(
                part.where, f"ids differ from those of {first.where}: {some(set(part.ids) ^ set(first.ids))}"
            )
    values = np.mean(np.stack([part.take(first.ids).values for part in parts]), axis=0, dtype=np.float64)
    return Predictions(first.ids, np.asarray(values, dtype=np.float32), first.classes, run, first.fold, run)


@dataclass(frozen=True, eq=False)
class SoftLabels(_Keyed):
    """Labels that teachers gave.

    ``targets`` (N, C) float32; ``weights`` (N,) float32, not negative; ``excluded_fold``: the one fold whose labels no
    teacher of these targets has seen. The data room refuses them for any other fold. None (-1 in files): the teachers
    have seen every fold's labels, which the data room admits only where leaks were asked for.
    """

    ids: tuple[str, ...]
    targets: Floats
    weights: Floats
    excluded_fold: int | None
    where: object = field(default="soft labels", repr=False)

    def __post_init__(self) -> None:
        check_ids(self.ids, self.where)
        if self.targets.ndim != 2 or len(self.targets) != len(self.ids) or self.targets.dtype != np.float32:
            raise BadInput(
                self.where,
                f"targets of shape {self.targets.shape} and type {self.targets.dtype} for {len(self.ids)} ids",
            )
        if self.weights.shape != (len(self.ids),) or self.weights.dtype != np.float32:
            raise BadInput(
                self.where,
                f"weights of shape {self.weights.shape} and type {self.weights.dtype} for {len(self.ids)} ids",
            )
        if not np.isfinite(self.targets).all() or not np.isfinite(self.weights).all() or (self.weights < 0).any():
            raise BadInput(self.where, "targets and weights must be finite, weights not negative")
        if self.excluded_fold is not None and self.excluded_fold < 0:
            raise BadInput(self.where, "excluded_fold must name the fold that the teachers have not seen")

    def write(self, path: Path, id_column: str, classes: Sequence[str]) -> None:
        if len(classes) != self.targets.shape[1]:
            raise BadInput(path, f"{len(classes)} classes for {self.targets.shape[1]} target columns")
        _check_id_column(path, id_column, ("excluded_fold", "weight", *(f"p_{name}" for name in classes)))
        frame = pd.DataFrame({id_column: pd.Series(self.ids, dtype=object)})
        frame["excluded_fold"] = np.full(
            len(self.ids), -1 if self.excluded_fold is None else self.excluded_fold, dtype=np.int64
        )
        frame["weight"] = self.weights
        for column, name in enumerate(classes):
            frame[f"p_{name}"] = self.targets[:, column]
        files.write_parquet(path, frame)

    @classmethod
    def read(cls, path: Path) -> SoftLabels:
        frame = files.read_parquet(path)
        key, *rest = frame.columns
        targets = [name for name in rest if name.startswith("p_")]
        if not targets or set(rest) != {"excluded_fold", "weight", *targets}:
            raise BadInput(
                path, f"columns {some(frame.columns)} are not an id, 'excluded_fold', 'weight' and 'p_<class>'"
            )
        folds = frame["excluded_fold"].unique()
        if len(folds) != 1:
            raise BadInput(path, f"soft labels of {len(folds)} folds in one file", "write one file a fold")
        return cls(
            ids=tuple(frame[key].to_numpy(dtype=object)),  # Arrow text is slow to iterate
            targets=np.ascontiguousarray(frame[targets].to_numpy(dtype=np.float32)),
            weights=frame["weight"].to_numpy(dtype=np.float32),
            excluded_fold=None if folds[0] == -1 else int(folds[0]),
            where=path,
        )
