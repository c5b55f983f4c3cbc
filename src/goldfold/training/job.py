"""What one fold's training is given and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from goldfold.config.schema import Augment, Balance, Input, Loss, Mix, Model, Optim, Schedule, Teacher, Train, Tta
from goldfold.data import Examples
from goldfold.images import Images
from goldfold.losses import AuxiliaryTask
from goldfold.metadata import MetadataEncoder
from goldfold.metrics import Metric
from goldfold.models import ModelSpec
from goldfold.paths import FoldPaths
from goldfold.records import Floats
from goldfold.tasks import Task
from goldfold.teaching import OnlineTeacher

INIT, ORDER, MIX, EPOCH, ERASE, BATCH_NORM, AUGMENT = range(1, 8)
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
    teacher: Teacher = field(default_factory=Teacher)


@dataclass(frozen=True, eq=False)
class FoldJob:
    """All that one fold's training needs; nothing is looked up elsewhere.

    ``examples``: training rows; ``valid_ids`` with ``valid_targets`` (V, C) lie in ``images``; ``test`` may be absent.
    ``valid_images``: the same ids as prediction sees them, where ``tta.size`` is larger than what is trained on.
    ``metadata`` encodes the CSV's columns: ``valid_metadata`` (V, M) and ``test_metadata`` (T, M) come from it.
    ``cache``: where features of a frozen trunk are kept. ``teacher``: networks to distil from on the batch as augmented.
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
    metadata: MetadataEncoder | None = None
    valid_metadata: Floats | None = None
    test_metadata: Floats | None = None
    auxiliary: tuple[AuxiliaryTask, ...] = ()
    cache: Path | None = None
    teacher: OnlineTeacher | None = None
    valid_images: Images | None = None


@dataclass(frozen=True)
class FoldResult:
    """How a fold went; times are kept apart from the artefacts, which are equal on every repetition.

    ``pieces``: the most parts that a micro-batch was passed in, for lack of memory; ``threads`` of the processor.
    """

    fold: int
    seed: int
    seconds: float
    images_per_second: float | None
    peak_memory_mb: float
    pieces: int = 1
    threads: int = 1
