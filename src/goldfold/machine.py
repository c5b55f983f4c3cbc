"""The device a run uses: precision, memory, loader processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from dataclasses import dataclass

import torch

from goldfold.config.schema import Train
from goldfold.errors import BadInput

Precision = str


@dataclass(frozen=True)
class Machine:
    """What ``train.device``, ``train.precision`` and ``train.workers`` mean here."""

    device: torch.device
    precision: Precision
    channels_last: bool
    workers: int

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=kind)

    @property
    def is_main(self) -> bool:
        """Whether this is the first of the processes that a launcher started (or the only one)."""
        return os.environ.get("RANK", "0") == "0"

    def peak_memory_mb(self) -> float:
        """Of the device on a GPU, else of this process since it began."""
        if self.device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)

    def describe(self) -> dict[str, object]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {
            "device": name,
            "precision": self.precision,
            "channels_last": self.channels_last,
            "workers": self.workers,
            "threads": torch.get_num_threads(),
        }


def find_machine(train: Train) -> Machine:
    """Resolve the ``auto`` settings. Raises BadInput when the machine lacks what the configuration demands."""
    gpu = torch.cuda.is_available()
    if train.device == "cuda" and not gpu:
        raise BadInput("train.device", "no CUDA device is available", "set train.device=cpu or auto")
    use_gpu = gpu and train.device != "cpu"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_gpu else torch.device("cpu")
    precision = _precision(train, device)
    if device.type == "cpu":
        tune_allocator()
    return Machine(device, precision, train.channels_last, _workers(train.workers, device))


def _precision(train: Train, device: torch.device) -> Precision:
    # bf16 needs an Ampere GPU (compute capability 8); a T4 (7.5) only emulates it, slowly.
    fast_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if train.precision == "auto":
        return "fp32" if device.type == "cpu" else "bf16" if fast_bf16 else "fp16"
    if train.precision == "fp16" and device.type == "cpu":
        raise BadInput("train.precision", "fp16 needs a GPU", "use auto, fp32 or bf16")
    return train.precision


def _workers(asked: int | None, device: torch.device) -> int:
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # On few cores without a GPU, loader processes only take cores from the computation.
    return 0 if device.type == "cpu" and cores <= 4 else max(0, min(cores - 1, 8))


def tune_allocator() -> None:
    """Let glibc keep freed memory instead of giving it back at every step.

    Training on CPU allocates and frees the same large blocks in each step; by default each of them is mapped and
    unmapped anew, and page faults cost up to a third of the time. Elsewhere than on glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def several_processes() -> bool:
    """Whether a launcher started several processes that train one model together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether fewer images at once would do: torch has a class for a full GPU, and words alone for a full machine."""
    words = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")  # the last: cuDNN's and cuBLAS's own
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
