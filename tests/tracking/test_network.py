"""Real faults of the real package: no network, a wrong key, a network that dies, a full disk, a dead service."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from goldfold.config.schema import Tracking
from goldfold.tracking import WandbRun, wandb_run
from tests.tracking.offline import read_runs
from tests.tracking.server import KEY, wandb_server

ONLINE = Tracking(wandb=True, mode="online")


def start(folder: Path) -> WandbRun:
    return WandbRun(
        ONLINE, project="p", run="r", fold="fold0", job_type="train", config={}, folder=folder, id="one-run"
    )


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_run, "START_SECONDS", 1.0)
    monkeypatch.setattr(wandb_run, "FINISH_SECONDS", 2.0)


def fell_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Log to a run that cannot go online; returns what it said when it is whole in its offline file."""
    run = start(folder)
    run.log({"loss": 0.5}, step=7)
    assert run.finish()  # kept offline is kept
    assert run.fell_back
    found = read_runs(folder)["r-fold0"]
    assert [(point["step"], point["loss"]) for point in found.history] == [(7, 0.5)]
    assert found.exit_code == 0
    return capsys.readouterr().err


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    err = fell_back(tmp_path, capsys)
    assert "warning: W&B could not go online (CommError: " in err
    assert err.count("warning") == 1


def test_a_wrong_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with wandb_server(monkeypatch, refuse=401):
        assert "warning: W&B could not go online" in fell_back(tmp_path, capsys)


def test_a_key_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "API key must have 40+ characters" in fell_back(tmp_path, capsys)


def test_online_without_a_key_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    real, modes = wandb.init, list[str]()
    monkeypatch.setattr(wandb, "init", lambda **options: modes.append(options["mode"]) or real(**options))
    assert "W&B could not go online (PermissionError: there is no key; `wandb login`" in fell_back(tmp_path, capsys)
    assert modes == ["offline"]  # online, W&B would ask for a key and wait


def test_a_network_that_dies_and_the_sync_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with wandb_server(monkeypatch) as (server, http):
        run = start(tmp_path)
        run.log({"loss": 0.75}, step=1)
        limit = time.monotonic() + 30
        while "one-run" not in server.runs and time.monotonic() < limit:
            time.sleep(0.05)
        http.shutdown()
        http.server_close()
        run.log({"loss": 0.5}, step=2)
        began = time.monotonic()
        assert not run.finish()
        assert time.monotonic() - began < 60
    assert "W&B could not finish (TimeoutError" in capsys.readouterr().err

    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    with wandb_server(monkeypatch) as (server, _):
        (folder,) = (tmp_path / "wandb").glob("run-*-one-run")
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(folder)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        sent = server.runs["one-run"]
        assert [(line["_step"], line["loss"]) for line in sent.history.values()] == [(1, 0.75), (2, 0.5)]
        assert (sent.variables["groupName"], sent.variables["jobType"]) == ("r", "train")


def test_a_service_that_dies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offline = Tracking(wandb=True, mode="offline")
    options: dict[str, Any] = {"project": "p", "run": "r", "job_type": "train", "config": {}, "folder": tmp_path}
    run = WandbRun(offline, fold="fold0", **options)
    limit = time.monotonic() + 30
    while run._run is None and time.monotonic() < limit:
        time.sleep(0.05)
    for process in services():
        os.kill(process, signal.SIGKILL)
    time.sleep(0.2)
    run.log({"loss": 0.5}, step=1)
    assert not run.finish()
    assert capsys.readouterr().err.count("warning: W&B could not") == 1

    after = WandbRun(offline, fold="fold1", **options)  # the next fold has a service of its own
    after.log({"loss": 0.25}, step=1)
    assert after.finish()
    assert [point["loss"] for point in read_runs(tmp_path)["r-fold1"].history] == [0.25]


def services() -> list[int]:
    """W&B's service processes among the children of this one."""
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("needs Linux's /proc")
    children = [child for task in tasks.glob("*/children") for child in task.read_text().split()]
    found = [int(child) for child in children if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert found
    return found


FULL = """
import sys
from pathlib import Path
from goldfold.config.schema import Tracking
from goldfold.tracking import WandbRun
run = WandbRun(Tracking(wandb=True, mode="offline"), project="p", run="r", fold="fold0", job_type="train", config={},
               folder=Path(sys.argv[1]))
for step in range(1500):
    run.log({"loss": step, "text": "x" * 200}, step=step)
print("finished", run.finish())
"""


def test_a_full_disk(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=300k none "{tmp_path}" && "{sys.executable}" -c "$0" "{tmp_path}"'
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs a file system of its own (unshare)")
    command = ["unshare", "-rm", "bash", "-c", script, FULL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if "mount:" in done.stderr:
        pytest.skip("needs a file system of its own (mount)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "finished False"
    assert "no space is left" in done.stderr or "W&B could not" in done.stderr
