"""A competition's input folder as the hidden rerun sees it: another test set, and all other files as they were."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from goldfold import files
from goldfold.errors import BadInput, some
from goldfold.images import locate
from goldfold.kaggle.pack import PackCompetition
from goldfold.records import check_ids

MOST_ROWS = 1000
"""A hidden test set whose size nobody names has at most about as many rows, so that a simulation stays short."""


@dataclass(frozen=True, eq=False)
class HiddenTest:
    """What a submission is checked against.

    ``sample``: the columns and ids that it must have (its other cells mean nothing where the competition ships no sample);
    ``unreadable``: ids of the broken images; ``public_rows``: of the test CSV that competitors see.
    """

    sample: pd.DataFrame
    ids: tuple[str, ...]
    unreadable: tuple[str, ...]
    public_rows: int


def make_hidden(
    source: Path,
    target: Path,
    about: PackCompetition,
    columns: tuple[str, ...],
    *,
    rows: int | None = None,
    unreadable: int = 0,
    seed: int = 0,
    old_sample: bool = False,
) -> HiddenTest:
    """Lay out ``source``, the competition's files, as ``target`` with a hidden test set of ``rows`` rows in random order.

    Up to the number of public test images its rows are some of those; further ones show them again under new ids. All other
    files are links to ``source``. ``rows`` None: half as many rows again, at most about 1,000. ``unreadable``: so many images
    are broken, in turns cut off and no image at all. ``old_sample``: the sample submission stays that of the public test
    set, as some competitions leave it. ``columns``: of a submission, beside the id, where there is no sample.
    Raises BadInput when a file is missing or does not fit.
    """
    public = _read(source / about.test_csv, about.id_column)
    count = _default_rows(len(public)) if rows is None else rows
    if count > 0 and public.empty:
        raise BadInput(source / about.test_csv, "there are no rows to make a hidden test set of")
    rng = np.random.default_rng(seed)
    parents = np.arange(count) % max(len(public), 1) if count > len(public) else rng.permutation(len(public))[:count]
    order = rng.permutation(count)
    hidden = public.iloc[parents].reset_index(drop=True)
    copies = np.arange(count) // max(len(public), 1)
    ids = [_new_id(name, int(copy)) for name, copy in zip(hidden[about.id_column], copies, strict=True)]
    hidden[about.id_column] = ids
    check_ids(ids, about.test_csv)
    shown = locate(about.test_images, public.iloc[parents], source, source / about.test_csv) if count else []
    placed = locate(about.test_images, hidden, target, source / about.test_csv) if count else []
    own = {PurePosixPath(name) for name in (about.test_csv, about.sample_csv) if name}
    _link_others(source, target, own, {PurePosixPath(path.relative_to(target)).parent for path in placed})
    broken = sorted(rng.choice(count, size=min(unreadable, count), replace=False).tolist())
    for row, (image, place) in enumerate(zip(shown, placed, strict=True)):
        _place_image(image, place, broken.index(row) if row in broken else None)
    hidden = hidden.iloc[order]
    files.write_csv(target / about.test_csv, hidden)
    sample = _sample(source, about, public, parents, ids, columns)
    sample = sample.iloc[rng.permutation(count)].reset_index(drop=True)
    if about.sample_csv is not None:
        old = _read(source / about.sample_csv, about.id_column)
        files.write_csv(target / about.sample_csv, old if old_sample else sample)
        if old_sample and set(ids) <= set(old[about.id_column]):
            sample = old  # a sample that has all test ids says which are to be submitted
    names = hidden[about.id_column]
    return HiddenTest(sample, tuple(names), tuple(ids[row] for row in broken), len(public))


def show_public(source: Path, target: Path, about: PackCompetition, columns: tuple[str, ...]) -> HiddenTest:
    """Lay out ``source`` as ``target`` as it is, for a public run. Raises BadInput."""
    public = _read(source / about.test_csv, about.id_column)
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        (target / path.name).symlink_to(path.resolve())
    ids = tuple(public[about.id_column])
    sample = _sample(source, about, public, np.arange(len(public)), list(ids), columns)
    return HiddenTest(sample, ids, (), len(public))


def _default_rows(public: int) -> int:
    rows = min(public + public // 2 + 1, MOST_ROWS)
    return rows - 1 if rows == public else rows


def _read(path: Path, id_column: str) -> pd.DataFrame:
    frame = files.read_csv(path)
    if id_column not in frame:
        raise BadInput(path, f"has no id column '{id_column}'", f"its columns are: {some(frame.columns, 20)}")
    check_ids(list(frame[id_column]), path)
    return frame


def _new_id(name: str, copy: int) -> str:
    """The id of a further copy: ``cat.png`` becomes ``cat-h1.png``."""
    if not copy:
        return name
    path = PurePosixPath(name)
    return f"{name.removesuffix(path.suffix)}-h{copy}{path.suffix}"


def _sample(
    source: Path,
    about: PackCompetition,
    public: pd.DataFrame,
    parents: np.ndarray[tuple[int], np.dtype[np.int64]],
    ids: list[str],
    columns: tuple[str, ...],
) -> pd.DataFrame:
    """The sample submission of the hidden test set; a row's cells are those of the image that it shows."""
    if about.sample_csv is None:
        return pd.DataFrame({about.id_column: ids, **dict.fromkeys(columns, "")}, dtype=object)
    path = source / about.sample_csv
    old = _read(path, about.id_column)
    places = pd.Index(old[about.id_column]).get_indexer(pd.Index(public[about.id_column].iloc[parents]))
    if (places < 0).any():
        raise BadInput(path, f"has no row for {int((places < 0).sum())} images of {about.test_csv}")
    sample = old.iloc[places].reset_index(drop=True)
    sample[about.id_column] = pd.Series(ids, dtype=object)
    return sample


def _link_others(source: Path, target: Path, own: set[PurePosixPath], image_folders: set[PurePosixPath]) -> None:
    """Links to all files of ``source``, but for those that the hidden test set has anew and the images beside its own."""
    real = {PurePosixPath(), *image_folders, *(parent for path in own | image_folders for parent in path.parents)}

    def fill(folder: PurePosixPath) -> None:
        (target / folder).mkdir(parents=True, exist_ok=True)
        if not (source / folder).is_dir():
            return
        for entry in os.scandir(source / folder):
            path = folder / entry.name
            if path in real:
                fill(path)
            elif path not in own and (
                folder not in image_folders or entry.is_dir() or path.suffix in (".csv", ".json")
            ):
                (target / path).symlink_to(Path(entry.path).resolve())

    fill(PurePosixPath())
    for folder in image_folders:
        (target / folder).mkdir(parents=True, exist_ok=True)


def _place_image(image: Path, place: Path, broken: int | None) -> None:
    if not image.exists():
        raise BadInput(image, "the image does not exist", "a hidden test set shows the public test images")
    if place.is_symlink():  # the pattern does not use the id, so that several rows show one file
        if broken is None:
            return
        place.unlink()
    if broken is None:
        place.symlink_to(image.resolve())
    elif broken % 2 == 0:
        data = image.read_bytes()
        place.write_bytes(data[: len(data) // 2])
    else:
        place.write_bytes(b"this is no image\n")
