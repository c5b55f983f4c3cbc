"""Pseudo-labelled rows in a fold's training: how many an epoch shows, when they end, what is computed for them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goldfold.cli import main
from goldfold.config import load_config
from goldfold.config.schema import Pseudo, Teacher, Tracking
from goldfold.data import add_soft_labels
from goldfold.machine import find_machine
from goldfold.paths import Workspace
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.jobs import open_sources, plain_job
from goldfold.pipeline.stages import load_folds
from goldfold.records import SoftLabels
from goldfold.tracking import WandbRun
from goldfold.training import FoldJob, loop, train_fold

CONFIG = "configs/tiny.yaml"
LABELLED_ROWS, TAKEN, BATCH = 24, 12, 4
MARK = 0.25
"""The loss weight by which a pseudo-labelled row is known in a batch."""


def taught_job(project: Path, run: str, pseudo: dict[str, Any], overrides: Sequence[str] = ()) -> FoldJob:
    """Fold 0 with its 24 labelled rows, and a teacher's labels of the 12 test images."""
    config = load_config(Path(CONFIG), [f"name={run}", f"train.batch_size={BATCH}", *overrides])
    data, workspace = load_competition(config.competition, project), Workspace(project)
    (table,) = load_folds(config, data, workspace)
    sources = open_sources(config, data, workspace)
    job = plain_job(config, data, workspace, table, 0, 0, workspace.run(run).fold(0), sources, "")
    assert sources.test is not None
    targets = np.eye(3, dtype=np.float32)[np.arange(TAKEN) % 3]
    labels = SoftLabels(sources.test.ids, targets, np.full(TAKEN, MARK, dtype=np.float32), 0)
    teacher = Teacher(runs=("teacher",), pseudo=Pseudo(labels="soft", **pseudo))
    return replace(
        job,
        examples=add_soft_labels(job.examples, sources.test, labels, 0),
        recipe=replace(job.recipe, teacher=teacher),
    )


def train(job: FoldJob, folder: Path) -> list[dict[str, Any]]:
    """Train it; the lines of metrics.jsonl."""
    tracker = WandbRun(Tracking(), project="", run="", fold="", job_type="", config={}, folder=folder)
    train_fold(job, find_machine(job.recipe.train), tracker)
    return [json.loads(line) for line in job.paths.metrics.read_text().splitlines()]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """Labelled and pseudo-labelled rows that each epoch (from 1) showed, as they reach the loss."""
    counts: dict[int, list[int]] = {}
    real = loop.backward

    def watched(job: Any, machine: Any, session: Any, batch: Any, *rest: Any, **options: Any) -> Any:
        count = counts.setdefault(session.progress.epoch + 1, [0, 0])
        taken = int((batch.weights == MARK).sum())
        count[0] += len(batch.weights) - taken
        count[1] += taken
        return real(job, machine, session, batch, *rest, **options)

    monkeypatch.setattr(loop, "backward", watched)
    return counts


def test_without_a_share_all_of_them_join_the_labelled_rows(project: Path, shown: dict[int, list[int]]) -> None:
    train(taught_job(project, "x", {}), project)
    assert shown == {1: [24, 12], 2: [24, 12]}


def test_the_last_epochs_train_without_them(project: Path, shown: dict[int, list[int]]) -> None:
    """The record knows one phase; the schedule runs to its end over the steps that there are."""
    schedule = ["train.epochs=4", "schedule.name=linear", "schedule.warmup_epochs=0", "schedule.min_factor=0"]
    lines = train(taught_job(project, "x", {"cool_down": 2}, [*schedule, "optim.lr=0.01"]), project)
    assert shown == {1: [24, 12], 2: [24, 12], 3: [24, 0], 4: [24, 0]}
    assert [line["phase"] for line in lines] == [0, 0, 0, 0]
    assert [line["optimizer_state"] for line in lines] == ["new", "kept", "kept", "kept"]
    steps = [line["step"] for line in lines]
    assert steps == [9, 18, 24, 30]
    assert [line["lr"] for line in lines] == pytest.approx([0.01 * (1 - (step - 1) / 29) for step in steps])


def test_a_share_keeps_the_epochs_as_long_as_the_labelled_rows(project: Path, shown: dict[int, list[int]]) -> None:
    settings = ["train.epochs=3", "schedule.name=linear", "schedule.warmup_epochs=0", "schedule.min_factor=0"]
    lines = train(taught_job(project, "x", {"sampling_prob": 0.375, "cool_down": 1}, settings), project)
    assert shown == {1: [15, 9], 2: [15, 9], 3: [24, 0]}
    assert [line["step"] for line in lines] == [6, 12, 18]
    assert lines[-1]["lr"] == pytest.approx(0)


def test_the_batch_norm_of_averaged_weights_is_measured_without_them(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from goldfold.training import finish

    seen: list[float] = []
    real = finish.update_batch_norm

    def watched(model: Any, forward: Any, loader: Any) -> None:
        seen.extend(float(weight) for batch in loader for weight in batch.weights)
        real(model, forward, loader)

    monkeypatch.setattr(finish, "update_batch_norm", watched)
    train(taught_job(project, "x", {"cool_down": 1}, ["train.swa.epochs=1"]), project)
    assert seen == [1.0] * LABELLED_ROWS


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_training_stopped_before_or_in_the_cool_down_ends_bit_identical(
    stop: int, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pseudo = {"sampling_prob": 0.375, "cool_down": 2}
    settings = [
        "train.epochs=4",
        "train.phases=[{epochs: 3}, {epochs: 1, lr: 0.002}]",
        "balance.sampling=oversample",
        "augment.preset=light",
        "mix.mixup=0.2",
    ]
    whole = taught_job(project, "whole", pseudo, settings)
    lines = train(whole, project)
    assert [line["phase"] for line in lines] == [0, 0, 0, 1]
    real, count = loop.save_progress, [0]

    def interrupted(job: Any, session: Any, path: Path) -> None:
        real(job, session, path)
        count[0] += 1
        if count[0] == stop:
            raise KeyboardInterrupt

    killed = taught_job(project, "killed", pseudo, settings)
    monkeypatch.setattr(loop, "save_progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(killed, project)
    monkeypatch.setattr(loop, "save_progress", real)
    train(killed, project)
    for name in ("model.safetensors", "oof.parquet", "test.parquet", "metrics.jsonl"):
        assert (killed.paths.folder / name).read_bytes() == (whole.paths.folder / name).read_bytes(), name


def computed(err: str) -> list[int]:
    """Of how many images features were computed, a number a store."""
    return [int(found) for found in re.findall(r"features of the frozen stages: computing (\d+) in", err)]


def test_a_student_finds_the_training_images_features_of_the_run_before(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a second student finds all; nothing of it depends on what is found and what is computed."""
    settings = ["model.freeze.stages=2", "model.freeze.cache=true", "model.freeze.cache_views=none"]
    assert main(["train", CONFIG, "--run", "first", "--fold", "0", f"train.batch_size={BATCH}", *settings]) == 0
    assert computed(capsys.readouterr().err) == [48]
    second = taught_job(project, "second", {}, settings)
    train(second, project)
    assert computed(capsys.readouterr().err) == [12]
    third = taught_job(project, "third", {}, settings)
    train(third, project)
    assert computed(capsys.readouterr().err) == []
    alone = taught_job(project, "alone", {}, [*settings, "input.cache_dir=elsewhere"])
    train(alone, project)
    assert computed(capsys.readouterr().err) == [48, 12]
    weights = [(job.paths.folder / "model.safetensors").read_bytes() for job in (second, third, alone)]
    assert weights[0] == weights[1] == weights[2]
