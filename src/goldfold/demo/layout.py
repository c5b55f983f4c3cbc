"""A competition's folder as Kaggle would give it, whole or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from goldfold import files
from goldfold.errors import BadInput, some

TEST_SHARE = 0.25
RECORD = ".prepared.json"
TABLES = ("train.csv", "test.csv", "sample_submission.csv", "solution.csv")
STALE_SECONDS = 3600.0


def lay_out(folder: Path, source: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """Call ``build`` on a temporary folder beside ``folder`` and rename it into place; returns ``folder``.

    ``source`` says what the content comes from (seed, versions). A whole folder of the same source is left as it is.
    Raises BadInput when the folder holds something else: data is never overwritten.
    """
    if folder.exists():
        _check(folder, source)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        (temporary / "images").mkdir()
        build(temporary)
        files.write_json(temporary / RECORD, {"source": source, "content": _content(temporary)})
        temporary.chmod(0o755)  # mkdtemp makes private folders
        try:
            temporary.rename(folder)
        except OSError:
            # Another process was first: its folder must be as good as ours.
            if not folder.exists():
                raise
            _check(folder, source)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_tables(
    folder: Path,
    rows: pd.DataFrame,
    target: str,
    *,
    guess: float,
    hidden: Sequence[str],
    strata: Sequence[str],
    seed: int,
) -> None:
    """The four CSV files: 75/25, stratified by the columns ``strata`` together.

    ``hidden`` columns are left out of test.csv; ``guess`` fills the sample submission.
    """
    rows = rows.sort_values("id", ignore_index=True)
    together = rows[list(strata)].astype(str).agg("|".join, axis=1)
    train, test = train_test_split(np.arange(len(rows)), test_size=TEST_SHARE, stratify=together, random_state=seed)
    solution = rows.loc[np.sort(test), ["id", target]]
    files.write_csv(folder / "train.csv", rows.loc[np.sort(train)])
    files.write_csv(folder / "test.csv", rows.loc[np.sort(test)].drop(columns=list(hidden)))
    files.write_csv(folder / "sample_submission.csv", solution.assign(**{target: guess}))
    files.write_csv(folder / "solution.csv", solution)


def shuffled_ids(prefix: str, count: int, seed: int) -> list[str]:
    """``count`` ids whose numbers are dealt by the seed, so that they say nothing about the order of the source."""
    numbers = np.random.default_rng(seed).permutation(count) + 1
    return [f"{prefix}{number:04d}" for number in numbers]


def _check(folder: Path, source: dict[str, Any]) -> None:
    if not (folder / RECORD).is_file():
        raise BadInput(folder, "the demo did not write this folder", "move it away and run again")
    record = files.read_json(folder / RECORD)
    before = record.get("source", {})
    if before != source:
        keys = [key for key in {**before, **source} if before.get(key) != source.get(key)]
        differences = [f"{key} {before.get(key)} instead of {source.get(key)}" for key in keys]
        raise BadInput(folder, f"was prepared with {some(differences)}", "delete the folder and run again")
    content = _content(folder)
    changed = [name for name in content if content[name] != record.get("content", {}).get(name)]
    if changed:
        raise BadInput(folder, f"changed since the demo wrote it: {some(changed)}", "delete the folder and run again")


def _content(folder: Path) -> dict[str, str | None]:
    """What is in a prepared folder: each table by its bytes, the images by name and size (to be quick)."""
    images = {path.name: path.stat().st_size for path in (folder / "images").glob("*.png")}
    tables = {name: files.sha256_file(folder / name) if (folder / name).is_file() else None for name in TABLES}
    return {**tables, "images": files.fingerprint(images)}


def _sweep(folder: Path) -> None:
    """Remove what a killed preparation left long ago; a young folder may belong to a process at work."""
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):
        if stale.is_dir() and time.time() - stale.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(stale, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows one, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
