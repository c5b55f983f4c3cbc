"""The devices of a kernel: both GPUs of a T4x2, one, or the CPU; and the precision that is fast on each."""

from __future__ import annotations

import torch

from goldfold.kaggle.pack import PackMember
from goldfold.machine import Machine, tune_allocator
from goldfold.progress import warn

CPU = torch.device("cpu")


def find_devices() -> list[torch.device]:
    """Every GPU that computes, else the CPU. A GPU that this build of torch cannot use gives a warning."""
    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", number)
        try:
            # A P100 is there and named, and fails at the first operation with Kaggle's torch.
            torch.ones(1, device=device).add_(1).item()
        except RuntimeError as error:
            warn(f"{device} ({torch.cuda.get_device_name(device)}) cannot be used: {first_line(error)}")
        else:
            found.append(device)
    if not found:
        tune_allocator()
    return found or [CPU]


def machine_for(member: PackMember, device: torch.device) -> Machine:
    """How a member's networks run on a device: as in its own predictions, but for the half precision that is fast there."""
    return Machine(device, _precision(member.precision, device), member.channels_last, 0)


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.get_device_name(device)} ({memory / 2**30:.0f} GiB)"
    return f"CPU ({torch.get_num_threads()} threads)"


def is_device_failure(error: BaseException) -> bool:
    """Whether an error is the GPU's and not the network's."""
    text = str(error)
    return isinstance(error, RuntimeError) and any(name in text for name in ("CUDA error", "CUBLAS", "CUDNN", "cuDNN"))


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _precision(asked: str, device: torch.device) -> str:
    if device.type == "cpu":
        return "bf16" if asked == "bf16" else "fp32"
    if asked == "fp32":
        return "fp32"
    # bf16 needs compute capability 8; a T4 (7.5) only emulates it, slowly.
    fast = torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if fast and asked != "fp16" else "fp16"
