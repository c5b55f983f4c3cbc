"""`goldfold bench speed`: the table of what the loops reach against what they could."""

from __future__ import annotations

import datetime
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from goldfold import files
from goldfold.config import Config
from goldfold.cores import logical_cores
from goldfold.errors import BadInput, some
from goldfold.paths import Workspace
from goldfold.pipeline.bench.host import describe_host
from goldfold.pipeline.bench.memory import measure_memory
from goldfold.pipeline.bench.page import page, table
from goldfold.pipeline.bench.plan import Plan, Subject, changed, renamed
from goldfold.pipeline.bench.rivals import Library, measure_rival
from goldfold.pipeline.bench.rows import CannotMeasure, Goal, Measurement, Row, run_row
from goldfold.pipeline.bench.serving import measure_cache, measure_tta
from goldfold.pipeline.bench.start_up import measure_check, measure_help
from goldfold.pipeline.bench.training import measure_training
from goldfold.pipeline.bench.trunk import measure_trunk

FORMAT = 1
ON_CPU, CPU_SIDES, CPU_CORES = ("tf_efficientnet_lite0", "resnet18"), (96, 128, 224), 2
ON_GPU, GPU_SIDE, GPU_CORES, KAGGLE_CORES = ("tf_efficientnet_b0", "resnet50d", "convnext_tiny"), 224, 16, 4
TINY = "test_resnet"
GROUPS = (
    "train-cpu",
    "train-gpu",
    "train-gpu-4cores",
    "trunk",
    "tta",
    "cache",
    "fastai",
    "timm",
    "help",
    "check",
    "memory",
)
WITH_CONFIG = ("train", "trunk", "tta", "cache", "fastai", "timm", "help", "check")
"""Groups of a run with CONFIG, whose experiment takes the place of our own."""


def bench_speed(
    plan: Plan, only: Sequence[str], command: Sequence[str], out: Path, write: Path | None = None
) -> dict[str, Any]:
    """Measure the rows (``only``: names or groups; empty: all) and write ``out``/speed.json and speed.md after each.

    ``plan.folder``: replaced by a temporary one. ``write``: a page to write as well. Returns what the JSON holds.
    Raises BadInput for unknown rows.
    """
    names = chosen(plan, only)
    record: dict[str, Any] = {
        "format": FORMAT,
        "command": shlex.join(command),
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": describe_host(),
        "seconds": plan.seconds,
        "repeats": plan.repeats,
        "quick": plan.quick,
        "rows": [],
    }
    with tempfile.TemporaryDirectory(prefix="goldfold-bench-") as folder:
        for row in rows_of(replace(plan, folder=Path(folder))):
            if row.name not in names:
                continue
            record["rows"].append(run_row(row))
            files.write_json(out / "speed.json", record)
            files.write_text(out / "speed.md", page([record]))
    if write is not None:
        files.write_text(write, page([record]))
    return record


def page_of(results: Sequence[Path], write: Path) -> str:
    """Write the page of results that were measured before, perhaps on several machines. Returns its tables."""
    records = [files.read_json(path) for path in results]
    for path, record in zip(results, records, strict=True):
        if not isinstance(record, dict) or record.get("format") != FORMAT or "rows" not in record:
            raise BadInput(path, "is no result of goldfold bench speed", "name a speed.json of this version")
    files.write_text(write, page(records))
    return "\n\n".join(table(record) for record in records)


def chosen(plan: Plan, only: Sequence[str]) -> set[str]:
    """Names of the rows to measure. Raises BadInput for what is neither a row nor a group."""
    rows = rows_of(plan)
    names: set[str] = set()
    for word in only:
        found = {row.name for row in rows if word in (row.name, row.group)}
        if not found:
            groups = dict.fromkeys(row.group for row in rows)
            raise BadInput(
                "--only", f"there is no row '{word}'", f"groups are {some(groups, 20)}; rows are named in the JSON"
            )
        names |= found
    return names or {row.name for row in rows}


def rows_of(plan: Plan) -> list[Row]:
    """All rows in the order of the table. Nothing is measured or written yet."""
    train = _given_rows(plan) if plan.given is not None else [*_cpu_rows(plan), *_gpu_rows(plan)]
    rows = [*train, *_other_rows(plan)]
    groups = GROUPS if plan.given is None else WITH_CONFIG
    return [row for row in rows if row.group in groups]


def _given_rows(plan: Plan) -> list[Row]:
    assert plan.given is not None
    config = plan.given.config
    title = f"training {config.name}, whole loop ÷ bare step: {config.model.backbone}, {config.input.size} px"
    on_gpu = torch.cuda.is_available() and config.train.device != "cpu"
    goal = Goal("rate_ratio", 0.95 if not on_gpu or logical_cores() >= GPU_CORES else 0.9)
    return [Row("train", "train", title, goal, lambda: measure_training(plan.subject("", "", 0), plan))]


def _cpu_rows(plan: Plan) -> list[Row]:
    pairs = [(TINY, 32)] if plan.quick else [(name, side) for name in ON_CPU for side in CPU_SIDES]
    limit = None if plan.quick else min(CPU_CORES, logical_cores())
    rows = []
    for name, side in pairs:
        title = (
            f"training, whole loop ÷ bare step: {name}, {side} px, {CPU_CORES if limit else logical_cores()} CPU cores"
        )
        rows.append(
            Row(
                f"train-cpu-{name}-{side}",
                "train-cpu",
                title,
                Goal("rate_ratio", 0.95),
                _later(measure_training, plan, name, side, limit, device="cpu"),
            )
        )
    return rows


def _gpu_rows(plan: Plan) -> list[Row]:
    rows = []
    for group, limit, goal in (("train-gpu", None, 0.95), ("train-gpu-4cores", KAGGLE_CORES, 0.9)):
        for name in (TINY,) if plan.quick else ON_GPU:
            size = 32 if plan.quick else GPU_SIDE
            shown = f"{limit or logical_cores()} CPU cores"
            title = f"training, whole loop ÷ bare step: {name}, {size} px, GPU, bf16, {shown}"
            measure = _later(measure_training, plan, name, size, limit, device="cuda")
            rows.append(Row(f"{group}-{name}", group, title, Goal("rate_ratio", goal), measure))
    return rows


def _later(
    measure: Callable[[Subject, Plan, int | None], Measurement],
    plan: Plan,
    backbone: str,
    size: int,
    limit: int | None,
    device: str,
) -> Callable[[], Measurement]:
    def run() -> Measurement:
        if device == "cuda" and not torch.cuda.is_available():
            raise CannotMeasure("no CUDA device")
        training: dict[str, Any] = {"device": device}
        if device == "cuda":
            training |= {"batch_size": 64, "precision": "bf16"}
        if plan.quick:
            training["batch_size"] = 8
        return measure(plan.subject(f"{device}-{backbone}-{size}", backbone, size, train=training), plan, limit)

    return run


def _other_rows(plan: Plan) -> list[Row]:
    tiny, gpu = plan.quick, torch.cuda.is_available()
    backbone, size = (TINY, 32) if tiny else (("resnet50d", 224) if gpu else ("resnet18", 128))
    batch = {"batch_size": 8 if tiny else 64 if gpu else 32}

    def plain(name: str) -> Subject:
        return plan.subject(name, backbone, size, train=batch)

    def members() -> list[Subject]:
        tta = {"views": "flips", "batch_size": 8 if tiny else 128 if gpu else 32}
        if plan.given is not None:
            return [plan.given]
        pair = ("test_efficientnet", TINY) if tiny else (("tf_efficientnet_b0", "resnet50d") if gpu else ON_CPU)
        return [plan.subject(f"tta-{name}", name, size, tta=tta, train=batch) for name in pair]

    def rival(library: Library, tuned: bool = False) -> Row:
        what = {"fastai": "fastai's vision_learner", "timm": "timm's loader and train step"}[library]
        title = f"training, whole loop ÷ {what}" + (", in our precision and layout" if tuned else "")
        title += f": {backbone}, {size} px" if plan.given is None else ""
        goal = Goal("rate_ratio", 1.2 if gpu else 2.0)
        name = f"{library}-tuned" if tuned else library
        return Row(name, library, title, goal, lambda: measure_rival(library, plain("rival"), plan, tuned))

    return [
        Row("trunk", "trunk", "training with a cached trunk ÷ the plain loop", Goal("rate_ratio", 3.5),
            lambda: measure_trunk(_real(plan), plan)),
        Row("tta", "tta", "TTA inference of members × views ÷ one decoding and their bare forward passes",
            Goal("rate_ratio", 0.95), lambda: measure_tta(members(), plan)),
        Row("cache", "cache", "building the image store ÷ decoding and resizing on all cores", Goal("rate_ratio", 0.9),
            lambda: measure_cache(plan.subject("cache", backbone, 32 if tiny else 224), plan)),
        rival("fastai"),
        rival("timm"),
        rival("timm", tuned=True),
        Row("help", "help", "goldfold --help", Goal("seconds", 0.5), lambda: measure_help(plan)),
        Row("check", "check", f"goldfold check --no-decode, {plan.rows:,} rows", Goal("seconds", 10.0),
            lambda: measure_check(plan)),
        Row("memory", "memory", "peak memory of training, ten times as many images", Goal("growth", 0.05),
            lambda: measure_memory(plan.subject("memory", TINY, 32 if tiny else 224, train=batch), plan, 24 if tiny else 400)),
    ]  # fmt: skip


def _real(plan: Plan) -> Subject:
    """What the cached trunk is tried on: CONFIG, else real photographs where they are to be had, else drawn ones."""
    if plan.given is not None:
        return plan.given
    if plan.real is not None and not plan.quick:
        root = plan.folder / "real"
        root.mkdir()
        config = plan.real(root, plan.overrides)
        return Subject(config, Workspace(root), f"the competition {config.competition.name}")
    name, size = ("test_efficientnet", 32) if plan.quick else ("tf_efficientnet_lite0", 128)
    sections: dict[str, dict[str, Any]] = {
        "train": {"epochs": 1 if plan.quick else 4, "batch_size": 8 if plan.quick else 32},
        "model": {"freeze": {"stages": -2, "cache": True}},
        "augment": {"preset": "none"},
        "tta": {"views": "none"},
    }
    return plan.subject("trunk", name, size, **sections)


def from_config(config: Config, workspace: Workspace) -> Subject:
    """CONFIG as what is measured: its settings but for the length of its training; its run's folder is not touched."""
    return Subject(renamed(changed(config), "bench"), workspace, f"the images of {config.competition.name}")
