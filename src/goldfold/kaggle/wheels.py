"""The wheels of a pack: Goldfold and what Kaggle's image lacks, made without any network from what is installed here.

A pure Python package is packed again from its installed files, so that a kernel runs the very code that is here. Equal
files are equal bytes: names are sorted, and all dates are those of the zip format's first day.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import io
import re
import sys
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

import goldfold
from goldfold import files
from goldfold.errors import BadInput
from goldfold.paths import shipped_configs
from goldfold.progress import warn

THERE = {"extra": "", "python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux"}
"""Where a kernel runs, as the markers of requirements ask for it; this Python may be another one."""
KAGGLE_IMAGE: dict[str, str | None] = {
    "accelerate": "1.13",
    "albumentations": "2.0.8",
    "numpy": "2.0",
    "omegaconf": "2.3",
    "opencv-python-headless": None,
    "packaging": None,
    "pandas": "2.2",
    "pillow": None,
    "pyarrow": None,
    "pydantic": "2.13",
    "pyyaml": None,
    "safetensors": None,
    "scikit-learn": "1.6",
    "scipy": None,
    "tabulate": None,
    "threadpoolctl": None,
    "timm": "1.0.26",
    "torch": "2.10",
    "torchvision": None,
    "tqdm": None,
}
"""What Kaggle's notebook image has, with its version where Goldfold was tried with it. All else comes as a wheel."""

GENERATOR = "goldfold"
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
_NOT_PACKED = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json", "uv_build.json")


def write_wheels(folder: Path) -> list[Path]:
    """Write the wheels of Goldfold and of all that it needs and Kaggle's image lacks; returns them, Goldfold's first.

    A package with compiled code fits one kind of machine only and is left out with a warning. Raises BadInput for a
    package that is not installed here.
    """
    own, requirements = _goldfold_wheel(folder)
    found = [own]
    for distribution in lacking(requirements):
        wheel = repack(distribution, folder)
        if wheel is not None:
            found.append(wheel)
    return found


def lacking(requirements: Sequence[str], image: Mapping[str, str | None] = KAGGLE_IMAGE) -> list[Distribution]:
    """The installed distributions among ``requirements``, and what they require themselves, that ``image`` has not.

    Sorted by name. Raises BadInput for one that is not installed.
    """
    found: dict[str, Distribution] = {}
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = normalised(requirement.name)
        marker = requirement.marker
        if name in image or name in found or (marker is not None and not marker.evaluate(THERE)):
            continue
        found[name] = _distribution(requirement.name)
        waiting += found[name].requires or []
    return [found[name] for name in sorted(found)]


def repack(distribution: Distribution, folder: Path) -> Path | None:
    """An installed pure Python distribution as a wheel again; None, with a warning, where it has compiled code."""
    name, version = distribution.metadata["Name"], distribution.version
    text = distribution.read_text("WHEEL")
    if distribution.files is None or text is None:
        raise BadInput(name, "was not installed from a wheel", f"pip install --force-reinstall {name}")
    tags = re.findall(r"^Tag: (\S+)", text, re.MULTILINE)
    if not all(tag.endswith("-none-any") for tag in tags) or "Root-Is-Purelib: true" not in text:
        warn(f"{name} {version} has compiled code: no wheel of it is packed, and Kaggle's image must have it")
        return None
    scripts = {entry.name for entry in distribution.entry_points if entry.group.endswith("_scripts")}
    members: dict[str, bytes] = {}
    for path in distribution.files:
        if path.suffix == ".pyc" or (path.parent.suffix == ".dist-info" and path.name in _NOT_PACKED):
            continue
        place = path.as_posix()
        if path.parts[0] == "..":
            if path.name in scripts or path.name.removesuffix(".exe") in scripts:
                continue  # pip writes it anew
            outside = Path(str(path.locate())).resolve().relative_to(Path(sys.prefix).resolve())
            place = f"{_stem(name, version)}.data/data/{outside.as_posix()}"
        members[place] = Path(str(path.locate())).read_bytes()
    info = next(place.split("/")[0] for place in members if place.endswith(".dist-info/METADATA"))
    pythons = ".".join(sorted({python for tag in tags for python in tag.split("-")[0].split(".")}))
    return _write(folder / f"{_stem(name, version)}-{pythons}-none-any.whl", members, info)


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _goldfold_wheel(folder: Path) -> tuple[Path, list[str]]:
    """Goldfold's wheel, and its requirements: from the source tree that this process runs, or as it is installed."""
    package = Path(goldfold.__file__).resolve().parent
    project = package.parents[1] / "pyproject.toml"
    if package.parent.name != "src" or not project.is_file():
        distribution = _distribution("goldfold")
        wheel = repack(distribution, folder)
        assert wheel is not None, "goldfold is pure Python"
        return wheel, [text for text in distribution.requires or [] if "extra ==" not in text]
    with project.open("rb") as file:
        table: dict[str, Any] = tomllib.load(file)["project"]
    requirements = [str(item) for item in table.get("dependencies", [])]
    stem = _stem("goldfold", goldfold.__version__)
    metadata = [
        "Metadata-Version: 2.1",
        "Name: goldfold",
        f"Version: {goldfold.__version__}",
        f"Requires-Python: {table.get('requires-python', '>=3.11')}",
        *(f"Requires-Dist: {item}" for item in requirements),
    ]
    wheel_file = ["Wheel-Version: 1.0", f"Generator: {GENERATOR}", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    members = {
        **{f"goldfold/{path}": content for path, content in _tree(package).items()},
        # As the wheel that pyproject.toml builds has them.
        **{f"goldfold/_configs/{path}": content for path, content in _tree(shipped_configs()).items()},
        f"{stem}.dist-info/METADATA": _lines(metadata),
        f"{stem}.dist-info/WHEEL": _lines(wheel_file),
        f"{stem}.dist-info/entry_points.txt": _lines(["[console_scripts]", "goldfold = goldfold.cli.__main__:run"]),
    }
    return _write(folder / f"{stem}-py3-none-any.whl", members, f"{stem}.dist-info"), requirements


def _distribution(name: str) -> Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise BadInput(name, "is not installed here, so no wheel of it can be packed", f"pip install {name}") from None


def _tree(folder: Path) -> dict[str, bytes]:
    """All files under a folder but caches, hidden ones and those of the template."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder): path for path in paths}
    return {
        place.as_posix(): path.read_bytes()
        for place, path in found.items()
        if "__pycache__" not in place.parts and not any(part.startswith((".", "{{")) for part in place.parts)
    }


def _stem(name: str, version: str) -> str:
    return f"{normalised(name).replace('-', '_')}-{version.replace('-', '_')}"


def _lines(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _write(path: Path, members: dict[str, bytes], info: str) -> Path:
    """A wheel: ``members``, sorted, and the RECORD of their digests, last, as the wheel format wants it."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    # The metadata stands at the end of the archive, which readers look at first.
    order = sorted(members, key=lambda place: (place.startswith(f"{info}/"), place))
    for place in order:
        digest = base64.urlsafe_b64encode(hashlib.sha256(members[place]).digest()).rstrip(b"=").decode()
        writer.writerow([place, f"sha256={digest}", len(members[place])])
    record = f"{info}/RECORD"
    writer.writerow([record, "", ""])
    whole = {**{place: members[place] for place in order}, record: table.getvalue().encode()}

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for place, content in whole.items():
                entry = zipfile.ZipInfo(place, _FIRST_DAY)
                entry.external_attr = 0o100644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, content)

    files.write_atomic(path, write)
    return path
