"""The tiny demo: digits from PNG files and CSVs to a scored submission, by the command that a newcomer types."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from goldfold.cli import main
from goldfold.errors import GoldfoldError
from goldfold.pipeline import stages
from goldfold.training import FoldJob

SMALL = ["folds.n=2", "train.epochs=3", "train.device=cpu"]


@dataclass(frozen=True)
class Demo:
    """A folder in which the tiny demo was run twice: the second call's report, what it said, and the files it changed."""

    folder: Path
    report: str
    said: str
    changed: list[Path]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The first time without the file of the solution, which nothing but scoring reads."""
    torch.set_num_threads(1)
    root, report, said = tmp_path_factory.mktemp("demo"), io.StringIO(), io.StringIO()
    assert main(["-C", str(root), "demo", "--tiny", "--prepare"]) == 0
    solution = root / "data/digits/solution.csv"
    hidden = solution.rename(root / "hidden.csv")
    assert main(["-C", str(root), "run", "configs/digits/pipeline.yaml", *SMALL]) == 0
    hidden.rename(solution)
    kept = [root / "submissions/digits.csv", *(root / "runs").rglob("model.safetensors")]

    def state() -> list[tuple[int, bytes]]:  # the submission is written anew, with the same bytes
        return [(0 if path.suffix == ".csv" else path.stat().st_mtime_ns, path.read_bytes()) for path in kept]

    before = state()
    with redirect_stdout(report), redirect_stderr(said):
        assert main(["-C", str(root), "demo", "--tiny", *SMALL]) == 0
    changed = [path for path, old, new in zip(kept, before, state(), strict=True) if old != new]
    return Demo(root, report.getvalue(), said.getvalue(), changed)


def test_the_tiny_demo_ends_in_a_scored_submission(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    project, report = demo.folder, demo.report
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
    assert main(["-C", str(project), *command]) == 0
    assert f"accuracy: {by_hand:.6f}" in capsys.readouterr().out


def test_the_second_call_trains_nothing_again(demo: Demo) -> None:
    assert len(list(demo.folder.glob("runs/*/fold*/model.safetensors"))) == 8  # four rounds of two folds
    assert "epoch" not in demo.said
    assert demo.changed == []


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
