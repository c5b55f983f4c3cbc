"""Pseudo-labels on disk are those that the student was given: what an earlier attempt left never passes for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goldfold import files
from goldfold.cli import main
from goldfold.data import PSEUDO
from goldfold.records import Floats
from goldfold.training import FoldJob
from tests.rounds.conftest import CONFIG, SHORT

Heard = dict[str, FoldJob]
SOFT, HARD = "teacher.pseudo.labels=soft", "teacher.pseudo.labels=hard"
DISTIL = "teacher.distill.weight=0.5"
SEEDS = "train.seeds=[4]"


def student(*settings: str) -> list[str]:
    return ["train", CONFIG, *SHORT, "--run", "student", "teacher.runs=[tiny]", *settings]


def stored() -> set[str]:
    run = Path("runs/student")
    return {str(path.relative_to(run)) for path in run.rglob("labels.*")}


def given(job: FoldJob) -> Floats:
    return job.examples.targets[job.examples.kind == PSEUDO]


class Killed(BaseException):
    pass


def kill_after(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The process ends as soon as a file of that name, in that folder, is written."""
    real = files.write_atomic

    def killing(path: Path, write: Any) -> None:
        real(path, write)
        if str(path).endswith(name):
            raise Killed

    monkeypatch.setattr(files, "write_atomic", killing)


def test_an_attempt_without_pseudo_labels_forgets_those_of_one_with(teachers: Path, heard: Heard) -> None:
    """cv.json would count them, and an export would carry them on."""
    folders = [f"fold{fold}{seed}" for fold in (0, 1) for seed in ("", "-seed4")]
    assert main(student(SOFT, DISTIL, SEEDS)) == 0
    assert stored() == {f"{folder}/labels.{kind}" for folder in folders for kind in ("json", "parquet")}
    assert main(student(DISTIL, SEEDS)) == 0
    assert stored() == set()
    assert all(not len(given(job)) for job in heard.values())


def test_a_rate_test_forgets_nothing(teachers: Path, heard: Heard) -> None:
    assert main(student(SOFT)) == 0
    before = stored()
    assert len(before) == 4
    command = ["lr-find", CONFIG, "--steps", "20", "--from", "1e-4", "name=student"]
    assert main(command) == 0
    assert stored() == before


def test_labels_that_no_image_passed_leave_no_table_of_others(teachers: Path, heard: Heard) -> None:
    assert main(student(SOFT, SEEDS)) == 0
    assert main(student(SOFT, SEEDS, "teacher.pseudo.min_prob=1")) == 0
    assert {Path(name).name for name in stored()} == {"labels.json"}
    assert [json.loads(path.read_text())["taken"] for path in Path("runs/student").rglob("labels.json")] == [0] * 4


@pytest.mark.parametrize("folder", ["fold0", "fold0-seed4"])
def test_a_table_that_was_cut_off_from_its_record_vouches_for_nothing(
    folder: str, teachers: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soft labels; then hard ones, killed between table and record; then the soft ones again."""
    assert main(student(SOFT, SEEDS)) == 0
    soft = {name: given(job) for name, job in heard.items()}
    table = Path(f"runs/student/{folder}/labels.parquet")
    before = table.read_bytes()
    with monkeypatch.context() as patch:
        kill_after(patch, f"{folder}/labels.parquet")
        with pytest.raises(Killed):
            main(student(HARD, SEEDS))
    assert table.read_bytes() != before
    assert not table.with_suffix(".json").exists()
    heard.clear()
    assert main(student(SOFT, SEEDS)) == 0
    assert table.read_bytes() == before
    assert heard.keys() == soft.keys()
    for name, job in heard.items():
        assert np.array_equal(given(job), soft[name])
