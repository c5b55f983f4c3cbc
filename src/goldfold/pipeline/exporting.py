"""``goldfold export``: from a finished run or ensemble to a pack, with what it takes of configuration and competition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import goldfold
from goldfold import files
from goldfold.config import Config
from goldfold.errors import BadInput
from goldfold.kaggle.export import Exported, Part, Source, export_pack, older_dataset, older_hours
from goldfold.kaggle.metadata import make_dataset
from goldfold.kaggle.pack import Pack, PackCompetition, Truth
from goldfold.paths import KAGGLE_INPUT, Workspace
from goldfold.pipeline.competition import CompetitionData, load_competition
from goldfold.pipeline.lineage import find_source, is_leaky_source, refuse_stale, run_config, runs_of
from goldfold.pipeline.rounding import measure_rounding
from goldfold.pipeline.settling import recalled
from goldfold.pipeline.submitting import submission_format
from goldfold.progress import say, warn
from goldfold.records import Predictions

HOURS = 9.0
"""What most code competitions let a kernel take."""


def export(
    name: str,
    workspace: Workspace,
    target: Path,
    *,
    half: bool = False,
    hours: float | None = None,
    owner: str | None = None,
) -> Exported:
    """Write the pack of a run or an ensemble into ``target``. ``half``: float16 weights, whose cost is measured.

    ``hours``: what the kernel may take; None: as ``kernel_hours`` finds. Raises BadInput for a source that is not finished, a competition without test images, and a ``target`` that holds
    anything but a pack.
    """
    if hours is not None and not (math.isfinite(hours) and hours > 0):
        raise BadInput("--hours", f"{hours:g} hours are no time", "give a number above 0")
    dataset, older = older_dataset(target), older_hours(target)
    runs = runs_of(name, workspace)
    kind: Literal["run", "ensemble"] = "ensemble" if find_source(name, workspace) == "ensemble" else "run"
    configs = {run: run_config(run, workspace) for run in runs}
    for run in runs:
        if not workspace.run(run).cv.exists():
            raise BadInput(workspace.run(run).folder, "the run is not finished", "goldfold train finishes it")
    ensemble = workspace.ensemble(name) if kind == "ensemble" else None
    if ensemble is not None:
        refuse_stale(name, workspace)
    leaky = is_leaky_source(name, workspace)
    if leaky:
        warn(f"{name} (leaky): its teachers have seen validated labels, so its out-of-fold scores are inflated")
    first = configs[runs[0]]
    data = load_competition(first.competition, workspace.root)
    sources = _sources(runs, configs, workspace, ensemble)
    settings = first.competition
    head = Pack(
        folder=target,
        source=name,
        kind=kind,
        goldfold=goldfold.__version__,
        leaky=leaky,
        optimistic=any(source.optimistic for source in sources),
        hours=hours if hours is not None else kernel_hours(name, configs, older),
        task=data.task,
        competition=_competition(first, data, workspace.root),
        submission=submission_format(data, Path("the submission")),
        prior=tuple(float(value) for value in data.targets.mean(axis=0, dtype="float64")),
        members=(),
        weights="float16" if half else "float32",
        rounding=measure_rounding(sources, configs, data, workspace, ensemble) if half else None,
    )
    return export_pack(
        target,
        head,
        sources,
        ensemble=ensemble,
        truth=None if ensemble is None else _truth(sources[0].oof, data),
        modules=_modules(settings.metric, workspace.root),
        dataset=dataset or make_dataset(settings.name, name, kind, owner),
    )


def kernel_hours(name: str, configs: Mapping[str, Config], older: float | None = None) -> float:
    """What the runs' competition allows; else what the pack that is replaced said; else ``HOURS``. Tells which."""
    told = [config.competition.hours for config in configs.values() if config.competition.hours is not None]
    if told:
        found, where = min(told), "competition.hours"
    elif older is not None:
        found, where = older, "as the pack that is replaced"
    else:
        found, where = HOURS, "the default; competition.hours or --hours says otherwise"
    say(f"{name}: {found:g} hours for the kernel ({where})")
    return found


def _sources(
    runs: Sequence[str], configs: dict[str, Config], workspace: Workspace, ensemble: Path | None
) -> list[Source]:
    told: dict[str, dict[str, Any]] = {}
    if ensemble is not None:
        told = {str(member["name"]): member for member in files.read_json(ensemble / "ensemble.json")["members"]}
    found = []
    for run in runs:
        paths, config = workspace.run(run), configs[run]
        cv, member = files.read_json(paths.cv), told.get(run, {})
        first = config.train.seed
        parts = tuple(
            Part(int(entry["fold"]), int(seed), paths.fold(int(entry["fold"]), None if seed == first else seed).folder)
            for entry in cv["folds"]
            for seed in cv["seeds"]
        )
        found.append(
            Source(
                name=run,
                weight=float(member.get("weight", 1.0)),
                score=member.get("score", cv["oof"][cv["metric"]]),
                marginal_gain=member.get("marginal_gain"),
                leaky=bool(cv["leaky"]),
                optimistic=bool(cv["optimistic"]),
                batch_size=config.tta.batch_size,
                precision=config.train.precision,
                channels_last=recalled(config.train, paths.record).predicting.channels_last,
                oof=paths.oof,
                parts=parts,
            )
        )
    return found


def _competition(config: Config, data: CompetitionData, root: Path) -> PackCompetition:
    settings = config.competition
    if settings.test_csv is None:
        raise BadInput("competition.test_csv", "is not set, and a kernel needs to know it", "name the test CSV")
    sample = settings.sample_submission
    return PackCompetition(
        slug=settings.name,
        id_column=settings.id,
        target_columns=tuple(data.target_columns),
        metric=settings.metric,
        metric_direction=settings.metric_direction,
        test_csv=inside_input("competition.test_csv", settings.test_csv, settings.name, root, settings.train_csv),
        test_images=inside_input(
            "competition.test_image_path" if settings.test_image_path else "competition.image_path",
            settings.test_image_path or settings.image_path,
            settings.name,
            root,
            settings.train_csv,
        ),
        sample_csv=None
        if sample is None
        else inside_input("competition.sample_submission", sample, settings.name, root, settings.train_csv),
    )


def inside_input(key: str, path: str, slug: str, root: Path, train_csv: str) -> str:
    """A path of the competition section as it will be within the competition's input folder on Kaggle.

    That folder is ``data/<slug>``, or one of Kaggle's own, or else the folder of the train CSV. Raises BadInput for a path
    outside of all of them.
    """
    pure = PurePosixPath(path)
    for folder in (
        PurePosixPath("data", slug),
        PurePosixPath(KAGGLE_INPUT, "competitions", slug),
        PurePosixPath(KAGGLE_INPUT, slug),
        PurePosixPath(slug),
        PurePosixPath(str(root / train_csv)).parent,
        PurePosixPath(train_csv).parent,
    ):
        if folder.parts and pure.is_relative_to(folder):
            pure = pure.relative_to(folder)
            break
    else:
        pure = PurePosixPath(path.removeprefix("data/"))
    if pure.is_absolute() or ".." in pure.parts:
        raise BadInput(
            key, f"'{path}' lies outside of the competition's data", f"keep the data under data/{slug}, as Kaggle does"
        )
    return pure.as_posix()


def _truth(oof: Path, data: CompetitionData) -> Truth:
    """The labelled rows that members were validated on, by ascending id."""
    table = Predictions.read(oof, "oof")
    ids = tuple(sorted(table.ids))
    table = table.take(ids)
    if table.fold is None:
        raise BadInput(oof, "out-of-fold predictions without folds", "train the run again")
    return Truth(ids, table.fold, data.targets_of(ids))


def _modules(metric: str, root: Path) -> dict[str, Path]:
    """The files behind a metric of the user's own, by their path below the project folder; none for a built-in one."""
    if ":" not in metric:
        return {}
    top = metric.partition(":")[0].split(".")[0]
    package, module = root / top, root / f"{top}.py"
    found = sorted(package.rglob("*.py")) if package.is_dir() else [module] if module.is_file() else []
    if not found:
        warn(f"the metric '{metric}' is no file of this folder: Kaggle's image must have the package {top}")
    return {path.relative_to(root).as_posix(): path for path in found}
