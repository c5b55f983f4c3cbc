"""Files that are either whole or absent: atomic writes, digests, tables."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from goldfold.errors import BadInput

LARGE = 2**24
"""Bytes from which a file is digested block by block, and not read at once."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` on a temporary file beside ``path``, sync it to disk and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: _write_text(temporary, text))


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys, so that equal values are equal bytes. NaN is refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises BadInput when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(path, "the file does not exist") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInput(path, f"not valid JSON ({error})", "delete it and run again") from None


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    write_atomic(path, lambda temporary: frame.to_csv(temporary, index=False, lineterminator="\n"))


def read_csv(path: Path, encoding: str = "utf-8-sig", **options: Any) -> pd.DataFrame:
    """A CSV as text columns (so that the id ``007`` stays ``007``). A comma at every row's end is no column.

    Raises BadInput, also where rows have more cells than the header: pandas would shift them against it.
    """
    given: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": encoding, **options}
    try:
        frame = pd.read_csv(path, **given)
        if isinstance(frame.index, pd.RangeIndex) or "index_col" in given:
            return frame
        # The first cells of each row became its index, and the header stands too far to the right.
        if (frame.iloc[:, -frame.index.nlevels :] != "").any(axis=None):
            raise BadInput(path, "its rows have more cells than its header has columns", "name every column")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)
            return pd.read_csv(path, **given, index_col=False)
    except FileNotFoundError:
        raise BadInput(path, "the file does not exist") from None
    except IsADirectoryError:
        raise BadInput(path, "is a folder, not a CSV file") from None
    except pd.errors.EmptyDataError:
        raise BadInput(path, "the CSV file is empty") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise BadInput(path, f"not a readable CSV file ({error})") from error


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    write_atomic(path, lambda temporary: frame.to_parquet(temporary, index=False, engine="pyarrow"))


def read_parquet(path: Path) -> pd.DataFrame:
    """Raises BadInput when the file is missing or broken."""
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except FileNotFoundError:
        raise BadInput(path, "the file does not exist") from None
    except (OSError, ValueError) as error:
        raise BadInput(path, f"not a readable Parquet file ({error})") from None


def sha256_file(path: Path | str) -> str:
    """The digest in hexadecimal. Raises BadInput when the file is missing."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - of 100,000 names a Path each takes a second
            if os.fstat(file.fileno()).st_size < LARGE:
                return hashlib.sha256(file.readall()).hexdigest()  # images: half of the time of reading by blocks
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise BadInput(path, "the file does not exist") from None


def fingerprint(value: Any) -> str:
    """A digest of any JSON value; equal values have equal digests whatever their key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a folder for this process; the lock ends with the process, however it ends.

    Gives whether the folder is held: always, when ``wait``; else False where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left of unfinished writes. For a folder that the caller holds."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    # A rename is only durable once its folder is synced; not every platform allows that.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
