"""Small ensembles of untrained networks with their packs and a competition of real images, made without any training.

``expected`` is what ``goldfold predict``, ``goldfold ensemble`` and ``goldfold submit`` make of the same members: each
bundle by ``predict_bundle``, folds by ``average``, members by the stored blend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from PIL import Image

from goldfold import files
from goldfold.bundle import Bundle, load_bundle, save_weights, write_bundle
from goldfold.config.schema import Input, Model
from goldfold.ensemble import Member, load_blend, load_calibration, load_decisions, make_ensemble
from goldfold.images import ImageSpec, LazyImages
from goldfold.kaggle.export import Part, Source, export_pack
from goldfold.kaggle.metadata import make_dataset
from goldfold.kaggle.pack import Pack, PackCompetition, Truth
from goldfold.machine import Machine
from goldfold.metrics import Metric, get_metric
from goldfold.models import Classifier, build_model, make_spec
from goldfold.predict import predict_bundle
from goldfold.records import Floats, Predictions, average
from goldfold.submission import decide_format, format_submission
from goldfold.tasks import Task

TASK = Task("multiclass", ("cat", "dog", "fox"))
ROWS = 150
"""Labelled rows."""
CPU = Machine(torch.device("cpu"), "fp32", True, 0)


@dataclass(frozen=True)
class Kind:
    """A member: its network, how it sees images, and how well its out-of-fold predictions know the truth (0 to 1)."""

    name: str
    backbone: str = "test_resnet"
    folds: int = 2
    skill: float = 0.5
    input: Mapping[str, Any] = field(default_factory=dict)
    views: Any = "flip"
    merge: str = "mean"
    size: int | None = None
    task: Task = TASK


def make_members(root: Path, kinds: Sequence[Kind], batch_size: int) -> dict[str, Source]:
    """``root/runs/<name>`` with bundles and out-of-fold predictions."""
    targets, folds = truth_of(TASK)
    ids = train_ids()
    sources = {}
    for seed, kind in enumerate(kinds):
        parts = [
            _bundle(root / "runs" / kind.name / f"fold{fold}", kind, fold, 100 * seed + fold)
            for fold in range(kind.folds)
        ]
        rng = np.random.default_rng(seed)
        noise = rng.dirichlet(np.ones(targets.shape[1]), len(ids))
        sure = rng.random((len(ids), 1)) < kind.skill
        values = np.where(sure, 0.6 * targets + 0.4 * noise, noise).astype(np.float32)
        path = root / "runs" / kind.name / "oof.parquet"
        Predictions(ids, TASK.normalise(values), TASK.classes, kind.name, folds).write(path, "id")
        sources[kind.name] = Source(
            kind.name, 1.0, None, None, False, False, batch_size, "fp32", True, path, tuple(parts)
        )
    return sources


def train_ids() -> tuple[str, ...]:
    return tuple(f"t{row:03d}" for row in range(ROWS))


def truth_of(task: Task) -> tuple[Floats, Any]:
    """Targets and folds of the labelled rows."""
    classes = np.arange(ROWS) % len(task.classes)
    return np.eye(len(task.classes), dtype=np.float32)[classes], (np.arange(ROWS) // 3 % 3).astype(np.int64)


def _bundle(folder: Path, kind: Kind, fold: int, seed: int) -> Part:
    torch.manual_seed(seed)
    settings = Input(**{"size": 16, **kind.input})
    model = build_model(make_spec(Model(backbone=kind.backbone, pretrained=False), settings, kind.task)).eval()
    _spread(model)
    save_weights(folder / "model.safetensors", model)
    images = ImageSpec.from_config(settings)
    bundle = Bundle(
        run=kind.name,
        fold=fold,
        seed=0,
        task=kind.task,
        model=model.spec,
        images=replace(images, size=max(images.size, kind.size or 0)),
        views=kind.views,
        merge=kind.merge,
        id_column="id",
        weights_sha256=files.sha256_file(folder / "model.safetensors"),
        size=kind.size,
    )
    write_bundle(folder / "bundle.json", bundle)
    return Part(fold, 0, folder)


def _spread(model: Classifier) -> None:
    """Scale the head, so that an untrained network tells images apart."""
    side, channels = model.spec.size, model.spec.channels
    noise = torch.randint(0, 256, (16, side, side, channels)) * torch.linspace(0.1, 1, 16).view(-1, 1, 1, 1)
    with torch.no_grad():
        seen = model(model.prepare(noise.to(torch.uint8)))
        model.head.weight /= seen.std(dim=0).mean()
        model.head.bias.copy_(model.head.bias / seen.std(dim=0).mean() - (seen / seen.std(dim=0).mean()).mean(dim=0))


@dataclass(frozen=True, eq=False)
class Example:
    """A competition's input folder beside a pack, and the workspace that it was exported from."""

    root: Path
    kinds: tuple[Kind, ...]
    input: Path
    pack: Path
    batch_size: int
    ensemble: Path | None

    @property
    def competition(self) -> Path:
        return self.input / "competitions" / "tiny"

    def test(self) -> pd.DataFrame:
        return files.read_csv(self.competition / "test.csv")

    def paths(self, ids: Sequence[str]) -> list[Path]:
        return [self.competition / "images" / f"{name}.png" for name in ids]

    def member_values(self, name: str, folds: Sequence[int] | None = None) -> Predictions:
        """A member's mean over (some) folds for the test images, as ``goldfold predict`` makes it."""
        ids = tuple(self.test()["id"])
        parts = []
        for folder in sorted((self.root / "runs" / name).glob("fold*")):
            if folds is None or int(folder.name.removeprefix("fold")) in folds:
                bundle, model = load_bundle(folder)
                images = LazyImages(ids, self.paths(ids), bundle.images)
                parts.append(
                    predict_bundle(
                        bundle,
                        model,
                        images,
                        ids,
                        batch_size=self.batch_size,
                        machine=CPU,
                        what=name,
                        frame=self.test(),
                    )
                )
        return average(parts, name)

    def expected(self) -> Predictions:
        """The whole ensemble (or run) for the test images."""
        if self.ensemble is None:
            return self.member_values(self.kinds[0].name)
        blend = load_blend(self.ensemble, None)
        tables = {name: self.member_values(name) for name in blend.members}
        values = blend.apply([tables[name].values for name in blend.members], TASK)
        calibration = load_calibration(self.ensemble, TASK)
        if calibration is not None:
            values = calibration.apply(values, TASK)
        return Predictions(next(iter(tables.values())).ids, values, TASK.classes, "both")

    def submission(self, predictions: Predictions) -> pd.DataFrame:
        """As ``goldfold submit`` writes it, and as text comes back from the file."""
        sample = files.read_csv(self.competition / "sample_submission.csv")
        decisions = None if self.ensemble is None else load_decisions(self.ensemble, TASK)
        frame = format_submission(predictions, TASK, submission_format(sample), sample, decisions)
        path = self.root / "expected.csv"
        files.write_csv(path, frame)
        return files.read_csv(path)


def submission_format(sample: pd.DataFrame, metric: Metric | None = None) -> Any:
    return decide_format(TASK, (metric or get_metric("log_loss")).needs, sample, "id")


def write_test_set(
    folder: Path, rows: int, seed: int = 0, sample: bool = True, columns: Sequence[str] = TASK.classes
) -> None:
    """A competition's folder with ``rows`` images of several sizes and kinds."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    ids = [f"{number:03d}x" for number in range(rows)]
    for number, name in enumerate(ids):
        height, width = rng.integers(14, 30, 2)
        mode, channels = [("RGB", 3), ("L", 1), ("RGBA", 4)][number % 3]
        brightest = rng.integers(30, 257)  # or all would be the same grey to a network
        pixels = rng.integers(0, brightest, (height, width, channels), dtype=np.uint8)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode).save(folder / "images" / f"{name}.png")
    frame = pd.DataFrame({"id": pd.Series(ids, dtype=str)})
    frame.sample(frac=1, random_state=1).to_csv(folder / "test.csv", index=False)
    if sample:
        for name in columns:
            frame[name] = round(1 / len(columns), 3)
        frame.sample(frac=1, random_state=2).to_csv(folder / "sample_submission.csv", index=False)


def make_example(
    root: Path,
    kinds: Sequence[Kind],
    *,
    rows: int = 24,
    batch_size: int = 4,
    method: Any = "simplex",
    metric: str = "log_loss",
    hours: float = 9.0,
    **settings: Any,
) -> Example:
    """An ensemble of ``kinds`` (a run, where there is one) with its pack and the competition's input folder."""
    with (
        patch("goldfold.kaggle.export.write_wheels"),  # they take longer than all else, and nothing here installs them
        patch("goldfold.ensemble.stage.draw_members"),
    ):
        return _make(root, kinds, rows, batch_size, method, metric, hours, settings)


def _make(
    root: Path, kinds: Sequence[Kind], rows: int, batch_size: int, method: Any, metric: str, hours: float, settings: Any
) -> Example:
    sources = make_members(root, kinds, batch_size)
    targets, folds = truth_of(TASK)
    input_folder = root / "input"
    columns = TASK.classes if metric == "log_loss" else ("label",)
    write_test_set(input_folder / "competitions" / "tiny", rows, columns=columns)
    ensemble = None
    if len(kinds) > 1:
        ensemble = root / "ensembles" / "both"
        members = [Member(kind.name, Predictions.read(sources[kind.name].oof, kind.name), None, "0") for kind in kinds]
        record = make_ensemble(
            ensemble, "both", members, (train_ids(), targets), TASK, get_metric(metric), [], method, "id", **settings
        )
        for member in record["members"]:
            sources[member["name"]] = replace(
                sources[member["name"]],
                weight=member["weight"], score=member["score"], marginal_gain=member["marginal_gain"],
            )  # fmt: skip
    sample = files.read_csv(input_folder / "competitions" / "tiny" / "sample_submission.csv")
    pack = input_folder / "datasets" / "someone" / "tiny-pack"
    head = Pack(
        folder=pack,
        source="both" if ensemble is not None else kinds[0].name,
        kind="run" if ensemble is None else "ensemble",
        goldfold="0",
        leaky=False,
        optimistic=False,
        hours=hours,
        task=TASK,
        competition=PackCompetition(
            "tiny", "id", ("label",), metric, None, "test.csv", "images/{id}.png", "sample_submission.csv"
        ),
        submission=submission_format(sample, get_metric(metric)),
        prior=tuple(targets.mean(axis=0).tolist()),
        members=(),
    )
    export_pack(
        pack,
        head,
        [sources[kind.name] for kind in kinds],
        ensemble=ensemble,
        truth=None if ensemble is None else Truth(train_ids(), folds, targets),
        modules={},
        dataset=make_dataset("tiny", "both", "ensemble", None),
    )
    return Example(root, tuple(kinds), input_folder, pack, batch_size, ensemble)
