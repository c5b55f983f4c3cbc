"""One row a trick: it trains on tiny images, its loss is finite, it goes on bit-identically after an interruption, and
it works with soft targets, gradient accumulation and mixed precision together, or refuses with one line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from goldfold.cli import main
from goldfold.training import loop
from goldfold.tricks import TRICKS
from tests.pipeline.competitions import make_competition

CONFIG = "configs/tiny.yaml"
HEAVY_NETWORK = {"model.backbone": "test_resnet"}
COLUMNS = {"model.metadata.numeric": ["age"], "model.metadata.categorical": ["site"]}

TAUGHT = {"teacher.runs": ["teacher"]}
SOFT = {**TAUGHT, "teacher.pseudo.labels": "soft"}

# What a row needs beside the trick's own switch, or the whole of it where the registry knows no single switch.
EXTRA: dict[str, dict[str, Any]] = {
    "rgba": {"input.channels": 4},
    "random_crop": {"input.cache_size": 32, "augment.preset": "flips"},
    "clean_last_epochs": {"augment.preset": "light", "train.phases": [{"epochs": 1}, {"epochs": 1, "augment": {"preset": "none"}}]},
    "clean_first_epochs": {"augment.preset": "light", "train.phases": [{"epochs": 1, "augment": {"preset": "none"}}, {"epochs": 1}]},
    "external": {"competition.external": [{"csv": "data/more/rows.csv", "image_path": "data/more/{id}.png", "weight": 0.5}]},
    "backbone": {"model.backbone": "test_convnext", "input.size": 32},
    "resnet_b": {"model.backbone": "resnet18", "input.size": 32},
    "resnet_c": {"model.backbone": "resnet14t", "input.size": 32},
    "resnet_d": {"model.backbone": "resnet18d", "input.size": 32},
    "dilation": {"input.size": 32},
    "zero_gamma": HEAVY_NETWORK,
    "stem_kernel": {},
    "metadata": COLUMNS,
    "auxiliary": {"loss.auxiliary": [{"column": "site"}, {"column": "age", "task": "regression"}]},
    "pretrained": {"model.weights": "weights/backbone.safetensors"},
    "gradual_unfreezing": {"train.phases": [{"epochs": 1, "frozen": "all"}, {"epochs": 1, "frozen": 1}]},
    "adam_then_sgd": {"optim.name": "adam", "train.phases": [{"epochs": 1}, {"epochs": 1, "optimizer": "sgd", "lr": 0.01}]},
    "linear_scaling": {"train.accumulate": 2},
    "multi_step": {"schedule.name": "multi_step", "schedule.milestones": [1]},
    "late_accumulation": {"train.phases": [{"epochs": 1}, {"epochs": 1, "accumulate": 2}]},
    "progressive_resizing": {"input.size": 32, "train.phases": [{"epochs": 1, "size": 24}, {"epochs": 1}]},
    "small_then_large": {"train.phases": [{"epochs": 1, "batch_size": 4}, {"epochs": 1, "batch_size": 6, "lr": 0.001}]},
    "soft_targets": {"mix.mixup": 0.4, "loss.smoothing": 0.1},
    "soup": {"train.soup.epochs": 2},
    "greedy_soup": {"train.soup.epochs": 2},
    "ranger": {},
    "lookahead": {},
    "one_cycle": {},
    "distill_stored": {**TAUGHT, "teacher.distill.weight": 0.5},
    "distill_online": {**TAUGHT, "teacher.distill.weight": 0.5, "teacher.distill.how": "online"},
    "distill_cross_fitted": {**TAUGHT, "teacher.distill.weight": 0.5, "teacher.distill.how": "cross_fitted", "teacher.distill.inner": 2},
    "distill_temperature": {**TAUGHT, "teacher.distill.weight": 0.5, "teacher.distill.temperature": 3.0},
    "distill_features": {**TAUGHT, "teacher.distill.features": 0.5, "teacher.distill.how": "online"},
    "pseudo_soft": SOFT,
    "pseudo_hard": {**TAUGHT, "teacher.pseudo.labels": "hard"},
    "pseudo_min_prob": {**SOFT, "teacher.pseudo.min_prob": 0.3},
    "pseudo_top_k": {**SOFT, "teacher.pseudo.top_k": 1},
    "pseudo_margin": {**SOFT, "teacher.runs": ["teacher", "second"], "teacher.pseudo.margin": 0.5},
    "pseudo_power": {**SOFT, "teacher.pseudo.power": 2.0},
    "pseudo_trim": {**SOFT, "teacher.pseudo.trim": 0.1},
    "pseudo_weight": {**SOFT, "teacher.pseudo.weight": 0.5, "teacher.pseudo.weighting": "confidence"},
    "pseudo_sampling_prob": {**SOFT, "teacher.pseudo.sampling_prob": 0.25},
    "pseudo_cool_down": {**SOFT, "teacher.pseudo.cool_down": 1},
    "noisy_student": {**SOFT, "model.drop_rate": 0.5, "augment.add": [{"RandAugment": {"n": 2, "m": 10}}]},
    "tta_gmean": {"tta.views": "flip"},
    "tta_max": {"tta.views": "flip"},
    "test_size": {"tta.size": 32},
}  # fmt: skip

# Shown elsewhere, by the test that is named: these are no settings of one training on this machine.
ELSEWHERE = {
    "lr_find": "tests/pipeline/test_tricks_in_runs.py: test_the_lr_finder_leaves_no_trace_in_runs",
    "multi_gpu": "tests/training/test_loop.py: test_two_processes_train_one_model",
    "repeated_folds": "tests/pipeline/test_rounds_run.py",
    "several_seeds": "tests/pipeline/test_rounds_run.py",
    "tta_auto": "tests/pipeline/test_views.py",
    **dict.fromkeys(("blend_mean", "blend_gmean", "blend_rank_mean", "blend_simplex"), "tests/ensemble"),
    **dict.fromkeys(("blend_greedy", "blend_stacking", "calibration", "fitted_decisions"), "tests/ensemble"),
}

# Refused from the start on this machine, and a part of the line that says so.
REFUSED = {"fp16": "fp16 needs a GPU"}

# Refused with a teacher's soft targets, accumulation and bf16, and a part of the line that says so.
REFUSED_TOGETHER: dict[str, str] = {}


def overrides(name: str) -> list[str]:
    values = {"model.pretrained": False, **TRICKS[name].on, **EXTRA.get(name, {})}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A competition with further columns, an external data set, weights, a teacher; shared by all rows of the table."""
    from safetensors.torch import save_file

    from goldfold.config.schema import Input, Model
    from goldfold.models import build_model, make_spec
    from goldfold.tasks import Task

    root = tmp_path_factory.mktemp("tricks")
    torch.set_num_threads(1)
    make_competition(root, rows=24, test_rows=3, train={"batch_size": 6, "epochs": 2, "device": "cpu"})
    for table in ("train", "test"):
        path = root / f"data/tiny/{table}.csv"
        frame = pd.read_csv(path, dtype=str)
        frame.assign(age=frame["id"].str[:3].astype(int) % 7).to_csv(path, index=False)
    (root / "data/more").mkdir()
    rows = []
    for number in range(6):
        shutil.copy(root / f"data/tiny/images/{24 + number % 3:03d}x.png", root / f"data/more/e{number}.png")
        rows.append({"id": f"e{number}", "label": ("cat", "dog", "fox")[number % 3]})
    pd.DataFrame(rows).to_csv(root / "data/more/rows.csv", index=False)
    (root / "weights").mkdir()
    task = Task("multiclass", ("cat", "dog", "fox"))
    model = build_model(make_spec(Model(backbone="test_efficientnet", pretrained=False), Input(size=24), task))
    save_file(model.backbone.state_dict(), root / "weights/backbone.safetensors")
    assert main(["-C", str(root), "train", CONFIG, "--run", "teacher"]) == 0
    assert main(["-C", str(root), "train", CONFIG, "--run", "second", "train.seed=1", "train.epochs=1"]) == 0
    return root


@pytest.fixture
def project(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(workshop)
    torch.set_num_threads(1)
    yield workshop
    for run in ("whole", "again", "together"):
        shutil.rmtree(workshop / "runs" / run, ignore_errors=True)


def train(run: str, *settings: str) -> int:
    return main(["train", CONFIG, "--fold", "0", "--run", run, *settings])


def losses(project: Path, run: str) -> list[float]:
    lines = (project / f"runs/{run}/fold0/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    (line,) = (line for line in err.splitlines() if line.startswith("goldfold: "))
    return line


def test_the_table_has_a_row_for_every_trick() -> None:
    idle = {name for name, trick in TRICKS.items() if not trick.on} - EXTRA.keys() - ELSEWHERE.keys()
    assert not idle
    assert not (EXTRA.keys() | ELSEWHERE.keys() | REFUSED.keys() | REFUSED_TOGETHER.keys()) - TRICKS.keys()


@pytest.mark.parametrize("name", [name for name in TRICKS if name not in ELSEWHERE])
def test_a_trick(name: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = overrides(name)
    if name in REFUSED:
        assert train("whole", *settings) == 2
        assert REFUSED[name] in one_line(capsys)
        return
    assert train("whole", *settings) == 0, capsys.readouterr().err
    assert len(losses(project, "whole")) == 2
    assert all(math.isfinite(loss) for loss in losses(project, "whole"))

    real = loop.save_progress

    def interrupted(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_progress", interrupted)
    assert train("again", *settings) == 130
    monkeypatch.setattr(loop, "save_progress", real)
    assert train("again", *settings) == 0
    for file in ("model.safetensors", "oof.parquet", "test.parquet", "metrics.jsonl"):
        whole, again = (project / f"runs/{run}/fold0/{file}" for run in ("whole", "again"))
        if file.endswith("parquet"):
            assert pd.read_parquet(whole).equals(pd.read_parquet(again)), file
        else:
            assert whole.read_bytes() == again.read_bytes(), file

    capsys.readouterr()
    named = any(text.startswith("teacher.runs=") for text in settings)
    soft = [*([] if named else ["teacher.runs=[teacher]"]), "teacher.distill.weight=0.5"]
    others = [
        "train.precision=bf16",
        *([] if "accumul" in name or name == "linear_scaling" else ["train.accumulate=2"]),
    ]
    code = train("together", *settings, *soft, *others)
    if name in REFUSED_TOGETHER:
        assert code == 2
        assert REFUSED_TOGETHER[name] in one_line(capsys)
    else:
        assert code == 0, capsys.readouterr().err
        assert all(math.isfinite(loss) for loss in losses(project, "together"))
