"""A competition's files from Kaggle into ``data/<slug>``: whole or not at all.

Kaggle's own client (the command ``kaggle``, or the package kagglehub) holds the token and downloads; unpacking is ours.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from goldfold import files
from goldfold.errors import BadInput, GoldfoldError
from goldfold.kaggle.unzip import unpack, unpack_inner
from goldfold.kaggle.upload import MEND_CLIENT, MEND_TOKEN, find_owner
from goldfold.paths import find_input
from goldfold.progress import say

RERUN = "KAGGLE_IS_COMPETITION_RERUN"
"""Set in the hidden rerun of a submission, where any download breaks the scoring."""


def competition_slug(text: str) -> str:
    """The slug in ``text``, which may also be the address of a page of the competition. Raises BadInput."""
    found = re.search(r"kaggle\.com/(?:competitions|c)/([^/?#]+)", text)
    slug = found[1] if found else text.strip()
    if not re.fullmatch(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*", slug):
        raise BadInput(
            slug or "SLUG", "is no competition's slug", "give the last part of kaggle.com/competitions/<slug>"
        )
    return slug


def download_competition(slug: str, to: Path, root: Path) -> Path:
    """Download and unpack a competition into the folder ``to``; returns where its files lie.

    Where Kaggle has mounted the competition already, that folder is returned and nothing is downloaded. ``to`` comes
    into being whole; a download that was cut off goes on the next time. Raises BadInput inside a submission's rerun,
    without a client or a token, where the rules are not accepted, and when ``to`` exists; GoldfoldError when the
    download or the archive is broken.
    """
    if os.environ.get(RERUN):
        raise BadInput(
            "goldfold data download",
            f"this is a submission's rerun ({RERUN} is set), and a download would break its scoring",
            "add the competition to the kernel's inputs; they are found there",
        )
    mounted = find_input(root, slug, f"data/{slug}/")
    if mounted != root / f"data/{slug}/" and mounted.is_dir():
        say(f"{slug}: Kaggle has put it into {mounted}; paths such as data/{slug}/train.csv are found there")
        return mounted
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise BadInput(to, "it is there already", "delete it, or name another folder with --to")
    to.parent.mkdir(parents=True, exist_ok=True)
    # Survives a cut-off download, so that the client can go on with it.
    waiting = to.parent / f".{to.name}.download"
    with files.locked(waiting, wait=False) as held:
        if not held:
            raise BadInput(to, "another process is downloading it", "wait for it")
        building = to.parent / f".{to.name}.unpacking"
        shutil.rmtree(building, ignore_errors=True)  # of a process that was killed
        building.mkdir()
        try:
            if shutil.which("kaggle") is not None:
                _by_command(slug, waiting, building)
            else:
                _by_kagglehub(slug, building)
            if not any(building.iterdir()):
                raise GoldfoldError(f"{slug}: Kaggle sent no files")
            building.replace(to)  # an empty folder gives way
            shutil.rmtree(waiting)
        finally:
            shutil.rmtree(building, ignore_errors=True)
            with contextlib.suppress(OSError):  # it stays where something waits in it
                waiting.rmdir()
    return to


def _by_command(slug: str, waiting: Path, building: Path) -> None:
    find_owner()
    code, said = _shown(["kaggle", "competitions", "download", "-c", slug, "-p", str(waiting)])
    got = [path for path in sorted(waiting.iterdir()) if not path.name.endswith(".kaggle-partial")]
    if code or not got:
        raise _reason(slug, said)
    for path in got:
        if path.suffix == ".zip":
            try:
                unpack(path, building)
            except GoldfoldError:
                shutil.rmtree(waiting)  # the next try begins anew
                raise
        else:
            path.replace(building / path.name)
    unpack_inner(building)


def _by_kagglehub(slug: str, building: Path) -> None:
    try:
        kagglehub = importlib.import_module("kagglehub")
    except ImportError:
        raise BadInput(
            "kaggle", "neither the command 'kaggle' nor the package kagglehub is there", MEND_CLIENT
        ) from None
    try:
        found = Path(kagglehub.competition_download(slug))
    except Exception as error:
        raise _reason(slug, f"{type(error).__name__}: {error}") from error
    # Out of its cache: by hard links where the disk is the same.
    for path in sorted(found.rglob("*")):
        target = building / path.relative_to(found)
        if path.is_symlink():
            raise GoldfoldError(f"{path}: a link, which no competition's files need; delete {found} and download again")
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(path, target)
    unpack_inner(building)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _shown(command: Sequence[str]) -> tuple[int, str]:
    """Run a command; its progress is shown as it comes. Returns its exit code and the end of what it said."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = b""
    while chunk := os.read(process.stdout.fileno(), 4096):
        sys.stderr.write(chunk.decode(errors="replace"))
        sys.stderr.flush()
        said = (said + chunk)[-4096:]
    process.stdout.close()
    return process.wait(), said.decode(errors="replace")


def _reason(slug: str, said: str) -> GoldfoldError:
    """What went wrong, from what the client said."""
    page = f"https://www.kaggle.com/competitions/{slug}"
    if re.search(r"\b401\b|[Uu]nauthenticated|[Uu]nauthorized|Authentication required", said):
        return BadInput("kaggle", "Kaggle's client has no valid token", MEND_TOKEN)
    if re.search(r"\b403\b|[Ff]orbidden", said):
        return BadInput(slug, "Kaggle refuses its files", f"join it and accept its rules at {page}/rules")
    if re.search(r"\b404\b|[Nn]ot [Ff]ound", said):
        return BadInput(slug, "Kaggle knows no such competition", f"look at {page}")
    lines = [line.strip() for line in re.split(r"[\r\n]", said) if line.strip()]
    return GoldfoldError(
        f"{slug}: the download failed ({lines[-1][:300] if lines else 'nothing came'}); the same command goes on with it"
    )
