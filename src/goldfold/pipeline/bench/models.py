"""`goldfold bench models`: candidate backbones side by side, by score, speed and memory."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from goldfold import files
from goldfold.config import Config, changed_keys
from goldfold.errors import BadInput, some
from goldfold.models.spec import backbone_defaults
from goldfold.paths import Workspace
from goldfold.pipeline.bench.candidates import (
    Candidate,
    as_candidate,
    candidate_config,
    measure_candidate,
    pareto,
)
from goldfold.pipeline.bench.child import run_child
from goldfold.pipeline.bench.host import describe_host
from goldfold.pipeline.bench.models_plot import draw_candidates
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.jobs import open_sources
from goldfold.pipeline.run_folder import relevant
from goldfold.pipeline.stages import load_folds
from goldfold.progress import say, warn

FORMAT = 1


def bench_models(
    config: Config,
    workspace: Workspace,
    backbones: Sequence[str],
    epochs: int | None = None,
    folds: Sequence[int] = (),
    name: str | None = None,
    command: Sequence[str] = (),
    apart: bool = True,
) -> Path:
    """Train each backbone a little and write ``bench/<name>``; returns the path of its table.md.

    ``apart``: each in a process of its own, so that its peak of memory is its own and its end nobody else's. What is
    finished is not measured again, a backbone that failed is; further ones may be added later. Raises BadInput for unknown
    backbones and settings that do not fit, before anything is trained.
    """
    configs = plan_candidates(config, backbones, epochs)
    title = name or f"{config.name}-models"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", title):
        raise BadInput("--name", f"'{title}' is not a folder name", "use letters, digits, dots and dashes")
    folder = workspace.root / "bench" / title
    here = Workspace(workspace.root, runs=f"bench/{title}/runs")
    first = next(iter(configs.values()))
    data = load_competition(first.competition, workspace.root)
    tables = load_folds(first, data, workspace)
    known = [fold for table in tables for fold in table.folds]
    if unknown := [fold for fold in folds if fold not in known]:
        raise BadInput("--folds", f"there is no fold {some(unknown)}", f"the folds are {some(known, 30)}")
    chosen = sorted(set(folds))
    with files.locked(folder, wait=False) as held:
        if not held:
            raise BadInput(folder, "another process is measuring here", "wait for it, or give another --name")
        record, found = _open(folder, first, chosen, data.metrics[0].name)
        record |= {"command": shlex.join(command), "host": describe_host()}
        record["greater_is_better"] = data.metrics[0].greater_is_better
        open_sources(first, data, workspace)  # once, and not in the first backbone's time
        for place, (backbone, each) in enumerate(configs.items(), 1):
            if backbone in found and found[backbone].why is None:
                say(f"bench models: {backbone}: measured before, skipped")
                continue
            say(f"bench models: {backbone} ({place}/{len(configs)})")
            found[backbone] = _measure(each, here, chosen, apart)
            if found[backbone].why is not None:
                warn(f"{backbone}: {found[backbone].why}")
            _write(folder, record, list(found.values()))
        _write(folder, record, list(found.values()))
    return folder / "table.md"


def plan_candidates(config: Config, backbones: Iterable[str], epochs: int | None) -> dict[str, Config]:
    """The experiment of each backbone. Raises BadInput for an empty list and for what timm and torchvision do not have."""
    names = [name.strip() for name in backbones if name.strip()]
    if not names or len(set(names)) != len(names):
        what = "names no backbone" if not names else "names one twice"
        raise BadInput("--backbones", what, "write --backbones resnet18,convnext_nano")
    if config.teacher.runs:
        raise BadInput("teacher.runs", "backbones are compared without teachers", "leave the section teacher out")
    for name in names:
        try:
            backbone_defaults(name)
        except BadInput as error:
            raise BadInput("--backbones", str(error).removeprefix("model.backbone: ")) from None
    return {name: candidate_config(config, name, epochs) for name in names}


def _measure(config: Config, workspace: Workspace, folds: list[int], apart: bool) -> Candidate:
    try:
        if not apart:
            return measure_candidate(config, workspace, folds)
        values = run_child(
            "backbone",
            {
                "config": config.model_dump(mode="json"),
                "root": str(workspace.root),
                "runs": workspace.runs,
                "folds": folds,
            },
        )
        return as_candidate(values)
    except Exception as error:  # full memory, weights that cannot be had, a network of a fixed size: the others go on
        reason = " ".join(str(error).split()) or type(error).__name__
        return Candidate(config.model.backbone, why=reason[:300])


def _open(folder: Path, config: Config, folds: list[int], metric: str) -> tuple[dict[str, Any], dict[str, Candidate]]:
    """The record to go on with, and what was measured. Raises BadInput where the folder compares under other settings."""
    settings = _settings(config)
    record: dict[str, Any] = {
        "format": FORMAT,
        "metric": metric,
        "settings": settings,
        "folds": folds,
        "candidates": [],
    }
    path = folder / "models.json"
    if not path.exists():
        return record, {}
    old = files.read_json(path)
    found = {each["backbone"]: as_candidate(each) for each in old["candidates"]}
    if any(each.why is None for each in found.values()):
        others = changed_keys(old["settings"], settings)
        others += ["--folds"] if old["folds"] != folds else []
        if others:
            raise BadInput(
                folder,
                f"backbones were compared here with other settings: {some(others, 10)}",
                "give another --name, or delete the folder",
            )
    return record, found


def _settings(config: Config) -> dict[str, Any]:
    """What all backbones have in common."""
    values = relevant(config.model_dump(mode="json"))
    values["model"] = {key: value for key, value in values["model"].items() if key not in ("backbone", "weights")}
    return values


def _write(folder: Path, record: dict[str, Any], candidates: list[Candidate]) -> None:
    files.write_json(folder / "models.json", record | {"candidates": [asdict(each) for each in candidates]})
    front = pareto(candidates, record["greater_is_better"])
    rows = [{**asdict(each), "pareto": each.backbone in front} for each in candidates]
    for row in rows:
        row.pop("scores")
    files.write_csv(folder / "table.csv", pd.DataFrame(rows))
    files.write_text(folder / "table.md", models_markdown(folder.name, record, candidates))
    draw_candidates(candidates, record["metric"], record["greater_is_better"], folder / "pareto.png")


def models_markdown(title: str, record: dict[str, Any], candidates: Sequence[Candidate]) -> str:
    """The table as Markdown: the best score first, failures last."""
    greater = record["greater_is_better"]
    front = pareto(list(candidates), greater)
    ranked = sorted(
        candidates,
        key=lambda each: (each.why is not None, each.mean is None, (each.mean or 0.0) * (-1 if greater else 1)),
    )
    head = (
        "backbone",
        record["metric"],
        "training img/s",
        "prediction img/s",
        "peak MB",
        "M parameters",
        "GMACs",
        "front",
    )
    rows = []
    for each in ranked:
        if each.why is not None:
            rows.append((each.backbone, "failed", *[""] * 6))
            continue
        spread = "" if each.std is None else f" ± {each.std:.4f}"
        shown = "undefined" if each.mean is None else f"{each.mean:.4f}{spread}"
        figures = [each.train_rate, each.rate, each.memory_mb, each.parameters, each.macs]
        cells = ["" if value is None else f"{value:g}" for value in figures]
        rows.append((each.backbone, shown, *cells, "yes" if each.backbone in front else ""))
    table = tabulate(rows, head, tablefmt="github", disable_numparse=True)
    host = record["host"]
    folds = some(record["folds"], 30) if record["folds"] else "all"
    failed = "".join(f"- {each.backbone} failed: {each.why}\n" for each in ranked if each.why is not None)
    machine = f"{host['cpu']}, {host['cores']} cores, {', '.join(host['gpus']) or 'no GPU'}"
    epochs, size = record["settings"]["train"]["epochs"], record["settings"]["input"]["size"]
    return (
        f"# Backbones: {title}\n\n    {record['command']}\n\n{table}\n\n"
        + (f"{failed}\n" if failed else "")
        + f"{epochs} epochs at {size} px, folds {folds}; mean ± sample standard deviation over folds. {machine}.\n"
        "Prediction with all views of `tta`; GMACs of one view. front: no other is better in score and prediction speed at once.\n"
    )
