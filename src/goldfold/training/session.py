"""The moving parts of one fold's training: how they are made, change at a phase's start, and are kept on disk."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from goldfold.augment import as_stored, make_augmenter
from goldfold.augment.device import DeviceAugmenter, make_device_augmenter
from goldfold.averaging import Ema, Swa, make_ema
from goldfold.balance import class_weights, rare_rows
from goldfold.config.schema import Augment
from goldfold.data import (
    Batches,
    EpochOrder,
    FeatureBatches,
    PixelBatches,
    TrainBatch,
    counted_rows,
    draw_rows,
    train_loader,
)
from goldfold.images import ImageSpec
from goldfold.images.colour import InputColours
from goldfold.losses import JointLoss, make_joint
from goldfold.machine import Machine
from goldfold.measuring import compile_steps
from goldfold.models import Classifier, build_model, set_frozen, trainable_names, try_sizes
from goldfold.models.depthwise import quicken_depthwise
from goldfold.optim import carry_state, make_optimizer, restore_optimizer, scaled_lr
from goldfold.predict import try_views
from goldfold.pruning import apply_masks, magnitude_masks
from goldfold.records import Floats, Ints
from goldfold.seeds import derive_seed, seed_everything
from goldfold.teaching import Teachers, check_teachers, load_teachers
from goldfold.training.job import INIT, ORDER, FoldJob
from goldfold.training.plan import Pace, Stretch, at_epoch, make_plan
from goldfold.training.stored import Stored, open_stored

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Progress:
    """Where a fold stands between epochs; part of the resume state. ``scores``: the first metric, a validation each.

    ``pieces``: parts in which a micro-batch of this phase is passed, more than 1 where memory was short.
    """

    epoch: int = 0
    step: int = 0
    scores: list[float | None] = field(default_factory=list)
    best_score: float | None = None
    best_epoch: int | None = None
    stale: int = 0
    stopped: bool = False
    pieces: int = 1


@dataclass
class Session:
    """``model``: the whole network; ``tail``: the part that a step runs (the whole, or what follows a cached trunk).

    ``teachers`` answer on each batch, ``device_augment`` draws this phase's transforms on the device; neither is saved.
    """

    accelerator: Accelerator
    plan: tuple[Stretch, ...]
    stretch: Stretch
    model: Classifier
    tail: Classifier
    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: JointLoss
    stored: Stored | None = None
    ema: Ema | None = None
    swa: Swa | None = None
    masks: dict[str, Tensor] | None = None
    teachers: Teachers | None = None
    compiled: bool = False
    device_augment: DeviceAugmenter | None = None
    validated: tuple[int, Floats] | None = None
    """The last validated epoch and the probabilities (N, C) of its single view, where this process computed it."""
    progress: Progress = field(default_factory=Progress)
    tried: int = 0
    """Steps of this phase that memory sufficed for, in this process."""

    @property
    def evaluated(self) -> Classifier:
        """The weights that predict: the averaged ones where there is an average a step."""
        return self.ema.module if self.ema is not None else self.model


def start(job: FoldJob, machine: Machine, state: dict[str, Any] | None = None) -> Session:
    """A session at the beginning, or where ``state`` left it. Raises BadInput when the settings do not fit the network."""
    from accelerate import Accelerator  # imported late: commands that train nothing answer sooner
    from accelerate.utils import InitProcessGroupKwargs

    recipe = job.recipe
    progress = Progress() if state is None else Progress(**state["progress"])
    plan = make_plan(recipe)
    # The state was saved in the phase of the last trained epoch; the next one may begin another.
    stretch = at_epoch(plan, max(progress.epoch - 1, 0))
    # accelerate gives ranks and gradient sync. Autocast and loss scaling are entered in the loop, since its settings of
    # them hold for a whole process and members of one pipeline may differ.
    # The other processes wait while the first predicts, for longer than the 10 minutes that NCCL would give it.
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(days=1))
    accelerator = Accelerator(cpu=machine.device.type == "cpu", kwargs_handlers=[patience])
    teachers = _teachers(job, machine.predicting)
    projections = teachers.widths if teachers is not None and recipe.teacher.distill.features else ()
    seed_everything(job.seed, job.fold, INIT)
    model = build_model(
        job.spec,
        weights=job.weights,
        hub=recipe.model.pretrained and job.weights is None,
        auxiliary=[task.n_logits for task in job.auxiliary],
        projections=projections,
        zero_init_last=recipe.model.zero_init_last,
        kaiming=recipe.model.head.init == "kaiming",
    )
    set_frozen(model, stretch.frozen, recipe.model.freeze.batch_norm)
    model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
    quicken_depthwise(model)
    try_sizes(model, [job.spec.size, *(other.size for other in plan)])
    try_views(model, recipe.tta)
    stored = None
    if recipe.model.freeze.cache:  # as prediction sees the images, in its precision
        stored = open_stored(job, replace(machine, precision=machine.predicting.precision), model)
    tail = model if stored is None else stored.split.tail
    weights = class_weights(recipe.balance, job.examples.targets[_counted(job)], job.task)
    spec = job.spec
    session = Session(
        accelerator=accelerator,
        plan=plan,
        stretch=stretch,
        model=model,
        tail=tail,
        wrapped=_wrapped(accelerator, tail, machine.compiled),
        compiled=machine.compiled,
        optimizer=_optimizer(job, plan, stretch, model, accelerator),
        scaler=torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16"),
        loss=make_joint(
            recipe.loss,
            job.task,
            # On the device from the start: a copy in each step would make the processor wait for it.
            class_weights=None if weights is None else torch.from_numpy(weights).to(machine.device),
            target_mean=None if spec.target_mean is None else torch.tensor(spec.target_mean, device=machine.device),
            target_std=None if spec.target_std is None else torch.tensor(spec.target_std, device=machine.device),
            scale=recipe.model.head.scale,
            auxiliary=job.auxiliary,
            distill=recipe.teacher.distill,
            projections=projections,
        ),
        stored=stored,
        teachers=teachers,
        progress=progress,
    )
    if recipe.train.ema.decay:
        session.ema = make_ema(model, recipe.train.ema.decay, recipe.train.ema.warmup)
    if recipe.train.swa.epochs:
        session.swa = Swa()
    if state is not None:
        _restore(session, state)
    return session


def _teachers(job: FoldJob, machine: Machine) -> Teachers | None:
    """The networks that answer on each batch. Raises LeakError and BadInput, before anything is trained."""
    if job.teacher is None:
        return None
    if job.recipe.model.freeze.cache:
        raise ValueError("a network behind stored features shows its teachers no images; give it label_views' labels")
    check_teachers(job.teacher, job.task, job.spec, ImageSpec.from_config(job.recipe.input))
    return load_teachers(job.teacher, machine, job.fold, job.recipe.teacher.leaky)


def enter(job: FoldJob, session: Session, stretch: Stretch) -> str | None:
    """Go over to another phase. Returns what became of the optimizer's state, ``kept`` or ``reset``; None: no change."""
    if stretch is session.stretch:
        return None
    set_frozen(session.model, stretch.frozen, job.recipe.model.freeze.batch_norm)
    old = session.optimizer
    if stretch.reset or stretch.optim != session.stretch.optim:
        session.optimizer = _optimizer(job, session.plan, stretch, session.model, session.accelerator)
        if not stretch.reset:
            carry_state(old, session.optimizer)
    # Which layers have gradients is fixed when the network is wrapped.
    if stretch.frozen != session.stretch.frozen:
        session.wrapped = session.tail
        session.accelerator.free_memory()  # the old wrapper's gradient hooks go with it
        session.wrapped = _wrapped(session.accelerator, session.tail, session.compiled)
    session.stretch = stretch
    session.progress.pieces, session.tried = 1, 0  # other sizes, other layers: what fits is found anew
    return "reset" if stretch.reset else "kept"


def prune(job: FoldJob, session: Session) -> None:
    """Fix the masks once, when their epoch has come."""
    settings = job.recipe.train.prune
    if settings.amount and session.masks is None and session.progress.epoch >= settings.after:
        session.masks = magnitude_masks(session.model, settings.amount)
        apply_masks(session.model, session.masks)
        if session.ema is not None:
            apply_masks(session.ema.module, session.masks)


def pace(session: Session, job: FoldJob) -> Pace:
    """The rate of every step, from the number of steps that each phase takes."""
    world = session.accelerator.num_processes
    steps = []
    for stretch in session.plan:
        batches = max(len(_rows(job, stretch, 0)) // (stretch.batch_size * world), 1)
        steps.append(math.ceil(batches / stretch.accumulate))
    swa = job.recipe.train.swa
    return Pace(session.plan, tuple(steps), job.recipe.schedule, swa.epochs, swa.lr_factor)


def peak_rate(stretch: Stretch, accelerator: Accelerator, lr: float | None = None) -> float:
    """``optim.lr`` (or ``lr``) scaled to the images of an optimizer step, of all processes."""
    batch = stretch.batch_size * stretch.accumulate * accelerator.num_processes
    return scaled_lr(stretch.optim, stretch.optim.lr if lr is None else lr, batch)


def _rows(job: FoldJob, stretch: Stretch, seed: int) -> Ints:
    """The row numbers of one epoch of the stretch."""
    examples, recipe = job.examples, job.recipe
    share = recipe.teacher.pseudo.sampling_prob
    return draw_rows(
        examples.kind, examples.targets, recipe.balance, job.task, seed, pseudo=stretch.pseudo, sampling_prob=share
    )


def _counted(job: FoldJob) -> npt.NDArray[np.bool_]:
    return counted_rows(job.examples.kind, job.recipe.teacher.pseudo.sampling_prob)


def make_loader(
    job: FoldJob, machine: Machine, session: Session, stretch: Stretch
) -> tuple[EpochOrder, Batches[TrainBatch]]:
    """The batches of a phase and the order that says which epoch they are of."""
    recipe, examples = job.recipe, job.examples
    order = EpochOrder(
        lambda seed: _rows(job, stretch, seed),
        stretch.batch_size,
        job.seed,
        job.fold,
        ORDER,
        rank=session.accelerator.process_index,
        world=session.accelerator.num_processes,
    )
    batches: PixelBatches | FeatureBatches
    if session.stored is not None:
        batches = FeatureBatches(examples, session.stored.features)
    else:
        colours = InputColours.from_config(recipe.input)
        views = 3 if recipe.loss.jsd else 1
        rare = rare_augment = None
        if recipe.balance.rare_preset is not None:
            rare = rare_rows(recipe.balance, examples.targets, job.task, _counted(job))
            other = Augment(preset=recipe.balance.rare_preset, add=stretch.augment.add)
            rare_augment = make_augmenter(other, stretch.size, views, colours, crop=recipe.input.size)
        augmenter: Callable[..., Any] = as_stored
        session.device_augment = _device_augmenter(job, stretch)
        if session.device_augment is None:
            augmenter = make_augmenter(stretch.augment, stretch.size, views, colours, crop=recipe.input.size)
        batches = PixelBatches(examples, augmenter, rare, rare_augment)
    pinned = machine.device.type == "cuda"
    return order, train_loader(batches, order, workers=machine.workers, pin_memory=pinned)


def _device_augmenter(job: FoldJob, stretch: Stretch) -> DeviceAugmenter | None:
    if stretch.augment.on == "host":
        return None
    side, _, channels = job.examples.images.shape
    return make_device_augmenter(stretch.augment, stretch.size, side, channels, crop=job.recipe.input.size)


def prepared(machine: Machine, session: Session, pixels: Tensor, *seed: int) -> Tensor:
    """What the tail takes: normalised images, augmented by ``seed`` where that is done here, or stored features."""
    if session.stored is not None:
        return pixels
    if session.device_augment is not None:
        pixels = session.device_augment(pixels, derive_seed(*seed))
    return session.model.prepare(pixels, machine.memory_format)


def _optimizer(
    job: FoldJob, plan: tuple[Stretch, ...], stretch: Stretch, model: Classifier, accelerator: Accelerator
) -> torch.optim.Optimizer:
    """Over the parameters that some phase trains, so that the optimizers of all phases have the same groups."""
    batch_norm = job.recipe.model.freeze.batch_norm
    ever: set[str] = set().union(*(trainable_names(model, other.frozen, batch_norm) for other in plan))
    device = next(model.parameters()).device
    return make_optimizer(stretch.optim, model, ever, lr=peak_rate(stretch, accelerator), device=device)


def _wrapped(accelerator: Accelerator, model: Classifier, compiled: bool) -> torch.nn.Module:
    if accelerator.num_processes == 1:
        return compile_steps(model) if compiled else model
    wrapped: torch.nn.Module = accelerator.prepare_model(model, device_placement=False)
    return wrapped


def save(session: Session, path: Path, write: Callable[[Path, dict[str, Any]], None]) -> None:
    write(
        path,
        {
            "progress": vars(session.progress),
            "model": session.model.state_dict(),
            "ema": None if session.ema is None else session.ema.module.state_dict(),
            "swa": None if session.swa is None else session.swa.state_dict(),
            "masks": session.masks,
            "optimizer": session.optimizer.state_dict(),
            "scaler": session.scaler.state_dict(),
        },
    )


def _restore(session: Session, state: dict[str, Any]) -> None:
    session.model.load_state_dict(state["model"])
    if session.ema is not None:
        session.ema.module.load_state_dict(state["ema"])
    if session.swa is not None:
        session.swa.load_state_dict(state["swa"])
    if state["masks"] is not None:
        session.masks = {
            name: mask.to(next(session.model.parameters()).device) for name, mask in state["masks"].items()
        }
    restore_optimizer(session.optimizer, state["optimizer"])
    session.scaler.load_state_dict(state["scaler"])
