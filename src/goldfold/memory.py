"""When memory runs out: how it shows, how much is left, and how many images are shown at once from then on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from goldfold.progress import warn

ON_CPU = {"fp32": 32, "bf16": 128}
"""Images at once on a CPU by precision, where larger batches leave the processor's cache and are no faster."""

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""What torch, its CPU allocator, cuBLAS and cuDNN say."""


class AtOnce:
    """``most`` images are shown to a network at once; halved when memory runs out, and so for all that follows.

    ``what`` begins the line that says so.
    """

    def __init__(self, batch_size: int, device: torch.device, precision: str, what: str) -> None:
        self.most = min(batch_size, ON_CPU.get(precision, batch_size)) if device.type == "cpu" else batch_size
        self.device, self.what = device, what

    def halve(self, tried: int) -> None:
        """``tried`` images were too many. Not to be called where the error is handled: it holds the failed pass's memory."""
        self.most = (tried + 1) // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warn(f"{self.what}: memory is full; {self.most} image{'s' * (self.most > 1)} at once from now on")

    def in_parts(self, work: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """``work`` on ``images`` (B, ...), so many at once → its results (B, ...) joined.

        When memory runs out, the part that failed, and no other, is done again in halves. Raises what ``work`` raises for
        a single image.
        """
        done: list[Tensor] = []
        start = 0
        while start < len(images):
            part = images[start : start + self.most]
            try:
                done.append(work(part))
            except (RuntimeError, MemoryError) as error:
                if len(part) < 2 or not is_out_of_memory(error):
                    raise
            else:
                start += len(part)
                continue
            self.halve(len(part))
        return torch.cat(done)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether fewer images at once would do."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def free_memory(device: torch.device) -> int:
    """Bytes that a forward pass may take now; a guess on the CPU, where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        found = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
