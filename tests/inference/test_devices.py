"""Which devices compute, and in which precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from goldfold.images import ImageSpec
from goldfold.inference.devices import find_devices, is_device_failure, machine_for
from goldfold.kaggle.pack import PackMember
from goldfold.memory import free_memory, is_out_of_memory

MEMBER = PackMember(
    "m", 1.0, None, None, False, False, "flip", "mean", 16, ImageSpec(16, 3, "squash", "area", "full"), 8, "auto", True,
    0, 0, (),
)  # fmt: skip


def test_without_a_gpu_the_cpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_devices() == [torch.device("cpu")]
    assert free_memory(torch.device("cpu")) > 0


def test_a_gpu_that_this_torch_cannot_use_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ones = torch.ones

    def on(*shape: int, device: Any = None) -> Any:
        if device == torch.device("cuda", 0):
            raise RuntimeError("CUDA error: no kernel image is available\nmore lines")
        return ones(*shape)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P100")
    monkeypatch.setattr(torch, "ones", on)
    assert find_devices() == [torch.device("cuda", 1)]
    (line,) = capsys.readouterr().err.splitlines()
    assert "cuda:0 (Tesla P100) cannot be used: CUDA error: no kernel image is available" in line


@pytest.mark.parametrize(
    ("capability", "asked", "precision"),
    [
        ((7, 5), "auto", "fp16"),  # a T4 only emulates bf16
        ((7, 5), "bf16", "fp16"),
        ((7, 5), "fp16", "fp16"),
        ((7, 5), "fp32", "fp32"),
        ((8, 0), "auto", "bf16"),
        ((8, 0), "bf16", "bf16"),
        ((8, 0), "fp16", "fp16"),
        (None, "auto", "fp32"),
        (None, "bf16", "bf16"),
        (None, "fp16", "fp32"),
    ],
)
def test_half_precision_is_the_one_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, asked: Any, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cpu" if capability is None else "cuda")
    machine = machine_for(replace(MEMBER, precision=asked), device)
    assert (machine.precision, machine.device, machine.channels_last) == (precision, device, True)


def test_errors_of_devices_and_of_memory_are_told_apart() -> None:
    assert is_device_failure(RuntimeError("CUDA error: unspecified launch failure"))
    assert not is_device_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_device_failure(ValueError("CUDA error"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(RuntimeError("CUDA error: out of resources"))
    assert not is_out_of_memory(ValueError("out of memory"))
