"""A competition of random textures: nothing to learn, so that a network can only remember."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

SIZE = 16
SMALL = ["--rows", "80", "--epochs", "7", "--size", str(SIZE), "train.batch_size=12", "optim.lr=6e-3"]
"""A small network remembers 80 textures of 16 pixels in 7 epochs, which take half a second."""


def make_textures(
    root: Path, rounds: list[dict[str, Any]], task: str = "multiclass", rows: int = 84, **sections: Any
) -> Path:
    """Write data/ and configs/ under ``root``; returns the pipeline's path."""
    rng = np.random.default_rng(0)
    data = root / "data" / "textures"
    (data / "images").mkdir(parents=True)
    names = {"train": [f"a{row:03d}" for row in range(rows)], "test": [f"b{row:02d}" for row in range(20)]}
    names["more"] = [f"c{row:02d}" for row in range(20)]
    for name in (name for part in names.values() for name in part):
        pixels = rng.integers(0, 256, (SIZE + 4, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / "images" / f"{name}.png")
    for part in ("test", "more"):
        pd.DataFrame({"id": names[part]}).to_csv(data / f"{part}.csv", index=False)
    train = pd.DataFrame({"id": names["train"], "site": [f"s{row % 9}" for row in range(rows)], "fold": range(rows)})
    if task == "multilabel":
        targets: Any = ["x", "y"]
        train["x"], train["y"] = rng.integers(0, 2, rows), rng.integers(0, 2, rows)
    else:
        targets = "label"
        kinds = np.arange(rows) % (2 if task == "binary" else 3)
        train["label"] = rng.normal(5, 3, rows).round(3) if task == "regression" else np.array(["x", "y", "z"])[kinds]
    train.to_csv(data / "train.csv", index=False)
    metric = {"regression": "rmse", "multilabel": "macro_auc", "binary": "auc"}.get(task, "accuracy")
    config: dict[str, Any] = {
        "competition": {
            "name": "textures",
            "task": task,
            "metric": metric,
            "train_csv": "data/textures/train.csv",
            "test_csv": "data/textures/test.csv",
            "image_path": "data/textures/images/{id}.png",
            "target": targets,
            "group": "site",
        },
        "folds": {"scheme": "group", "n": 2},
        "input": {"size": 64},
        "model": {"backbone": "test_byobnet", "pretrained": False, "drop_rate": 0.3},
        "loss": {"smoothing": 0.0 if task in ("regression", "multilabel") else 0.1},
        "mix": {"mixup": 0.2},
        "train": {"epochs": 3, "device": "cpu"},
        "tta": {"views": "flips"},
    }
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values}
    folder = root / "configs"
    folder.mkdir()
    (folder / "net.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    filled = [
        {"experiment": "net.yaml", **step} if "kind" in step and step["kind"] != "ensemble" else step for step in rounds
    ]
    (folder / "rounds.yaml").write_text(yaml.safe_dump({"name": "rounds", "rounds": filled}), encoding="utf-8")
    return Path("configs/rounds.yaml")


# Rounds by their defaults, as they ship; ``ONLINE`` has the keys of the demo's own distillation.
TEACHER = {"kind": "train", "name": "teacher"}
PSEUDO = {"kind": "pseudo_label", "name": "pseudo", "teachers": ["teacher"]}
DISTIL = {"kind": "distill", "name": "distil", "teachers": ["teacher"]}
ONLINE = {**DISTIL, "name": "online", "how": "online", "weight": 0.5, "temperature": 2.0}
# Only the surest images, few and faint and not to the end: the path must be walked, and loudly, to be heard.
DAMPED = {"min_prob": 0.999, "top_k": 1, "trim": 0.4, "power": 0.1, "weighting": "confidence"}
DAMPED |= {"weight": 0.3, "sampling_prob": 0.3, "cool_down": 2}
# Only the round that hears them names the unlabelled images.
UNLABELLED = [{"csv": "data/textures/more.csv", "image_path": "data/textures/images/{id}.png"}]
HONEST = [
    TEACHER,
    PSEUDO,
    DISTIL,
    ONLINE,
    {"kind": "ensemble", "name": "blend", "members": ["teacher", "pseudo", "distil", "online"]},
]
LEAKY = [
    {**PSEUDO, **DAMPED, "name": "leaky-pseudo", "leaky": True},
    {**DISTIL, "name": "leaky-distil", "leaky": True},
    {**ONLINE, "name": "leaky-online", "leaky": True},
    # Features alone, which say little of a label.
    {**DISTIL, "name": "leaky-features", "how": "online", "weight": 0.0, "features": 1.0, "leaky": True},
    # An ensemble's labels of the unlabelled images.
    {
        **PSEUDO,
        "name": "leaky-unlabelled",
        "teachers": ["blend"],
        "leaky": True,
        "images": "unlabelled",
        "set": {"competition.unlabelled": UNLABELLED},
    },
]
OTHERS = [
    TEACHER,
    {**DISTIL, "name": "cross-fitted", "how": "cross_fitted", "inner": 2},
    {
        "kind": "ensemble",
        "name": "stack",
        "members": ["teacher", "cross-fitted"],
        "method": "stacking",
        "calibration": "temperature",
    },
    {**PSEUDO, "name": "taught-by-stack", "teachers": ["stack"], "labels": "hard"},
    {**PSEUDO, "name": "second-generation", "teachers": ["taught-by-stack"]},
    {"kind": "ensemble", "name": "greedy", "members": ["teacher", "second-generation"], "method": "greedy"},
    {**PSEUDO, "name": "leaky-by-stack", "teachers": ["stack"], "leaky": True},
    {**DISTIL, "name": "taught-by-leaky", "teachers": ["leaky-by-stack"]},
]
