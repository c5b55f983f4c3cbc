"""``copier update``: a newer Goldfold comes into a project, and what the competitor changed stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from goldfold.config import load_config
from tests.scaffold.conftest import git

pytest.importorskip("copier", reason="needs: pip install copier")

FIRST = Path("configs/my-comp/tf_efficientnet_b0.yaml")
RECIPE = Path("configs/recipes/small-data.yaml")
SEEDS, SHOWN = Path("src/goldfold/seeds.py"), Path("src/goldfold/progress.py")
MARKS = ("<<<<<<< before updating", ">>>>>>> after updating")


def copier(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "copier", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", message)


def change_first_line(path: Path, line: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([f"{line}\n", *lines[1:]]), encoding="utf-8")


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def write_second_version(template: Path) -> None:
    """Tag 2.0.0: code, a recipe and the first experiment changed, files more and less."""
    change_first_line(template / SEEDS, '"""Seeds of version two."""')
    change_first_line(template / SHOWN, '"""Progress of version two."""')
    change_first_line(template / RECIPE, "# Version two's recipe.")
    change_first_line(template / "docs/canary.md", "# The canary of version two")
    change_first_line(template / "configs/{{ slug }}/{{ first_file }}.yaml.jinja", "# Version two's experiment.")
    (template / "src/goldfold/later.py").write_text('"""New in version two."""\n')
    (template / "src/goldfold/demo/later.py").write_text('"""The demo\'s part of version two."""\n')
    (template / "docs/tta.md").unlink()
    commit(template, "Two")
    git(template, "tag", "2.0.0")


def work(project: Path) -> None:
    """What a competitor does between two versions."""
    append(project / SEEDS, "\n\ndef mine() -> int:\n    return 7\n")
    change_first_line(project / RECIPE, "# My recipe.")
    append(project / FIRST, "  seed: 41\n")  # the file ends in its section train
    (project / "configs/my-comp/third.yaml").write_text("extends: tf_efficientnet_b0.yaml\n")
    (project / "docs/canary.md").unlink()
    (project / "data").mkdir()
    (project / "data/train.csv").write_text("id,label\n")
    commit(project, "My work")


@pytest.fixture(scope="module")
def updated(small_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project made from version one, changed, and updated to version two by the commands that a user types."""
    folder = tmp_path_factory.mktemp("update")
    git(folder, "clone", "-q", str(small_template), "goldfold")
    copier(folder, "copy", "--quiet", "--defaults", "--data", "folds=4", "goldfold", "my-comp")
    project = folder / "my-comp"
    git(project, "init", "-q")
    commit(project, "Start")
    work(project)
    write_second_version(folder / "goldfold")
    copier(project, "update", "--quiet", "--defaults")
    return project


def test_goldfolds_changes_arrive(updated: Path) -> None:
    assert (updated / SHOWN).read_text().startswith('"""Progress of version two."""')
    assert (updated / "src/goldfold/later.py").is_file()
    assert not (updated / "docs/tta.md").exists()
    assert not (updated / "src/goldfold/demo").exists()


def test_changes_of_both_sides_are_merged(updated: Path) -> None:
    merged = (updated / SEEDS).read_text()
    assert merged.startswith('"""Seeds of version two."""')
    assert merged.endswith("def mine() -> int:\n    return 7\n")
    assert (updated / FIRST).read_text().startswith("# Version two's experiment.\n")
    config = load_config(updated / FIRST)
    assert (config.train.seed, config.folds.n) == (41, 4)


def test_what_is_the_competitors_own_stays(updated: Path) -> None:
    assert (updated / "configs/my-comp/third.yaml").read_text() == "extends: tf_efficientnet_b0.yaml\n"
    assert (updated / "data/train.csv").read_text() == "id,label\n"
    assert not (updated / "docs/canary.md").exists(), "what was deleted stays away"


def test_a_conflict_is_shown_and_nothing_is_lost(updated: Path) -> None:
    text = (updated / RECIPE).read_text()
    lines = text.splitlines()
    places = [lines.index(line) for line in (MARKS[0], "# My recipe.", "# Version two's recipe.", MARKS[1])]
    assert places == sorted(places)
    assert git(updated, "diff", "--name-only", "--diff-filter=U").splitlines() == [str(RECIPE)]
    marked = [path for path in updated.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert [path for path in marked if MARKS[0].encode() in path.read_bytes()] == [updated / RECIPE]
    assert list(updated.rglob("*.rej")) == []


def test_the_answers_are_kept_and_the_version_is_noted(updated: Path) -> None:
    answers = yaml.safe_load((updated / ".copier-answers.yml").read_text())
    assert (answers["slug"], answers["folds"], answers["_commit"]) == ("my-comp", 4, "2.0.0")
