"""`goldfold profile`: where a training step's time goes, and which knob to turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tabulate import tabulate

from goldfold.config import Config
from goldfold.errors import BadInput
from goldfold.machine import Machine
from goldfold.paths import Workspace
from goldfold.pipeline.one_fold import open_fold
from goldfold.training import StepTimes, profile_steps

NAMES = {
    "wait": "wait for data",
    "copy": "copy to the device",
    "prepare": "normalise, mix, erase",
    "forward": "forward",
    "backward": "loss and backward",
    "optimizer": "optimizer",
    "rest": "rest",
}
WORTH = {"wait": 0.08, "copy": 0.08, "prepare": 0.12, "optimizer": 0.2, "rest": 0.08}
"""Shares of a step from which on a part is worth a knob; below all of them the network itself is the bottleneck."""
KNOBS = {
    "copy": "set input.channels=1 for grey images, or lower input.size",
    "optimizer": "raise train.batch_size or train.accumulate, or take a lighter optim.name",
    "rest": "raise train.batch_size, so that fewer steps are taken",
}
LIGHTER = "take a lighter augment.preset (goldfold augment-preview shows them)"
FEW_WORKERS = 4


@dataclass(frozen=True)
class Profile:
    """What ``goldfold profile`` found; ``advice`` names the bottleneck and the knob."""

    times: StepTimes
    machine: dict[str, object]
    advice: str

    def to_text(self) -> str:
        rows = [
            (NAMES[part], 1e3 * sum(values) / len(values), 1e3 * median(values), 100 * self.times.shares[part])
            for part, values in self.times.seconds.items()
        ]
        rows.append(("a step", 1e3 * self.times.total / self.times.steps, None, 100.0))  # type: ignore[arg-type]
        table = tabulate(rows, ("part", "mean ms", "median ms", "share %"), floatfmt=("", ".2f", ".2f", ".1f"))
        rate = f"{self.times.images_per_second:.1f} img/s over {self.times.steps} steps of {self.times.images} images"
        shown = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        return f"{table}\n{rate}; {shown}\n{self.advice}"


def profile(config: Config, workspace: Workspace, fold: int = 0, steps: int = 30, trace: Path | None = None) -> Profile:
    """Train ``steps`` micro-batches of a fold and say where their time went. No run is made. Raises BadInput."""
    if steps < 1:
        raise BadInput("--steps", f"{steps} steps measure nothing", "give 1 or more")
    job, machine = open_fold(config, workspace, fold)
    times = profile_steps(job, machine, steps, trace)
    return Profile(times, machine.describe(), advise(times.shares, config, machine))


def advise(shares: Mapping[str, float], config: Config, machine: Machine) -> str:
    """One sentence: the part that costs most beyond the network's own work, and the knob to turn."""
    beyond = {part: shares[part] for part, least in WORTH.items() if shares[part] >= least}
    if not beyond:
        own = shares["forward"] + shares["backward"]
        return f"Bottleneck: the network itself ({own:.0%} of a step is forward and backward); {_lighter(config, machine)}."
    part = max(beyond, key=lambda name: beyond[name])
    knob = {"wait": _feed, "prepare": _prepare}[part](config, machine) if part not in KNOBS else KNOBS[part]
    return f"Bottleneck: {NAMES[part]} ({shares[part]:.0%} of a step); {knob}."


def _feed(config: Config, machine: Machine) -> str:
    """What makes data come sooner."""
    if config.model.freeze.cache:
        return "put input.cache_dir on a faster disk: stored features are read as they are"
    if not config.input.cache:
        return "set input.cache=true, so that images are decoded once"
    on_gpu, on_host = machine.device.type == "cuda", config.augment.on == "host" and _transforms(config)
    # On a CPU the same cores augment and compute: loader processes give nothing back.
    knobs = ["raise train.workers"] if on_gpu and machine.workers <= FEW_WORKERS else []
    knobs += ["set augment.on=device"] if on_gpu and on_host else []
    knobs += [LIGHTER] if on_host else []
    return _either(knobs or ["put input.cache_dir on a faster disk, or lower input.cache_size"])


def _prepare(config: Config, machine: Machine) -> str:
    """What of the work on whole batches can be made less."""
    knobs = ["set augment.on=host", LIGHTER] if config.augment.on == "device" and _transforms(config) else []
    knobs += ["lower mix.prob"] if config.mix.mixup or config.mix.cutmix else []
    knobs += ["lower augment.erase.prob"] if config.augment.erase.prob else []
    knobs += ["let smaller teachers teach"] if config.teacher.runs and config.teacher.distill.how == "online" else []
    return _either(knobs or ["set input.channels=1 for grey images", "lower input.size"])


def _transforms(config: Config) -> bool:
    augment = config.augment
    return bool(augment.add or (augment.preset != "none" if augment.train is None else augment.train))


def _either(knobs: Sequence[str]) -> str:
    return ", ".join([*knobs[:-1], f"or {knobs[-1]}" if len(knobs) > 1 else knobs[-1]])


def _lighter(config: Config, machine: Machine) -> str:
    knobs = []
    if machine.device.type == "cuda" and machine.precision == "fp32":
        knobs.append("set train.precision=auto")
    if not config.model.freeze.cache:
        knobs.append("freeze its first stages and store what they give (model.freeze.stages, model.freeze.cache)")
    return _either([*knobs, "take a smaller input.size or model.backbone"])
