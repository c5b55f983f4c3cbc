"""How the memory of a training grows with the number of images."""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goldfold.config import config_from_dict
from goldfold.paths import Workspace
from goldfold.pipeline.bench.child import run_child
from goldfold.pipeline.bench.plan import CLASSES, Plan, Subject, link_files
from goldfold.pipeline.bench.rows import Measurement, Sample
from goldfold.pipeline.one_fold import open_fold
from goldfold.training.loop import train_epoch
from goldfold.training.session import make_loader, pace, start

GLANCE = 0.02
"""Seconds between two looks at the process's own memory."""


def measure_memory(subject: Subject, plan: Plan, images: int) -> Measurement:
    """Peak resident set of a training on ten times as many images over that on ``images``; each in its own process."""
    samples: list[Sample] = []
    for _ in range(min(plan.repeats, 3)):
        found: Sample = {}
        for name, count, epochs in (("base_", images, 10), ("", 10 * images, 1)):
            argument: dict[str, Any] = {
                "config": subject.config.model_dump(mode="json"),
                "count": count,
                "photos": [str(path.resolve()) for path in _photos(subject)],
                "folder": str(plan.scratch(f"memory-{count}").resolve()),
                # As many steps on both, so that the allocator's own growth is no part of the difference.
                "epochs": epochs,
            }
            peaks = run_child("memory", argument)
            found |= {f"{name}{key}": value for key, value in peaks.items()}
        samples.append(found)
    own = [each["own_peak"] / each["base_own_peak"] - 1 for each in samples]
    notes = (
        "Peaks of as many steps on both, after the store is built. Without pages of mapped files, which the system drops "
        f"when it needs the room: {min(own):+.1%} to {max(own):+.1%}.",
    )
    details = {
        "images": [images, 10 * images],
        "backbone": subject.config.model.backbone,
        "size": subject.config.input.size,
    }
    return Measurement(tuple(samples), details, notes)


def _photos(subject: Subject) -> list[Path]:
    return sorted((subject.workspace.root / "data" / "images").glob("*.jpg"))


def memory_in_child(
    config: dict[str, Any], count: int, photos: list[str], folder: str, epochs: int = 1
) -> dict[str, float]:
    """Peaks in MB of training on ``count`` files: ``peak`` resident, ``own_peak`` without mapped files."""
    root = Path(folder)
    paths = link_files([Path(photo) for photo in photos], root / "data" / "images", count)
    labels = np.arange(count) % CLASSES
    pd.DataFrame({"id": [path.stem for path in paths], "label": labels}).to_csv(root / "data/train.csv", index=False)
    job, machine = open_fold(config_from_dict(config, "bench"), Workspace(root))
    session = start(job, machine)
    order, loader = make_loader(job, machine, session, session.stretch)
    rates = pace(session, job)
    _reset_peak()
    with _OwnPeak() as own:
        for epoch in range(epochs):
            order.epoch = session.progress.epoch = epoch
            train_epoch(job, machine, session, loader, rates)
    peak = _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak": round(peak, 1), "own_peak": round(own.most or peak, 1)}


class _OwnPeak:
    """The most of its own memory (no mapped files) that the process has in a while, looked at again and again."""

    def __enter__(self) -> _OwnPeak:
        self.most, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, _status("RssAnon"))
            if self._over.wait(GLANCE):
                return


def _reset_peak() -> None:
    """Let the peak count from now on, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _status(key: str) -> float:
    """MB of a line of /proc/self/status; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:")), 0.0)
