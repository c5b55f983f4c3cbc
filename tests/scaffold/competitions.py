"""A competition's files, as the answers of a project say where they lie and what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.pipeline.competitions import draw, labels_of

ANSWERS: dict[str, dict[str, Any]] = {
    "binary": {
        "slug": "cracks",
        "task": "binary",
        "id": "image",
        "target": "cracked",
        "image_path": "train_images/{image}.png",
        "submission": "probability",
        "backbones": "test_resnet, test_efficientnet",
        "pseudo_labels": True,
    },
    "multiclass code": {
        "slug": "2026-leaf-spots",
        "task": "multiclass",
        "metric": "log_loss",
        "kind": "code",
        "hours": 6,
        "submission": "columns",
        "image_path": "images/{id}.png",
        "backbones": "test_resnet, test_efficientnet",
    },
    "multilabel groups": {
        "slug": "shells",
        "task": "multilabel",
        "target": "top, No Low, both",
        "group": "site",
        "image_path": "{site}/{id}.png",
        "backbones": "test_efficientnet, test_resnet",
        "licence": "none",
    },
    "regression": {
        "slug": "weights",
        "task": "regression",
        "target": "grams",
        "image_path": "images/{id}.png",
        "backbones": "test_efficientnet, test_resnet",
        "pseudo_labels": True,
    },
}
"""Four projects, one a task; each answer that is left out has its default."""

SMALL = (
    "model.pretrained=false", "input.size=24", "train.epochs=1", "train.batch_size=8", "train.device=cpu",
    "augment.preset=none", "tta.views=none",
)  # fmt: skip
"""Settings with which a project of few pictures trains in seconds, from random weights."""

NAMES = {"label": "", "top": "top", "low": "No Low", "both": "both"}


def lay_out(project: Path, answers: dict[str, Any], rows: int = 24, test_rows: int = 6) -> None:
    """Write CSV files and pictures into ``data/<slug>/``, in a shuffled order."""
    rng = np.random.default_rng(0)
    folder = project / "data" / answers["slug"]
    key, target = answers.get("id", "id"), answers.get("target", "label")
    tables: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for number in range(rows + test_rows):
        part, kind = "train" if number < rows else "test", number % 3
        row = {key: f"{number:03d}x", "site": f"s{number % 6}"}
        pattern = answers["image_path"] if part == "train" else answers["image_path"].replace("train", "test")
        picture = folder / pattern.format(**row)
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(kind, rng).save(picture)
        labels = labels_of(answers["task"], kind, rng)
        tables[part].append(row | {NAMES[name] or target: label for name, label in labels.items()})
    train, test = (pd.DataFrame(rows).sample(frac=1, random_state=1) for rows in tables.values())
    targets = [column for column in train.columns if column not in (key, "site")]
    train.to_csv(folder / "train.csv", index=False)
    test[[key, "site"]].to_csv(folder / "test.csv", index=False)
    sample = test[[key]].assign(**dict.fromkeys(targets, 0.5))
    if answers["task"] == "multiclass":
        sample = test[[key]].assign(cat=0.4, dog=0.3, fox=0.3)
    sample.sample(frac=1, random_state=2).to_csv(folder / "sample_submission.csv", index=False)
