"""How many images a second a member's networks predict on this machine, and how many are read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from goldfold.bundle import load_bundle, read_bundle
from goldfold.config import Config
from goldfold.cores import logical_cores
from goldfold.images import ImageSpec
from goldfold.images.centre import centre
from goldfold.images.colour import InputColours
from goldfold.images.decode import Pixels, in_threads, load_specs
from goldfold.memory import AtOnce
from goldfold.pipeline.settling import recalled
from goldfold.predict import bundle_views, forward_views
from goldfold.tta import pixel_share

SECONDS = 2.0
"""A network predicts for at least so long, and a batch more to warm up."""


@dataclass(frozen=True)
class Speed:
    """``rate``: images a second of the first network; ``passes``: pixels of the views of each network over those of the
    picture, by the order of its folds; ``loading``: seconds that reading a network takes."""

    rate: float
    passes: tuple[float, ...]
    loading: float

    def seconds(self, images: int) -> tuple[float, ...]:
        """What each network takes for so many images."""
        return tuple(self.loading + images / self.rate * share / self.passes[0] for share in self.passes)


def passes_of(folder: Path) -> float:
    """Pixels of all views of a trained fold over those of the picture. Raises BadInput for a broken bundle."""
    bundle = read_bundle(folder)
    return sum(pixel_share(view, bundle.side) for view in bundle_views(bundle))


def measure_reading(paths: Sequence[Path], specs: Sequence[ImageSpec]) -> tuple[float, dict[ImageSpec, Pixels]]:
    """Images a second that are read and decoded in all ``specs`` by all cores, and the images. Raises UnreadableImage."""
    threads = logical_cores()
    begun = time.perf_counter()
    found = in_threads(lambda path: load_specs(path, specs), paths, threads, "reading a sample")
    seconds = time.perf_counter() - begun
    return len(paths) / seconds, {spec: np.stack([each[place] for each in found]) for place, spec in enumerate(specs)}


def measure_speed(config: Config, folders: Sequence[Path], images: dict[ImageSpec, Pixels]) -> Speed:
    """Run the first of a member's trained folds on ``images``, over and over, as ``goldfold predict`` would.

    ``images``: (N, S, S, C) by spec, at least one. Raises BadInput for a broken bundle.
    """
    begun = time.perf_counter()
    bundle, model = load_bundle(folders[0])
    loading = time.perf_counter() - begun
    machine = recalled(config.train, folders[0].parent / "run.json").predicting
    model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
    views, colours = bundle_views(bundle), InputColours(bundle.model.colour, bundle.model.local_mean)
    size = AtOnce(config.tta.batch_size, machine.device, machine.precision, "").most
    stored = images[bundle.images]
    rows = np.arange(size) % len(stored)
    metadata = None if bundle.metadata is None else np.zeros((size, bundle.metadata.width), dtype=np.float32)

    def predict() -> None:
        pixels = centre(stored[rows], bundle.side, colours)
        forward_views(model, torch.from_numpy(pixels), views, machine, metadata)

    predict()
    done, begun = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - begun < SECONDS:
        predict()
        done += 1
    rate = done * size / (time.perf_counter() - begun)
    return Speed(rate, tuple(passes_of(folder) for folder in folders), loading)
