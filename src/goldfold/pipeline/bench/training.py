"""Training: the whole loop against the bare step of its own network, in turns."""

from __future__ import annotations

import math
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from goldfold.config import Config, config_from_dict
from goldfold.cores import logical_cores
from goldfold.data import Examples
from goldfold.machine import Machine
from goldfold.paths import Workspace
from goldfold.pipeline.bench.child import run_child
from goldfold.pipeline.bench.plan import Plan, Subject
from goldfold.pipeline.bench.rows import CannotMeasure, Measurement, Sample, rates, take_turns
from goldfold.pipeline.one_fold import open_fold
from goldfold.pipeline.profiling import NAMES, advise
from goldfold.seeds import seed_everything
from goldfold.training import FoldJob, profile_steps
from goldfold.training.job import EPOCH
from goldfold.training.loop import train_epoch
from goldfold.training.session import make_loader, pace, prepared, start

SLICES = 4
"""Turns of which a sample is made: on a shared machine two stretches of four seconds differ by a fifth by chance alone."""

PROBED = 3
PROFILED = 12


class Loop:
    """A training set up as ``train_fold`` does it, whose epochs take about ``seconds``; nothing is written."""

    def __init__(self, config: Config, workspace: Workspace, seconds: float) -> None:
        job, self.machine = open_fold(config, workspace)
        self.session = start(job, self.machine)
        stretch = self.session.stretch
        _, loader = make_loader(lengthened(job, stretch.batch_size), self.machine, self.session, stretch)
        batch = next(iter(loader)).to(self.machine.device)
        self.images = prepared(self.machine, self.session, batch.pixels)
        """One batch, resident on the device."""
        self.metadata = batch.metadata if batch.metadata.shape[1] else None
        self.session.wrapped.train()
        self.bare(PROBED)  # the first steps are slower
        amount, took = self.bare(PROBED)
        self.steps = max(math.ceil(seconds * amount / took / stretch.batch_size), 3)
        self.job = lengthened(job, self.steps * stretch.batch_size)
        self.order, self.loader = make_loader(self.job, self.machine, self.session, stretch)
        self.rates = pace(self.session, self.job)
        self.whole()  # loader processes start

    def whole(self) -> tuple[float, float]:
        """Images and seconds of an epoch of the real loop."""
        at = self.session.progress
        seed_everything(self.job.seed, self.job.fold, EPOCH, at.epoch)
        self.order.epoch = at.epoch
        settle(self.machine)
        begun = time.perf_counter()
        _, seen = train_epoch(self.job, self.machine, self.session, self.loader, self.rates)
        settle(self.machine)
        seconds = time.perf_counter() - begun
        at.epoch += 1
        return float(seen), seconds

    def bare(self, steps: int | None = None) -> tuple[float, float]:
        """Images and seconds of steps that have nothing to wait for: forward, backward and optimizer on one batch."""
        session, machine, window = self.session, self.machine, self.session.stretch.accumulate
        steps = self.steps if steps is None else steps
        settle(machine)
        begun = time.perf_counter()
        for number in range(steps):
            with machine.autocast():
                logits = session.wrapped(self.images, self.metadata)
            session.scaler.scale(_loss(logits)).backward()  # type: ignore[no-untyped-call]
            if (number + 1) % window == 0:
                session.scaler.step(session.optimizer)
                session.scaler.update()
                session.optimizer.zero_grad()
        settle(machine)
        return float(steps * len(self.images)), time.perf_counter() - begun


def _loss(logits: Tensor) -> Tensor:
    """The plainest loss of as many logits, towards the first class."""
    logits = logits.float()
    if logits.shape[1] == 1:
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
    return torch.nn.functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def settle(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize()


def lengthened(job: FoldJob, rows: int) -> FoldJob:
    """The job with ``rows`` training rows: its own, repeated or cut off."""
    chosen = np.arange(rows) % len(job.examples)
    columns = [each.name for each in fields(Examples) if each.name != "images"]
    taken: dict[str, Any] = {name: getattr(job.examples, name)[chosen] for name in columns}
    return replace(job, examples=replace(job.examples, **taken))


def measure_training(subject: Subject, plan: Plan, n_cores: int | None = None) -> Measurement:
    """The whole loop over the bare step; on ``n_cores`` cores, in a process of its own where this one has others."""
    if n_cores is not None and n_cores > logical_cores():
        raise CannotMeasure(f"needs {n_cores} cores, and there are {logical_cores()}")
    argument: dict[str, Any] = {
        "config": subject.config.model_dump(mode="json"),
        "root": str(subject.workspace.root),
        "seconds": plan.seconds,
        "repeats": plan.repeats,
    }
    apart = n_cores is not None and n_cores != logical_cores()
    found = run_child("train", argument, n_cores) if apart else train_in_child(**argument)
    details = {"images": subject.what, **found["details"]}
    return Measurement(tuple(found["samples"]), details, tuple(found["notes"]))


def train_in_child(config: dict[str, Any], root: str, seconds: float, repeats: int) -> dict[str, Any]:
    """Samples of the whole loop over the bare step, with where the loop's time goes."""
    checked = config_from_dict(config, "bench")
    loop = Loop(checked, Workspace(Path(root)), seconds / SLICES)
    samples = take_turns(repeats, loop.whole, loop.bare, SLICES)
    details = describe_loop(loop, samples)
    job, machine = loop.job, loop.machine
    del loop  # its memory, on a GPU
    times = profile_steps(job, machine, PROFILED)
    shares = ", ".join(f"{NAMES[part]} {share:.1%}" for part, share in times.shares.items())
    return {"samples": samples, "details": details, "notes": [f"{shares}. {advise(times.shares, checked, machine)}"]}


def describe_loop(loop: Loop, samples: tuple[Sample, ...]) -> dict[str, Any]:
    recipe = loop.job.recipe
    return {
        "backbone": recipe.model.backbone,
        "size": recipe.input.size,
        "batch_size": recipe.train.batch_size,
        "augment": recipe.augment.preset if recipe.augment.train is None else "own list",
        "optimizer": recipe.optim.name,
        "machine": loop.machine.describe(),
        "cores": logical_cores(),
        **rates(samples),
    }
