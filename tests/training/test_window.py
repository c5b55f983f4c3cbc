"""Short memory: a step goes on in smaller pieces of the same batch, and nothing counts twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from goldfold.cli import main
from goldfold.config import load_config
from goldfold.machine import find_machine
from goldfold.memory import is_out_of_memory
from goldfold.models import Classifier
from goldfold.paths import Workspace
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.jobs import open_sources, plain_job
from goldfold.pipeline.stages import load_folds
from goldfold.teaching import OnlineTeacher
from goldfold.training import FoldJob, loop
from goldfold.training.session import make_loader, start
from tests.commands import run_pair

CONFIG = "configs/tiny.yaml"
# A network without batch norm or dropout: all that differs is the order of the sums.
PLAIN = ["model.backbone=test_vit", "input.size=32", "optim.name=sgd", "optim.lr=0.05", "train.epochs=2"]
NEAR = 1e-5

Limit = Callable[..., None]


class Full(torch.autograd.Function):
    """Fails in the backward pass, when the head's gradients are there and the backbone's are not."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Memory that is full with more than ``most`` images in training, from the ``begin``-th pass on."""
    pooled = Classifier.pooled

    def set_limit(most: int | None, where: str = "forward", begin: int = 1) -> None:
        passes = [0]

        def limited(self: Classifier, images: Tensor) -> Tensor:
            passes[0] += self.training
            short = self.training and passes[0] >= begin and most is not None and len(images) > most
            if short and where == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ...")
            if short and where == "words":
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to")
            features = pooled(self, images)
            return Full.apply(features) if short else features  # type: ignore[no-any-return, no-untyped-call]

        monkeypatch.setattr(Classifier, "pooled", limited)

    return set_limit


def train(name: str, *overrides: str) -> int:
    return main(["train", CONFIG, "--run", name, "--fold", "0", *overrides])


def weights(project: Path, run: str) -> dict[str, Tensor]:
    return load_file(project / f"runs/{run}/fold0/model.safetensors")


def lines(project: Path, run: str) -> list[dict[str, Any]]:
    text = (project / f"runs/{run}/fold0/metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize(("where", "begin"), [("words", 1), ("backward", 2)])
def test_a_training_that_runs_short_of_memory_equals_one_that_does_not(
    where: str, begin: int, project: Path, limit: Limit, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two micro-batches of 6 a step: the first one fails, or the second, halfway through its gradients."""
    settings = [*PLAIN, "train.batch_size=6", "train.accumulate=2", "optim.clip=1.0", "mix.mixup=0.4"]
    assert train("whole", *settings) == 0
    limit(2, where, begin)
    capsys.readouterr()
    assert train("short", *settings) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "memory" in line]
    assert [line.split("; ")[1] for line in told] == [
        "goes on with 3, 2 times accumulated: the same images, rate and number of steps",
        "goes on with 2, 4 times accumulated: the same images, rate and number of steps",
    ]
    assert "short fold 0 epoch 1/2: the memory is full with 6 images at once" in told[0]
    assert apart(weights(project, "whole"), weights(project, "short")) < NEAR
    for whole, short in zip(lines(project, "whole"), lines(project, "short"), strict=True):
        assert {key: whole[key] for key in ("epoch", "step", "lr")} == {
            key: short[key] for key in ("epoch", "step", "lr")
        }
        assert short["loss"] == pytest.approx(whole["loss"], abs=NEAR)
        assert (whole["pieces"], short["pieces"]) == (1, 4)
    record = json.loads((project / "runs/short/run.json").read_text(encoding="utf-8"))
    assert record["folds"]["fold0"]["pieces"] == 4


def test_a_resumed_training_remembers_the_pieces(
    project: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit(5)
    assert train("whole", *PLAIN) == 0
    real = loop.train_epoch

    def stopped(job: FoldJob, machine: Any, session: Any, *rest: Any) -> Any:
        if session.progress.epoch == 1:
            raise KeyboardInterrupt
        return real(job, machine, session, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", stopped)
        assert train("again", *PLAIN) == 130
    capsys.readouterr()
    assert train("again", *PLAIN) == 0
    assert "memory" not in capsys.readouterr().err
    assert lines(project, "again") == lines(project, "whole")
    assert lines(project, "again")[1]["pieces"] == 2
    assert apart(weights(project, "again"), weights(project, "whole")) == 0


def test_a_new_phase_tries_whole_batches_and_batch_norm_is_named(
    project: Path, limit: Limit, capsys: pytest.CaptureFixture[str]
) -> None:
    limit(5)
    assert train("x", "train.phases=[{epochs: 1}, {epochs: 1, batch_size: 4}]") == 0
    assert [line["pieces"] for line in lines(project, "x")] == [2, 1]
    assert "but batch-norm statistics of fewer images" in capsys.readouterr().err


def test_an_image_that_does_not_fit_ends_the_run_with_one_line(
    project: Path, limit: Limit, capsys: pytest.CaptureFixture[str]
) -> None:
    limit(0)
    assert train("x", *PLAIN, "train.batch_size=3") == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: "))
    assert "the memory is full with a single image" in line
    assert "input.size" in line
    assert "GPU 0 has" not in line


def test_only_full_memory_is_mended() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("not enough memory"))


TRICKS = {
    "mixed": ["mix.mixup=0.4", "mix.cutmix=1.0", "augment.preset=light", "augment.erase.prob=0.5"],
    "jsd": ["augment.add=[{AugMix: {}}]", "loss.jsd=12.0", "augment.erase.prob=0.5"],
    "columns": [
        "mix.mixup=0.4", "model.metadata={categorical: [site], drop_rate: 0.0}", "balance.loss_weights=inverse",
        "loss.auxiliary=[{column: site, task: multiclass, weight: 0.5}]",
    ],
    "trunk": ["model.freeze={stages: 1, cache: true}"],
    "online": ["mix.mixup=0.4"],
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_pieces_have_the_gradient_of_the_whole(trick: str, project: Path) -> None:
    """Seven rows in three pieces, which differ by a row; whatever is drawn is drawn for the whole."""
    settings = [*PLAIN, "train.batch_size=7", *TRICKS[trick]]
    config = load_config(project / CONFIG, settings).model_copy(update={"name": "x"})
    workspace = Workspace(project)
    data = load_competition(config.competition, project)
    table = load_folds(config, data, workspace)[0]
    sources = open_sources(config, data, workspace)
    if trick == "online":
        assert train("teacher", *PLAIN, "train.epochs=1") == 0
    job = plain_job(config, data, workspace, table, 0, 0, workspace.run("x").fold(0), sources, "")
    if trick == "online":
        taught = config.teacher.model_copy(
            update={
                "distill": config.teacher.distill.model_copy(update={"weight": 0.5, "how": "online", "features": 1.0})
            }
        )
        teacher = OnlineTeacher(((project / "runs/teacher/fold0", 1.0),), 0)
        job = replace(job, recipe=replace(job.recipe, teacher=taught), teacher=teacher)
    machine = find_machine(job.recipe.train)
    found = []
    for pieces in (1, 3):
        session = start(job, machine)
        session.wrapped.train()
        session.progress.pieces = pieces
        _, loader = make_loader(job, machine, session, session.stretch)
        loss = loop.backward(job, machine, session, next(iter(loader)), 0, 1, sync=True)
        named = {name: value.grad for name, value in session.model.named_parameters() if value.grad is not None}
        found.append((float(loss), named))
    (whole, wanted), (parted, given) = found
    assert parted == pytest.approx(whole, rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert apart(wanted, given) < 1e-5 * max(largest, 1)


def limit_the_second() -> None:
    """More than three images are too many for it."""
    pooled = Classifier.pooled

    def limited(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        if self.training and os.environ["RANK"] == "1" and len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return pooled(self, images)

    Classifier.pooled = limited  # type: ignore[method-assign]


def test_processes_agree_that_one_is_short(project: Path) -> None:
    """The second of two processes runs short: both go on in halves, and neither waits for the other for ever."""
    settings = [*PLAIN, "train.validate_every=2", "train.accumulate=2", "--fold", "0"]
    pair = ["train", CONFIG, "name=pair", "train.batch_size=5", *settings]
    log = project / "log"
    assert run_pair(pair, project, log, limit_the_second) == (0, 0), log.read_text()
    assert log.read_text().count("goes on with 3, 2 times accumulated") == 1
    assert main(["train", CONFIG, "name=alone", "train.batch_size=10", *settings]) == 0
    assert [line["pieces"] for line in lines(project, "pair")] == [2, 2]
    assert apart(weights(project, "pair"), weights(project, "alone")) < NEAR
