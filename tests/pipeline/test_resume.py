"""Kill -9 at any write, run again: the artefacts are those of a run that was never killed, to the bit."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import run, start
from tests.pipeline.competitions import make_competition

# Imports everything once, then forks a child for each attempt, before torch has started a thread.
DRIVER = """
import os, signal, sys
import albumentations, pyarrow.dataset, pyarrow.parquet, sklearn.model_selection
import goldfold.augment.own, goldfold.pipeline.report, goldfold.pipeline.run, goldfold.pipeline.stages
from goldfold import files
from goldfold.cli import main

def attempt(arguments, kill_at=None, before=False):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    import torch
    torch.set_num_threads(1)
    real, count = files.write_atomic, [0]
    def counted(path, write):
        count[0] += 1
        if count[0] == kill_at and before:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path.parent / f".{path.name}.half.tmp")  # a write that the kill cuts short
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, write)
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    files.write_atomic = counted
    code = main(arguments)
    print("writes", count[0], flush=True)
    os._exit(code)
"""


def drive(project: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER + script], cwd=project, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def artefacts(folder: Path) -> dict[str, str]:
    """Digest of every file but run.json, which records times; the run's own name counts as equal."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"]
    name = folder.name.encode()
    contents = {path: path.read_bytes() for path in found}
    for path in found:
        if path.suffix in (".json", ".yaml"):
            contents[path] = contents[path].replace(name, b"RUN")
        if path.name == "DONE":  # the fingerprint leaves the name out
            assert name not in contents[path]
    return {str(path.relative_to(folder)): hashlib.sha256(text).hexdigest() for path, text in contents.items()}


@pytest.mark.slow
def test_a_run_killed_at_any_write_ends_bit_identical(project: Path) -> None:
    config = make_competition(
        project,
        mix={"mixup": 0.2, "cutmix": 0.5},
        augment={"preset": "light"},
        model={"drop_rate": 0.2},
        train={"epochs": 2, "batch_size": 8, "accumulate": 2, "keep": "best", "device": "cpu", "ema": {"decay": 0.9}},
    )
    script = f"""
arguments = ["train", {str(config)!r}]
assert attempt([*arguments, "--run", "first"]) == 0  # makes folds and store
assert attempt([*arguments, "--run", "whole"]) == 0
"""
    writes = int(drive(project, script).split("writes ")[-1].split()[0])
    whole = artefacts(project / "runs/whole")
    assert writes > 15
    points = list(range(2, writes + 1, 3))
    script = f"""
arguments = ["train", {str(config)!r}]
for point in {points}:
    before = point % 2 == 0
    assert attempt([*arguments, "--run", f"killed{{point}}"], kill_at=point, before=before) == -9, point
    assert attempt([*arguments, "--run", f"killed{{point}}"]) == 0, point
"""
    drive(project, script)
    for point in points:
        assert artefacts(project / f"runs/killed{point}") == whole, point


def test_a_run_killed_at_any_time_goes_on(project: Path) -> None:
    """The same by processes that are killed from outside while they write, predict and compute."""
    config, log = make_competition(project, train={"epochs": 3}), project / "log"
    train = ["train", str(config), "--run"]
    assert run([*train, "whole"], project, log) == 0, log.read_text()
    for moment in ("fold 0 epoch 1/3", "fold 0 epoch 3/3", "fold 1 epoch 2/3"):
        log.write_text("")
        process = start([*train, "killed"], project, log)
        while moment not in log.read_text():
            assert process.is_alive(), log.read_text()
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert run([*train, "killed"], project, log) == 0, log.read_text()
    assert artefacts(project / "runs/killed") == artefacts(project / "runs/whole")
