"""How soon commands answer."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import yaml

from goldfold.pipeline.bench.plan import CLASSES, Plan, competition, draw_competition, link_files
from goldfold.pipeline.bench.rows import CannotMeasure, Measurement, Sample


def measure_help(plan: Plan) -> Measurement:
    """Seconds of ``goldfold --help`` in a new process."""
    samples: list[Sample] = []
    for _ in range(plan.repeats + 1):
        samples.append({"seconds": _run(["--help"], plan.folder)})
        bare = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        samples[-1]["python_seconds"] = time.perf_counter() - bare
    return Measurement(tuple(samples[1:]), notes=("python_seconds in the JSON: an interpreter that does nothing.",))


def measure_check(plan: Plan) -> Measurement:
    """Seconds of ``goldfold check --no-decode`` on a drawn competition of many rows, in a new process."""
    root = plan.scratch("check")
    photos = draw_competition(root / "drawn", min(plan.photos, 8))
    paths = link_files(photos, root / "data" / "images", plan.rows)
    labels = np.random.default_rng(0).integers(0, CLASSES, len(paths))
    pd.DataFrame({"id": [path.stem for path in paths], "label": labels}).to_csv(root / "data/train.csv", index=False)
    backbone = "test_resnet" if plan.quick else "resnet18"
    values = {
        "competition": competition("data/train.csv"),
        "model": {"backbone": backbone, "pretrained": False},
        "input": {"cache": False},  # room for a store of so many images is another matter
    }
    (root / "check.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    repeats = min(plan.repeats, 3)
    samples: list[Sample] = []
    for _ in range(repeats + 1):
        samples.append({"seconds": _run(["check", "check.yaml", "--no-decode"], root)})
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch, timm"], check=True)
        samples[-1]["import_seconds"] = time.perf_counter() - begun
    imports = median(sample["import_seconds"] for sample in samples[1:])
    note = (
        f"Of it {imports:.1f} s are an interpreter that imports torch and timm, which the check of the network needs."
    )
    return Measurement(tuple(samples[1:]), {"rows": plan.rows}, (note,))


def _run(arguments: list[str], folder: Path) -> float:
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "goldfold.cli", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise CannotMeasure(f"goldfold {arguments[0]}: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return seconds
