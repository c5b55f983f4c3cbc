"""metrics.jsonl is exact after a kill; W&B gets one run a fold, and its failures harm nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from goldfold.config.schema import Tracking
from goldfold.tracking import MetricsFile, WandbRun, read_metrics, wandb_mode

wandb = pytest.importorskip("wandb")
ON = Tracking(wandb=True, mode="offline", tags=("first",))


def start(settings: Tracking, folder: Path, fold: str = "fold0") -> WandbRun:
    return WandbRun(
        settings, project="elpv", run="lite0", fold=fold, job_type="train", config={"lr": 0.1}, folder=folder
    )


def test_lines_of_epochs_that_are_run_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 1)
    for epoch in (1, 2, 3):
        file.log({"epoch": epoch, "loss": 0.5, "auc": None})
    again = MetricsFile(path, 2)
    assert [line["epoch"] for line in read_metrics(path)] == [1]
    again.log({"epoch": 2, "loss": 0.25, "auc": None})
    assert [line["loss"] for line in read_metrics(path)] == [0.5, 0.25]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1, "loss": 1.0}\n{"epoch": 2, "lo')
    assert [line["epoch"] for line in read_metrics(path)] == [1]
    MetricsFile(path, 3).log({"epoch": 3})
    assert path.read_text() == '{"epoch": 1, "loss": 1.0}\n{"epoch": 3}\n'


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    lines: list[dict[str, Any]] = [{"epoch": epoch, "loss": 1 / 3 / epoch} for epoch in range(1, 5)]
    file = MetricsFile(whole, 1)
    for line in lines:
        file.log(line)
    file = MetricsFile(cut, 1)
    for line in lines[:3]:
        file.log(line)
    file = MetricsFile(cut, 3)
    for line in lines[2:]:
        file.log(line)
    assert cut.read_bytes() == whole.read_bytes()


def test_nan_is_no_metric(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        MetricsFile(tmp_path / "m.jsonl", 1).log({"loss": float("nan")})


@pytest.mark.parametrize(
    ("mode", "environment", "netrc", "expected"),
    [
        ("auto", {}, None, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, None, "online"),
        ("auto", {}, "machine api.wandb.ai\n login user\n password k\n", "online"),
        ("auto", {}, "machine github.com\n login user\n", "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, None, "offline"),
        ("auto", {"WANDB_MODE": "online"}, None, "online"),
        ("auto", {"WANDB_MODE": "dryrun"}, None, "offline"),
        ("offline", {"WANDB_API_KEY": "k"}, None, "offline"),
        ("online", {}, None, "online"),
    ],
)
def test_runs_are_online_only_with_a_key_or_when_asked(
    mode: Any,
    environment: dict[str, str],
    netrc: str | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
    assert wandb_mode(Tracking(wandb=True, mode=mode)) == expected


def test_nothing_is_logged_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **options: pytest.fail("W&B was started"))
    run = start(Tracking(), tmp_path)
    run.log({"loss": 1.0}, step=1)
    run.finish()


def test_an_offline_run_is_written_with_group_job_type_and_tags(tmp_path: Path) -> None:
    first, second = start(ON, tmp_path), start(ON, tmp_path, "fold1")  # two at once in one process
    for number, run in enumerate((first, second)):
        inner = run._run
        assert inner is not None, "W&B did not start"
        assert (inner.group, inner.job_type, inner.name) == ("lite0", "train", f"lite0-fold{number}")
        assert set(inner.tags) == {"first", f"fold{number}"}
        assert inner.project == "elpv"
        run.log({"epoch": 1, "loss": 0.5}, step=3)
    first.finish()
    second.finish()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    for folder in folders:
        (log,) = folder.glob("*.wandb")
        assert b"lite0" in log.read_bytes()


class Broken:
    """A W&B run that fails in one way or all."""

    def __init__(self, fails: str) -> None:
        self.fails, self.calls = fails, 0

    def log(self, values: dict[str, Any], step: int) -> None:
        self.calls += 1
        if self.fails == "log":
            raise RuntimeError("no network")

    def finish(self) -> None:
        if self.fails == "finish":
            raise OSError("disk full")


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_failing_tracker_gives_one_warning_and_no_error(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Broken(fails)

    def init(**options: Any) -> Broken:
        if fails == "init":
            raise wandb.errors.CommError("no network")
        return broken

    monkeypatch.setattr(wandb, "init", init)
    run = start(ON, tmp_path)
    run.log({"loss": 1.0}, step=1)
    run.log({"loss": 1.0}, step=2)
    run.finish()
    err = capsys.readouterr().err
    assert err.count("warning: W&B could not") == 1
    assert "training goes on" in err
    assert broken.calls == {"init": 0, "log": 1, "finish": 2}[fails]


def test_a_training_outlives_its_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from goldfold.cli import main
    from tests.pipeline.competitions import make_competition

    monkeypatch.chdir(tmp_path)
    config = make_competition(tmp_path)
    groups: list[Any] = []

    def init(**options: Any) -> Broken:
        groups.append((options["group"], options["name"], options["job_type"], options["reinit"]))
        return Broken("log")

    monkeypatch.setattr(wandb, "init", init)
    assert main(["train", str(config), "train.epochs=1", "tracking.wandb=true", "tracking.mode=offline"]) == 0
    assert groups == [("tiny", f"tiny-fold{fold}", "train", "create_new") for fold in (0, 1)]
    assert (tmp_path / "runs/tiny/cv.json").exists()
    lines = (tmp_path / "runs/tiny/fold1/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1]
