"""Images beyond the competition's: labelled ones for every fold's training, unlabelled ones for pseudo-labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold.config.schema import Competition
from goldfold.errors import BadInput, some
from goldfold.images import Images
from goldfold.paths import find_input
from goldfold.pipeline.competition import locate_images, read_rows
from goldfold.progress import progress, say
from goldfold.records import Floats, Ints
from goldfold.tasks import Task, encode

BLOCK_BYTES = 64 * 2**20
"""Decoded pixels in memory at once."""


@dataclass(frozen=True, eq=False)
class ExternalData:
    """One external data set: ``targets`` (N, C), ``paths`` and the rows of ``frame`` belong to ``ids`` in their order."""

    ids: tuple[str, ...]
    targets: Floats
    paths: tuple[Path, ...]
    weight: float
    csv: Path
    frame: pd.DataFrame


@dataclass(frozen=True, eq=False)
class UnlabelledData:
    """One set of images without labels: ``paths`` and the rows of ``frame`` belong to ``ids`` in their order."""

    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    csv: Path
    frame: pd.DataFrame


def load_external(
    settings: Competition, task: Task, root: Path, train_ids: Sequence[str], test_ids: Sequence[str]
) -> list[ExternalData]:
    """Read ``competition.external``; labels become targets as the competition's own do.

    Raises BadInput on missing files and columns, labels that the task does not know, and ids that another table has.
    """
    columns = [settings.target] if isinstance(settings.target, str) else list(settings.target)
    known = [("the train CSV", set(train_ids)), ("the test CSV", set(test_ids))]
    found = []
    for external in settings.external:
        csv = find_input(root, _slug(settings, root, external.csv), external.csv)
        frame = read_rows(csv, settings, columns)
        if frame.empty:
            raise BadInput(csv, "there are no rows", "take it out of competition.external")
        ids = _own_ids(frame, settings, csv, known)
        data = ExternalData(
            ids=ids,
            targets=encode(task, frame, settings.target, csv),
            paths=_paths(external.image_path, frame, settings, root, csv),
            weight=external.weight,
            csv=csv,
            frame=frame,
        )
        found.append(data)
    return found


def load_unlabelled(
    settings: Competition,
    root: Path,
    train_ids: Sequence[str],
    test_ids: Sequence[str],
    external: Sequence[ExternalData] = (),
) -> list[UnlabelledData]:
    """Read ``competition.unlabelled``.

    Raises BadInput on missing files and columns, and on ids that another table has, ``external`` ones too.
    """
    known = [("the train CSV", set(train_ids)), ("the test CSV", set(test_ids))]
    known += [(str(part.csv), set(part.ids)) for part in external]
    found = []
    for unlabelled in settings.unlabelled:
        csv = find_input(root, _slug(settings, root, unlabelled.csv), unlabelled.csv)
        frame = read_rows(csv, settings, [])
        if frame.empty:
            raise BadInput(csv, "there are no rows", "take it out of competition.unlabelled")
        ids = _own_ids(frame, settings, csv, known)
        found.append(UnlabelledData(ids, _paths(unlabelled.image_path, frame, settings, root, csv), csv, frame))
    return found


def outside(images: Images, train: Images, rows: Ints, what: str) -> Ints:
    """The places of ``images`` that are none of ``train``'s ``rows``; says how many are left out."""
    known = identical_rows(images, train, rows)
    if known.any():
        say(f"{what}: {known.sum()} of {len(known)} images are validation images, left out")
    return np.flatnonzero(~known)


def identical_rows(images: Images, others: Images, rows: Ints) -> npt.NDArray[np.bool_]:
    """Which of ``images`` (n,) have the very pixels of any of ``others``' ``rows``, once decoded and resized.

    Against a leak of the validated fold's images through an external data set. Copies that were cropped or compressed
    anew are not found. Raises ValueError when the two stores have different shapes, which could never be equal.
    """
    if images.shape != others.shape:
        raise ValueError(f"images of shape {images.shape} and {others.shape} cannot be compared")
    seen = set(pixel_digests(others, rows))
    return np.array([digest in seen for digest in pixel_digests(images)], dtype=np.bool_)


def pixel_digests(images: Images, rows: Ints | None = None) -> list[bytes]:
    """A digest of each row's uint8 pixels (``rows`` None: of all rows), read in blocks."""
    rows = np.arange(len(images.ids)) if rows is None else rows
    size = max(1, BLOCK_BYTES // int(np.prod(images.shape)))
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    shown = progress(blocks, "looking for identical images", len(blocks), "blocks")
    return [hashlib.blake2b(pixels.data, digest_size=16).digest() for block in shown for pixels in images.read(block)]


def _own_ids(
    frame: pd.DataFrame, settings: Competition, csv: Path, known: list[tuple[str, set[str]]]
) -> tuple[str, ...]:
    """The ids of a table, which are then ``known`` too. Raises BadInput when another table has one of them."""
    ids = tuple(frame[settings.id])
    for where, others in known:
        twice = [name for name in ids if name in others]
        if twice:
            raise BadInput(
                csv, f"{len(twice)} ids are also in {where}: {some(twice)}", "an id names one row; give these a prefix"
            )
    known.append((str(csv), set(ids)))
    return ids


def _paths(pattern: str, frame: pd.DataFrame, settings: Competition, root: Path, csv: Path) -> tuple[Path, ...]:
    # locate_images asks the settings only for the name of Kaggle's folder.
    home = settings.model_copy(update={"name": _slug(settings, root, pattern)})
    return tuple(locate_images(pattern, frame, root, home, csv))


def _slug(settings: Competition, root: Path, path: str) -> str:
    """Under which name Kaggle holds a file: the competition's, or that of the data set in ``data/<name>/...``."""
    parts, fixed = PurePosixPath(path).parts, path.split("{", 1)[0]
    if len(parts) < 3 or parts[0] != "data" or find_input(root, settings.name, fixed).exists():
        return settings.name
    return parts[1]
