"""Wheels made without any network: what pip installs from them is what runs here."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import io
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import goldfold
from goldfold.errors import BadInput
from goldfold.kaggle.wheels import KAGGLE_IMAGE, lacking, normalised, repack, write_wheels
from goldfold.paths import shipped_configs

ROOT = Path(__file__).parents[2]
PACKAGE = Path(goldfold.__file__).parent


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def installed(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed them."""
    target = tmp_path_factory.mktemp("installed")
    offline = ["--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", "--no-cache-dir", "-q"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), *map(str, wheels)], check=True
    )
    return target


def test_goldfold_and_what_kaggle_lacks(wheels: list[Path]) -> None:
    names = [path.name for path in wheels]
    assert names[0] == f"goldfold-{goldfold.__version__}-py3-none-any.whl"
    assert {"ttach", "iterative_stratification"} == {name.split("-")[0] for name in names[1:]}
    assert names[1:] == sorted(names[1:])


def test_archives_keep_the_rules_of_wheels(wheels: list[Path]) -> None:
    for path in wheels:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            info = f"{'-'.join(path.name.split('-')[:2])}.dist-info"
            assert names[-1] == f"{info}/RECORD"
            rows = list(csv.reader(io.StringIO(archive.read(names[-1]).decode())))
            assert [row[0] for row in rows] == names
            for name, digest, size in rows[:-1]:
                content = archive.read(name)
                expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert (digest, int(size)) == (f"sha256={expected}", len(content))
            assert {f"{info}/METADATA", f"{info}/WHEEL"} <= set(names)
            assert not [name for name in names if "__pycache__" in name or name.startswith((".", "/"))]
            assert {item.date_time for item in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_pip_installs_the_very_code(installed: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        found = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}

    own = content(installed / "goldfold")
    configs = {name.removeprefix("_configs/"): own.pop(name) for name in list(own) if name.startswith("_configs/")}
    assert own == content(PACKAGE)
    shipped = content(shipped_configs())
    assert configs == {name: value for name, value in shipped.items() if not name.startswith("{{")}
    ttach = importlib.metadata.distribution("ttach").locate_file("ttach")
    assert content(installed / "ttach") == content(Path(str(ttach)))


def test_what_was_installed_from_a_wheel_gives_that_wheel_again(
    wheels: list[Path], installed: Path, tmp_path: Path
) -> None:
    # As on Kaggle, where there is no source tree.
    code = (
        "import sys, goldfold; from pathlib import Path; from goldfold.kaggle.wheels import write_wheels;"
        "assert goldfold.__file__.startswith(sys.argv[1]), goldfold.__file__;"
        "print(*(path.name for path in write_wheels(Path(sys.argv[2]))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", code, str(installed), str(tmp_path)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert printed.split() == [path.name for path in wheels]
    for path in wheels:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_equal_files_are_equal_bytes(wheels: list[Path], tmp_path: Path) -> None:
    again = write_wheels(tmp_path)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in wheels]


def test_the_metadata_are_those_of_the_project(installed: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (found,) = importlib.metadata.distributions(name="goldfold", path=[str(installed)])
    assert found.version == goldfold.__version__
    assert found.metadata["Requires-Python"] == project["requires-python"]
    assert set(map(Requirement, found.requires or [])) == set(map(Requirement, project["dependencies"]))
    (entry,) = found.entry_points
    assert (entry.name, entry.value) == ("goldfold", project["scripts"]["goldfold"])


def test_kaggles_image_satisfies_what_is_not_packed() -> None:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in map(Requirement, requirements):
        name = normalised(requirement.name)
        if KAGGLE_IMAGE.get(name):
            assert requirement.specifier.contains(str(KAGGLE_IMAGE[name])), requirement


def test_kernel_constraints_are_of_the_same_image() -> None:
    lines = (ROOT / "inference/constraints-kaggle.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if re.match(r"[a-z]", line))
    for name, version in KAGGLE_IMAGE.items():
        assert name in pinned
        assert version is None or f"{pinned[name]}.".startswith(f"{version}.")
    assert not {"ttach", "goldfold", "iterative-stratification"} & pinned.keys()


def test_requirements_of_requirements_come_too() -> None:
    names = [item.metadata["Name"] for item in lacking(["iterative-stratification", "torch>=2"], {"numpy": None})]
    assert {"iterative-stratification", "scikit-learn", "joblib", "torch"} <= set(names)
    assert "numpy" not in names
    assert lacking(['nobody-has-this; python_version < "3"', "torch"], {"torch": None}) == []
    with pytest.raises(BadInput, match="nobody-has-this: is not installed here"):
        lacking(["nobody-has-this"])


def test_compiled_code_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repack(importlib.metadata.distribution("numpy"), tmp_path) is None
    assert "numpy" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_console_scripts_are_left_to_pip(tmp_path: Path) -> None:
    wheel = repack(importlib.metadata.distribution("pytest"), tmp_path)
    assert wheel is not None
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "pytest/__init__.py" in names
    assert not [name for name in names if ".." in name or name.endswith("bin/pytest")]
