"""``main``: what the kernel calls. Settings come from the environment; nothing but the working folder is written to."""

from __future__ import annotations

import atexit
import math
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import goldfold
from goldfold import files
from goldfold.cores import logical_cores
from goldfold.errors import BadInput, GoldfoldError, some
from goldfold.inference.budget import Deadline
from goldfold.inference.devices import CPU, describe, find_devices, first_line
from goldfold.inference.engine import Engine, Room
from goldfold.inference.frontier import fits_of_pack
from goldfold.inference.inputs import HiddenRows, find_competition, find_pack, read_test
from goldfold.inference.networks import find_units
from goldfold.inference.reader import THREADS
from goldfold.inference.tally import Part, all_prior, make_submission, score_of, write_submission
from goldfold.kaggle.pack import NAME, read_pack, verify
from goldfold.memory import free_memory
from goldfold.paths import KAGGLE_INPUT, KAGGLE_WORKING, environment_dir
from goldfold.progress import say, warn

SUBMISSION, REPORT = "submission.csv", "inference.json"
FORMAT = 1
SHARE_OF_DISK, SHARE_OF_MEMORY = 0.8, 0.5
"""The most that decoded images take of the scratch disk, and of the memory, which keeps them from being read from disk."""


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    ``hours``: None: the pack's. ``pack``: its folder, or the slug of its data set; None: the only one that there is.
    ``competition``: the folder of its files; None: it is searched for. ``started``: when the kernel began, in seconds since
    1970; None: now. ``store_gb``: the most that decoded images may take; None: what disk and memory give.
    """

    input: Path
    working: Path
    scratch: Path
    hours: float | None = None
    pack: str = ""
    competition: Path | None = None
    started: float | None = None
    store_gb: float | None = None
    rerun: bool = False

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Settings:
        """Raises BadInput for a number that is none."""
        return cls(
            input=Path(env.get("GOLDFOLD_INPUT") or KAGGLE_INPUT),
            working=Path(env.get("GOLDFOLD_WORKING") or KAGGLE_WORKING),
            scratch=Path(
                env.get("GOLDFOLD_SCRATCH") or environment_dir(Path(tempfile.gettempdir())) / "goldfold-inference"
            ),
            hours=_number(env, "GOLDFOLD_HOURS"),
            pack=env.get("GOLDFOLD_PACK", ""),
            competition=Path(env["GOLDFOLD_COMPETITION"]) if env.get("GOLDFOLD_COMPETITION") else None,
            started=_number(env, "GOLDFOLD_STARTED"),
            store_gb=_number(env, "GOLDFOLD_STORE_GB"),
            rerun=bool(env.get("KAGGLE_IS_COMPETITION_RERUN")),
        )


def main(env: Mapping[str, str] | None = None) -> int:
    """Predict the hidden test set; returns the exit code: 0 with a submission of the pack's networks, 2 for bad inputs, 1
    where nothing could be predicted. A line says what was wrong. ``env``: None: the process's own.

    From the moment that the test CSV is read there is a valid ``submission.csv``, first of the prior alone.
    """
    try:
        code = predict(Settings.from_environment(os.environ if env is None else env))
    except GoldfoldError as error:
        say(f"goldfold: {error}")
        code = error.exit_code
    except Exception as error:  # a full disk, a fault of ours: the last good submission stays, and the log says why
        warn(traceback.format_exc())
        say(f"goldfold: {type(error).__name__}: {first_line(error)}")
        code = 1
    leave_threads(code)
    return code


def leave_threads(code: int) -> None:
    """Let the process end with ``code`` although a thread still computes or reads, as one does that hangs.

    Python would end under it, and torch then aborts the process: the exit code would say that all had failed.
    """

    def leave() -> None:
        if busy():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def busy() -> bool:
        return any(thread.name.startswith(THREADS) for thread in threading.enumerate())

    if busy():
        atexit.register(leave)


def predict(
    settings: Settings,
    devices: Sequence[torch.device] | None = None,
    now: Callable[[], float] = time.monotonic,
    patience: float = 120.0,
) -> int:
    """See ``main``. ``devices``: None: all that there are; ``now``: the clock of the budget; ``patience``: seconds that an
    image file may take. Raises BadInput where the inputs are missing or broken."""
    begun = now()
    if settings.started is not None:
        begun -= max(time.time() - settings.started, 0.0)
    folder = find_pack(settings.input, settings.pack)
    verify(folder, [NAME])
    pack = read_pack(folder)
    hours = pack.hours if settings.hours is None else settings.hours
    deadline = Deadline(hours * 3600, begun, now)
    say(f"goldfold {goldfold.__version__}: {pack.kind} {pack.source} from {folder}, packed by {pack.goldfold}")
    say(f"{'the hidden rerun' if settings.rerun else 'not a rerun'}; {hours:g} hours, {deadline.used():.0f} s used")
    competition = pack.competition
    names = [name for name in (competition.test_csv, competition.sample_csv) if name]
    place = settings.competition or find_competition(settings.input, competition.slug, names)
    hidden = read_test(pack, place)
    say(f"{len(hidden.ids)} test images")
    out = settings.working / SUBMISSION
    settings.working.mkdir(parents=True, exist_ok=True)
    write_submission(out, make_submission(pack, hidden, [all_prior(len(hidden.ids), pack.prior)]))
    say(f"wrote {out}: the prior alone")
    if pack.ensemble is not None:
        verify(folder, ["ensemble.json"])
    fits = fits_of_pack(pack)
    units, failed = find_units(pack)
    for reason in failed.values():
        warn(reason)
    found = find_devices() if devices is None else list(devices)
    say(f"devices: {', '.join(describe(device) for device in found)}; {len(units)} networks")
    engine = Engine(pack, hidden, units, fits, found, deadline, _room(settings, patience))
    engine.failed.update(failed)

    submitted: list[Part] = []

    def publish() -> None:
        submitted[:] = engine.tally.parts(fits, pack.prior)
        write_submission(out, make_submission(pack, hidden, submitted))
        say(f"wrote {out}: {_describe(submitted, engine)}")

    engine.run(publish)
    files.write_json(settings.working / REPORT, report(engine, hours, submitted))
    return _conclude(engine, hidden, submitted)


def report(engine: Engine, hours: float, parts: Sequence[Part]) -> dict[str, Any]:
    """What ``inference.json`` says; ``parts``: what was submitted."""
    pack, tally = engine.pack, engine.tally
    fitted = next((part.fitted for part in parts if part.fitted is not None), None)
    weights = {} if fitted is None else fitted.weights
    rates = engine.throughput.rates
    passes = {unit.member.name: unit.passes for unit in reversed(engine.units)}
    score = score_of(parts)
    return {
        "format": FORMAT,
        "source": pack.source,
        "rows": len(engine.hidden.ids),
        "unreadable": tally.unreadable,
        "without_image": len(engine.hidden.without_image),
        "predicted": sum(len(part.rows) for part in parts if part.fitted is not None),
        "complete": engine.complete(),
        "score": score if score is not None and math.isfinite(score) else None,
        "hours": hours,
        "seconds": round(engine.deadline.used(), 2),
        "devices": [describe(device) for device in engine.devices],
        "members": [
            {
                "name": member.name,
                "folds": min(tally.folds(member.name)),
                "of": len(member.folds),
                "weight": weights.get(member.name, 0.0),
                "images_per_second": round(rates[member.name] / passes[member.name], 1)
                if member.name in rates and math.isfinite(rates[member.name])
                else None,
            }
            for member in pack.members
        ],
        "steps": [{"seconds": round(at, 2), "network": name, "part": part} for at, name, part in engine.steps],
        "failed": engine.failed,
        "error": engine.error,
    }


def _conclude(engine: Engine, hidden: HiddenRows, submitted: Sequence[Part]) -> int:
    tally = engine.tally
    if tally.unreadable:
        say(f"{tally.unreadable} of {len(hidden.ids)} images are unreadable and get the prior")
        for reason in list(engine.reasons.values())[:5]:
            say(f"  {reason}")
    if engine.error is not None:
        warn(f"it ended early: {engine.error}")
    if not hidden.ids or any(any(tally.folds(name)) for name in engine.fits.names):
        state = "everything is done" if engine.complete() else "a part of the ensemble is done"
        say(f"{state}, {engine.deadline.used():.0f} s used")
        return 0
    if engine.failed and not engine.deadline.left() <= 0:
        what = f"no network could be used: {some(engine.failed.values(), 2)}"
        raise BadInput(
            engine.pack.folder, what, "the submission holds the prior alone; export and upload the pack again"
        )
    if submitted[0].fitted is None:
        raise GoldfoldError("the time was too short for any image; the submission holds the prior alone")
    say("the time was too short for one network on all images: the others get the prior")
    return 0


def _describe(parts: Sequence[Part], engine: Engine) -> str:
    lines = []
    for part in parts:
        if part.fitted is None:
            lines.append(f"{len(part.rows)} rows by the prior")
            continue
        weights = part.fitted.weights
        done = [
            f"{name} {max(engine.tally.folds(name))}/{len(engine.pack.member(name).folds)} x {weight:.3f}"
            for name, weight in weights.items()
            if weight > 0
        ]
        score = "" if part.fitted.score is None else f", cross-fitted {part.fitted.score:.5f}"
        lines.append(f"{len(part.rows)} rows by {some(done, 8)}{score}")
    return "; ".join(line for line in lines if not line.startswith("0 rows")) or "no rows"


def _room(settings: Settings, patience: float) -> Room:
    threads = logical_cores()
    memory = int(SHARE_OF_MEMORY * free_memory(CPU))
    try:
        settings.scratch.mkdir(parents=True, exist_ok=True)
        disk = int(SHARE_OF_DISK * shutil.disk_usage(settings.scratch).free)
    except OSError as error:
        warn(f"{settings.scratch}: {error.strerror or error}; decoded images are held in memory")
        return Room(None, memory if settings.store_gb is None else int(settings.store_gb * 1e9), threads, patience)
    room = min(disk, memory) if settings.store_gb is None else int(settings.store_gb * 1e9)
    return Room(settings.scratch, room, threads, patience)


def _number(env: Mapping[str, str], name: str) -> float | None:
    text = env.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0 or math.isinf(value):
        raise BadInput(name, f"'{text}' is not a number above 0", "set it to a number such as 8.5, or leave it out")
    return value
