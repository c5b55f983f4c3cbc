"""A project with finished teachers, trained once, and a way to look at what students are given."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from goldfold.cli import main
from goldfold.ensemble.blend import Blend
from goldfold.ensemble.load import load_member
from goldfold.machine import Machine
from goldfold.paths import Workspace
from goldfold.pipeline import stages
from goldfold.tracking import WandbRun
from goldfold.training import FoldJob, FoldResult
from tests.pipeline.competitions import make_competition

CONFIG = "configs/tiny.yaml"
SHORT = ["train.epochs=1"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of the tiny competition: ``tiny`` with two seeds, ``grey`` of other size, channels and views."""
    root = tmp_path_factory.mktemp("teachers")
    torch.set_num_threads(1)
    make_competition(root)
    grey = ["input.size=32", "input.channels=1", "tta.views=flips", "--run", "grey", "train.seed=3"]
    with contextlib.chdir(root):
        assert main(["train", CONFIG, *SHORT, "train.seeds=[7]"]) == 0
        assert main(["train", CONFIG, *SHORT, *grey]) == 0
    return root


@pytest.fixture
def teachers(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``trained`` as the working folder."""
    torch.set_num_threads(1)
    root = tmp_path / "project"
    shutil.copytree(trained, root)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> dict[str, FoldJob]:
    """What students are given, by fold folder; students are not trained, their teachers are."""
    jobs: dict[str, FoldJob] = {}
    real = stages.train_fold

    def spy(job: FoldJob, machine: Machine, tracker: WandbRun) -> FoldResult:
        if not job.recipe.teacher.runs:
            return real(job, machine, tracker)
        jobs[job.paths.folder.name] = job
        return FoldResult(job.fold, job.seed, 0.0, None, 0.0)

    monkeypatch.setattr(stages, "train_fold", spy)
    return jobs


def write_ensemble(
    root: Path,
    name: str,
    members: Sequence[str],
    weights: Mapping[int | None, Sequence[float]],
    method: str = "simplex",
) -> None:
    """An ensemble's record with the given weights: of all rows (None), and those fitted without each fold."""

    def blend(values: Sequence[float]) -> dict[str, object]:
        return {"blend": Blend(method, tuple(members), np.array(values)).to_dict(), "calibration": None}  # type: ignore[arg-type]

    workspace = Workspace(root)
    folder = workspace.ensemble(name)
    folder.mkdir(parents=True)
    record = {
        "members": [{"name": run, "digest": load_member(workspace.run(run)).digest} for run in members],
        "method": method,
        "calibration": "none",
        "leaky": False,
        "optimistic": False,
        "fitted": blend(weights[None]),
        "fold_fitted": {str(fold): blend(values) for fold, values in weights.items() if fold is not None},
    }
    (folder / "ensemble.json").write_text(json.dumps(record))
