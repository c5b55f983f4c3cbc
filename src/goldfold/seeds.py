"""Seeds for every part of a run, derived from one number so that no two parts draw alike."""

from __future__ import annotations

import random

import numpy as np


def derive_seed(*parts: int) -> int:
    """A 32-bit seed from any whole numbers, such as (seed, fold, epoch, batch). A seed of 0 is a seed like any other."""
    entropy = [part & 0xFFFFFFFF for part in parts]
    return int(np.random.SeedSequence(entropy).generate_state(1, dtype=np.uint32)[0])


def seed_everything(*parts: int) -> None:
    """Seed the global generators (Python, NumPy, torch on every device), which dropout and initialisation use."""
    import torch

    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from it
    torch.manual_seed(seed)
