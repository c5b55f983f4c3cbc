"""Other libraries' loops, each in an interpreter of its own, taking turns with ours."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import IO, Any, Literal

import torch

from goldfold.cores import logical_cores
from goldfold.pipeline.bench.plan import Plan, Subject
from goldfold.pipeline.bench.rows import CannotMeasure, Measurement, figure_of, take_turns
from goldfold.pipeline.bench.training import Loop, describe_loop
from goldfold.pipeline.competition import load_competition

Library = Literal["fastai", "timm"]
LEAST = 12
"""Batches of a rival's epoch, at the least."""
NOT_INSTALLED = 3
"""The exit code by which a rival says that its library is missing."""


class Rival:
    """A running process that trains an epoch whenever it is asked to."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str], library: str) -> None:
        self.process, self.errors, self.library = process, errors, library
        self.about = self._answer()

    def epoch(self) -> tuple[float, float]:
        """Images and seconds of an epoch of its training loop."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        found = self._answer()
        return float(found["images"]), float(found["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"rival"'):  # whatever else it prints is not for us
                return json.loads(line)["rival"]  # type: ignore[no-any-return]
        code = self.process.wait()
        if code == NOT_INSTALLED:
            raise CannotMeasure(
                f"{self.library} is not installed (name an interpreter that has it: --fastai-python PATH)"
            )
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        raise CannotMeasure(f"{self.library} failed: {lines[-1] if lines else f'exit code {code}'}")


@contextmanager
def started(library: Library, settings: dict[str, Any], python: str) -> Iterator[Rival]:
    script = Path(__file__).with_name(f"rival_{library}.py")
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(
                [python, str(script), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        except OSError as error:
            raise CannotMeasure(f"{python}: {error.strerror or error}") from None
        try:
            yield Rival(process, errors, library)
        finally:
            process.kill()
            process.wait()


def measure_rival(library: Library, subject: Subject, plan: Plan, tuned: bool = False) -> Measurement:
    """Images a second of our loop over the rival's, on the same images, backbone, size and batch, in turns.

    ``tuned``: it computes in the precision and memory layout that ours has found to be fastest, and not in its own.
    """
    loop = Loop(subject.config, subject.workspace, plan.seconds)
    recipe = loop.job.recipe
    amount, seconds = loop.whole()
    batch = recipe.train.batch_size
    # Long enough that the start of its loader's processes, once an epoch, does not decide.
    batches = max(int(plan.seconds * amount / seconds / batch), 1 if plan.quick else LEAST)
    images = batches * batch
    data = load_competition(subject.config.competition, subject.workspace.root)
    tree = _tree(data.train_paths, [str(row.argmax()) for row in data.targets], plan.scratch(f"{library}-tree"), images)
    settings = {
        "folder": str(tree.resolve()),
        "backbone": recipe.model.backbone,
        "size": recipe.input.size,
        "batch_size": batch,
        "lr": recipe.optim.lr,
        "weight_decay": recipe.optim.weight_decay,
        "device": loop.machine.device.type,
        "precision": loop.machine.precision if tuned or loop.machine.device.type == "cuda" else "fp32",
        "channels_last": tuned and loop.machine.memory_format is torch.channels_last,
        "workers": logical_cores(),
    }
    python = plan.fastai_python if library == "fastai" and plan.fastai_python else sys.executable
    with started(library, settings, python) as rival:
        rival.epoch()
        samples = take_turns(plan.repeats, loop.whole, rival.epoch)
        steps = take_turns(min(plan.repeats, 3), loop.bare, rival.epoch)
        about = rival.about
    most = median(figure_of("rate_ratio", sample) for sample in steps)
    details = {"images": subject.what, "rival": about, **describe_loop(loop, samples)}
    return Measurement(
        samples, details, (f"Our bare steps, which wait for nothing, are {most:.2f} times as fast as its loop.",)
    )


def _tree(paths: list[Path], labels: list[str], folder: Path, count: int) -> Path:
    """``count`` links to the images, a folder a class, as both libraries read them."""
    for number in range(count):
        place = number % len(paths)
        under = folder / f"class{labels[place]}"
        under.mkdir(exist_ok=True)
        (under / f"{number:06d}{paths[place].suffix}").symlink_to(paths[place].resolve())
    return folder
