"""Packs of untrained networks, made without any training: two folds that share their trunk, and a member of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from goldfold import files
from goldfold.bundle import Bundle, save_weights, write_bundle
from goldfold.config.schema import Input, Model
from goldfold.images import ImageSpec
from goldfold.kaggle.export import Exported, Part, Source, export_pack
from goldfold.kaggle.metadata import make_dataset
from goldfold.kaggle.pack import Pack, PackCompetition, Truth
from goldfold.models import Classifier, build_model, make_spec
from goldfold.records import Predictions
from goldfold.submission import SubmissionFormat
from goldfold.tasks import Task

TASK = Task("multiclass", ("cat", "dog", "fox"))
IDS = tuple(f"i{number}" for number in range(6))
SIZE = 16


def make_network(seed: int, backbone: str = "test_resnet") -> Classifier:
    torch.manual_seed(seed)
    return build_model(make_spec(Model(backbone=backbone, pretrained=False), Input(size=SIZE), TASK)).eval()


def make_bundle(folder: Path, run: str, fold: int, model: Classifier, task: Task = TASK) -> Part:
    """``folder`` as a trained fold leaves it."""
    save_weights(folder / "model.safetensors", model)
    bundle = Bundle(
        run=run,
        fold=fold,
        seed=0,
        task=task,
        model=model.spec,
        images=ImageSpec.from_config(Input(size=SIZE)),
        views="flip",
        merge="mean",
        id_column="id",
        weights_sha256=files.sha256_file(folder / "model.safetensors"),
    )
    write_bundle(folder / "bundle.json", bundle)
    return Part(fold, 0, folder)


def make_source(root: Path, run: str, networks: Sequence[Classifier]) -> Source:
    """A run of these networks, a fold each, with out-of-fold predictions."""
    parts = tuple(make_bundle(root / run / f"fold{fold}", run, fold, model) for fold, model in enumerate(networks))
    values = np.random.default_rng(len(run)).dirichlet(np.ones(3), len(IDS)).astype(np.float32)
    fold = np.arange(len(IDS), dtype=np.int64) % len(networks)
    Predictions(IDS, values, TASK.classes, run, fold).write(root / run / "oof.parquet", "id")
    return Source(run, 0.5, 0.8, 0.01, False, False, 8, "fp32", True, root / run / "oof.parquet", parts)


def two_members(root: Path) -> list[Source]:
    """``shared``: two folds with the same trunk and heads of their own; ``single``: one network of another kind."""
    first, second = make_network(0), make_network(0)
    torch.nn.init.normal_(second.head.weight)
    return [make_source(root, "shared", [first, second]), make_source(root, "single", [make_network(1, "test_vit")])]


def make_head(folder: Path, weights: Literal["float32", "float16"] = "float32", **changes: Any) -> Pack:
    settings: dict[str, Any] = {
        "folder": folder,
        "source": "both",
        "kind": "ensemble",
        "goldfold": "0",
        "leaky": False,
        "optimistic": False,
        "hours": 9.0,
        "task": TASK,
        "competition": PackCompetition(
            "tiny", "id", ("label",), "accuracy", None, "test.csv", "images/{id}.png", "sample_submission.csv"
        ),
        "submission": SubmissionFormat("label", "id", ("label",), labels=TASK.classes),
        "prior": (0.5, 0.25, 0.25),
        "members": (),
        "weights": weights,
    }
    return Pack(**{**settings, **changes})


def write_example(
    root: Path,
    weights: Literal["float32", "float16"] = "float32",
    target: Path | None = None,
    modules: Mapping[str, Path] | None = None,
    **changes: Any,
) -> Exported:
    """``root/pack`` (or ``target``), an ensemble's pack of ``two_members``."""
    sources = two_members(root / "runs")
    files.write_json(root / "ensemble" / "ensemble.json", {"name": "both"})
    truth = Truth(IDS, np.arange(6, dtype=np.int64) % 2, np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]])
    folder = target or root / "pack"
    return export_pack(
        folder,
        make_head(folder, weights, **changes),
        sources,
        ensemble=root / "ensemble",
        truth=truth,
        modules=modules or {},
        dataset=make_dataset("tiny", "both", "ensemble", None),
    )
