"""Trains a Goldfold project's experiments, every fold, on Kaggle's two T4s (or on one GPU, or on the CPU).

Attach

- the competition,
- Goldfold: a data set with the project's source (src, configs, folds, pyproject.toml), or with its wheels (any pack has them),
- to go on with an earlier version of this notebook: its output.

Choose the accelerator GPU T4 x2. The internet may be off. docs/kaggle-training.md tells more; train.ipynb is the same as a
notebook.
"""

# %%
from __future__ import annotations

import importlib
import importlib.metadata
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

EXPERIMENTS: list[str] = []
"""Experiments in order, such as ["configs/my-comp/b0.yaml"]. None: every `train` round of the competition's pipeline."""

OVERRIDES: list[str] = []
"""Settings that differ from the files, such as ["train.batch_size=32"]: images on each GPU."""

HOURS = 11.5
"""When to stop, so that Kaggle keeps what was trained. A later version of this notebook goes on from its output."""

STARTED = time.time()
INPUT = Path(os.environ.get("GOLDFOLD_INPUT", "/kaggle/input"))
WORKING = Path(os.environ.get("GOLDFOLD_WORKING", "/kaggle/working"))
DEADLINE = STARTED + 3600 * float(os.environ.get("GOLDFOLD_HOURS", HOURS))


class Stop(Exception):
    """What keeps this notebook from training, in one line."""


def say(text: str) -> None:
    print(f"{time.time() - STARTED:7.0f} s: {text}", flush=True)


def in_a_fork(work: Callable[..., int], *arguments: list[str]) -> int:
    """What ``work`` returns (0 to 127; else 1), done in a process of its own, which may touch a GPU."""
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(work(*arguments)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


# %%
# Goldfold and its inputs. Nothing here may touch a GPU: the processes that train are forked from this one.
def attached() -> Iterator[Path]:
    """The attached data sets and outputs, and the folders in them, in any layout of the input.

    Folders with images may be slow to list: where there is a CSV file, or source code, one does not look further down.
    """

    def below(folder: Path, depth: int) -> Iterator[Path]:
        yield folder
        if depth == 0 or folder == INPUT / "competitions":
            return
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        names = {entry.name for entry in entries}
        if any(name.endswith(".csv") for name in names):
            return
        for entry in entries:
            if entry.is_dir() and ("pyproject.toml" not in names or entry.name in ("folds", "wheels")):
                yield from below(Path(entry.path), depth - 1)

    return below(INPUT, 4)


def project_name(requirement: str) -> str:
    """The name in a requirement, or of a wheel's file, as package indexes write it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9]+([._-]+[A-Za-z0-9]+)*", requirement)[0]).lower()  # type: ignore[index]


def installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def install_goldfold(folders: list[Path]) -> Path | None:
    """Make `import goldfold` work, here and in other processes. Returns the project's folder, None for one out of a wheel.

    The source wins over wheels. Wheels bring what else is missing here. Raises Stop.
    """
    wheels = {project_name(path.name.split("-")[0]): path for folder in folders for path in folder.glob("*.whl")}
    source = next((folder for folder in folders if (folder / "src/goldfold/__init__.py").is_file()), None)
    if source is not None:
        say(f"Goldfold from the source in {source}")
        sys.path.insert(0, str(source / "src"))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(source / "src"), os.environ.get("PYTHONPATH", "")]).strip(":")
        needed = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    elif "goldfold" in wheels:
        say(f"Goldfold from {wheels['goldfold']}")
        pip_install([wheels["goldfold"]])
        needed = [text for text in importlib.metadata.requires("goldfold") or [] if "extra ==" not in text]
    else:
        raise Stop(f"no Goldfold under {INPUT}; attach the data set with the project's source, or a pack")
    missing = [name for name in map(project_name, needed) if not installed(name)]
    lost = [name for name in missing if name not in wheels]
    if lost:
        raise Stop(
            f"{', '.join(lost)} is not installed, and no wheel of it is attached; attach one (docs/kaggle-training.md), or "
            f"with the internet on put this into a cell above: %pip install {' '.join(lost)}"
        )
    if missing:
        pip_install([wheels[name] for name in missing])
    return source


def pip_install(wheels: list[Path]) -> None:
    # --no-deps: Kaggle's own packages stay as they are.
    options = ["--no-index", "--no-deps", "--force-reinstall", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, *map(str, wheels)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise Stop(
            f"pip cannot install {', '.join(wheel.name for wheel in wheels)}: {(lines or ['no reason given'])[0]}"
        )
    importlib.invalidate_caches()


def lay_out(folders: list[Path], source: Path | None) -> None:
    """Put into the working folder what the project needs and what an earlier version of this notebook left."""
    from goldfold.paths import shipped_configs

    shutil.copytree(shipped_configs(), WORKING / "configs", dirs_exist_ok=True)
    for folder in [folder for folder in folders if folder.name in ("runs", "folds")]:
        for path in sorted(folder.iterdir()):
            kept = WORKING / folder.name / path.name
            if kept.exists() or (path.is_dir() and not (path / "run.json").is_file()):
                continue
            say(f"from {path}")
            kept.parent.mkdir(exist_ok=True)
            shutil.copytree(path, kept) if path.is_dir() else shutil.copyfile(path, kept)
    weights = WORKING / "weights"
    if source is not None and (source / "weights").is_dir() and not weights.exists():
        weights.symlink_to(source / "weights")  # removed at the end: Kaggle keeps all that lies here


def trainings() -> list[list[str]]:
    """The arguments of `goldfold train`, a list a run. Raises Stop when there is no telling which."""
    chosen = os.environ.get("GOLDFOLD_EXPERIMENTS", "").split() or EXPERIMENTS
    if chosen:
        return [[experiment, *OVERRIDES] for experiment in chosen]
    from goldfold.config import load_pipeline

    places = (INPUT / "competitions", INPUT, *sorted((INPUT / "datasets").glob("*")))
    pipelines = [
        path
        for path in sorted(Path("configs").glob("*/pipeline.yaml"))
        if any((place / path.parent.name).is_dir() for place in places)
    ]
    if len(pipelines) != 1:
        raise Stop(f"{len(pipelines)} pipelines of configs/ are of an attached competition; name EXPERIMENTS above")
    return [
        [
            str(pipelines[0].parent / step.experiment),
            *OVERRIDES,
            *(f"{key}={json.dumps(value)}" for key, value in step.set.items()),
            *(["--run", step.name] if step.name else []),
        ]
        for step in load_pipeline(pipelines[0]).rounds
        if step.kind == "train"
    ]


def check(training: list[str]) -> int:
    """Whether anything about a run is wrong, but for its images, which are all decoded before it trains."""
    from goldfold.cli import main

    return main(["check", "--no-decode", *(text for text in training if "=" in text or text.endswith(".yaml"))])


WORKING.mkdir(parents=True, exist_ok=True)
os.chdir(WORKING)
FOLDERS = list(attached())
SOURCE = install_goldfold(FOLDERS)
lay_out(sorted(FOLDERS, key=lambda folder: folder.parent != SOURCE), SOURCE)  # the source's own folds go first
TRAININGS = trainings()
for module in ("goldfold.pipeline.check", "goldfold.pipeline.stages"):
    importlib.import_module(module)  # once here, and not in every process
for training in TRAININGS:
    say(f"goldfold check {' '.join(training)}")
    if in_a_fork(check, training):
        raise Stop(f"goldfold check {training[0]}: lines above say what is wrong")


# %%
# Training: one model over all GPUs, a process each; each has `train.batch_size` images a step. Finished folds are skipped,
# and one that was cut off goes on after its last epoch.
def count_gpus() -> int:
    """How many GPUs can train. Raises Stop for one that torch does not support."""

    def count() -> int:
        for number in range(torch.cuda.device_count()):
            torch.ones(1, device=f"cuda:{number}").add(1).item()
        return 100 + torch.cuda.device_count()  # 1 is what an error gives

    import torch

    found = in_a_fork(count) - 100
    if found < 0:
        raise Stop("torch cannot use this GPU (lines above say why); choose the accelerator GPU T4 x2")
    return found


def train(arguments: list[str]) -> None:
    """What every process runs. Raises RuntimeError when training fails or its time is up."""

    def time_is_up(*_: object) -> None:
        raise KeyboardInterrupt  # Goldfold ends as after Ctrl-C: the last epoch's state is on disk

    from goldfold.cli import main

    signal.signal(signal.SIGALRM, time_is_up)
    # Again and again: Python drops what is raised where nothing can be (a weak reference's callback, a destructor).
    signal.setitimer(signal.ITIMER_REAL, max(DEADLINE - time.time(), 0.001), 10)
    try:
        code = main(["train", *arguments])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if code:
        raise RuntimeError(f"goldfold train ended with exit code {code}; a line above says why")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def train_all() -> bool:
    """Whether all is trained; False: the time was up before. Raises Stop when a training fails."""
    from accelerate import notebook_launcher

    processes = int(os.environ.get("GOLDFOLD_PROCESSES", "0")) or max(count_gpus(), 1)
    for training in TRAININGS:
        say(f"goldfold train {' '.join(training)}, {processes} processes")
        if time.time() >= DEADLINE:
            return False
        try:
            notebook_launcher(train, args=(training,), num_processes=processes, use_port=free_port())
        except Exception as error:
            if time.time() >= DEADLINE:
                return False
            raise Stop(f"{training[0]}: training failed; a line above says why") from error
    return True


try:
    FINISHED = train_all()
finally:
    if (WORKING / "weights").is_symlink():
        (WORKING / "weights").unlink()

# %%
# What is there: runs/ and folds/ are this notebook's output.
for folder in sorted(WORKING.glob("runs/*")):
    folds = sorted(folder.glob("fold*"))
    done = [path for path in folds if (path / "DONE").exists()]
    text = f"{folder.name}: {len(done)} of {len(folds)} begun folds are finished"
    if (folder / "cv.json").exists():
        cv = json.loads((folder / "cv.json").read_text(encoding="utf-8"))
        text = f"{folder.name}: {cv['metric']} {cv['oof'][cv['metric']]} over all out-of-fold rows"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    say(f"{text}, {size / 2**20:.0f} MB")
say("all is trained" if FINISHED else "the time is up: attach this version's output to the next one, and run it again")
