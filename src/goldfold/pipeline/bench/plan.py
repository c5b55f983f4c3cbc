"""What a run of `goldfold bench speed` measures with: lengths, sizes, and the images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import yaml

from goldfold.config import Config, config_from_dict, load_config
from goldfold.paths import Workspace

PHOTOS = 48
"""Different pictures; further files are links to these."""
SIDES = (300, 400)
CLASSES = 4
QUALITY = 90
LINKS = 30_000  # file systems allow some 65,000 links to one file


@dataclass(frozen=True)
class Subject:
    """An experiment and the project folder that its paths start from; ``what``: in words."""

    config: Config
    workspace: Workspace
    what: str


@dataclass(frozen=True)
class Plan:
    """``folder``: a temporary one. ``seconds``: of one measurement, about. ``given``: CONFIG, measured in place of the
    experiments of our own. ``real``: lays out a competition of real photographs under a folder and gives its experiment.
    """

    folder: Path
    seconds: float = 4.0
    repeats: int = 5
    quick: bool = False
    overrides: tuple[str, ...] = ()
    given: Subject | None = None
    real: Callable[[Path, Sequence[str]], Config] | None = None
    fastai_python: str | None = None
    rows: int = 100_000
    photos: int = field(default=PHOTOS)

    def subject(self, name: str, backbone: str, size: int, **sections: dict[str, Any]) -> Subject:
        """CONFIG where one was given, else an experiment on drawn photographs."""
        if self.given is not None:
            return self.given
        root = self.folder / "drawn"
        if not root.exists():
            draw_competition(root, self.photos)
        values: dict[str, Any] = {
            "name": name,
            "competition": competition("data/train.csv"),
            "folds": {"n": 2},
            "input": {"size": size},
            "model": {"backbone": backbone, "pretrained": False},
            "train": {"epochs": 1000, "batch_size": 8 if self.quick else 32},
        }
        for section, settings in sections.items():
            values[section] = {**values.get(section, {}), **settings}
        path = root / "configs" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        what = f"{self.photos} drawn photographs of {SIDES[1]} x {SIDES[0]} pixels (JPEG), repeated as needed"
        return Subject(load_config(path, self.overrides), Workspace(root), what)

    def scratch(self, name: str) -> Path:
        """An empty folder of this name."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def competition(train_csv: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "bench",
        "task": "multiclass",
        "metric": "accuracy",
        "train_csv": train_csv,
        "image_path": "data/images/{id}.jpg",
    } | more


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    """The experiment with other values of some keys, checked anew; ``name`` and whole sections by keyword."""
    values = config.model_dump(mode="json")
    for section, settings in sections.items():
        values[section] = {**values[section], **settings}
    return config_from_dict(values, "bench")


def renamed(config: Config, name: str) -> Config:
    return config.model_copy(update={"name": name})


def draw_competition(root: Path, count: int, seed: int = 0) -> list[Path]:
    """``data/train.csv`` (id, label) and ``data/images/<id>.jpg`` under ``root``: smooth pictures with grain, whose hue
    follows the class, about as large and as dear to decode as photographs. Returns the files."""
    folder = root / "data" / "images"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    paths, labels = [], []
    for number in range(count):
        label = number % CLASSES
        coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.float32)
        coarse[..., label % 3] = coarse[..., label % 3] * 0.5 + (120 if label < 3 else 0)
        smooth = cv2.resize(coarse, (SIDES[1], SIDES[0]), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        path = folder / f"photo{number:06d}.jpg"
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        paths.append(path)
        labels.append(f"c{label}")
    frame = pd.DataFrame({"id": [path.stem for path in paths], "label": labels})
    frame.to_csv(root / "data" / "train.csv", index=False)
    return paths


def link_files(sources: Sequence[Path], folder: Path, count: int) -> list[Path]:
    """``count`` files in ``folder``, hard links to the sources in turn (copies where links are not to be had)."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        source = sources[number % len(sources)]
        path = folder / f"{number:06d}{source.suffix}"
        if number < LINKS * len(sources):
            try:
                os.link(source, path)
            except OSError:
                shutil.copyfile(source, path)
        else:
            path.symlink_to(source.resolve())
        made.append(path)
    return made
