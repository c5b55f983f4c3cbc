"""The image files of a competition, and the pattern that leads from a row to its file."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import pandas as pd

from goldfold.errors import BadInput, some

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm"))
MEDICAL = (".dcm", ".dicom", ".nii")
LOOKS = 24
"""Rows from which patterns are derived."""
SAMPLE = 1000
"""Rows on which each is tried; the best one is then tried on all."""
DISLIKED = ("mask", "thumb", "segment", "depth", "preview")
FIELD = re.compile(r"{([^:{}]+)")
"""A column in a pattern."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images by their paths within the folder."""

    paths: frozenset[str]
    by_stem: dict[str, list[str]]
    """Names without suffix → paths."""

    @property
    def example(self) -> str:
        return min(self.paths)

    def share_named(self, values: pd.Series[str]) -> float:
        """The share of a column's values that are names of images, with or without folder, suffix and leading zeros."""
        known = [value for value in _spread(values.drop_duplicates().tolist(), SAMPLE) if value.strip()]
        if not known:
            return 0.0
        return sum(any(True for _ in self.named(value)) for value in known) / len(known)

    def named(self, value: str) -> Iterator[str]:
        """The images that a value of the id column may name."""
        name = PurePosixPath(value).name
        for path in self.by_stem.get(name, ()):
            if ends_with(without_suffix(path), value):
                yield path
        if _suffix(name) in SUFFIXES:
            for path in self.by_stem.get(without_suffix(name), ()):
                if ends_with(path, value):
                    yield path


@dataclass(frozen=True)
class Pattern:
    """A pattern over columns; ``share``: of the rows whose file exists. ``seen``: how many rows there were."""

    text: str
    share: float
    seen: int


def find_pictures(folder: Path) -> Pictures:
    """Every image under ``folder``. Raises BadInput when there is none."""
    paths: list[str] = []
    others: Counter[str] = Counter()
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = PurePosixPath(Path(place).relative_to(folder).as_posix())
        for name in names:
            suffix = _suffix(name)
            if suffix in SUFFIXES:
                paths.append((inside / name).as_posix())
            else:
                others[suffix] += 1
    if not paths:
        medical = [suffix for suffix in MEDICAL if others[suffix]]
        if medical:
            raise BadInput(
                folder, f"its images are {medical[0]} files, which Goldfold does not read", "make PNGs of them"
            )
        packed = [suffix for suffix in (".zip", ".tar", ".gz", ".7z", ".tfrec", ".parquet", ".npy") if others[suffix]]
        there = f"; there are {some(packed)} files" if packed else ""
        raise BadInput(
            folder, f"there are no images under it{there}", "unpack them, or name the folder that the competition ships"
        )
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_stem[without_suffix(PurePosixPath(path).name)].append(path)
    return Pictures(frozenset(paths), dict(by_stem))


def find_pattern(
    frame: pd.DataFrame, id_column: str, pictures: Pictures, likes: Sequence[str], twin: str = ""
) -> Pattern | None:
    """The pattern that leads most rows to an existing file; None where none leads anywhere.

    Masks and thumbnails come last. Of equals the one that is built as ``twin`` (the training rows' pattern), then the one
    whose folders hold the words of ``likes``.
    """
    if frame.empty:
        return None
    candidates: Counter[str] = Counter()
    for row in _spread(range(len(frame)), LOOKS):
        values = {str(column): str(value) for column, value in zip(frame.columns, frame.iloc[row], strict=True)}
        candidates.update(set(_patterns(values, id_column, pictures)))
    found: list[tuple[float, str]] = []
    tastes: dict[str, tuple[object, ...]] = {}
    some_rows = frame.iloc[_spread(range(len(frame)), SAMPLE)]
    for text, _ in candidates.most_common(400):
        made = fill(text, some_rows)
        share = float(np.mean([path in pictures.paths for path in made]))
        lower = text.lower()
        tastes[text] = (
            len(set(made)) == len(made),  # several rows behind one file is no pattern of an id
            -sum(word in lower for word in DISLIKED),
            f"{{{id_column}" in text,
            round(share, 6),
            FIELD.findall(text) == FIELD.findall(twin),
            sum(word in lower for word in likes),
            -len(text),
        )
        if share > 0:
            found.append((share, text))
    if not found:
        return None
    most, _ = max(found)
    _, text = max((item for item in found if item[0] >= most / 2), key=lambda item: tastes[item[1]])
    there = [path in pictures.paths for path in fill(text, frame)]
    return Pattern(text, float(np.mean(there)), len(frame))


def fill(pattern: str, frame: pd.DataFrame) -> list[str]:
    """The path of each row."""
    columns = [str(column) for column in frame.columns]
    rows = zip(*(frame[column].astype(str) for column in columns), strict=True)
    return [pattern.format(**dict(zip(columns, row, strict=True))) for row in rows]


def ends_with(path: str, value: str) -> bool:
    """Whether ``value`` is the whole end of a path: ``b/c`` of ``a/b/c``, not ``c`` of ``abc``."""
    return path == value or path.endswith(f"/{value.lstrip('/')}")


def without_suffix(name: str) -> str:
    return name[: -len(_suffix(name))] if _suffix(name) in SUFFIXES else name


def _suffix(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot > name.rfind("/") + 1 else ""


def _patterns(values: dict[str, str], id_column: str, pictures: Pictures) -> Iterator[str]:
    """Patterns that lead this row to some image."""
    usable = {column: value for column, value in values.items() if value.strip() and _nameable(column)}
    seen = set()
    for column in sorted(usable, key=lambda name: name != id_column):
        for path in _reachable(usable[column], pictures):
            if path not in seen:
                seen.add(path)
                yield from _generalised(path, usable)
        if seen and column == id_column:
            break  # other columns are asked only where the id leads nowhere


def _reachable(value: str, pictures: Pictures) -> list[str]:
    """Images that the value names, or else those whose names hold it as a word: img_12, 12_front, 00012."""
    found = list(pictures.named(value))
    if not found and value.isdigit():
        found = [path for width in range(len(value) + 1, 13) for path in pictures.by_stem.get(value.zfill(width), ())]
    if not found and (len(value) >= 3 or value.isdigit()):
        stems = [stem for stem in pictures.by_stem if value in stem and _is_word(value, stem)]
        found = [path for stem in stems[:8] for path in pictures.by_stem[stem]]
    return found


def _is_word(value: str, stem: str) -> bool:
    """Whether ``stem`` is ``value`` with something before or after that is apart from it."""
    before, _, after = stem.partition(value)
    if bool(before) == bool(after):
        return False
    left, right = (before[-1], value[0]) if before else (value[-1], after[0])
    return not ((left.isalpha() and right.isalpha()) or (left.isdigit() and right.isdigit()))


def _generalised(path: str, values: dict[str, str]) -> Iterator[str]:
    """A path with the row's values in it replaced by their columns, in every sensible way."""
    *folders, name = path.split("/")
    stem = without_suffix(name)
    suffix = name[len(stem) :]
    for column, value in values.items():
        if "/" in value:
            yield from _with_folders(path, column, value)
    ways = [[_plain(folder), *_folder(folder, values)] for folder in folders]
    names = []
    for column, value in values.items():
        if value == name:
            names.append(f"{{{column}}}")
        elif value == stem:
            names.append(f"{{{column}}}{_plain(suffix)}")
        elif value.isdigit() and stem == value.zfill(len(stem)):
            names.append(f"{{{column}:0>{len(stem)}}}{_plain(suffix)}")
        elif "/" not in value and value in stem:
            before, _, after = stem.partition(value)
            if not (before and after):
                names.append(f"{_plain(before)}{{{column}}}{_plain(after + suffix)}")
    for (a, first), (b, second) in itertools.permutations(values.items(), 2):
        names += [f"{{{a}}}{sep}{{{b}}}{_plain(suffix)}" for sep in "_-" if f"{first}{sep}{second}" == stem]
    for parts in itertools.islice(itertools.product(*(way[:3] for way in ways), names[:12]), 200):
        yield "/".join(parts)


def _folder(folder: str, values: dict[str, str]) -> Iterator[str]:
    """A folder that is named after a column, or after the first characters of one (ab/ab12.jpg)."""
    for column, value in values.items():
        if value == folder:
            yield f"{{{column}}}"
    for column, value in values.items():
        if len(folder) <= 3 < len(value) and value.startswith(folder):
            yield f"{{{column}:.{len(folder)}}}"


def _with_folders(path: str, column: str, value: str) -> Iterator[str]:
    """Patterns for a value that holds folders itself."""
    for end, tail in ((path, ""), (without_suffix(path), path[len(without_suffix(path)) :])):
        if ends_with(end, value) and not value.startswith("/"):
            yield f"{_plain(end[: len(end) - len(value)])}{{{column}}}{_plain(tail)}"


def _plain(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _nameable(column: str) -> bool:
    """Whether a pattern can name the column: str.format takes dots, brackets, colons and marks apart."""
    return bool(column) and not set(column) & set(".[]{}:!") and not column.isdigit()


def _spread(values: Sequence[T], most: int) -> list[T]:
    """At most so many of the values, from all over."""
    if len(values) <= most:
        return list(values)
    return [values[place] for place in np.linspace(0, len(values) - 1, most).astype(int)]
