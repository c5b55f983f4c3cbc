"""The tiny demo: digits from PNG files and CSVs to a scored submission, by the command that a newcomer types."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from goldfold.cli import main
from goldfold.errors import GoldfoldError
from goldfold.pipeline import stages
from goldfold.training import FoldJob

SMALL = ["folds.n=2", "train.epochs=3", "train.device=cpu"]


def test_the_tiny_demo_ends_in_a_scored_submission(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--tiny", *SMALL]) == 0
    report = capsys.readouterr().out
    ensemble = json.loads((project / "ensembles/digits/ensemble.json").read_text())
    row = next(line for line in report.splitlines() if " digits (" in line)
    plain, cross_fitted, _, private = (float(number) for number in re.findall(r"\d\.\d{4}", row)[2:6])
    assert plain == pytest.approx(ensemble["cv"]["score"], abs=1e-4)
    assert cross_fitted == pytest.approx(ensemble["cross_fitted"]["score"], abs=1e-4)
    assert private > 0.9  # ten classes
    for path in re.findall(r"^wrote (\S+)$", report, re.MULTILINE):
        assert (project / path).exists()

    # The private score is that of the submission's own labels, counted by hand and by the score command.
    submission = pd.read_csv(project / "submissions/digits.csv", dtype=str).set_index("id")
    solution = pd.read_csv(project / "data/digits/solution.csv", dtype=str).set_index("id")
    by_hand = (submission["label"] == solution["label"].loc[submission.index]).mean()
    assert private == pytest.approx(by_hand, abs=1e-4)
    command = ["score", "submissions/digits.csv", "data/digits/solution.csv", "configs/digits/resnet.yaml", *SMALL]
    assert main(command) == 0
    assert f"accuracy: {by_hand:.6f}" in capsys.readouterr().out


def test_the_second_call_trains_nothing_again(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["folds.n=2", "train.epochs=1", "train.device=cpu"]
    assert main(["demo", "--tiny", *settings]) == 0
    weights = sorted((project / "runs").rglob("model.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    first = (project / "submissions/digits.csv").read_bytes()
    capsys.readouterr()
    assert main(["demo", "--tiny", *settings]) == 0
    assert "epoch" not in capsys.readouterr().err
    assert [path.stat().st_mtime_ns for path in weights] == before
    assert (project / "submissions/digits.csv").read_bytes() == first


def test_nothing_but_scoring_reads_the_solution(project: Path) -> None:
    assert main(["demo", "--tiny", "--prepare"]) == 0
    (project / "data/digits/solution.csv").unlink()
    settings = ["folds.n=2", "train.epochs=1", "train.device=cpu"]
    assert main(["run", "configs/digits/pipeline.yaml", *settings]) == 0
    assert (project / "submissions/digits.csv").exists()


def test_a_failed_round_does_not_hide_those_that_ended(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = stages.train_fold

    def failing(job: FoldJob, *arguments: Any) -> Any:
        if job.run == "digits-efficientnet":
            raise GoldfoldError("the loss is nan; lower optim.lr")
        return real(job, *arguments)

    monkeypatch.setattr(stages, "train_fold", failing)
    assert main(["demo", "--tiny", "folds.n=2", "train.epochs=1", "train.device=cpu"]) == 1
    shown = capsys.readouterr()
    cv = json.loads((project / "runs/digits-resnet/cv.json").read_text())
    assert re.search(rf"^1 train +digits-resnet +{cv['mean']:.4f} ± {cv['std']:.4f} ", shown.out, re.MULTILINE)
    assert re.search(r"^2 train +digits-efficientnet +failed", shown.out, re.MULTILINE)
    assert "round 3 digits-first: skipped: it needs digits-efficientnet" in shown.out
    (line,) = (text for text in shown.err.splitlines() if text.startswith("goldfold: "))
    assert line.startswith("goldfold: digits: not made: train digits-efficientnet (digits-efficientnet: fold0, fold1")
    assert not (project / "submissions").exists()
    record = json.loads((project / "pipelines/digits.json").read_text())  # as docs/formats.md says
    assert [row["state"] for row in record["rounds"]] == ["done", "failed", *["skipped"] * 4]
    page = (project / "pipelines/digits.md").read_text()
    assert "goldfold run configs/digits/pipeline.yaml folds.n=2 train.epochs=1 train.device=cpu" in page
