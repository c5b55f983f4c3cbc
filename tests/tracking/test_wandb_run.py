"""A W&B run holds nobody up, and its failures harm nobody."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goldfold import files
from goldfold.config.schema import Tracking
from goldfold.errors import BadInput
from goldfold.tracking import Sweep, WandbRun, wandb_run
from tests.tracking.offline import read_runs

ON = Tracking(wandb=True, mode="offline", tags=("first",))


def start(settings: Tracking, folder: Path, fold: str = "fold0", **options: Any) -> WandbRun:
    return WandbRun(
        settings,
        project="elpv",
        run="lite0",
        fold=fold,
        job_type="train",
        config={"optim": {"lr": 0.1}},
        folder=folder,
        **options,
    )


@pytest.fixture
def wandb() -> Any:
    import wandb

    return wandb


class Fake:
    """A W&B run that fails in one way: ``fails`` names the call; ``error`` is raised there."""

    def __init__(self, fails: str = "", error: BaseException | None = None) -> None:
        self.fails, self.error = fails, error or RuntimeError("no network")
        self.calls: list[tuple[str, Any]] = []
        self.url = self.dir = "nowhere/files"
        self.summary = self

    def _do(self, call: str, value: Any) -> None:
        self.calls.append((call, value))
        if call == self.fails:
            raise self.error

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self._do("log", values)

    def update(self, values: dict[str, Any]) -> None:
        self._do("summary", values)

    def finish(self, exit_code: int = 0) -> None:
        self._do("finish", exit_code)


def test_nothing_is_logged_unless_asked_for(
    tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **options: Fake())
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for settings in (Tracking(), Tracking(wandb=True)):
        run = start(settings, tmp_path)
        run.log({"loss": 1.0}, step=1)
        assert not run.finish()
    assert capsys.readouterr().err == ""


def test_offline_runs_are_whole_files(tmp_path: Path, wandb: Any) -> None:
    big = tmp_path / "run/weights.bin"
    big.parent.mkdir()
    big.write_bytes(bytes(wandb_run.SMALL + 1))
    (tmp_path / "run/cv.json").write_text("{}\n")
    (tmp_path / "run/.half.tmp").write_text("an unfinished write")
    first, second = start(ON, tmp_path, id="one", tags=["leaky"]), start(ON, tmp_path, "fold1")  # at once
    for run in (first, second):
        for step in (3, 6):
            run.log({"epoch": step // 3, "loss": 0.5, "auc": None}, step=step)
    first.summarise({"oof": 0.25, "std": None})
    first.show("mistakes", lambda: [(np.zeros((4, 6, 3), dtype=np.uint8), "it was a cat")])
    first.keep_files("lite0", "run", tmp_path / "run")
    assert first.finish()
    assert second.finish(failed=True)

    runs = read_runs(tmp_path)
    assert set(runs) == {"lite0-fold0", "lite0-fold1"}
    run, other = runs["lite0-fold0"], runs["lite0-fold1"]
    assert (run.id, run.group, run.job_type, run.project, run.sweep) == ("one", "lite0", "train", "elpv", "")
    assert run.tags == ["first", "fold0", "leaky"]
    assert run.config["optim"] == {"lr": 0.1}
    for found in (run, other):
        assert [(point["step"], point["epoch"], point["loss"]) for point in found.history] == [(3, 1, 0.5), (6, 2, 0.5)]
    assert "auc" not in run.history[0]
    assert run.summary["oof"] == 0.25
    assert run.history[-1]["mistakes.captions"] == ["it was a cat"]
    (picture,) = run.history[-1]["mistakes.filenames"]
    assert (run.folder / "files" / picture).read_bytes().startswith(b"\x89PNG")
    (kept,) = run.artifacts.values()
    assert list(run.artifacts) == ["run/lite0"]
    assert set(kept) == {"manifest.json", "cv.json"}  # the large file is listed, not sent
    assert kept["cv.json"] == str(tmp_path / "run/cv.json")  # and nothing is copied
    manifest = files.read_json(Path(kept["manifest.json"]))["files"]
    assert [(entry["path"], entry["bytes"]) for entry in manifest] == [
        ("cv.json", 3),
        ("weights.bin", wandb_run.SMALL + 1),
    ]
    assert manifest[0]["sha256"] == "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    assert (run.exit_code, other.exit_code) == (0, 1)


@pytest.mark.parametrize("error", [RuntimeError("no network"), OSError(28, "No space left on device"), SystemExit(1)])
@pytest.mark.parametrize("fails", ["init", "log", "summary", "finish"])
def test_a_failing_tracker_gives_one_warning_and_no_error(
    fails: str,
    error: BaseException,
    tmp_path: Path,
    wandb: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = Fake(fails, error)

    def init(**options: Any) -> Fake:
        if fails == "init":
            raise error
        return fake

    monkeypatch.setattr(wandb, "init", init)
    run = start(ON, tmp_path)
    run.log({"loss": 1.0}, step=1)
    run.log({"loss": 1.0}, step=2)
    run.summarise({"oof": 1.0})
    assert not run.finish()
    err = capsys.readouterr().err
    assert err.count("warning: W&B could not") == 1
    assert f"({type(error).__name__}: {error})" in err
    assert "the training goes on" in err
    # What failed is not tried again; the run is ended all the same.
    expected = {"init": [], "log": ["log", "finish"], "summary": ["log", "log", "summary", "finish"]}
    assert [call for call, _ in fake.calls] == expected.get(fails, ["log", "log", "summary", "finish"])


def test_a_package_that_breaks_at_its_start_is_no_error(
    tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(wandb, "Settings")
    run = start(ON, tmp_path)
    assert not run.finish()
    assert "W&B could not start (AttributeError" in capsys.readouterr().err


def test_nobody_waits_for_a_slow_network(tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = threading.Event()
    fake = Fake()

    def init(**options: Any) -> Fake:
        reached.wait(20)
        return fake

    monkeypatch.setattr(wandb, "init", init)
    began = time.monotonic()
    run = start(ON, tmp_path)
    values = {"loss": 1.0}
    for step in range(100):
        run.log(values, step=step)
    values["loss"] = 2.0  # what was logged stays as it was
    assert time.monotonic() - began < 10
    reached.set()
    assert run.finish()
    assert fake.calls == [("log", {"loss": 1.0})] * 100 + [("finish", 0)]


def test_a_tracker_that_hangs_is_left_behind(
    tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_run, "WAIT_SECONDS", 0.2)
    never = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **options: never.wait(30))
    run = start(ON, tmp_path)
    began = time.monotonic()
    assert not run.finish()
    assert time.monotonic() - began < 10
    never.set()
    assert "W&B does not finish" in capsys.readouterr().err


def test_a_disk_without_room_is_told(
    tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B loses lines without a word when its disk is full."""
    monkeypatch.setattr(wandb, "init", lambda **options: Fake())
    monkeypatch.setattr(wandb_run, "_free_bytes", lambda folder: 100)
    assert not start(ON, tmp_path).finish()
    assert f"no space is left under {tmp_path}" in capsys.readouterr().err


def test_only_settings_that_this_version_has(tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """finish_timeout came after the oldest version that pyproject.toml admits."""
    seen: dict[str, Any] = {}

    class Old:
        model_fields = ("console", "init_timeout", "sweep_id")

        def __init__(self, **values: Any) -> None:
            seen.update(values)

    monkeypatch.setattr(wandb, "Settings", Old)
    monkeypatch.setattr(wandb, "init", lambda **options: Fake())
    assert start(ON, tmp_path, sweep=Sweep("sweep", "trial")).finish()
    assert seen == {"console": "off", "init_timeout": wandb_run.START_SECONDS, "sweep_id": "sweep"}


def test_without_the_package_it_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BadInput, match="not installed"):
        start(ON, tmp_path)
