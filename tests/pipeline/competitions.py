"""Small competitions of real PNG files, one a task, for the tests that go through the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

CLASSES = ("cat", "dog", "fox")


def draw(kind: int, rng: np.random.Generator, size: int = 24) -> Image.Image:
    """A noisy picture whose bright third tells its kind (0, 1 or 2), so that a small network can learn it."""
    pixels = rng.integers(0, 60, (size, size, 3))
    third = size // 3
    pixels[kind * third : (kind + 1) * third] += 150
    return Image.fromarray(pixels.astype(np.uint8))


def labels_of(task: str, kind: int, rng: np.random.Generator) -> dict[str, str]:
    if task == "binary":
        return {"label": str(int(kind == 2))}
    if task == "multiclass":
        return {"label": CLASSES[kind]}
    if task == "ordinal":
        return {"label": str(kind)}
    if task == "regression":
        return {"label": f"{10 + 5 * kind + rng.normal(0, 0.5):.3f}"}
    return {"top": str(int(kind == 0)), "low": str(int(kind == 2)), "both": str(int(kind != 1))}


METRICS = {
    "binary": ("auc", ["accuracy", "log_loss"]),
    "multiclass": ("macro_f1", ["accuracy"]),
    "ordinal": ("qwk", ["mae"]),
    "regression": ("rmse", ["r2"]),
    "multilabel": ("macro_auc", ["micro_f1"]),
}


def make_competition(
    root: Path, task: str = "multiclass", rows: int = 48, test_rows: int = 12, seed: int = 0, **sections: object
) -> Path:
    """Write data/ and configs/tiny.yaml under ``root``; returns the configuration's path relative to ``root``."""
    rng = np.random.default_rng(seed)
    data = root / "data" / "tiny"
    (data / "images").mkdir(parents=True)
    parts: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for number in range(rows + test_rows):
        kind = number % 3
        name = f"{number:03d}x"
        draw(kind, rng).save(data / "images" / f"{name}.png")
        row = {"id": name, "site": f"s{number % 8}", **labels_of(task, kind, rng)}
        parts["train" if number < rows else "test"].append(row)
    train, solution = (pd.DataFrame(parts[name]) for name in ("train", "test"))
    targets = [column for column in train.columns if column not in ("id", "site")]
    # Shuffled, so that nothing that goes by position can succeed.
    train = train.sample(frac=1, random_state=1)
    train.to_csv(data / "train.csv", index=False)
    solution[["id", *targets]].to_csv(data / "solution.csv", index=False)
    solution[["id", "site"]].sample(frac=1, random_state=2).to_csv(data / "test.csv", index=False)
    sample = solution[["id", *targets]].sample(frac=1, random_state=3)
    for column in targets:
        sample[column] = {"multiclass": "cat", "ordinal": "0"}.get(task, 0.5)
    sample.to_csv(data / "sample_submission.csv", index=False)
    metric, extra = METRICS[task]
    config = {
        "name": "tiny",
        "competition": {
            "name": "tiny",
            "task": task,
            "metric": metric,
            "extra_metrics": extra,
            "train_csv": "data/tiny/train.csv",
            "test_csv": "data/tiny/test.csv",
            "sample_submission": "data/tiny/sample_submission.csv",
            "image_path": "data/tiny/images/{id}.png",
            "target": targets if task == "multilabel" else "label",
        },
        "folds": {"scheme": "multilabel" if task == "multilabel" else "stratified", "n": 2, "bins": 3},
        "input": {"size": 24},
        "augment": {"preset": "none"},
        "model": {"backbone": "test_efficientnet", "pretrained": False},
        "optim": {"lr": 0.01},
        "schedule": {"warmup_epochs": 0.5},
        "train": {"epochs": 2, "batch_size": 8, "device": "cpu"},
        "tta": {"views": "none"},
    }
    for section, values in sections.items():
        assert isinstance(values, dict)
        config[section] = {**config.get(section, {}), **values}  # type: ignore[dict-item]
    path = Path("configs/tiny.yaml")
    (root / path).parent.mkdir()
    (root / path).write_text(yaml.safe_dump(config, sort_keys=False))
    return path
