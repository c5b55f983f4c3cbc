"""Uploads of a data set by Kaggle's own client, the command ``kaggle``, which holds the token: Goldfold never reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from goldfold import files
from goldfold.errors import BadInput, GoldfoldError
from goldfold.kaggle.metadata import DATASET_FILE, NO_OWNER, read_dataset

MEND_CLIENT = "pip install 'goldfold[kaggle]'"
MEND_TOKEN = "run 'kaggle auth login', or set KAGGLE_API_TOKEN"
# Without them folders would be left out, and Parquet files turned into CSV.
_WHOLE = ("--dir-mode", "zip", "--keep-tabular")


def find_owner() -> str:
    """The Kaggle user that the client uploads as. Raises BadInput where there is no client, or it has no token."""
    if shutil.which("kaggle") is None:
        raise BadInput("kaggle", "there is no command 'kaggle'", MEND_CLIENT)
    found = run_client("config", "view")
    # Older clients end so where there is no token, too.
    if "Traceback (most recent call last)" in found.stderr and "kaggle.json" not in found.stderr:
        raise BadInput("kaggle", f"the command is broken ({last_line(found)})", MEND_CLIENT)
    name = re.search(r"^- username: (\S+)$", found.stdout, re.MULTILINE)
    if found.returncode or name is None or name[1] == "None":
        raise BadInput("kaggle", "Kaggle's client has no valid token", MEND_TOKEN)
    return name[1]


def upload_dataset(folder: Path, notes: str) -> str:
    """Make a private data set of ``folder``, or a new version (with ``notes``) of the one that its metadata names.

    An id without an owner gets that of the client. Returns the client's last line, which says where to look. Raises
    BadInput for metadata that Kaggle would refuse, and GoldfoldError when the upload fails.
    """
    owner = find_owner()
    values = read_dataset(folder)
    if values["id"].startswith(f"{NO_OWNER}/"):
        values["id"] = f"{owner}/{values['id'].split('/')[1]}"
        files.write_json(folder / DATASET_FILE, values)
    command = upload_command(folder, notes, known=exists(values["id"]))
    found = run_client(*command, show=True)
    # The client ends with 0 when Kaggle itself refuses an upload.
    if found.returncode or re.search(r"\berror\b", found.stdout, re.IGNORECASE):
        raise GoldfoldError(f"kaggle {' '.join(command[:2])} of {values['id']} failed: {last_line(found)}")
    return last_line(found)


def upload_command(folder: Path, notes: str, *, known: bool) -> list[str]:
    """The client's arguments that make a data set of ``folder``, or a new version of one that Kaggle knows."""
    if known:
        return ["datasets", "version", "-p", str(folder), "-m", notes, *_WHOLE]
    return ["datasets", "create", "-p", str(folder), *_WHOLE]


def exists(dataset: str) -> bool:
    """Whether Kaggle has a data set ``owner/slug`` that we may see. Raises GoldfoldError when Kaggle cannot be asked."""
    found = run_client("datasets", "status", dataset)
    if found.returncode == 0 and not re.search(r"\b(403|404)\b", found.stdout):
        return True
    # Kaggle answers 403 as well for what does not exist.
    if re.search(r"\b(403|404)\b", found.stdout + found.stderr):
        return False
    raise GoldfoldError(f"kaggle datasets status {dataset} failed: {last_line(found)}")


def run_client(*arguments: str, show: bool = False) -> subprocess.CompletedProcess[str]:
    """Run ``kaggle`` with these arguments. Raises BadInput where there is no such command.

    ``show``: the client's own progress, which it writes to standard error, stays visible.
    """
    command: Sequence[str] = ("kaggle", *arguments)
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=None if show else subprocess.PIPE, text=True, check=False
        )
    except OSError as error:
        raise BadInput("kaggle", f"the command cannot be run ({error.strerror})", MEND_CLIENT) from None


def last_line(found: subprocess.CompletedProcess[str]) -> str:
    """The last line that the client said."""
    lines = [line.strip() for line in f"{found.stdout}\n{found.stderr or ''}".splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {found.returncode}"
