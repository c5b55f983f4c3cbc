"""The probabilities of every view, from which views are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from goldfold import files
from goldfold.errors import BadInput, some
from goldfold.records import Floats, check_ids


@dataclass(frozen=True, eq=False)
class ViewTable:
    """``values`` (V, N, C) float32: of each view of each image, before views are merged. Raises BadInput on NaN."""

    ids: tuple[str, ...]
    views: tuple[str, ...]
    values: Floats
    classes: tuple[str, ...]
    where: object = "views"

    def __post_init__(self) -> None:
        check_ids(self.ids, self.where)
        shape = (len(self.views), len(self.ids), len(self.classes))
        if self.values.shape != shape or self.values.dtype != np.float32 or not np.isfinite(self.values).all():
            what = f"views of shape {self.values.shape} and type {self.values.dtype}, expected {shape} finite float32"
            raise BadInput(self.where, what, "train the fold again")

    def write(self, path: Path, id_column: str) -> None:
        """A row an image and view. Raises BadInput when the id column has the name of another column."""
        if id_column in ("view", *(f"p_{name}" for name in self.classes)):
            what = f"an id column named '{id_column}' clashes with the table's own"
            raise BadInput(path, what, "rename the id column")
        count = len(self.ids)
        frame = pd.DataFrame({id_column: pd.Series(list(self.ids) * len(self.views), dtype=object)})
        frame["view"] = pd.Series([name for name in self.views for _ in range(count)], dtype=object)
        for column, name in enumerate(self.classes):
            frame[f"p_{name}"] = self.values[:, :, column].ravel()
        files.write_parquet(path, frame)

    @classmethod
    def read(cls, path: Path, ids: Sequence[str], views: Sequence[str], classes: Sequence[str]) -> ViewTable:
        """The table's rows in this order of images and views. Raises BadInput unless it holds exactly these."""
        frame = files.read_parquet(path)
        columns = [f"p_{name}" for name in classes]
        if len(frame.columns) < 2 or list(frame.columns[1:]) != ["view", *columns]:
            raise BadInput(path, f"columns {some(frame.columns)} are not an id, 'view' and {some(columns)}")
        key = frame.columns[0]
        wanted = pd.MultiIndex.from_product([list(views), list(ids)])
        found = pd.MultiIndex.from_arrays([frame["view"], frame[key]])
        rows = found.get_indexer(wanted) if found.is_unique else np.full(1, -1)
        if (rows < 0).any() or len(frame) != len(wanted):
            raise BadInput(
                path, "holds other images or views than the run's", "delete the fold's folder and train again"
            )
        values = frame[columns].to_numpy(dtype=np.float32)[rows].reshape(len(views), len(ids), len(columns))
        return cls(tuple(ids), tuple(views), np.ascontiguousarray(values), tuple(classes), path)
