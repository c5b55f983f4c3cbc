"""A competitor's first day, of four kinds of competitions: render, check, train, submit, export, rehearse the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from goldfold.cli import main
from goldfold.config import load_pipeline
from tests.scaffold.competitions import ANSWERS, SMALL, lay_out
from tests.scaffold.conftest import render

pytest.importorskip("copier", reason="needs: pip install copier")


def make(project: Path, target: str, *arguments: str) -> str:
    """The output of a target of the project's Makefile, with this environment's programs and the project's own code."""
    programs = Path(sys.executable).parent
    command = ["make", target, f"BIN={programs}", f"ARGS={' '.join(arguments)}"]
    # Without the variables of a make that runs these tests, whose child would also print the folders it enters.
    foreign = ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def problems(project: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["-C", str(project), "check", str(config), *SMALL])
    return code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: ")]


KINDS = ["binary", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ANSWERS if kind != "binary")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_is_checked_trained_and_submitted(
    kind: str, small_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    answers: dict[str, Any] = {"folds": 2, **ANSWERS[kind]}
    project, slug = render(small_template, tmp_path / "project", **answers), answers["slug"]
    pipeline = Path("configs", slug, "pipeline.yaml")

    code, lines = problems(project, pipeline, capsys)
    assert code == 2
    assert all(f"data/{slug}/" in line and "does not exist" in line for line in lines), lines
    assert any("train.csv" in line for line in lines)

    lay_out(project, answers)
    assert problems(project, pipeline, capsys) == (0, [])

    if kind == "binary":  # by the project's own commands and code; the others by ours, which is the same
        (project / "src/goldfold/__init__.py").write_text('"""Mine."""\n\n__version__ = "0.1.0+mine"\n')
        make(project, "train", *SMALL)
    else:
        assert main(["-C", str(project), "run", str(pipeline), *SMALL]) == 0

    first, second = answers["backbones"].split(", ")
    runs = {f"{slug}-{first}", f"{slug}-{second}"} | ({f"{slug}-pseudo"} if makes_pseudo_labels(answers) else set())
    assert {path.name for path in (project / "runs").iterdir()} == runs
    expected = "0.1.0+mine" if kind == "binary" else "0.1.0"
    for run in runs:
        assert json.loads((project / "runs" / run / "run.json").read_text())["versions"]["goldfold"] == expected
    sample = pd.read_csv(project / "data" / slug / "sample_submission.csv")
    submitted = pd.read_csv(project / "submissions" / f"{slug}.csv")
    assert list(submitted.columns) == list(sample.columns)
    key = answers.get("id", "id")
    assert list(submitted[key]) == list(sample[key])
    assert submitted.notna().all(axis=None)
    assert json.loads((project / "folds" / f"{slug}.json").read_text())["n"] == 2

    kernel = ("--env", "own", "--unreadable", "1", "--out", str(tmp_path / "hidden.csv"))
    capsys.readouterr()
    if kind == "binary":
        make(project, "export")
        printed = make(project, "kernel-test", *kernel)
    else:
        assert main(["-C", str(project), "export", slug, "--to", f"packs/{slug}"]) == 0
        assert main(["-C", str(project), "kernel-test", f"packs/{slug}", *kernel]) == 0
        printed = capsys.readouterr().out
    assert printed.endswith("passed\n"), printed
    assert f"of {answers.get('hours', 9) * 3600} s" in printed
    hidden = pd.read_csv(tmp_path / "hidden.csv")
    assert list(hidden.columns) == list(sample.columns)
    assert len(hidden) != len(sample)
    metadata = json.loads((project / "inference/kernel-metadata.json").read_text())
    packed = json.loads((project / f"packs/{slug}/dataset-metadata.json").read_text())
    assert [source.split("/")[1] for source in metadata["dataset_sources"]] == [packed["id"].split("/")[1]]


def makes_pseudo_labels(answers: dict[str, Any]) -> bool:
    return bool(answers.get("pseudo_labels", answers.get("kind", "csv") == "csv"))


def test_pseudo_labels_are_for_those_who_may(defaults: Path) -> None:
    """By default a CSV competition has them; the projects above say yes, no, and nothing."""
    kinds = [item.kind for item in load_pipeline(defaults / "configs/my-comp/pipeline.yaml").rounds]
    assert kinds == ["train", "train", "pseudo_label", "ensemble", "submit"]
    assert {makes_pseudo_labels(answers) for answers in ANSWERS.values()} == {True, False}


@pytest.mark.slow
def test_the_projects_own_tests_pass(defaults: Path) -> None:
    assert "7 passed" in make(defaults, "test", "-v", "-p", "no:cacheprovider")
