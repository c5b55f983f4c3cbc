"""The device a run uses: precision, memory layout, threads, loader processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch

from goldfold.config.schema import Train
from goldfold.cores import logical_cores, physical_cores, processor_name
from goldfold.errors import BadInput

Precision = str
LAYOUTS = {True: "channels_last", False: "contiguous"}


@dataclass(frozen=True)
class Mode:
    """How a network computes. ``compiled``: its training steps by torch.compile."""

    precision: Precision
    channels_last: bool = True
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.precision} {LAYOUTS[self.channels_last]}" + (" compiled" if self.compiled else "")

    def to_dict(self) -> dict[str, Any]:
        layout = LAYOUTS[self.channels_last]
        return {"precision": self.precision, "memory_format": layout, "compile": self.compiled}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Mode:
        """Raises KeyError for a missing key."""
        return cls(str(values["precision"]), values["memory_format"] == LAYOUTS[True], bool(values["compile"]))


@dataclass(frozen=True)
class Choice:
    """What a run computes in on one kind of device (``cpu`` or ``cuda``): its training and its predictions."""

    device: str
    train: Mode
    predict: Mode


@dataclass(frozen=True)
class Machine:
    """What ``train.device``, ``train.precision``, ``train.memory_format`` and ``train.workers`` mean here.

    ``predicts``: how networks predict, where that is not how they train.
    """

    device: torch.device
    precision: Precision
    channels_last: bool
    workers: int
    predicts: Mode | None = None
    compiled: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def predicting(self) -> Machine:
        """The same device as it predicts: every prediction of a run (validation, out-of-fold, test, teachers) is by this."""
        if self.predicts is None:
            return self
        precision, channels_last = self.predicts.precision, self.predicts.channels_last
        return replace(self, precision=precision, channels_last=channels_last, predicts=None, compiled=False)

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
            "processor": processor_name(),
            "cores": physical_cores(),
            "precision": self.precision,
            "memory_format": LAYOUTS[self.channels_last],
            "compile": self.compiled,
            "predict_precision": self.predicting.precision,
            "predict_memory_format": LAYOUTS[self.predicting.channels_last],
            "workers": self.workers,
            "threads": torch.get_num_threads(),
        }


def find_machine(train: Train, choice: Choice | None = None) -> Machine:
    """This machine as a configuration wants it. Raises BadInput when it lacks what the configuration demands.

    ``choice``: what was measured and is to be kept; None, or a choice for another kind of device: ``usual_choice``.
    """
    gpu = torch.cuda.is_available()
    if train.device == "cuda" and not gpu:
        raise BadInput("train.device", "no CUDA device is available", "set train.device=cpu or auto")
    use_gpu = gpu and train.device != "cpu"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_gpu else torch.device("cpu")
    usual = usual_choice(train, device)
    if choice is None or choice.device != device.type:
        choice = usual
    workers = _workers(train.workers, device)
    tune_threads(device, workers)
    if device.type == "cpu":
        tune_allocator()
    mode, predicts = choice.train, choice.predict
    other = (mode.precision, mode.channels_last) != (predicts.precision, predicts.channels_last)
    return Machine(
        device, mode.precision, mode.channels_last, workers, predicts if other else None, compiled=mode.compiled
    )


def usual_choice(train: Train, device: torch.device) -> Choice:
    """What holds without a measurement; of what is ``auto``: the usual precision, channels_last, no compiling.

    Predictions are always in this precision: two machines of a kind, and a kernel, must agree on it unmeasured. Raises
    BadInput where the device cannot do what is demanded.
    """
    if train.compile is True and several_processes():
        what = "several processes train one network, which is not compiled"
        raise BadInput("train.compile", what, "set it to false, or train one fold a process without a launcher")
    mode = Mode(_precision(train, device), train.memory_format != "contiguous")
    return Choice(device.type, replace(mode, compiled=train.compile is True), mode)


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
    cores = logical_cores()
    if device.type == "cpu":
        # The network needs the cores more than the loader does: one process feeds the training on about eight of them.
        return 0 if cores <= 4 else min(max(cores // 8, 1), 8)
    return max(0, min(cores - 1, 8))


def compute_threads(device: torch.device, workers: int) -> int:
    """Threads of one operation: a physical core each, and on a CPU none of those that loader processes need."""
    if device.type == "cuda":
        return logical_cores()
    return max(1, min(physical_cores(), logical_cores() - workers))


def tune_threads(device: torch.device, workers: int) -> None:
    """Take torch's threads back to ``compute_threads``, unless whoever started the process has set their number.

    Torch counts the cores of the machine, and knows no quota of a container: on 4 of 64 cores its 64 threads wait for
    each other. Never more threads than there are: a caller may have fewer for a reason.
    """
    if any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")):
        return
    threads = compute_threads(device, workers)
    if torch.get_num_threads() > threads:
        torch.set_num_threads(threads)


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
