"""`goldfold augment-preview`: training images as the network sees them, draw by draw. Writes the picture alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from goldfold.augment import PRESETS, as_stored, erase_batch, make_augmenter
from goldfold.augment.device import make_device_augmenter
from goldfold.balance import rare_rows
from goldfold.config import Config
from goldfold.config.schema import Augment, Metadata, Mix, Teacher
from goldfold.data import PixelBatches, labelled
from goldfold.data.loaders import Request
from goldfold.errors import BadInput, GoldfoldError
from goldfold.images import Images, ImageSpec, open_images
from goldfold.images.colour import InputColours
from goldfold.mix import Mixing, draw_mix
from goldfold.models import ModelSpec
from goldfold.models.classifier import standardise
from goldfold.paths import Workspace
from goldfold.pipeline.competition import CompetitionData, load_competition
from goldfold.pipeline.contact_sheet import Cell, Line, Pixels, Section, draw_sheet
from goldfold.pipeline.jobs import fold_spec, make_recipe
from goldfold.records import Ints
from goldfold.seeds import derive_seed
from goldfold.tasks import Task
from goldfold.training.job import ERASE, MIX
from goldfold.training.plan import Stretch, make_plan

VIEWS = ("clean", "AugMix", "AugMix again")


def preview(config: Config, workspace: Workspace, out: Path, photos: int = 6, draws: int = 8, seed: int = 0) -> Path:
    """Write a contact sheet (PNG) and return its path: rows of training photos, first as stored, then ``draws`` draws.

    A section a phase; three lines a photo where AugMix's views are compared. The rows are one batch, so they are mixed
    with each other. Raises BadInput for bad input, for fewer than 1 photo or draw (2 photos where images are mixed), and
    without matplotlib.
    """
    sections = make_sections(config, workspace, photos, draws, seed)
    draw_sheet(f"{config.name}: training images as the network sees them", sections, out)
    return out


def make_sections(config: Config, workspace: Workspace, photos: int, draws: int, seed: int) -> list[Section]:
    """What the sheet shows; see ``preview``."""
    # Where pseudo-labels end, nothing changes in how an image is drawn: such a split is no section of its own.
    plan = make_plan(replace(make_recipe(config), teacher=Teacher()))
    mixed = any(stretch.mix.mixup or stretch.mix.cutmix for stretch in plan)
    if photos < 1 + mixed or draws < 1:
        what = f"{photos} photos and {draws} draws are too few"
        raise BadInput("augment-preview", what, "ask for 1 or more of each" + ", and 2 photos for mixing" * mixed)
    if config.model.freeze.cache and isinstance(config.model.freeze.cache_views, str):
        what = "training goes by stored features of model.freeze.cache_views, so there is nothing to draw"
        raise BadInput("model.freeze.cache", what, "set model.freeze.cache=false to see the images")
    data = load_competition(config.competition, workspace.root)
    # Decoded one by one: a look at a few images should not wait for a store of all of them.
    images = open_images(None, data.ids, data.train_paths, ImageSpec.from_config(config.input))
    rows = choose_rows(data, photos, seed)
    plain = config.model_copy(update={"model": config.model.model_copy(update={"metadata": Metadata()})})
    spec = fold_spec(plain, data, None, images, np.arange(len(data.ids)))
    return [_section(config, data, images, rows, spec, plan, stretch, draws, seed) for stretch in plan]


def choose_rows(data: CompetitionData, photos: int, seed: int) -> Ints:
    """Row numbers of at most ``photos`` training images: by turns of each class, where a row has one; else by chance."""
    order = np.random.default_rng(seed).permutation(len(data.ids))
    if not data.task.one_class_each:
        return order[:photos]
    classes = data.task.class_index(data.targets)[order]
    turn = pd.Series(classes).groupby(classes).cumcount().to_numpy()
    return order[np.lexsort((classes, turn))][:photos]


def _section(
    config: Config,
    data: CompetitionData,
    images: Images,
    rows: Ints,
    spec: ModelSpec,
    plan: Sequence[Stretch],
    stretch: Stretch,
    draws: int,
    seed: int,
) -> Section:
    colours = InputColours.from_config(config.input)
    views = 3 if config.loss.jsd else 1
    augmenter = make_augmenter(stretch.augment, stretch.size, views, colours, crop=config.input.size)
    rare, rare_augment = np.zeros(len(rows), dtype=bool), None
    if config.balance.rare_preset is not None:
        rare = rare_rows(config.balance, data.targets, data.task)[rows]
        other = Augment(preset=config.balance.rare_preset, add=stretch.augment.add)
        rare_augment = make_augmenter(other, stretch.size, views, colours, crop=config.input.size)
    examples = labelled(images, [data.ids[row] for row in rows], data.targets[rows])
    augmented = None
    if stretch.augment.on == "device":
        side, _, channels = images.shape
        augmented = make_device_augmenter(stretch.augment, stretch.size, side, channels, crop=config.input.size)
    batches = PixelBatches(examples, as_stored if augmented is not None else augmenter, rare, rare_augment)
    columns = []
    for number in range(draws):
        drawn = derive_seed(seed, stretch.number, number)
        batch = batches.__getitems__(Request(np.arange(len(rows)), drawn))
        if isinstance(batch, GoldfoldError):
            raise batch
        pixels = batch.pixels if augmented is None else augmented(batch.pixels, drawn)
        columns.append(_column(stretch, normalised(pixels, spec), spec, len(rows), (seed, stretch.number, number)))
    stored = [Cell(_rgb(pixels)) for pixels in images.read(rows)]
    lines = []
    for place, row in enumerate(rows):
        label = label_of(data.task, data.targets[row])
        caption = (f"{place + 1}  {data.ids[row]}", label, *(["rare class"] if rare[place] else []))
        for view in range(views):
            cells = [column[view * len(rows) + place] for column in columns]
            if view == 0:
                lines.append(Line((*caption, *VIEWS[: views == 3]), (stored[place], *cells)))
            else:
                lines.append(Line((VIEWS[view],), (None, *cells)))
    heads = ("as stored", *(f"draw {number + 1}" for number in range(draws)))
    return Section(_title(plan, stretch), tuple(_notes(config, stretch, seed)), heads, tuple(lines))


def _column(stretch: Stretch, images: Tensor, spec: ModelSpec, n: int, seed: tuple[int, ...]) -> list[Cell]:
    """One draw of all rows, mixed and erased as a training batch is; ``images``: views x n, normalised."""
    mixing = draw_mix(stretch.mix, len(images), *images.shape[-2:], *seed, MIX)
    if mixing is not None:
        images = mixing.images(images)
    clean = n if len(images) > n else 0  # AugMix's clean views stay clean
    erased = erase_batch(stretch.augment.erase, images[clean:], *seed, ERASE)
    shown = _shown(torch.cat([images[:clean], erased]), spec)
    captions = [_mix_caption(stretch.mix, mixing, place) for place in range(len(images))]
    return [Cell(pixels, caption) for pixels, caption in zip(shown, captions, strict=True)]


def normalised(pixels: Tensor, spec: ModelSpec) -> Tensor:
    """uint8 (B, H, W, C) as ``Classifier.prepare`` gives it to the network, without building one."""
    images = pixels.permute(0, 3, 1, 2).float().expand(-1, spec.in_chans, -1, -1)
    if spec.normalise != "fixed":
        return standardise(images, (2, 3) if spec.normalise == "image_per_channel" else (1, 2, 3))
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    return (images / 255 - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


def _shown(images: Tensor, spec: ModelSpec) -> list[Pixels]:
    """Normalised images as pictures: the mean and deviation are put back."""
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    values = (images * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)) * 255
    pixels = values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return [_rgb(one) for one in pixels]


def _rgb(pixels: Pixels) -> Pixels:
    """(H, W, 1, 3 or 4) as (H, W, 3): grey three times, transparent parts on white."""
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def label_of(task: Task, target: npt.NDArray[np.float32]) -> str:
    """The label of one row of targets (C,), in words."""
    if task.one_class_each:
        return task.labels()[int(task.class_index(target[None])[0])]
    if task.name == "multilabel":
        return ", ".join(name for name, value in zip(task.classes, target, strict=True) if value >= 0.5) or "no label"
    return ", ".join(f"{value:g}" for value in target)


def _mix_caption(mix: Mix, mixing: Mixing | None, place: int) -> str:
    if not (mix.mixup or mix.cutmix):
        return ""
    if mixing is None:
        return "not mixed"
    partner = int(mixing.partner[place])
    with_whom = "itself" if partner == place else f"row {partner + 1}"
    return f"{'mixup' if mixing.box is None else 'cutmix'} {mixing.share:.2f}, with {with_whom}"


def _title(plan: Sequence[Stretch], stretch: Stretch) -> str:
    last = stretch.end
    epochs = f"epoch {last}" if stretch.epochs == 1 else f"epochs {stretch.first + 1} to {last}"
    phase = f"Phase {stretch.number + 1} of {len(plan)}, {epochs}" if len(plan) > 1 else epochs.capitalize()
    return f"{phase}: images of {stretch.size} x {stretch.size}"


def _notes(config: Config, stretch: Stretch, seed: int) -> list[str]:
    augment, mix = stretch.augment, stretch.mix
    source = f"augment.preset {augment.preset}" if augment.train is None else "augment.train"
    items = PRESETS[augment.preset] if augment.train is None else augment.train
    notes = [f"{source}: {_names(items)}" + (f"; augment.add: {_names(augment.add)}" if augment.add else "")]
    if config.balance.rare_preset is not None:
        notes.append(
            f"rare classes: augment.preset {config.balance.rare_preset}: {_names(PRESETS[config.balance.rare_preset])}"
        )
    if mix.mixup or mix.cutmix:
        notes.append(
            f"mix: mixup {mix.mixup:g}, cutmix {mix.cutmix:g}, prob {mix.prob:g}; a caption has the image's own share"
        )
    if augment.erase.prob:
        low, high = augment.erase.area
        notes.append(f"erase: prob {augment.erase.prob:g}, {augment.erase.mode}, area {low:g} to {high:g}")
    colours = InputColours.from_config(config.input)
    if colours.colour != "rgb":
        notes.append(f"input.colour: the planes of {colours.colour}, shown as red, green and blue")
    if colours.local_mean != "none":
        notes.append(f"input.local_mean: {colours.local_mean}")
    if config.input.normalise != "fixed":
        notes.append(
            f"input.normalise {config.input.normalise}: every image has mean 0 and deviation 1, shown as if of one exposure"
        )
    notes.append(f"seed {seed}: these draws are examples of those in training, not the same ones")
    return notes


def _names(items: Sequence[Mapping[str, Any]]) -> str:
    """The transforms' names; a choice with its members."""
    words = []
    for item in items:
        for name, given in item.items():
            members = (given or {}).get("transforms")
            words.append(f"{name} ({_names(members)})" if members else name)
    return ", ".join(words) or "nothing"
