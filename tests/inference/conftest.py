from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from goldfold.inference.networks import Network
from goldfold.inference.run import Settings
from goldfold.records import Floats
from tests.inference.packs import Example, Kind, make_example

KINDS = (
    Kind("cheap", "test_resnet", skill=0.4, views="none"),
    Kind("other", "test_efficientnet", skill=0.5, input={"size": 24, "colour": "hsv"}),
    Kind("strong", "test_vit", skill=0.6, input={"size": 32, "channels": 1, "resize": "letterbox"}, merge="gmean"),
)


class Clock:
    """Time that passes only when a network predicts: ``cost`` seconds an image, by member."""

    def __init__(self, cost: Mapping[str, float]) -> None:
        self.time, self.cost = 0.0, cost
        self.shown: dict[str, int] = {}

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock({"cheap": 1.0, "other": 2.0, "strong": 4.0})
    whole = Network.predict

    def predict(self: Network, pixels: torch.Tensor, metadata: Floats | None) -> Floats:
        values = whole(self, pixels, metadata)
        name = self.unit.member.name
        clock.time += clock.cost[name] * len(pixels)
        clock.shown[self.unit.name] = clock.shown.get(self.unit.name, 0) + len(pixels)
        return values

    monkeypatch.setattr(Network, "predict", predict)
    return clock


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """An ensemble of three kinds of networks, two folds each, and 24 test images."""
    torch.set_num_threads(1)
    return make_example(tmp_path_factory.mktemp("example"), KINDS)


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a kernel for an example, whose working folder is the test's own."""

    def make(example: Example, **changes: Any) -> Settings:
        given = {"input": example.input, "working": tmp_path / "working", "scratch": tmp_path / "scratch"}
        return Settings(**{**given, **changes})

    return make
