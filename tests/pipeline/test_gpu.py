"""The GPU path: mixed precision with and without loss scaling, and the same bundle on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from goldfold.cli import main
from tests.pipeline.competitions import make_competition

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "auto"])
def test_training_on_the_gpu_learns_and_predicts_alike_on_the_cpu(project: Path, precision: str) -> None:
    config = make_competition(project, rows=72, mix={"mixup": 0.1})
    settings = ["train.device=cuda", f"train.precision={precision}", "train.epochs=12", "optim.clip=1.0"]
    assert main(["train", str(config), *settings, "train.ema.decay=0.9", "train.accumulate=2"]) == 0
    cv = json.loads((project / "runs/tiny/cv.json").read_text())
    record = json.loads((project / "runs/tiny/run.json").read_text())
    assert cv["oof"]["macro_f1"] > 0.8
    assert record["machine"]["precision"] == (precision if precision != "auto" else record["machine"]["precision"])
    assert all(fold["peak_memory_mb"] > 0 for fold in record["folds"].values())
    path = project / "runs/tiny/config.yaml"
    path.write_text(
        path.read_text().replace("device: cuda", "device: cpu").replace(f"precision: {precision}", "precision: fp32")
    )
    assert main(["predict", "tiny"]) == 0
    gpu = pd.read_parquet(project / "runs/tiny/test.parquet").set_index("id").sort_index()
    cpu = pd.read_parquet(project / "runs/tiny/predict-test.parquet").set_index("id").sort_index()
    assert np.abs(gpu.to_numpy() - cpu.to_numpy()).max() < (1e-3 if precision == "fp32" else 0.05)


TRICKS = {
    "phases": ["train.phases=[{epochs: 1, frozen: 1, size: 16}, {epochs: 1, optimizer: sgd, lr: 0.01}]"],
    "cached": ["model.freeze={stages: 2, cache: true}", "augment.preset=none"],
    "averages": ["train.swa.epochs=1", "augment.erase.prob=0.5", "optim.name=lamb"],
    "jsd": ["augment.add=[{AugMix: {}}]", "loss.jsd=12.0"],
    "pruned": ["train.prune={amount: 0.5, after: 1}", "train.ema.decay=0.9", "mix.cutmix=1.0"],
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_on_the_gpu(project: Path, trick: str) -> None:
    """With the loss scaling that a T4 needs; a resumed training goes on where it was."""
    config = make_competition(project)
    settings = ["train.device=cuda", "train.precision=fp16", "train.epochs=2", *TRICKS[trick]]
    assert main(["train", str(config), *settings]) == 0
    lines = (project / "runs/tiny/fold0/metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)
    assert main(["predict", "tiny"]) == 0
