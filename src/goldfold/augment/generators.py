"""Libraries that draw from the process's global generators, made to draw from a seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Within: the global generators of Python, NumPy and torch (CPU, and ``device`` if it is a GPU) begin at ``seed``.

    After: they stand where they stood before, so that dropout and data order know nothing of it. ``seed``: 32 bits.
    """
    on_gpu = device is not None and device.type == "cuda"
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - libraries draw from it
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not torch.manual_seed: it would seed every GPU, also those whose state is not kept here.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
