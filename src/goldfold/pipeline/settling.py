"""What a run computes in, settled once at its start, kept in its folder and obeyed by all that follows.

    <cache>/speeds/<key>.json      what was measured of a network on a machine

``run.json`` has the choice under ``choice``: every fold, seed and resume of the run takes it from there, and so do its
predictions by ``goldfold predict``, in rounds and in an export.
"""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from goldfold import files
from goldfold.config import Config
from goldfold.config.schema import Freeze, Metadata, Train
from goldfold.cores import logical_cores, processor_name
from goldfold.errors import BadInput
from goldfold.machine import Choice, Machine, Mode, find_machine, several_processes, usual_choice
from goldfold.measuring import (
    LEAST_FOLD,
    LEAST_GFLOPS,
    CannotCompile,
    Compiled,
    Measured,
    Network,
    TooSlow,
    compiling_pays,
    measure_compiled,
    measure_memory,
    measure_prediction,
    measure_training,
    ways,
)
from goldfold.memory import is_out_of_memory
from goldfold.models import make_spec
from goldfold.paths import RunPaths, Workspace
from goldfold.pipeline.jobs import cache_folder, make_recipe
from goldfold.progress import say, warn
from goldfold.tasks import Task
from goldfold.training.plan import make_plan

LONG_FOLD = 900.0
"""Seconds of a fold's training below which ``train.compile: auto`` compiles nothing: that alone takes a minute or more, and
saves a tenth to a third of a step."""


@dataclass(frozen=True)
class Settled:
    """A run's machine, and ``record``: the choice and what it rests on, for run.json."""

    machine: Machine
    record: dict[str, Any]


def settle(
    config: Config, task: Task, workspace: Workspace, paths: RunPaths | None = None, *, images: int = 0
) -> Settled:
    """What an experiment computes in: as its run was started, or else chosen now.

    ``paths``: of the run, whose folder the caller holds; None for what is no run (a learning-rate test). ``images``: that
    a fold trains on, over all epochs. Raises BadInput as ``find_machine`` does, and where torch.compile is demanded and
    fails.
    """
    machine = find_machine(config.train)
    network = network_of(config, task)
    key = speed_key(machine, network, config.train)
    known = None if paths is None else _recorded(paths.record)
    begun = paths is not None and any(paths.folder.glob("fold*/metrics.jsonl"))
    if known is not None and begun:
        choice, record = known
        if choice.device != machine.device.type:
            here = Mode(machine.precision, machine.channels_last)
            warn(f"{config.name}: was started on {choice.device} in {choice.train}, and goes on here in {here}")
        return Settled(find_machine(config.train, choice), record)
    if known is not None and known[1].get("key") == key:
        return Settled(find_machine(config.train, known[0]), known[1])
    usual = usual_choice(config.train, machine.device)
    store = (cache_folder(config, workspace) or workspace.cache()) / "speeds"
    measured, why = _measured(config.train, network, usual, machine.device, store / f"{key}.json", images)
    choice = measured.choice(usual)
    where = store / f"{key}-{choice.train.precision}-{'last' if choice.train.channels_last else 'first'}.json"
    compile_it, compiled, told = _compiling(config.train, network, choice, measured, machine.device, where, images)
    choice = replace(choice, train=replace(choice.train, compiled=compile_it))
    why = f"{why}; {told}" if told else why
    record = {
        "key": key,
        "device": choice.device,
        "train": choice.train.to_dict(),
        "predict": choice.predict.to_dict(),
        "why": why,
        "measured": replace(measured, compiled=compiled).to_dict(),
    }
    if machine.is_main:
        say(f"{config.name}: trains in {choice.train}, predicts in {choice.predict} ({why})")
    return Settled(find_machine(config.train, choice), record)


def recalled(train: Train, record: Path) -> Machine:
    """The machine for what follows a run, its choice taken from its ``run.json``. Raises BadInput."""
    known = _recorded(record)
    return find_machine(train, None if known is None else known[0])


def network_of(config: Config, task: Task) -> Network:
    """What is measured of an experiment. Columns of the CSV weigh nothing beside the backbone, and are left out."""
    model, freeze = config.model.model_copy(update={"metadata": Metadata()}), config.model.freeze
    frozen = Freeze(stages=freeze.stages, batch_norm=freeze.batch_norm, cache=freeze.cache)
    return Network(make_spec(model, config.input, task), frozen, config.train.batch_size)


def fold_memory(config: Config, task: Task, machine: Machine) -> int | None:
    """Bytes of a GPU that a fold's training takes, in its largest phase; None where it cannot be measured.

    Online teachers, and what transforms on the device take, are not counted. Raises MemoryError where a batch does not fit.
    """
    mode = Mode(machine.precision, machine.channels_last)
    whole = network_of(config, task)
    views = 3 if config.loss.jsd else 1  # AugMix's, which pass at once
    found = []
    try:
        for stretch in make_plan(make_recipe(config)):
            freeze = whole.freeze.model_copy(update={"stages": stretch.frozen})
            network = Network(replace(whole.spec, size=stretch.size), freeze, views * stretch.batch_size)
            found.append(measure_memory(network, machine.device, mode))
    except Exception as error:  # the training will meet it too, and knows better what to say
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from None
        warn(f"{config.name}: the memory of a fold cannot be measured: {type(error).__name__}")
        return None
    return max(found)


def speed_key(machine: Machine, network: Network, train: Train) -> str:
    """A digest of all that decides which way is fastest: the machine, the versions, the network, what may be chosen."""
    device = machine.device
    training, prediction = ways(train, device)
    return files.fingerprint(
        {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
            "cores": logical_cores(),
            "threads": torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "timm")},
            "network": network.describe(),
            "training": [str(mode) for mode in training],
            "prediction": [str(mode) for mode in prediction],
        }
    )[:32]


def _measured(
    train: Train, network: Network, usual: Choice, device: torch.device, store: Path, images: int
) -> tuple[Measured, str]:
    """The timings, from ``store`` where they were taken before, and where the choice comes from, in words."""
    training, prediction = ways(train, device)
    if len(training) == len(prediction) == 1:
        return Measured(), "as configured"
    try:
        size = network.step_gflops()
        if size < LEAST_GFLOPS:
            return Measured(), f"not measured: a step of {size:.1f} GFLOP is too short to tell"
        fold = size * images / network.batch_size
        if fold < LEAST_FOLD[device.type]:
            return Measured(), f"not measured: a fold of {fold / 1000:.3g} TFLOP is soon trained"
        found = _read(store)
        if found is None:
            say(f"measuring in what {network.spec.backbone} at {network.spec.size} px is fastest here")
            begun = time.monotonic()
            trained = measure_training(network, device, training)
            predicted = measure_prediction(network, device, prediction) if len(prediction) > 1 else []
            found = Measured(tuple(trained), tuple(predicted), None, round(time.monotonic() - begun, 1))
            files.write_json(store, found.to_dict())
    except OSError:
        raise
    except TooSlow as error:
        return Measured(), f"not measured: {error}"
    except Exception as error:  # the training will meet it too, and knows better what to say
        return Measured(), f"not measured: {type(error).__name__}"
    fastest = found.choice(usual).train
    gain = next(timing.ratio for timing in found.training if timing.mode == fastest)
    return found, f"measured: {gain:.2f} times {usual.train}"


def _compiling(
    train: Train, network: Network, choice: Choice, measured: Measured, device: torch.device, store: Path, images: int
) -> tuple[bool, Compiled | None, str]:
    """Whether training steps are compiled, what was measured of it, and why, in words. ``store``: of that measurement.

    Raises BadInput where it is demanded and fails.
    """
    if not train.compile:
        return False, None, ""
    if train.compile == "auto":
        if several_processes():
            return False, None, "not compiled: several processes train one network"
        try:
            timings = measured.training or measure_training(network, device, [choice.train])
        except Exception as error:  # the training will meet it too, and knows better what to say
            return False, None, f"not compiled: {error if isinstance(error, TooSlow) else type(error).__name__}"
        seconds = images / next(timing.images_per_second for timing in timings if timing.mode == choice.train)
        if seconds < LONG_FOLD:
            return False, None, f"not compiled: a fold trains for about {seconds:.0f} s, too short to gain from it"
    found = _read(store)
    compiled = None if found is None else found.compiled
    if compiled is None:
        say(f"measuring torch.compile on {network.spec.backbone} at {network.spec.size} px")
        try:
            compiled = measure_compiled(network, device, choice.train)
        except CannotCompile as error:
            if train.compile == "auto":
                return False, None, f"not compiled: {error}"
            raise BadInput("train.compile", f"torch.compile does not work here ({error})", "set it to false") from None
        except TooSlow as error:
            return train.compile is True, None, f"torch.compile not measured: {error}"
        files.write_json(store, Measured(compiled=compiled).to_dict())
    told = f"compiled in {compiled.seconds:.0f} s, {compiled.timing.ratio:.2f} times as fast"
    if train.compile is True:
        if compiled.timing.ratio < 1:
            warn(f"train.compile: steps are slower compiled ({told}); set it to false")
        return True, compiled, told
    pays = compiling_pays(compiled, images)
    return pays, compiled, told if pays else f"not compiled, it would not pay: {told}"


def choice_of(record: Any) -> Choice | None:
    """The choice that a record holds; None where it holds none."""
    try:
        return Choice(record["device"], Mode.from_dict(record["train"]), Mode.from_dict(record["predict"]))
    except (KeyError, TypeError):
        return None


def _recorded(path: Path) -> tuple[Choice, dict[str, Any]] | None:
    """What ``run.json`` has of a choice. Raises BadInput for a broken file."""
    if not path.exists():
        return None
    record = files.read_json(path).get("choice")
    choice = choice_of(record)
    return None if choice is None else (choice, record)


def _read(path: Path) -> Measured | None:
    """What was measured before; None where nothing was, or the file is broken: it is measured again."""
    try:
        return Measured.from_dict(files.read_json(path))
    except (BadInput, KeyError, TypeError, ValueError, OSError):
        return None
