"""The Python environment of a simulated kernel: a throw-away layer over packages that it cannot change.

The lower packages are those of Kaggle's image, installed once for each constraints file, or the project's own. The kernel
installs the pack's wheels into the layer, as on Kaggle into a fresh container.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from goldfold import files
from goldfold.errors import BadInput, GoldfoldError
from goldfold.progress import say

Environment = Literal["full", "own"]
SHOWN = ("torch", "timm", "albumentations", "accelerate", "pandas", "numpy", "scikit-learn")
READY = "READY"


@dataclass(frozen=True)
class Layer:
    """``python`` runs in the layer; ``packages``: its own site-packages; ``words``: what lies below, for the report."""

    python: Path
    packages: Path
    words: str


def make_layer(
    folder: Path, environment: Environment, constraints: Path, cache: Path, own_wheel: bool, python: str | None = None
) -> Layer:
    """A new environment under ``folder``, over Kaggle's packages (``full``) or the project's (``own``).

    With ``own_wheel`` the pack brings Goldfold, and the project's source tree is kept out of the layer. ``python``: the
    interpreter of ``full`` (None: this one's). Raises BadInput when the constraints or the interpreter are missing,
    GoldfoldError when Kaggle's packages cannot be installed.
    """
    if environment == "own" and python is not None:
        raise BadInput("--python", "the project's own environment has its own Python", "take it with --env full")
    if environment == "own":
        interpreter, below = Path(sys.executable), Path(sysconfig.get_path("purelib"))
        words = "the project's own environment"
    else:
        interpreter = kaggle_environment(constraints, cache, python)
        below = _packages(interpreter)
        words = f"the versions of {constraints.name}"
    _run([interpreter, "-m", "venv", "--without-pip", folder], "make a virtual environment")
    own_python = folder / "bin" / "python"
    packages = _packages(own_python)
    if not packages.is_relative_to(folder):  # whatever happens, nobody else's environment is written to
        raise GoldfoldError(f"{own_python} installs into {packages}, not into {folder}")
    # A .pth file below may put a source tree on the path, such as an editable install of Goldfold.
    line = (
        f"import sys; sys.path.append({str(below)!r})" if own_wheel else f"import site; site.addsitedir({str(below)!r})"
    )
    (packages / "below.pth").write_text(f"{line}\n", encoding="utf-8")
    return Layer(own_python, packages, f"{words} ({_versions(own_python)})")


def kaggle_environment(constraints: Path, cache: Path, interpreter: str | None = None) -> Path:
    """The interpreter of an environment with exactly the packages of ``constraints``; made where it is not in ``cache`` yet.

    This needs a package index, several minutes and about 8 GB. Raises BadInput, GoldfoldError.
    """
    try:
        wanted = constraints.read_bytes()
    except FileNotFoundError:
        raise BadInput(constraints, "the file does not exist", "name the kernel's folder, or take --env own") from None
    base = shutil.which(interpreter or sys.executable)
    if base is None:
        raise BadInput("--python", f"there is no '{interpreter}'")
    version = _run([base, "-I", "-c", "import sys; print(sys.version)"], f"run {base}")
    key = hashlib.sha256(wanted + version.encode()).hexdigest()[:16]
    folder = cache / "kaggle-env" / key
    python = folder / "bin" / "python"
    with files.locked(cache / "kaggle-env"):
        if not (folder / READY).exists():
            say(f"installing the packages of {constraints} into {folder}: once, several minutes, about 8 GB")
            _run([base, "-m", "venv", "--clear", folder], "make a virtual environment")
            install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "-r", constraints]
            _run(install, f"install the packages of {constraints}")
            files.write_text(folder / READY, "")
    return python


def _packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    # Not with -S: it is site that tells an interpreter of its virtual environment.
    return Path(_run([python, "-I", "-c", code], "ask an interpreter for its folders").strip())


def _versions(python: Path) -> str:
    code = (
        "import importlib.metadata as m, json, sys\n"
        "names = json.loads(sys.argv[1])\n"
        "have = {d.metadata['Name'].lower(): d.version for d in m.distributions() if d.metadata['Name']}\n"
        "print(sys.version.split()[0], *(f'{n} {have[n]}' for n in names if n in have), sep=', ')"
    )
    return f"Python {_run([python, '-c', code, json.dumps(SHOWN)], 'ask for the versions of packages').strip()}"


def _run(command: Sequence[object], what: str) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise GoldfoldError(f"cannot {what}: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return done.stdout
