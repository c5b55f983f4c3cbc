"""What a kernel reads: the pack, the hidden test CSV and the sample submission, found by searching."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from goldfold import files
from goldfold.errors import BadInput, some
from goldfold.images import locate
from goldfold.kaggle.manifest import NAME as MANIFEST
from goldfold.kaggle.pack import NAME as PACK
from goldfold.kaggle.pack import Pack
from goldfold.progress import say, warn
from goldfold.records import check_ids


@dataclass(frozen=True, eq=False)
class HiddenRows:
    """The images to predict and the rows to submit.

    ``ids``, ``paths`` and the rows of ``frame`` belong together. ``sample``: a table whose ids, in their order, are those
    to submit; None: ``ids`` in theirs. Ids to submit that are not among ``ids`` have no image (``without_image``).
    """

    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    frame: pd.DataFrame
    sample: pd.DataFrame | None
    without_image: tuple[str, ...] = ()


def find_pack(root: Path, wanted: str = "") -> Path:
    """The folder under Kaggle's input folder ``root`` that holds a pack, in any of the three layouts, one folder deeper too.

    ``wanted``: the slug of its data set, or a path to its folder, which is taken as it is. Raises BadInput where there is
    none, or several.
    """
    if "/" in wanted:
        return Path(wanted)
    owned = ("datasets/*/*", "notebooks/*/*")
    patterns = (*owned, *(f"{pattern}/*" for pattern in owned), "*", "*/*")
    found = {path.parent for pattern in patterns for path in _there(root.glob(f"{pattern}/{PACK}"))}
    packs = sorted(folder for folder in found if (folder / MANIFEST).is_file())
    if wanted:
        packs = [folder for folder in packs if wanted in (folder.name, folder.parent.name)]
    if not packs:
        what = f"no data set {wanted!r} here" if wanted else "no data set here"
        raise BadInput(root, f"{what} holds {PACK} and {MANIFEST}", "add the exported data set to the kernel's inputs")
    if len(packs) > 1:
        raise BadInput(root, f"several packs: {some(packs)}", "leave one, or name its slug in GOLDFOLD_PACK")
    return packs[0]


def find_competition(root: Path, slug: str, names: Iterable[str]) -> Path:
    """The competition's folder: of Kaggle's three layouts the first that holds one of the files ``names``.

    Else any folder of ``root`` that does, if there is one alone. Raises BadInput.
    """
    wanted = list(names)
    layouts = [root / "competitions" / slug, *sorted(root.glob(f"datasets/*/{slug}")), root / slug]
    for folder in layouts:
        if any((folder / name).is_file() for name in wanted):
            return folder
    others = {
        folder
        for pattern in ("competitions/*", "datasets/*/*", "*")
        for folder in _there(root.glob(pattern))
        if any((folder / name).is_file() for name in wanted)
    }
    if len(others) == 1:
        (folder,) = others
        say(f"there is no input '{slug}'; {folder} holds {some(wanted)}")
        return folder
    what = f"no input folder of '{slug}' holds {some(wanted)}"
    raise BadInput(root, what, f"add the competition to the kernel's inputs; looked in {some(layouts)}")


def read_test(pack: Pack, folder: Path) -> HiddenRows:
    """The hidden test rows in the competition's ``folder``.

    Where the sample submission has all test ids, its ids are submitted, in its order; else the test CSV's. Raises BadInput
    for files that cannot be read, missing columns and empty ids; of rows with one id the first counts.
    """
    settings = pack.competition
    key = settings.id_column
    sample_csv = None if settings.sample_csv is None else folder / settings.sample_csv
    sample = None
    if sample_csv is not None and sample_csv.is_file():
        sample = _read(sample_csv, key)
        missing = [name for name in pack.submission.columns if name not in sample]
        if missing:
            what = f"has no column {some(missing)}, which the pack was made for"
            raise BadInput(sample_csv, what, "export the pack again for this competition")
        added = [name for name in sample if name not in (key, *pack.submission.columns)]
        if added:
            warn(f"{sample_csv}: the pack knows no column {some(added)}; it is submitted as it stands there")
    elif sample_csv is not None:
        warn(f"{sample_csv}: there is no sample submission; the submission has the columns that the pack names")
    csv = folder / settings.test_csv
    if not csv.is_file() and sample is not None:
        warn(f"{csv}: there is no test CSV; the ids of the sample submission are predicted")
        frame = sample[[key]]
    else:
        frame = _read(csv, key)
    ids = tuple(frame[key])
    paths = tuple(locate(settings.test_images, frame, folder, csv)) if ids else ()
    sample, without = _to_submit(ids, sample, key)
    if without:
        warn(f"{len(without)} ids of the sample submission are not in {csv.name}: {some(without)}; they get the prior")
    return HiddenRows(ids, paths, frame, sample, without)


def _to_submit(
    ids: tuple[str, ...], sample: pd.DataFrame | None, key: str
) -> tuple[pd.DataFrame | None, tuple[str, ...]]:
    """The table whose ids are submitted, and those of its ids that are not predicted."""
    if sample is None:
        return None, ()
    known, predicted = pd.Index(sample[key]), pd.Index(ids, dtype=object)
    if predicted.isin(known).all():
        return sample, tuple(known[~known.isin(predicted)])
    warn(f"the sample submission lacks {int((~predicted.isin(known)).sum())} test ids; the test CSV's are submitted")
    # The sample's cells tell whether some may be empty, so they are kept, over and over.
    rows = np.arange(len(ids)) % max(len(sample), 1)
    own = sample.iloc[rows].copy() if len(sample) else pd.DataFrame("", index=rows, columns=sample.columns)
    own[key] = list(ids)
    return own.reset_index(drop=True), ()


def _read(path: Path, key: str) -> pd.DataFrame:
    """As the kernel's own reader does (inference/kernel.py), so that both find the same ids."""
    try:
        frame = files.read_csv(path)
    except BadInput as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        warn(f"{path}: not UTF-8; it is read as Latin-1")
        frame = files.read_csv(path, encoding="latin-1")
    if key not in frame:
        raise BadInput(path, f"has no id column '{key}'", f"its columns are: {some(frame.columns, 20)}")
    doubled = frame[key].duplicated()
    if doubled.any():
        warn(
            f"{path}: {int(doubled.sum())} rows have the id of another one ({some(frame[key][doubled])}); the first counts"
        )
        frame = frame[~doubled].reset_index(drop=True)
    check_ids(list(frame[key]), path)
    return frame


def _there(paths: Iterable[Path]) -> Iterable[Path]:
    """``paths``; a folder that cannot be listed ends them."""
    try:
        yield from paths
    except OSError as error:
        warn(f"{error.filename}: {error.strerror or error}")
