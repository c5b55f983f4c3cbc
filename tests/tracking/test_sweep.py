"""The shipped sweep: W&B's agent makes sound commands of it, and a trial reports the mean over folds, once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from goldfold import files
from goldfold.cli import main
from goldfold.config import load_config
from goldfold.paths import shipped_configs
from goldfold.pipeline.reporting import run_scores
from tests.pipeline.competitions import make_competition
from tests.tracking.server import wandb_server

SWEEP = yaml.safe_load((shipped_configs() / "sweep.yaml").read_text(encoding="utf-8"))
CHOSEN = {"optim.lr": 0.00123, "optim.weight_decay": 1e-05, "model.drop_rate": 0.4, "augment.preset": "medium"}


def agents_command() -> list[str]:
    """What `wandb agent` runs for a trial with ``CHOSEN``."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    command = utils.create_sweep_command(list(SWEEP["command"]))
    macros = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in CHOSEN.items()}})
    parts: list[str] = []
    for part in command:
        parts += macros[part[2:-1]] if part[:2] == "${" else [part]
    return parts


def test_it_optimises_the_mean_over_folds() -> None:
    assert SWEEP["metric"] == {"name": "objective", "goal": "maximize"}
    cv: dict[str, Any] = {"metric": "m", "mean": 0.25, "std": 0.1, "oof": {"m": 0.3}, "leaky": False}
    cv |= {"optimistic": False, "folds": [{"fold": 0, "m": 0.9}, {"fold": 1, "m": None}], "greater_is_better": True}
    assert run_scores(cv)["objective"] == 0.25
    # The goal is the same for a loss.
    assert run_scores({**cv, "greater_is_better": False})["objective"] == -0.25
    assert run_scores({**cv, "mean": None})["objective"] is None


def test_its_numbers_are_numbers_and_its_keys_are_keys() -> None:
    assert set(SWEEP["parameters"]) == set(CHOSEN)
    for name, values in SWEEP["parameters"].items():
        limits = [values[key] for key in ("min", "max") if key in values]
        assert all(isinstance(value, float) for value in limits), f"{name}: PyYAML reads text"
        for value in limits or values["values"]:
            load_config(shipped_configs() / "elpv/small.yaml", [f"{name}={value}"])


def test_the_agents_command_trains_with_its_choice(tmp_path: Path) -> None:
    """A stand-in for goldfold writes down what it is given."""
    stand_in = tmp_path / "bin/goldfold"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > given\n')
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "WANDB_RUN_ID": "x1y2", "WANDB_SWEEP_ID": "s"}
    subprocess.run(agents_command(), cwd=tmp_path, env=environment, check=True, timeout=60)
    command, config, *overrides = (tmp_path / "given").read_text().splitlines()
    assert command == "train"
    place = overrides.index("--run")
    run = overrides[place + 1]
    del overrides[place : place + 2]
    assert run == "sweep-x1y2"
    loaded = load_config(shipped_configs().parent / config, overrides)
    assert loaded.tracking.wandb
    assert loaded.tracking.mode == "online"
    assert (loaded.optim.lr, loaded.optim.weight_decay) == (0.00123, 1e-05)
    assert (loaded.model.drop_rate, loaded.augment.preset) == (0.4, "medium")


@pytest.fixture
def trial(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, and the environment in which W&B's agent starts a trial."""
    config = make_competition(project, rows=24, test_rows=6)
    chosen = project / "config-trial.yaml"
    chosen.write_text("wandb_version: 1\n\noptim.lr:\n  value: 0.02\n")
    for name, value in {"SWEEP_ID": "sweep", "RUN_ID": "trial", "SWEEP_PARAM_PATH": str(chosen)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    return config


def test_a_trial_reports_once_and_its_folds_stand_apart(
    trial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with wandb_server(monkeypatch) as (server, _):
        assert main(["train", str(trial), "train.epochs=1", "optim.lr=0.02", "tracking.wandb=true", "--run", "t"]) == 0
        sent = {run.variables["displayName"]: run for run in server.runs.values()}
        assert set(sent) == {"t-fold0", "t-fold1", "t-summary"}
        assert {name: run.variables["sweep"] for name, run in sent.items()} == {
            "t-fold0": None,
            "t-fold1": None,
            "t-summary": "sweep",
        }
        assert [id for id in server.runs if id == "trial"] == ["trial"]  # the id that the agent gave is the summary's
        assert server.runs["trial"] is sent["t-summary"]
        assert sent["t-summary"].summary["objective"] == files.read_json(Path("runs/t/cv.json"))["mean"]
        assert "objective" not in sent["t-fold0"].summary
        assert '"optim.lr":{"value":0.02}' in sent["t-summary"].variables["config"]
        assert server.artifacts == ["run/t"]
        assert "warning: W&B" not in capsys.readouterr().err
        assert Path("runs/t/wandb.json").exists()
    assert os.environ["WANDB_SWEEP_ID"] == "sweep"  # nothing of the environment is lost


def test_a_part_of_the_folds_is_no_trial(trial: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert main(["train", str(trial), "tracking.wandb=true", "--fold", "0"]) == 2
    assert "--fold: a trial of the W&B sweep sweep is scored on all folds" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_file_is_where_the_page_says() -> None:
    page = (Path(__file__).parents[2] / "docs/tracking.md").read_text(encoding="utf-8")
    assert "configs/sweep.yaml" in page
