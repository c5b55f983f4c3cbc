"""The engine on a GPU, in the precision that a T4 takes; every GPU that there is has a share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from goldfold import files
from goldfold.inference import networks
from goldfold.inference.devices import find_devices
from goldfold.inference.run import Settings, predict
from tests.inference.packs import TASK, Example

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-3), ("fp16", 0.03), ("bf16", 0.1)])
def test_the_gpu_predicts_what_the_cpu_does(
    example: Example, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, precision: str, near: float
) -> None:
    machine_for = networks.machine_for
    monkeypatch.setattr(
        networks, "machine_for", lambda member, device: replace(machine_for(member, device), precision=precision)
    )
    devices = find_devices()
    assert all(device.type == "cuda" for device in devices)
    given = settings(example)
    assert predict(given, devices=devices * (1 if len(devices) > 1 else 2)) == 0
    ids = list(example.test()["id"])
    found = files.read_csv(given.working / "submission.csv").set_index("id").loc[ids, list(TASK.classes)]
    assert np.abs(found.to_numpy(dtype=np.float64) - example.expected().take(ids).values).max() < near
