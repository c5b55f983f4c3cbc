"""The loop under other conditions than one process in float32: accumulation, bf16, two commands, two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from goldfold import files
from goldfold.cli import main
from goldfold.config import load_config
from goldfold.paths import Workspace
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.stages import load_folds

CONFIG = "configs/tiny.yaml"
# A network without batch norm or dropout, so that only the arithmetic of the loop is compared.
PLAIN = ["model.backbone=test_vit", "input.size=32", "optim.name=sgd", "optim.lr=0.05", "train.epochs=2"]


def train(name: str, *overrides: str, folds: tuple[str, ...] = ("--fold", "0")) -> int:
    return main(["train", CONFIG, "--run", name, *folds, *overrides])


def weights(project: Path, run: str, fold: int = 0) -> dict[str, torch.Tensor]:
    return load_file(project / f"runs/{run}/fold{fold}/model.safetensors")


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("clip", ["0", "0.5"])
def test_accumulating_two_batches_equals_one_of_twice_the_size(clip: str, project: Path) -> None:
    settings = [*PLAIN, f"optim.clip={clip}"]
    assert train("whole", *settings, "train.batch_size=12") == 0
    assert train("halves", *settings, "train.batch_size=6", "train.accumulate=2") == 0
    assert train("other", *settings, "train.batch_size=6") == 0
    whole = weights(project, "whole")
    assert difference(whole, weights(project, "halves")) < 1e-5
    assert difference(whole, weights(project, "other")) > 1e-3
    steps = [json.loads((project / f"runs/{run}/fold0/metrics.jsonl").read_text().splitlines()[-1])["step"] for run in ("whole", "halves", "other")]  # fmt: skip
    assert steps == [4, 4, 8]


def test_a_last_window_that_is_shorter_still_makes_a_step(project: Path) -> None:
    """24 rows in batches of 8 make windows of two batches and of one."""
    assert train("x", *PLAIN, "train.batch_size=8", "train.accumulate=2", "train.epochs=1") == 0
    (line,) = (project / "runs/x/fold0/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 2


def test_bf16_trains_and_predicts_finite_probabilities(project: Path) -> None:
    settings = ["train.epochs=6", "mix.mixup=0.2", "train.ema.decay=0.9", "tta.views=flip"]
    assert train("half", "train.precision=bf16", *settings, folds=()) == 0
    record = json.loads((project / "runs/half/run.json").read_text())
    assert record["machine"]["precision"] == "bf16"
    for table in ("oof", "test"):
        values = pd.read_parquet(project / f"runs/half/{table}.parquet").filter(like="p_").to_numpy()
        assert np.isfinite(values).all()
        assert np.allclose(values.sum(axis=1), 1, atol=1e-5)
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights(project, "half").values())
    losses = [json.loads(line)["loss"] for line in (project / "runs/half/fold0/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_a_fold_that_another_command_trains_is_refused_with_one_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("tiny", "train.epochs=1") == 0
    with files.locked(project / "runs/tiny/fold1", wait=False) as held:
        assert held
        capsys.readouterr()
        assert train("tiny", "train.epochs=1", folds=("--fold", "1")) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: "))
        assert "runs/tiny/fold1: another process is training this fold" in line
        assert "--fold" in line
    assert train("tiny", "train.epochs=1", folds=()) == 0


def test_a_loss_that_explodes_ends_the_run_with_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("x", "optim.lr=1e38", "optim.name=sgd", "train.epochs=2") == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = (line for line in err.splitlines() if line.startswith("goldfold: "))
    assert "optim.lr" in line


def test_processes_that_make_the_folds_at_once_agree(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One may look while another is between the table and its record."""
    real, between = files.write_json, threading.Event()

    def slow(path: Path, value: object) -> None:
        between.set()
        time.sleep(0.3)
        real(path, value)

    monkeypatch.setattr(files, "write_json", slow)
    config = load_config(Path(CONFIG))
    data = load_competition(config.competition, project)
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(load_folds, config, data, Workspace(project))
        assert between.wait(10)
        second = load_folds(config, data, Workspace(project))[0]
        first = making.result()[0]
    assert (first.fold == second.fold).all()


def test_two_processes_train_one_model(project: Path) -> None:
    """As on a notebook's two GPUs, here on the CPU: the same files, and the arithmetic of one process.

    Linear scaling counts both processes: without that the pair would go at half the rate.
    """
    phases = "train.phases=[{epochs: 1, frozen: 1}, {epochs: 1}]"
    settings = [
        *PLAIN,
        phases,
        "optim.lr_scaling=linear",
        "optim.lr_batch=12",
        "train.early_stopping.patience=1",
        "train.keep=best",
        "--fold",
        "0",
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pair = [*launch, "-m", "goldfold.cli", "train", CONFIG, "train.batch_size=6", "name=pair", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(pair, cwd=project, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert main(["train", CONFIG, "train.batch_size=12", "name=alone", *settings]) == 0
    trees = [
        {str(path.relative_to(project / "runs" / run)) for path in (project / "runs" / run).rglob("*")}
        for run in ("pair", "alone")
    ]
    assert trees[0] == trees[1]
    assert difference(weights(project, "pair"), weights(project, "alone")) < 1e-5
    for run in ("pair", "alone"):
        first = (project / f"runs/{run}/fold0/metrics.jsonl").read_text().splitlines()[0]
        assert json.loads(first)["lr"] > 0.03  # half of it, were one process counted
    lines = [
        [json.loads(line) for line in (project / f"runs/{run}/fold0/metrics.jsonl").read_text().splitlines()]
        for run in ("pair", "alone")
    ]
    for together, single in zip(*lines, strict=True):
        assert together["step"] == single["step"]
        assert together["loss"] == pytest.approx(single["loss"], abs=1e-5)
