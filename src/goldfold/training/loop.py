"""One fold, from pixels to a bundle: the loop, readable from top to bottom."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from timm.utils import ModelEmaV3

from goldfold import files
from goldfold.augment import make_augmenter
from goldfold.bundle import Bundle, load_weights, save_weights, write_bundle
from goldfold.config.schema import Augment, Balance, Input, Loss, Mix, Model, Optim, Schedule, Train, Tta
from goldfold.data import EpochOrder, Examples, class_weights, rows_of, sampling_weights, train_loader
from goldfold.errors import GoldfoldError
from goldfold.images import Images, ImageSpec
from goldfold.losses import WeightedLoss, make_loss
from goldfold.machine import Machine
from goldfold.metrics import Metric, better, score
from goldfold.mix import mix_batch
from goldfold.models import Classifier, ModelSpec, build_model, freeze_stages
from goldfold.optim import make_optimizer, set_rate
from goldfold.paths import FoldPaths
from goldfold.predict import predict_images
from goldfold.progress import progress, say
from goldfold.records import Floats, Predictions
from goldfold.schedules import lr_factor
from goldfold.seeds import seed_everything
from goldfold.tasks import Task
from goldfold.tracking import MetricsFile, WandbRun
from goldfold.training.checkpoint import load_state, save_state
from goldfold.tta import make_views

INIT, ORDER, MIX, EPOCH = 1, 2, 3, 4
"""What a derived seed is for; keeps the streams of one fold apart."""


@dataclass(frozen=True)
class Recipe:
    """The sections of a configuration that shape a training."""

    input: Input
    augment: Augment
    mix: Mix
    model: Model
    loss: Loss
    optim: Optim
    schedule: Schedule
    train: Train
    balance: Balance
    tta: Tta


@dataclass(frozen=True, eq=False)
class FoldJob:
    """All that one fold's training needs; nothing is looked up elsewhere.

    ``examples``: training rows; ``valid_ids`` with ``valid_targets`` (V, C) lie in ``images``; ``test`` may be absent.
    """

    run: str
    fold: int
    seed: int
    paths: FoldPaths
    fingerprint: str
    id_column: str
    task: Task
    metrics: tuple[Metric, ...]
    recipe: Recipe
    spec: ModelSpec
    weights: Path | None
    examples: Examples
    images: Images
    valid_ids: tuple[str, ...]
    valid_targets: Floats
    test: Images | None


@dataclass(frozen=True)
class FoldResult:
    """How a fold went; times are kept apart from the artefacts, which are equal on every repetition."""

    fold: int
    seed: int
    seconds: float
    images_per_second: float | None
    peak_memory_mb: float


@dataclass
class _Progress:
    """Where a fold stands between epochs; part of the resume state."""

    epoch: int = 0
    step: int = 0
    best_score: float | None = None
    best_epoch: int | None = None
    stale: int = 0
    stopped: bool = False


@dataclass
class _Session:
    """The moving parts of one fold's training."""

    accelerator: Accelerator
    model: Classifier
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    scaler: torch.amp.GradScaler
    loss: WeightedLoss
    progress: _Progress = field(default_factory=_Progress)

    @property
    def evaluated(self) -> Classifier:
        """The weights that predict: the averaged ones where there is an average."""
        return self.ema.module if self.ema is not None else self.model


def train_fold(job: FoldJob, machine: Machine, tracker: WandbRun) -> FoldResult:
    """Train, or go on training, one fold; leaves bundle, predictions and, last, DONE.

    Raises GoldfoldError when the loss is no longer finite.
    """
    started = time.monotonic()
    train, state_file = job.recipe.train, job.paths.last / "state.safetensors"
    session = _start(job, machine)
    if state_file.exists():
        _restore(session, load_state(state_file))
        say(f"{job.run} fold {job.fold}: goes on after epoch {session.progress.epoch}")
    at, main = session.progress, session.accelerator.is_main_process
    metrics_file = MetricsFile(job.paths.metrics, first_epoch=at.epoch + 1) if main else None
    augmenter = make_augmenter(job.recipe.augment, job.recipe.input.size)
    order = EpochOrder(
        len(job.examples),
        train.batch_size,
        job.seed,
        job.fold,
        ORDER,
        weights=sampling_weights(job.recipe.balance, job.examples.targets, job.task),
        rank=session.accelerator.process_index,
        world=session.accelerator.num_processes,
    )
    loader = train_loader(
        job.examples, augmenter, order, workers=machine.workers, pin_memory=machine.device.type == "cuda"
    )
    seen, training_seconds = 0, 0.0
    while at.epoch < train.epochs and not at.stopped:
        seed_everything(job.seed, job.fold, EPOCH, at.epoch)
        order.epoch = at.epoch
        epoch_started = time.monotonic()
        train_loss, images_seen = train_epoch(job, machine, session, loader)
        training_seconds += time.monotonic() - epoch_started
        seen += images_seen
        at.epoch += 1
        record = {"epoch": at.epoch, "step": at.step, "lr": session.optimizer.param_groups[0]["lr"], "loss": train_loss}
        last = at.epoch == train.epochs
        if at.epoch % train.validate_every == 0 or last:
            scores = _validate(job, machine, session)
            record |= scores
            _note_score(job, session, scores[job.metrics[0].name])
        rate = seen / max(training_seconds, 1e-9)
        if metrics_file is not None:
            metrics_file.log(record)
            tracker.log({**record, "images_per_second": rate}, step=at.step)
            say(_epoch_line(job, record, rate))
        _save(job, session, state_file)
    _finish(job, machine, session)
    return FoldResult(
        fold=job.fold,
        seed=job.seed,
        seconds=round(time.monotonic() - started, 3),
        images_per_second=round(seen / training_seconds, 2) if seen else None,
        peak_memory_mb=machine.peak_memory_mb(),
    )


def train_epoch(job: FoldJob, machine: Machine, session: _Session, loader: Any) -> tuple[float, int]:
    """One epoch; returns the mean loss and the number of images seen, of all processes."""
    recipe, at, accelerator = job.recipe, session.progress, session.accelerator
    model, optimizer = session.model, session.optimizer
    session.wrapped.train()
    n_batches, window = len(loader), recipe.train.accumulate
    steps_per_epoch = math.ceil(n_batches / window)
    total_steps = steps_per_epoch * recipe.train.epochs
    losses, seen = torch.zeros((), device=machine.device), 0
    what = f"{job.run} fold {job.fold} epoch {at.epoch + 1}/{recipe.train.epochs}"
    for number, (pixels, targets, weights) in enumerate(progress(loader, what, n_batches, "batches")):
        images = model.prepare(pixels.to(machine.device, non_blocking=True), machine.memory_format)
        targets = targets.to(machine.device, non_blocking=True)
        weights = weights.to(machine.device, non_blocking=True)
        seed = (job.seed, job.fold, MIX, at.epoch, number, accelerator.process_index)
        images, targets, weights = mix_batch(recipe.mix, images, targets, weights, *seed)

        # The last window of an epoch may be shorter; its loss is divided by its own length.
        window_start = number - number % window
        in_window = min(window, n_batches - window_start)
        steps_now = number + 1 == window_start + in_window
        with accelerator.no_sync(session.wrapped) if not steps_now else nullcontext():
            with machine.autocast():
                logits = session.wrapped(images)
            loss = session.loss(logits, targets, weights)
            session.scaler.scale(loss / in_window).backward()  # type: ignore[no-untyped-call]
        if steps_now:
            set_rate(optimizer, recipe.optim.lr * lr_factor(recipe.schedule, at.step, total_steps, steps_per_epoch))
            if recipe.optim.clip:
                session.scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip)
            session.scaler.step(optimizer)
            session.scaler.update()
            optimizer.zero_grad()
            at.step += 1
            if session.ema is not None:
                session.ema.update(model, step=at.step)
        losses += loss.detach()
        seen += len(pixels) * accelerator.num_processes
    mean = float(accelerator.reduce(losses, "mean")) / n_batches
    if not math.isfinite(mean):
        raise GoldfoldError(
            f"{what}: the loss is {mean}; lower optim.lr, set optim.clip=1 or train.precision=fp32, and start a new run "
            "(delete the run's folder or name another)"
        )
    return mean, seen


def _start(job: FoldJob, machine: Machine) -> _Session:
    recipe = job.recipe
    # accelerate gives ranks and gradient sync. Autocast and loss scaling are entered in the loop, since its settings of
    # them hold for a whole process and members of one pipeline may differ.
    # The other processes wait while the first predicts, for longer than the 10 minutes that NCCL would give it.
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=1))
    accelerator = Accelerator(cpu=machine.device.type == "cpu", kwargs_handlers=[patience])
    seed_everything(job.seed, job.fold, INIT)
    model = build_model(job.spec, weights=job.weights, hub=recipe.model.pretrained and job.weights is None)
    freeze_stages(model, recipe.model.freeze_stages)
    model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
    ema = None
    if recipe.train.ema.decay:
        ema = ModelEmaV3(model, decay=recipe.train.ema.decay, use_warmup=recipe.train.ema.warmup)
    optimizer = make_optimizer(recipe.optim, model)
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
    wrapped: torch.nn.Module = model
    if accelerator.num_processes > 1:
        wrapped = accelerator.prepare_model(model, device_placement=False)
    weights = class_weights(recipe.balance.loss_weights, job.examples.targets, job.task)
    spec = job.spec
    loss = make_loss(
        recipe.loss,
        job.task,
        class_weights=None if weights is None else torch.from_numpy(weights),
        target_mean=None if spec.target_mean is None else torch.tensor(spec.target_mean),
        target_std=None if spec.target_std is None else torch.tensor(spec.target_std),
    )
    return _Session(accelerator, model, wrapped, optimizer, ema, scaler, loss)


def _validate(job: FoldJob, machine: Machine, session: _Session) -> dict[str, float | None]:
    """Scores of a single view; the views of ``tta`` are for the final predictions."""
    found: list[Any] = [None]
    if session.accelerator.is_main_process:
        values = _predict(job, machine, session.evaluated, job.images, job.valid_ids, single_view=True)
        scores = {metric.name: score(metric, job.task, job.valid_targets, values) for metric in job.metrics}
        found = [{name: float(value) if math.isfinite(value) else None for name, value in scores.items()}]
    # Batch-norm statistics differ between processes; all must agree on when to stop.
    return broadcast_object_list(found)[0]  # type: ignore[no-any-return]


def _note_score(job: FoldJob, session: _Session, value: float | None) -> None:
    """Keep the best epoch's weights where they are asked for; count epochs without gain."""
    at, train = session.progress, job.recipe.train
    gain = train.early_stopping.min_delta * (1 if job.metrics[0].greater_is_better else -1)
    beaten = None if at.best_score is None else at.best_score + gain
    improved = value is not None and (beaten is None or better(job.metrics[0], value, beaten))
    if improved:
        at.best_score, at.best_epoch, at.stale = value, at.epoch, 0
        if train.keep == "best" and session.accelerator.is_main_process:
            save_weights(_best_weights(job.paths, at.epoch), session.evaluated)
    else:
        at.stale += 1
    at.stopped = 0 < train.early_stopping.patience <= at.stale


def _save(job: FoldJob, session: _Session, path: Path) -> None:
    """Write the resume state; then the best weights of earlier epochs may go."""
    if session.accelerator.is_main_process:
        save_state(
            path,
            {
                "progress": vars(session.progress),
                "model": session.model.state_dict(),
                "ema": None if session.ema is None else session.ema.module.state_dict(),
                "optimizer": session.optimizer.state_dict(),
                "scaler": session.scaler.state_dict(),
            },
        )
        for old in job.paths.last.glob("best-*.safetensors"):
            if old != _best_weights(job.paths, session.progress.best_epoch or 0):
                old.unlink()
    session.accelerator.wait_for_everyone()


def _restore(session: _Session, state: dict[str, Any]) -> None:
    session.model.load_state_dict(state["model"])
    if session.ema is not None:
        session.ema.module.load_state_dict(state["ema"])
    session.optimizer.load_state_dict(state["optimizer"])
    session.scaler.load_state_dict(state["scaler"])
    session.progress = _Progress(**state["progress"])


def _finish(job: FoldJob, machine: Machine, session: _Session) -> None:
    """Predictions with all views, the bundle, and DONE last."""
    model, paths, train = session.evaluated, job.paths, job.recipe.train
    if session.accelerator.is_main_process:
        save_weights(paths.last / "model.safetensors", model)
        if train.keep == "best" and session.progress.best_epoch is not None:
            load_weights(_best_weights(paths, session.progress.best_epoch), model)
        save_weights(paths.weights, model)
        oof = _predict(job, machine, model, job.images, job.valid_ids)
        fold = np.full(len(job.valid_ids), job.fold, dtype=np.int64)
        Predictions(job.valid_ids, oof, job.task.classes, job.run, fold).write(paths.oof, job.id_column)
        if job.test is not None:
            test = _predict(job, machine, model, job.test, job.test.ids)
            Predictions(job.test.ids, test, job.task.classes, job.run).write(paths.test, job.id_column)
        recipe = job.recipe
        bundle = Bundle(
            run=job.run,
            fold=job.fold,
            seed=job.seed,
            task=job.task,
            model=job.spec,
            images=ImageSpec.from_config(recipe.input),
            views=recipe.tta.model_dump(mode="json")["views"],
            merge=recipe.tta.merge,
            id_column=job.id_column,
            weights_sha256=files.sha256_file(paths.weights),
        )
        write_bundle(paths.bundle, bundle)
        best = session.progress.best_epoch
        files.write_json(
            paths.done,
            {"fingerprint": job.fingerprint, "kept": train.keep, "best_epoch": best, "epochs": session.progress.epoch},
        )
        drop_resume_state(paths)
    session.accelerator.wait_for_everyone()


def is_done(paths: FoldPaths, fingerprint: str) -> bool:
    """Whether the fold was finished by this very configuration."""
    return paths.done.exists() and files.read_json(paths.done)["fingerprint"] == fingerprint


def drop_resume_state(paths: FoldPaths) -> None:
    """A finished fold needs no optimizer state; ``last/`` keeps the last epoch's weights."""
    for name in ("state.safetensors", "best-*.safetensors"):
        for path in paths.last.glob(name):
            path.unlink(missing_ok=True)
    files.remove_leftovers(paths.last)
    files.remove_leftovers(paths.folder)


def _predict(
    job: FoldJob, machine: Machine, model: Classifier, images: Images, ids: Sequence[str], single_view: bool = False
) -> Floats:
    tta = job.recipe.tta
    views = make_views(tta.model_copy(update={"views": "none"}) if single_view else tta)
    return predict_images(
        model,
        images,
        rows_of(images, ids),
        task=job.task,
        views=views,
        how=tta.merge,
        batch_size=tta.batch_size,
        machine=machine,
        what=f"{job.run} fold {job.fold}: predicting",
    )


def _best_weights(paths: FoldPaths, epoch: int) -> Path:
    return paths.last / f"best-{epoch}.safetensors"


def _epoch_line(job: FoldJob, record: dict[str, Any], rate: float) -> str:
    shown = [f"loss {record['loss']:.4f}"]
    shown += [f"{m.name} {record[m.name]:.4f}" for m in job.metrics if record.get(m.name) is not None]
    where = f"{job.run} fold {job.fold}" + (f" seed {job.seed}" if job.paths.folder.name.count("seed") else "")
    return f"{where} epoch {record['epoch']}/{job.recipe.train.epochs}: {', '.join(shown)}, {rate:.0f} img/s"
