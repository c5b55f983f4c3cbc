"""What runs and ensembles cost at prediction: python benchmarks/students.py NAME NAME ... in a project folder.

Parameters and images a second of one fold's networks, with the views that they predict with, on random uint8 images
that are decoded already. The names take turns, several times; the figures are medians, and each is also set beside the
first name's of the same turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from goldfold import files
from goldfold.bundle import load_bundle
from goldfold.config.schema import Train
from goldfold.machine import Machine, find_machine
from goldfold.paths import Workspace
from goldfold.predict import bundle_views, forward_views


class Subject:
    """A run's network of its first fold, or those of an ensemble's members."""

    def __init__(self, name: str, workspace: Workspace, machine: Machine, images: int) -> None:
        record = workspace.ensemble(name) / "ensemble.json"
        runs = [name]
        if record.exists():
            runs = [member["name"] for member in files.read_json(record)["members"]]
        self.machine = machine
        self.parts = []
        for run in runs:
            fold = int(files.read_json(workspace.run(run).cv)["folds"][0]["fold"])
            bundle, model = load_bundle(workspace.run(run).fold(fold).folder)
            model = model.eval().to(machine.device, memory_format=machine.memory_format)
            shape = (images, bundle.side, bundle.side, bundle.model.channels)
            pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
            self.parts.append((model, bundle_views(bundle), pixels))

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for model, _, _ in self.parts for weight in model.parameters())

    @property
    def passes(self) -> int:
        """Forward passes an image."""
        return sum(len(views) for _, views, _ in self.parts)

    def predict(self) -> float:
        """Seconds for all images."""
        started = time.perf_counter()
        for model, views, pixels in self.parts:
            for batch in pixels.split(128):
                forward_views(model, batch, views, self.machine)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="RUN_OR_ENSEMBLE")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    machine = find_machine(Train())
    subjects = {name: Subject(name, Workspace(Path()), machine, options.images) for name in options.names}
    for subject in subjects.values():
        subject.predict()  # the first pass is slower
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(options.turns):
        for name, subject in subjects.items():
            seconds[name].append(subject.predict())
    first = options.names[0]
    print(f"{options.images} images, {options.turns} turns, {machine.device}, {torch.get_num_threads()} threads")
    print(f"{'name':24} {'parameters':>12} {'passes an image':>16} {'img/s':>8} {'x ' + first:>16}")
    for name, subject in subjects.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[first], seconds[name], strict=True))
        speed = options.images / statistics.median(seconds[name])
        print(f"{name:24} {subject.parameters:12,} {subject.passes:16} {speed:8.0f} {ratio:16.2f}")


if __name__ == "__main__":
    main()
