"""In an epoch the processor never waits for the device: numbers are fetched once, at its end."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from goldfold.config import load_config
from goldfold.machine import Machine, find_machine
from goldfold.paths import Workspace
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.jobs import open_sources, plain_job
from goldfold.pipeline.stages import load_folds
from goldfold.training import FoldJob
from goldfold.training.loop import train_epoch
from goldfold.training.session import Session, make_loader, pace, prune, start

SETTINGS = {
    "plain": [],
    "averaged": ["train.ema.decay=0.9", "optim.clip=1.0", "optim.l1=1e-6", "optim.l2=1e-5", "train.accumulate=2"],
    "mixed": ["mix.mixup=0.4", "mix.cutmix=1.0", "augment.erase.prob=0.5", "balance.loss_weights=inverse"],
    "value": ["optim.name=adam", "optim.clip=0.1", "optim.clip_mode=value", "loss.name=focal"],
    "agc": ["optim.clip=0.01", "optim.clip_mode=agc", "train.prune={amount: 0.3, after: 0}", "model.pool=gem"],
    "columns": [
        "model.metadata={categorical: [site]}", "loss.auxiliary=[{column: site, task: multiclass, weight: 0.5}]",
        "mix.mixup=0.4",
    ],
    "jsd": ["augment.add=[{AugMix: {}}]", "loss.jsd=12.0"],
    "trunk": ["model.freeze={stages: 2, cache: true}"],
}  # fmt: skip


def session_of(project: Path, *settings: str) -> tuple[FoldJob, Machine, Session]:
    config = load_config(project / "configs/tiny.yaml", settings)
    workspace = Workspace(project)
    data = load_competition(config.competition, project)
    table = load_folds(config, data, workspace)[0]
    sources = open_sources(config, data, workspace)
    job = plain_job(config, data, workspace, table, 0, 0, workspace.run("x").fold(0), sources, "")
    machine = find_machine(config.train)
    session = start(job, machine)
    prune(job, session)
    return job, machine, session


def epoch(job: FoldJob, machine: Machine, session: Session) -> int:
    """Train one; returns the number of its batches."""
    order, loader = make_loader(job, machine, session, session.stretch)
    order.epoch = session.progress.epoch
    train_epoch(job, machine, session, loader, pace(session, job))
    session.progress.epoch += 1
    return len(loader)


class Watch(TorchDispatchMode):
    """Counts what would make the processor wait on a GPU: numbers taken out of tensors, results of unknown size."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "item")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        masked = name in ("index", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name.strip("_2") in [each.strip("_2") for each in self.OPERATIONS] or masked:
            self.note(name)
        return function(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        frames = [frame.filename for frame in traceback.extract_stack()]
        # Torch's optimizers count steps, and its loaders draw a seed, in tensors that lie on the CPU anyway.
        if not any("/optim/" in frame or "/utils/data/" in frame for frame in frames):
            self.found.append(name)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    watch = Watch()
    with monkeypatch.context() as patch, watch:
        for name in ("cpu", "numpy", "tolist", "__array__"):
            real = getattr(torch.Tensor, name)

            def noting(self: torch.Tensor, *args: Any, name: str = name, real: Any = real, **options: Any) -> Any:
                watch.note(name)
                return real(self, *args, **options)

            patch.setattr(torch.Tensor, name, noting)
        yield watch.found


@pytest.mark.parametrize("name", SETTINGS)
def test_an_epoch_fetches_one_number(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean loss, however many batches there were."""
    job, machine, session = session_of(project, *SETTINGS[name], "train.batch_size=12")
    with watched(monkeypatch) as found:
        batches = epoch(job, machine, session)
    assert batches == 2
    assert found == ["_local_scalar_dense"]


def test_the_watch_sees_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(4.0)
    with watched(monkeypatch) as found:
        float(values[0])
        bool(values[0] > 0)
        values[values > 1]
        values.nonzero()
        values.cpu()
        values.tolist()
    assert found == ["_local_scalar_dense", "_local_scalar_dense", "index", "nonzero", "cpu", "tolist"]


GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(pytest.param(name, "bf16" if name != "plain" else "fp32", marks=GPU) for name in SETTINGS),
        pytest.param("value", "fp16", marks=GPU),  # a fused optimizer asks the scaler's flag on the device
        pytest.param("averaged", "fp16", marks=GPU),
    ],
)
def test_an_epoch_on_the_gpu_waits_at_its_end_alone(
    name: str, precision: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA itself refuses to wait, in the second epoch: the first one fills caches."""
    job, machine, session = session_of(
        project, *SETTINGS[name], "train.device=cuda", f"train.precision={precision}", "train.workers=0"
    )
    assert session.optimizer.param_groups[0].get("fused")
    epoch(job, machine, session)
    reduce = session.accelerator.reduce

    def waiting(*args: Any, **options: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")  # the epoch's end
        return reduce(*args, **options)

    monkeypatch.setattr(session.accelerator, "reduce", waiting)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        epoch(job, machine, session)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prefetched_batches_on_the_gpu_are_those_of_the_loader(project: Path) -> None:
    """Each while the device is busy with the one before, so that a copy which came too early or too late would show."""
    from goldfold.data import prefetched

    job, machine, session = session_of(project, "train.device=cuda", "augment.preset=light", "train.batch_size=2")
    _order, loader = make_loader(job, machine, session, session.stretch)
    plain = [batch.pixels.clone() for batch in loader]
    busy = torch.randn(4096, 4096, device=machine.device)
    seen = []
    for batch in prefetched(loader, machine.device):
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels.device.type == "cuda"
        for _ in range(4):
            busy = (busy @ busy).clamp(-1, 1)
        seen.append(batch.pixels + busy[0, 0].to(torch.uint8) * 0)
        del batch
    assert len(seen) == len(plain) == len(loader)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(seen, plain, strict=True))
