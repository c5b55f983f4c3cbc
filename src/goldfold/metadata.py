"""Columns of the CSV as numbers for the network: scaled numbers and one-hot categories, fitted on training rows."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold.config.schema import Metadata
from goldfold.errors import BadInput, some
from goldfold.records import Floats

LIMIT = 5.0
"""Scaled numbers are clipped to so many deviations, so that a test row's -999 does not drown the image's features."""

KEY = "model.metadata"
_NO_VALUE = {"", "nan", "<na>"}
_NO_NUMBER = _NO_VALUE | {"na", "n/a", "#n/a", "null", "none"}
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class MetadataEncoder:
    """What was learnt of the training rows' columns.

    A row becomes 2 x n_numeric + sum(widths) numbers: of each numeric column the scaled value, clipped to ±5, and 1
    where it is missing (its value is 0 then: the mean); of each categorical column a one-hot group, whose first place
    is for missing and unknown categories.
    """

    numeric: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    categorical: tuple[str, ...] = ()
    vocabularies: tuple[tuple[str, ...], ...] = ()

    @property
    def n_numeric(self) -> int:
        """Numeric columns; each takes two places."""
        return len(self.numeric)

    @property
    def widths(self) -> tuple[int, ...]:
        """Places of each categorical column: its categories and one for the rest."""
        return tuple(len(vocabulary) + 1 for vocabulary in self.vocabularies)

    @property
    def width(self) -> int:
        return 2 * self.n_numeric + sum(self.widths)

    def transform(self, frame: pd.DataFrame, where: object, id_column: str = "id") -> Floats:
        """(N, width) float32 of a table's rows. Raises BadInput on a missing column and on text among numbers."""
        parts: list[Floats] = []
        for name, mean, std in zip(self.numeric, self.mean, self.std, strict=True):
            numbers = numbers_of(frame, name, where, id_column)
            missing = np.isnan(numbers)
            with np.errstate(over="ignore"):
                scaled = np.clip((numbers - mean) / std, -LIMIT, LIMIT)
            parts.append(np.stack([np.where(missing, 0.0, scaled), missing], axis=1).astype(np.float32))
        for name, vocabulary in zip(self.categorical, self.vocabularies, strict=True):
            place = {category: number for number, category in enumerate(vocabulary, 1)}
            require_column(frame, name, where, KEY)
            chosen = [place.get(category, 0) for category in categories_of(frame, name)]
            parts.append(np.eye(len(vocabulary) + 1, dtype=np.float32)[np.array(chosen, dtype=np.int64)])
        return np.concatenate([np.zeros((len(frame), 0), dtype=np.float32), *parts], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """For a bundle; ``from_dict`` takes its JSON back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MetadataEncoder:
        """Raises BadInput when ``values`` is not what ``to_dict`` gave."""
        try:
            encoder = cls(
                numeric=tuple(map(str, values["numeric"])),
                mean=tuple(map(float, values["mean"])),
                std=tuple(map(float, values["std"])),
                categorical=tuple(map(str, values["categorical"])),
                vocabularies=tuple(tuple(map(str, vocabulary)) for vocabulary in values["vocabularies"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput("metadata", f"a key is missing or wrong ({error})", "export the bundle again") from None
        whole = len(encoder.numeric) == len(encoder.mean) == len(encoder.std)
        whole &= len(encoder.categorical) == len(encoder.vocabularies)
        whole &= all(math.isfinite(value) for value in encoder.mean)
        whole &= all(math.isfinite(value) and value > 0 for value in encoder.std)
        if not whole:
            raise BadInput(
                "metadata", "columns, means, deviations and vocabularies do not fit", "export the bundle again"
            )
        return encoder


def fit_metadata(settings: Metadata, frame: pd.DataFrame, where: object, id_column: str = "id") -> MetadataEncoder:
    """Means and deviations of the numeric columns, and the categories of the others, of the rows of ``frame``.

    Raises BadInput on a column that is missing, named twice, without any value, or, if numeric, with text in it.
    """
    for names in (settings.numeric, settings.categorical):
        if len(set(names)) < len(names):
            raise BadInput(KEY, f"a column is named twice: {some(names)}", "name it once")
    scales, vocabularies = [], []
    for name in settings.numeric:
        numbers = numbers_of(frame, name, where, id_column)
        _require_value(not np.isnan(numbers).all(), name, where)
        scales.append(scaling(numbers[~np.isnan(numbers)]))
    for name in settings.categorical:
        require_column(frame, name, where, KEY)
        found = set(categories_of(frame, name)) - {""}
        _require_value(bool(found), name, where)
        vocabularies.append(tuple(sorted(found)))
    return MetadataEncoder(
        numeric=settings.numeric,
        mean=tuple(mean for mean, _ in scales),
        std=tuple(std for _, std in scales),
        categorical=settings.categorical,
        vocabularies=tuple(vocabularies),
    )


def scaling(numbers: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean and deviation of at least one finite number; the deviation of equal numbers counts as 1."""
    # In units of the largest, so that no square overflows or vanishes.
    unit = float(np.abs(numbers).max()) or 1.0
    std = float((numbers / unit).std()) * unit if numbers.min() < numbers.max() else 0.0
    return float((numbers / unit).mean() * unit), std or 1.0


def require_column(frame: pd.DataFrame, name: str, where: object, key: str) -> None:
    """Raises BadInput, naming near columns, when there is no such column."""
    if name not in frame:
        columns = [str(column) for column in frame.columns]
        near = difflib.get_close_matches(name, columns, 3)
        mend = f"did you mean {' or '.join(repr(column) for column in near)}?" if near else ""
        raise BadInput(
            where, f"the column '{name}' of {key} is missing", mend or f"the columns are: {some(columns, 20)}"
        )


def labels_of(frame: pd.DataFrame, name: str) -> list[str]:
    """A column's cells as text without outer spaces; empty where there is no value."""
    texts = ("" if value is None or value is pd.NA or value != value else str(value).strip() for value in frame[name])
    return ["" if text.lower() in _NO_VALUE else text for text in texts]


def categories_of(frame: pd.DataFrame, name: str) -> list[str]:
    """``labels_of`` with every way to write a number made one.

    A column of whole numbers is written 1.0 where one is missing, and 1 in a table where none is. Numbers with leading
    zeros are codes and stay as they are.
    """
    return [_plain_number(text) for text in labels_of(frame, name)]


def _plain_number(text: str) -> str:
    if not _NUMBER.fullmatch(text):
        return text
    number = Decimal(text)
    if not number:
        return "0"
    if abs(number.adjusted()) > 30:
        return text
    plain = format(number, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def numbers_of(frame: pd.DataFrame, name: str, where: object, id_column: str = "id") -> npt.NDArray[np.float64]:
    """A column (N,) as numbers, NaN where there is no value. Raises BadInput, naming the cell, on anything else."""
    require_column(frame, name, where, KEY)
    texts = ["" if text.lower() in _NO_NUMBER else text for text in labels_of(frame, name)]
    numbers = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    given = np.array([text != "" for text in texts], dtype=np.bool_)
    wrong = given & ~np.isfinite(numbers)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BadInput(
            where,
            f"'{texts[row]}' in the numeric column '{name}', {_row_name(frame, row, id_column)}, is not a number",
            "empty the cell, or take the column as categories",
        )
    return np.where(given, numbers, np.nan)


def _row_name(frame: pd.DataFrame, row: int, id_column: str) -> str:
    if id_column in frame:
        return f"id '{frame[id_column].iloc[row]}'"
    label = frame.index[row]
    # A CSV's first line is its header, and a part of a table keeps the row numbers of the whole.
    return f"row {label + 2}" if isinstance(label, int | np.integer) else f"row '{label}'"


def _require_value(found: bool, name: str, where: object) -> None:
    if not found:
        raise BadInput(where, f"no training row has a value in the column '{name}' of {KEY}", "leave it out")
