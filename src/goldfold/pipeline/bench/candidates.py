"""One candidate backbone: trained a little, scored, and measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from goldfold import files
from goldfold.bundle import load_bundle
from goldfold.config import Config, config_from_dict
from goldfold.errors import GoldfoldError
from goldfold.images import ImageSpec
from goldfold.metrics import score
from goldfold.models import Classifier
from goldfold.paths import Workspace
from goldfold.pipeline.bench.plan import changed, renamed
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.jobs import open_sources
from goldfold.pipeline.speed import measure_speed
from goldfold.pipeline.stages import load_folds, train_run
from goldfold.records import Predictions

SHOWN = 64
"""Stored images that are predicted over and over."""


@dataclass(frozen=True)
class Candidate:
    """Figures of a backbone, or ``why`` there are none. ``scores``: a number a fold (None: undefined); ``mean``, ``std``
    over them. Rates in images a second, at prediction with all views; ``memory_mb``: the peak of training, of the GPU or
    of the process; ``parameters`` and multiply-additions ``macs`` of an image in one view, in millions and billions.
    """

    backbone: str
    scores: tuple[float | None, ...] = ()
    mean: float | None = None
    std: float | None = None
    train_rate: float | None = None
    rate: float | None = None
    memory_mb: float | None = None
    parameters: float | None = None
    macs: float | None = None
    why: str | None = None


def candidate_config(config: Config, backbone: str, epochs: int | None) -> Config:
    """The experiment with another backbone and length; the test set takes no part.

    ``model.weights`` is taken over with the backbone's name in the place of the experiment's own; a file that is named
    otherwise belongs to that one alone, and the others get theirs from the hub. Raises BadInput.
    """
    weights, own = config.model.weights, config.model.backbone
    if weights is not None and backbone != own:
        weights = weights.replace(own, backbone) if own in weights else None
    training: dict[str, Any] = {"seeds": []} | ({} if epochs is None else {"epochs": epochs})
    found = changed(
        config,
        model={"backbone": backbone, "weights": weights},
        train=training,
        competition={"test_csv": None, "sample_submission": None},
    )
    return renamed(found, backbone.replace("/", "-"))


def measure_candidate(config: Config, workspace: Workspace, folds: list[int]) -> Candidate:
    """Train ``folds`` (all where empty; finished ones are skipped), score and measure. Raises what training raises."""
    data = load_competition(config.competition, workspace.root)
    chosen = folds or [fold for table in load_folds(config, data, workspace) for fold in table.folds]
    train_run(config, workspace, folds)
    paths = workspace.run(str(config.name))
    record = files.read_json(paths.record)["folds"]
    scores: list[float | None] = []
    for fold in chosen:
        part = Predictions.read(paths.fold(fold).oof, paths.name)
        value = score(data.metrics[0], data.task, data.targets_of(part.ids), part.values)
        scores.append(None if value != value else float(value))
    known = [value for value in scores if value is not None]
    times = [record[paths.fold(fold).folder.name] for fold in chosen]
    rates = [each["images_per_second"] for each in times if each["images_per_second"] is not None]
    folder = paths.fold(chosen[0]).folder
    bundle, model = load_bundle(folder)
    sources = open_sources(config, data, workspace)
    images = sources.train if sources.valid is None else sources.valid
    pixels = images.read(np.arange(min(SHOWN, len(images.ids))))
    spec: ImageSpec = bundle.images
    return Candidate(
        backbone=config.model.backbone,
        scores=tuple(scores),
        mean=fmean(known) if len(known) == len(scores) else None,
        std=stdev(known) if len(known) == len(scores) > 1 else None,
        train_rate=round(median(rates), 1) if rates else None,
        rate=round(measure_speed(config, [folder], {spec: pixels}).rate, 1),
        memory_mb=max(each["peak_memory_mb"] for each in times),
        parameters=round(sum(weight.numel() for weight in model.parameters()) / 1e6, 2),
        macs=round(count_macs(model) / 1e9, 3),
    )


@torch.inference_mode()
def count_macs(model: Classifier) -> float:
    """Multiply-additions of one image's forward pass, by torch's counter, which counts each as two operations."""
    spec = model.spec
    blank = torch.zeros(1, spec.size, spec.size, spec.channels, dtype=torch.uint8)
    metadata = None if spec.metadata is None else torch.zeros(1, spec.metadata.width)
    counter = FlopCounterMode(display=False)
    model.eval()
    with counter:
        model(model.prepare(blank), metadata)
    return counter.get_total_flops() / 2


def measure_in_child(config: dict[str, Any], root: str, runs: str, folds: list[int]) -> dict[str, Any]:
    return asdict(measure_candidate(config_from_dict(config, "bench"), Workspace(Path(root), runs=runs), folds))


def pareto(candidates: list[Candidate], greater_is_better: bool) -> set[str]:
    """Backbones that no other beats in both score and speed of prediction (as good in one and better in the other)."""
    sign = 1 if greater_is_better else -1
    points = {
        each.backbone: (sign * each.mean, each.rate)
        for each in candidates
        if each.mean is not None and each.rate is not None
    }

    def beaten(mine: tuple[float, float]) -> bool:
        return any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in points.values())

    return {name for name, point in points.items() if not beaten(point)}


def as_candidate(values: dict[str, Any]) -> Candidate:
    """What ``asdict`` and JSON made of one. Raises GoldfoldError for other keys."""
    try:
        return Candidate(**{**values, "scores": tuple(values["scores"])})
    except (TypeError, KeyError) as error:
        raise GoldfoldError(f"a candidate of another version of Goldfold ({error})") from None
