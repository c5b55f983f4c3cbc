"""One fold, from pixels to a bundle: the loop, readable from top to bottom."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from goldfold.augment import erase_batch
from goldfold.data import Batches, TrainBatch, prefetched
from goldfold.errors import GoldfoldError, some
from goldfold.machine import Machine
from goldfold.mix import Mixing, draw_mix
from goldfold.optim import add_penalties, clip_gradients, set_momentum, set_rate
from goldfold.progress import progress, say
from goldfold.pruning import apply_masks
from goldfold.schedules import plateau_factor
from goldfold.seeds import seed_everything
from goldfold.tracking import MetricsFile, WandbRun
from goldfold.training.checkpoint import load_state
from goldfold.training.finish import finish, keep_epoch, note_score, save_progress, validate
from goldfold.training.job import AUGMENT, EPOCH, ERASE, MIX, FoldJob, FoldResult
from goldfold.training.plan import Pace, at_epoch
from goldfold.training.session import Session, enter, make_loader, pace, peak_rate, prepared, prune, start
from goldfold.training.window import Window, in_pieces


def train_fold(job: FoldJob, machine: Machine, tracker: WandbRun) -> FoldResult:
    """Train, or go on training, one fold; leaves bundle, predictions and, last, DONE.

    Raises GoldfoldError when the loss is no longer finite.
    """
    started = time.monotonic()
    train, state_file = job.recipe.train, job.paths.last / "state.safetensors"
    session = start(job, machine, load_state(state_file) if state_file.exists() else None)
    at, main = session.progress, session.accelerator.is_main_process
    if at.epoch:
        say(f"{job.run} fold {job.fold}: goes on after epoch {at.epoch}")
    metrics_file = MetricsFile(job.paths.metrics, first_epoch=at.epoch + 1) if main else None
    for line in metrics_file.kept if metrics_file is not None else ():
        tracker.log(line, step=line["step"])
    rates, loader, order = pace(session, job), None, None
    seen, training_seconds, pieces = 0, 0.0, at.pieces
    while at.epoch < train.epochs and not at.stopped:
        stretch = at_epoch(session.plan, at.epoch)
        state = enter(job, session, stretch)
        if loader is None or order is None or state is not None:
            order, loader = make_loader(job, machine, session, stretch)
        prune(job, session)
        # Each process draws masks of its own; a single one as if there were no others.
        rank = session.accelerator.process_index
        seed_everything(job.seed, job.fold, EPOCH, at.epoch, *([rank] if rank else []))
        order.epoch = at.epoch
        epoch_started = time.monotonic()
        train_loss, images_seen = train_epoch(job, machine, session, loader, rates)
        training_seconds += time.monotonic() - epoch_started
        seen += images_seen
        at.epoch, pieces = at.epoch + 1, max(pieces, at.pieces)
        record: dict[str, Any] = {"epoch": at.epoch, "step": at.step, "lr": session.optimizer.param_groups[0]["lr"]}
        record |= {"phase": stretch.number, "optimizer_state": state or ("new" if at.epoch == 1 else "kept")}
        record |= {"loss": train_loss, "pieces": at.pieces}
        if at.epoch % train.validate_every == 0 or at.epoch == train.epochs:
            scores = validate(job, machine, session)
            record |= scores
            note_score(job, session, scores[job.metrics[0].name])
        rate = seen / max(training_seconds, 1e-9)
        if metrics_file is not None:
            metrics_file.log(record)
            tracker.log(record, step=at.step)
            say(_epoch_line(job, record, rate))
        keep_epoch(job, session)
        save_progress(job, session, state_file)
    finish(job, machine, session)
    return FoldResult(
        fold=job.fold,
        seed=job.seed,
        seconds=round(time.monotonic() - started, 3),
        images_per_second=round(seen / training_seconds, 2) if seen else None,
        peak_memory_mb=machine.peak_memory_mb(),
        pieces=pieces,
        threads=torch.get_num_threads(),
    )


def train_epoch(
    job: FoldJob, machine: Machine, session: Session, loader: Batches[TrainBatch], rates: Pace
) -> tuple[float, int]:
    """One epoch; returns the mean loss and the number of images seen, of all processes."""
    stretch, at, accelerator = session.stretch, session.progress, session.accelerator
    greater = job.metrics[0].greater_is_better
    peak = peak_rate(stretch, accelerator) * plateau_factor(job.recipe.schedule, at.scores, greater)
    session.wrapped.train()
    n_batches, window = len(loader), stretch.accumulate
    losses, seen = torch.zeros((), device=machine.device), 0
    what = f"{job.run} fold {job.fold} epoch {at.epoch + 1}/{job.recipe.train.epochs}"
    coming = progress(prefetched(loader, machine.device), what, n_batches, "batches")
    step = Window(session, what)
    for number, batch in enumerate(coming):
        # The last window of an epoch may be shorter; its loss is divided by its own length.
        window_start = number - number % window
        in_window = min(window, n_batches - window_start)
        steps_now = number + 1 == window_start + in_window
        # A step that does not fit into memory is repeated in smaller pieces, from the very same batches.
        run = partial(backward, job, machine, session, batch, number, in_window)
        step.add(run, len(batch.targets), last=steps_now)
        if steps_now:
            for loss in step.settle():
                losses += loss
            momentum = rates.momentum(stretch, at.step)
            if momentum is not None:
                set_momentum(session.optimizer, momentum)
            update(session, peak * rates.factor(stretch, at.step))
            step = Window(session, what)
        seen += len(batch.targets) * accelerator.num_processes
    mean = float(accelerator.reduce(losses, "mean")) / n_batches
    if not math.isfinite(mean):
        broken = session.teachers.broken_names() if session.teachers is not None else []
        if broken:
            raise GoldfoldError(
                f"{what}: the loss is {mean}, as the online teacher {some(broken)} gives NaN in {machine.precision}; set "
                "train.precision=fp32 or teacher.distill.how=stored, and start a new run (delete the run's folder or name "
                "another)"
            )
        raise GoldfoldError(
            f"{what}: the loss is {mean}; lower optim.lr, set optim.clip=1 or train.precision=fp32, and start a new run "
            "(delete the run's folder or name another)"
        )
    return mean, seen


def backward(
    job: FoldJob, machine: Machine, session: Session, batch: TrainBatch, number: int, in_window: int, sync: bool
) -> Tensor:
    """Add the gradients of micro-batch ``number``, one of ``in_window``, in pieces where it is large; returns its loss.

    Whatever is drawn is drawn for the whole of it, and by its number alone. ``sync``: average over processes.
    """
    stretch, accelerator = session.stretch, session.accelerator
    batch = batch.to(machine.device)
    seed = (session.progress.epoch, number, accelerator.process_index)
    images = prepared(machine, session, batch.pixels, job.seed, job.fold, AUGMENT, *seed)
    mixing = draw_mix(stretch.mix, len(images), *images.shape[-2:], job.seed, job.fold, MIX, *seed)
    if mixing is not None:
        mixing = mixing.to(machine.device)
        images, batch = mixing.images(images), _mixed(job, batch, mixing)
    if stretch.augment.erase.prob:
        # AugMix's clean views, which come first, stay clean.
        clean = len(batch.targets) if job.recipe.loss.jsd else 0
        erased = erase_batch(stretch.augment.erase, images[clean:], job.seed, job.fold, ERASE, *seed)
        images = torch.cat([images[:clean], erased])
    metadata = None
    if batch.metadata.shape[1]:
        metadata = batch.metadata.repeat(len(images) // len(batch.targets), 1)
    pieces = min(session.progress.pieces, len(batch.targets))
    total = torch.zeros((), device=machine.device)
    for place, (part, seen, columns, share) in enumerate(in_pieces(batch, images, metadata, pieces), 1):
        features: tuple[Tensor, ...] = ()
        if session.teachers is not None:
            part, features = session.teachers.teach(part, seen, session.model)
        with nullcontext() if sync and place == pieces else accelerator.no_sync(session.wrapped):
            with machine.autocast():
                logits = session.wrapped(seen, columns)
            labels = (part.targets, part.weights, part.auxiliary, part.auxiliary_weights)
            loss = share * session.loss(logits, *labels, part.teacher, part.teacher_weights, features)
            session.scaler.scale(loss / in_window).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def update(session: Session, rate: float) -> None:
    """One optimizer step at ``rate``, and what follows each step."""
    optimizer, settings, at = session.optimizer, session.stretch.optim, session.progress
    set_rate(optimizer, rate)
    if settings.clip or settings.l1 or settings.l2:
        session.scaler.unscale_(optimizer)
        add_penalties(session.model, settings.l1, settings.l2)
        clip_gradients(settings, session.model)
    session.scaler.step(optimizer)
    session.scaler.update()
    optimizer.zero_grad()
    at.step += 1
    if session.masks is not None:
        apply_masks(session.model, session.masks)
    if session.ema is not None:
        session.ema.update(session.model, step=at.step)


def _mixed(job: FoldJob, batch: TrainBatch, mixing: Mixing) -> TrainBatch:
    """The batch's labels mixed as its images are, each kind by the weight that it has in its row's loss."""
    taught = batch.weights * batch.teacher_weights
    targets, _ = mixing.targets(batch.targets, batch.weights - job.recipe.teacher.distill.weight * taught)
    weights = mixing.values(batch.weights)
    teacher, taught = mixing.targets(batch.teacher, taught)
    columns, masks = [batch.auxiliary[:, :0]], [batch.auxiliary_weights[:, :0]]
    for place, task in enumerate(job.auxiliary):
        column, mask = mixing.targets(batch.auxiliary[:, slice(*task.columns)], batch.auxiliary_weights[:, place])
        columns.append(column)
        masks.append(mask[:, None])
    return batch._replace(
        targets=targets,
        weights=weights,
        metadata=mixing.values(batch.metadata),
        auxiliary=torch.cat(columns, dim=1),
        auxiliary_weights=torch.cat(masks, dim=1),
        teacher=teacher,
        teacher_weights=taught / weights.clamp_min(1e-12),
    )


def _epoch_line(job: FoldJob, record: dict[str, Any], rate: float) -> str:
    shown = [f"loss {record['loss']:.4f}"]
    shown += [f"{m.name} {record[m.name]:.4f}" for m in job.metrics if record.get(m.name) is not None]
    where = f"{job.run} fold {job.fold}" + (f" seed {job.seed}" if job.paths.folder.name.count("seed") else "")
    return f"{where} epoch {record['epoch']}/{job.recipe.train.epochs}: {', '.join(shown)}, {rate:.0f} img/s"
