"""The machine that figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import goldfold
from goldfold.cores import logical_cores, processor_name

PACKAGES = ("torch", "timm", "albumentations", "accelerate", "numpy", "opencv-python-headless", "pillow")


def describe_host() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, GPUs, versions, and how busy the machine was before."""
    import torch

    gpus = []
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        gpus.append(f"{found.name}, {found.total_memory / 2**30:.0f} GB")
    return {
        "cpu": processor_name(),
        "cores": logical_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "load": round(os.getloadavg()[0], 2),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    found = {"goldfold": goldfold.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
