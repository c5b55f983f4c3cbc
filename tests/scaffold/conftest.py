"""The repository as a template, and projects made from it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    """The output of a git command in a folder, under a name of its own."""
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def repository_files() -> list[Path]:
    """The checkout's files that git knows or would add, so that a working tree that is being edited is tested as it is."""
    names = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted({Path(name) for name in names if name and (ROOT / name).is_file()})


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with this checkout's files, committed and tagged 1.0.0."""
    folder = tmp_path_factory.mktemp("template")
    for name in repository_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "-q", "-m", "One")
    git(folder, "tag", "1.0.0")
    git(folder, "gc", "-q")  # copier looks at every file of its clone, .git among them
    return folder


@pytest.fixture(scope="session")
def small_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without cards and tests, tagged 1.1.0: most files are theirs, and copier takes 5 ms a file."""
    folder = tmp_path_factory.mktemp("small") / "goldfold"
    git(folder.parent, "clone", "-q", str(template), folder.name)
    names = [
        name for name in git(folder, "ls-files", "docs/tricks", "tests").split() if name != "tests/test_project.py"
    ]
    git(folder, "rm", "-q", *names)
    git(folder, "commit", "-q", "-m", "Fewer files")
    git(folder, "tag", "1.1.0")
    return folder


def render(template: Path, project: Path, **answers: object) -> Path:
    """What ``copier copy --defaults --data KEY=VALUE ... TEMPLATE PROJECT`` makes."""
    import copier

    copier.run_copy(str(template), project, data=answers, defaults=True, quiet=True)
    return project


@pytest.fixture(scope="session")
def defaults(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of the default answers. Read only."""
    return render(template, tmp_path_factory.mktemp("defaults") / "my-comp")
