"""What makes a training faster leaves it what it was: whole trainings by both ways, within the tolerances stated here."""

from __future__ import annotations

import json
from pathlib import Path

import albumentations
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from goldfold.cli import main
from goldfold.models import Classifier

CONFIG = "configs/tiny.yaml"
STILL = ["augment.preset=none", "model.drop_rate=0.0", "tta.views=none", "train.epochs=3", "optim.lr=0.001"]
pytestmark = pytest.mark.usefixtures("project")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


def train(name: str, *settings: str) -> tuple[np.ndarray, np.ndarray]:
    """Losses by epoch, and out-of-fold probabilities."""
    assert main(["train", CONFIG, "--run", name, "--fold", "0", *STILL, *settings]) == 0
    fold = Path(f"runs/{name}/fold0")
    lines = (fold / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    table = pd.read_parquet(fold / "oof.parquet").set_index("id").sort_index()
    return np.array([json.loads(line)["loss"] for line in lines]), table.select_dtypes("number").to_numpy()


def normalised_on_host(model: Classifier, pixels: Tensor, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """As a loader of floats would do it: albumentations' ``Normalize`` of each image, then the copy to the device."""
    spec = model.spec
    normalise = albumentations.Normalize(mean=spec.mean, std=spec.std, max_pixel_value=255.0)
    images = [normalise(image=image)["image"] for image in pixels.cpu().numpy()]
    floats = torch.from_numpy(np.stack(images)).to(pixels.device)
    return floats.permute(0, 3, 1, 2).contiguous(memory_format=layout)


@pytest.mark.parametrize("device", DEVICES)
def test_normalising_on_the_device_is_normalising_on_the_host(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses within 1e-4, probabilities within 1e-3 in float32."""
    settings = [f"train.device={device}", "train.precision=fp32"]
    losses, seen = train("device", *settings)
    asked = []

    def counted(model: Classifier, pixels: Tensor, layout: torch.memory_format = torch.channels_last) -> Tensor:
        asked.append(len(pixels))
        return normalised_on_host(model, pixels, layout)

    monkeypatch.setattr(Classifier, "prepare", counted)
    others, shown = train("host", *settings)
    assert asked
    assert np.abs(losses - others).max() < 1e-4
    assert np.abs(seen - shown).max() < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_a_cached_trunk_trains_as_a_frozen_one(device: str) -> None:
    """Losses within 2e-3, probabilities within 1e-3: features are stored in 16 bits."""
    settings = [f"train.device={device}", "train.precision=fp32", "model.freeze.stages=2"]
    losses, seen = train("frozen", *settings)
    others, shown = train("cached", *settings, "model.freeze.cache=true", "model.freeze.cache_views=none")
    assert 0 < np.abs(losses - others).max() < 2e-3
    assert np.abs(seen - shown).max() < 1e-3
    free, _ = train("free", *settings, "model.freeze.stages=0")
    assert np.abs(losses - free).max() > 1e-2, "a training that the trunk takes part in is another one"
