"""Networks that teach while a student trains: they answer on the very images that the student sees.

"A good teacher is patient and consistent" (Beyer et al. 2022): the same crop, the same mixing, for both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from goldfold.bundle import Bundle, load_bundle, read_bundle
from goldfold.config.schema import Input
from goldfold.data import LeakError, TrainBatch, plain_loader, rows_of
from goldfold.errors import BadInput, GoldfoldError
from goldfold.features import VIEWS, turned
from goldfold.images import Images, ImageSpec
from goldfold.images.colour import InputColours
from goldfold.machine import Machine
from goldfold.memory import AtOnce
from goldfold.models import Classifier, ModelSpec
from goldfold.progress import progress
from goldfold.records import Floats, SoftLabels
from goldfold.tasks import Task

MEND = "leave this teacher out, or set teacher.distill.how to stored"
LUMINANCE = (0.299, 0.587, 0.114)
"""ITU-R 601, as grey images are decoded."""


@dataclass(frozen=True)
class OnlineTeacher:
    """Networks that answer during training: ``bundles`` with weights that sum to 1, none of which saw ``excluded_fold``.

    ``excluded_fold`` None: they have seen every fold, which only ``teacher.leaky`` admits.
    """

    bundles: tuple[tuple[Path, float], ...]
    excluded_fold: int | None

    def __post_init__(self) -> None:
        weights = [weight for _, weight in self.bundles]
        if not weights or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-4):
            raise ValueError(f"weights {weights} of teachers do not sum to 1")


@dataclass(frozen=True, eq=False)
class Member:
    """One network in inference mode, with its share of the answer."""

    bundle: Bundle
    model: Classifier
    weight: float


@dataclass(frozen=True, eq=False)
class Answers:
    """``probabilities`` (B, C) float32, the weighted mean over members; ``features``: (B, W) float32 of each member."""

    probabilities: Tensor
    features: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Teachers:
    """Loaded networks. They neither learn nor draw random numbers, and are no part of a run's state.

    ``broken`` (M,) bool, on the machine: which members gave an answer that is not finite. It is set without waiting for the
    device.
    """

    members: tuple[Member, ...]
    machine: Machine
    broken: Tensor

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each member's pooled features."""
        return tuple(member.model.pooled_width for member in self.members)

    def broken_names(self) -> list[str]:
        """The bundles that gave an answer that is not finite; waits for the device."""
        pairs = zip(self.members, self.broken.tolist(), strict=True)
        return [f"{member.bundle.run} fold {member.bundle.fold}" for member, broken in pairs if broken]

    def teach(self, batch: TrainBatch, images: Tensor, student: Classifier) -> tuple[TrainBatch, tuple[Tensor, ...]]:
        """The batch with the answers on its first B images in place of stored ones, and the teachers' features.

        ``images`` are as the student sees them: normalised by its constants, augmented, mixed, erased.
        """
        answers = self.answer(images[: len(batch.targets)], student)
        taught = batch._replace(teacher=answers.probabilities, teacher_weights=torch.ones_like(batch.weights))
        return taught, answers.features

    def probabilities(self, images: Tensor, student: Classifier) -> Tensor:
        """(B, C) for the student's images (B, in_chans, H, W)."""
        return self.answer(images, student).probabilities

    def features(self, images: Tensor, student: Classifier) -> tuple[Tensor, ...]:
        """Pooled features (B, W) of each member for the student's images."""
        return self.answer(images, student).features

    @torch.no_grad()
    def answer(self, images: Tensor, student: Classifier) -> Answers:
        """What the members say of the student's images, each at its own size, channels and normalisation."""
        pixels = student.restore(images)
        total: Tensor | None = None
        features = []
        for number, member in enumerate(self.members):
            seen = member.model.normalise(as_seen(pixels, member.model.spec, student.spec))
            values, pooled = self._ask(member, seen)
            self.broken[number].logical_or_(~(values.isfinite().all() & pooled.isfinite().all()))
            features.append(pooled)
            total = member.weight * values if total is None else total + member.weight * values
        assert total is not None
        return Answers(total, tuple(features))

    @torch.no_grad()
    def answer_stored(self, pixels: Tensor, member: Member) -> Tensor:
        """One member's probabilities (B, C) for uint8 pixels (B, S, S, channels) of its own size."""
        return self._ask(member, member.model.prepare(pixels.to(self.machine.device, non_blocking=True)))[0]

    def _ask(self, member: Member, images: Tensor) -> tuple[Tensor, Tensor]:
        with self.machine.autocast():
            pooled = member.model.pooled(images.contiguous(memory_format=self.machine.memory_format))
            logits = member.model.classify(pooled)
        return member.model.probabilities(logits), pooled.float()


def as_seen(pixels: Tensor, teacher: ModelSpec, student: ModelSpec) -> Tensor:
    """The student's pixels (B, in_chans, H, W) of 0..255 → (B, in_chans, S, S) for the teacher: its channels, its size.

    Grey images have three equal channels before a network (both networks' then); a teacher of grey images gets the
    luminance of colour, one of colour images loses alpha.
    """
    if teacher.channels == 1 and student.channels > 1:
        pixels = (pixels[:, :3] * _luminance(pixels.device)).sum(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    elif pixels.shape[1] > teacher.in_chans:
        pixels = pixels[:, : teacher.in_chans]
    side = (teacher.size, teacher.size)
    if tuple(pixels.shape[2:]) != side:
        pixels = F.interpolate(pixels, side, mode="bilinear", antialias=True)
    return pixels


@functools.cache
def _luminance(device: torch.device) -> Tensor:
    """(1, 3, 1, 1), brought to the device once: a copy in each batch would make the processor wait."""
    return torch.tensor(LUMINANCE, device=device).view(1, 3, 1, 1)


def load_teachers(online: OnlineTeacher, machine: Machine, fold: int, leaky: bool = False) -> Teachers:
    """The networks in inference mode on the machine; those of weight 0 are left out.

    Raises LeakError unless all of them left out ``fold``, by ``online`` and by each bundle's own record (``leaky``
    admits teachers of other folds where ``online.excluded_fold`` is None), and BadInput for a broken bundle.
    """
    _refuse_leak(online, fold, leaky)
    members = []
    # Networks are built with random weights before they get their own: the student's draws must not move.
    with torch.random.fork_rng(devices=[]):
        for folder, weight in online.bundles:
            if weight == 0:
                continue
            bundle, model = load_bundle(folder)
            model.requires_grad_(False)
            model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
            members.append(Member(bundle, model.eval(), weight))
    return Teachers(tuple(members), machine, torch.zeros(len(members), dtype=torch.bool, device=machine.device))


@dataclass(frozen=True)
class Sight:
    """How pictures reach a network: what a teacher of the student's own images has to share with it."""

    resize: str
    range: str
    colour: str
    local_mean: str
    channels: int

    @classmethod
    def of_network(cls, model: ModelSpec, images: ImageSpec) -> Sight:
        return cls(images.resize, images.range, model.colour, model.local_mean, model.channels)

    @classmethod
    def of_settings(cls, input: Input) -> Sight:
        """Of a network that is not trained yet."""
        return cls(input.resize, input.range, input.colour, input.local_mean, input.channels)


def check_teachers(
    online: OnlineTeacher, task: Task, student: ModelSpec | None = None, images: ImageSpec | None = None
) -> None:
    """Read each bundle's description. Raises BadInput for what could not be honoured during training.

    ``student`` with ``images``: the student whose images the teachers are to see; None: they see stored images of their
    own (``label_views``).
    """
    if student is not None and student.normalise != "fixed":
        what = f"teachers see the student's images, and '{student.normalise}' cannot be undone"
        raise BadInput("input.normalise", what, "set it to fixed, or teacher.distill.how to stored")
    own = None if student is None or images is None else Sight.of_network(student, images)
    for folder, _ in online.bundles:
        bundle = read_bundle(folder)
        if (bundle.task.name, bundle.task.labels()) != (task.name, task.labels()):
            raise BadInput(folder, "the teacher has another task or other classes than the student", MEND)
        sight = None if own is None else Sight.of_network(bundle.model, bundle.images)
        refuse_misfit(folder, bundle.metadata is not None, sight, own)


def refuse_misfit(where: object, metadata: bool, teacher: Sight | None = None, student: Sight | None = None) -> None:
    """Raises BadInput, naming ``where``, for a teacher that cannot answer online.

    ``metadata``: whether it needs columns of the CSV; ``teacher`` and ``student``: how each sees pictures, where the
    teacher is to see the student's.
    """
    if metadata:
        raise BadInput(where, "the teacher needs metadata columns, which an online teacher is not given", MEND)
    if teacher is None or student is None:
        return
    for key in ("resize", "range", "colour", "local_mean"):
        theirs, own = getattr(teacher, key), getattr(student, key)
        if theirs != own:
            raise BadInput(where, f"the teacher sees images of input.{key} {theirs}, the student of {own}", MEND)
    if teacher.channels == 4 and student.channels != 4:
        raise BadInput(where, "the teacher sees an alpha channel, which the student's images lack", MEND)


def label_views(
    online: OnlineTeacher,
    machine: Machine,
    open_images: Callable[[ImageSpec], Images],
    ids: Sequence[str],
    cache_views: str,
    *,
    fold: int,
    task: Task,
    leaky: bool = False,
    batch_size: int = 128,
    what: str = "online teachers",
) -> list[SoftLabels]:
    """The teachers' probabilities of ``ids`` for each view that a student with a cached trunk may see.

    Such a student's augmented images are the few that ``features.turned`` makes, ``cache_views`` of them; so its online
    teachers can be asked once. ``open_images`` opens the store that a teacher's own ImageSpec describes; each teacher
    sees it at its own size, in its own colours, in one view at a time, all of them together weighted as online.
    One SoftLabels a view, in the order of ``turned``. Raises as ``load_teachers`` and ``check_teachers`` do, and
    GoldfoldError when a network gives NaN.
    """
    check_teachers(online, task)
    teachers = load_teachers(online, machine, fold, leaky)
    values = np.zeros((VIEWS[cache_views], len(ids), len(task.classes)), dtype=np.float32)
    for member in teachers.members:
        values += member.weight * _labelled(teachers, member, open_images, ids, len(values), batch_size, what)
    if not np.isfinite(values).all():
        raise GoldfoldError(f"{what}: a network gives NaN; set train.precision=fp32")
    weights = np.ones(len(ids), dtype=np.float32)
    return [SoftLabels(tuple(ids), task.normalise(view), weights, online.excluded_fold, what) for view in values]


def _labelled(
    teachers: Teachers,
    member: Member,
    open_images: Callable[[ImageSpec], Images],
    ids: Sequence[str],
    n_views: int,
    batch_size: int,
    what: str,
) -> Floats:
    """One member's probabilities (V, N, C)."""
    spec, machine = member.model.spec, teachers.machine
    images = open_images(member.bundle.images)
    colours = InputColours(spec.colour, spec.local_mean)
    loader = plain_loader(
        images,
        rows_of(images, ids),
        spec.size,
        batch_size,
        workers=machine.workers,
        pin_memory=machine.device.type == "cuda",
        colours=colours,
    )
    at_once = AtOnce(batch_size, machine.device, machine.precision, what)
    ask = functools.partial(teachers.answer_stored, member=member)
    views: list[list[Tensor]] = [[] for _ in range(n_views)]
    for pixels in progress(loader, f"{what}: {member.bundle.run}", len(loader), "batches"):
        for view in range(n_views):
            seen = torch.from_numpy(np.ascontiguousarray(turned(pixels.numpy(), view)))
            views[view].append(at_once.in_parts(ask, seen).cpu())
    return torch.stack([torch.cat(parts) for parts in views]).numpy()


def _refuse_leak(online: OnlineTeacher, fold: int, leaky: bool) -> None:
    if online.excluded_fold is None and leaky:
        return
    if online.excluded_fold != fold:
        who = "no fold" if online.excluded_fold is None else f"fold {online.excluded_fold}"
        raise LeakError(
            f"online teachers that left out {who} may not teach the student of fold {fold}, "
            "whose validation labels they have seen"
        )
    for folder, _ in online.bundles:
        trained = read_bundle(folder).fold
        if trained != fold:
            raise LeakError(
                f"{folder}: a network of fold {trained} may not teach the student of fold {fold}, "
                "whose validation labels it has seen"
            )
