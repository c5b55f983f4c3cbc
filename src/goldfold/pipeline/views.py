"""``tta.views: auto``: views chosen on out-of-fold predictions when all folds are done, cross-fitted.

Fold k's bundle, out-of-fold and test predictions use the views that were chosen on the other folds' labels, so neither its
score nor a pseudo-label of fold k's teacher is flattered by the choice. (The other folds' networks were trained on fold k's
rows, as in every cross-fitted choice on out-of-fold predictions; their labels only reach it through those networks.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from goldfold import files
from goldfold.bundle import load_bundle, read_bundle, write_bundle
from goldfold.config import Config
from goldfold.errors import BadInput
from goldfold.machine import Machine
from goldfold.metrics import score
from goldfold.paths import FoldPaths, RunPaths
from goldfold.pipeline.competition import CompetitionData
from goldfold.pipeline.jobs import Sources
from goldfold.predict import predict_bundle
from goldfold.progress import say
from goldfold.records import Floats, FoldTable, Predictions, average, concatenate
from goldfold.tta import Choice, View, ViewTable, choose_views, combine, make_views, pixel_share


def refuse_single_fold(config: Config, tables: Sequence[FoldTable]) -> None:
    """Raises BadInput for ``tta.views: auto`` with one fold: nothing would be left to choose on."""
    if config.tta.views == "auto" and any(len(table.folds) < 2 for table in tables):
        what = "auto chooses a fold's views on the other folds, and there is one fold"
        raise BadInput("tta.views", what, "name the views, or deal more folds")


def settle_views(
    config: Config,
    data: CompetitionData,
    paths: RunPaths,
    tables: Sequence[FoldTable],
    sources: Sources,
    machine: Machine,
    fingerprint: str,
) -> dict[str, Any] | None:
    """Choose the views of a run whose folds are all done; write what follows from them. Returns views.json.

    None without ``tta.views: auto``. Every fold's bundle.json, oof.parquet and test.parquet come to be those of its own
    choice, and views.json last. A repetition changes nothing; after a kill the rest is done.
    """
    if config.tta.views != "auto":
        return None
    run = _Run(config, data, paths, tuple(tables))
    digests = {fold.folder.name: files.sha256_file(fold.views) for folds in run.folders.values() for fold in folds}
    mark = files.fingerprint({"run": fingerprint, "views": digests})
    if paths.views.exists():
        record: dict[str, Any] = files.read_json(paths.views)
        chosen = {fold: tuple(record["folds"][str(fold)]["chosen"]) for fold in run.folders}
        if record["fingerprint"] == mark and all(
            _settled(folder, chosen[fold], sources) for fold, folders in run.folders.items() for folder in folders
        ):
            return record
    say(f"{config.name}: choosing views on out-of-fold predictions")
    choices = {fold: choose_fold(run, table, fold) for table in tables for fold in table.folds}
    plain = choose_plain(run)
    for fold, folders in run.folders.items():
        for folder in folders:
            _apply(run, folder, fold, choices[fold].chosen, sources, machine)
    record = {"fingerprint": mark, **report(run, choices, plain)}
    files.write_json(paths.views, record)
    for line in table_lines(record):
        say(line)
    return record


@dataclass(frozen=True, eq=False)
class _Run:
    """A finished run and the probabilities of every candidate view of its out-of-fold images."""

    config: Config
    data: CompetitionData
    paths: RunPaths
    tables: tuple[FoldTable, ...]

    @cached_property
    def views(self) -> list[View]:
        return make_views(self.config.tta, self.config.input.size)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(view.name for view in self.views)

    @cached_property
    def folders(self) -> dict[int, list[FoldPaths]]:
        """By fold, a folder a seed."""
        seeds = [None, *self.config.train.seeds]
        return {fold: [self.paths.fold(fold, seed) for seed in seeds] for table in self.tables for fold in table.folds}

    @cached_property
    def seen(self) -> dict[int, list[Floats]]:
        """By fold, the probabilities (V, N, C) of each seed."""
        classes = self.data.task.classes
        return {
            fold: [ViewTable.read(folder.views, self.ids(fold), self.names, classes).values for folder in folders]
            for fold, folders in self.folders.items()
        }

    def ids(self, fold: int) -> tuple[str, ...]:
        table = next(table for table in self.tables if fold in table.folds)
        return table.valid_ids(fold)

    def choose(self, members: Sequence[Floats], ids: tuple[str, ...]) -> Choice:
        tta = self.config.tta
        return choose_views(
            self.names,
            members,
            self.data.targets_of(ids),
            task=self.data.task,
            metric=self.data.metrics[0],
            how=tta.merge,
            max_views=tta.max_views,
            min_gain=tta.min_gain,
        )

    def predict(self, fold: int, seed: int, chosen: Sequence[str]) -> Predictions:
        """Out-of-fold predictions of one fold and seed (by its number) with these views."""
        places = [self.names.index(name) for name in chosen]
        values = combine([self.seen[fold][seed]], places, self.config.tta.merge, self.data.task)
        ids = self.ids(fold)
        number = np.full(len(ids), fold, dtype=np.int64)
        return Predictions(ids, values, self.data.task.classes, str(self.config.name), number)

    def score(self, chosen: Mapping[int, Sequence[str]]) -> float | None:
        """The first metric over all rows, averaged over seeds and repeats as the run's own oof.parquet is."""
        name, metric = str(self.config.name), self.data.metrics[0]
        by_fold = {
            fold: average([self.predict(fold, seed, chosen[fold]) for seed in range(len(folders))], name)
            for fold, folders in self.folders.items()
        }
        oof = average([concatenate([by_fold[fold] for fold in table.folds], name) for table in self.tables], name)
        value = score(metric, self.data.task, self.data.targets_of(oof.ids), oof.values)
        return float(value) if math.isfinite(value) else None


def choose_fold(run: _Run, table: FoldTable, fold: int) -> Choice:
    """The views of ``fold``, by the labels and predictions of the other folds of its repeat."""
    others = [other for other in table.folds if other != fold]
    seeds = range(len(run.folders[fold]))
    members = [np.concatenate([run.seen[other][seed] for other in others], axis=1) for seed in seeds]
    return run.choose(members, tuple(name for other in others for name in run.ids(other)))


def choose_plain(run: _Run) -> Choice:
    """The views by all rows, for the report alone: no prediction is made with them."""
    ids = tuple(name for fold in run.tables[0].folds for name in run.ids(fold))
    members: list[Floats] = []
    for table in run.tables:
        own = {name: row for row, name in enumerate(name for fold in table.folds for name in run.ids(fold))}
        rows = np.array([own[name] for name in ids])
        seeds = range(len(run.folders[table.folds[0]]))
        members += [np.concatenate([run.seen[fold][seed] for fold in table.folds], axis=1)[:, rows] for seed in seeds]
    return run.choose(members, ids)


def report(run: _Run, choices: Mapping[int, Choice], plain: Choice) -> dict[str, Any]:
    """What views.json says, but for its fingerprint."""
    tta, metric = run.config.tta.model_dump(mode="json"), run.data.metrics[0]
    side = run.config.tta.size or run.config.input.size
    pixels = {view.name: pixel_share(view, side) for view in run.views}

    def described(choice: Choice) -> dict[str, Any]:
        steps = [
            {**{key: _number(value) for key, value in asdict(step).items()}, "passes": 1, "pixels": pixels[step.view]}
            for step in choice.steps
        ]
        return {
            "chosen": list(choice.chosen),
            "steps": steps,
            "passes": len(choice.chosen),
            "pixels": sum(pixels[name] for name in choice.chosen),
        }

    def everywhere(chosen: Sequence[str]) -> dict[int, Sequence[str]]:
        return dict.fromkeys(run.folders, chosen)

    identity = run.score(everywhere(run.names[:1]))
    fitted = run.score({fold: choice.chosen for fold, choice in choices.items()})
    naive = run.score(everywhere(plain.chosen))
    sign = 1 if metric.greater_is_better else -1
    return {
        "run": run.config.name,
        "candidates": tta["candidates"],
        "merge": tta["merge"],
        "size": side,
        "max_views": tta["max_views"],
        "min_gain": tta["min_gain"],
        "metric": metric.name,
        "greater_is_better": metric.greater_is_better,
        "views": [
            {"view": name, "score": run.score(everywhere([name])), "passes": 1, "pixels": pixels[name]}
            for name in run.names
        ],
        "folds": {str(fold): described(choice) for fold, choice in choices.items()},
        "all": described(plain),
        "identity": identity,
        "plain": naive,
        "cross_fitted": fitted,
        "optimism": None if naive is None or fitted is None else sign * (naive - fitted) + 0.0,  # no -0
    }


def table_lines(record: Mapping[str, Any]) -> list[str]:
    """views.json for a reader: each step on all rows with its cost, how many folds took the view, and the two scores."""
    steps = {step["view"]: (number, step) for number, step in enumerate(record["all"]["steps"], 1)}
    folds = record["folds"].values()
    width = max(len(view["view"]) for view in record["views"])
    lines = [f"{'view':<{width}}  {'alone':>8}  {'step':>4}  {'score':>8}  {'gain':>8}  {'pixels':>6}  folds"]
    for view in record["views"]:
        number, step = steps.get(view["view"], ("", {"score": None, "gain": None}))
        taken = sum(view["view"] in fold["chosen"] for fold in folds)
        scores = (
            f"{_shown(view['score']):>8}  {number:>4}  {_shown(step['score']):>8}  {_shown(step['gain'], '+.4f'):>8}"
        )
        lines.append(f"{view['view']:<{width}}  {scores}  {view['pixels']:>6.2f}  {taken} of {len(folds)}")
    passes = sum(fold["passes"] for fold in folds) / len(folds)
    pixels = sum(fold["pixels"] for fold in folds) / len(folds)
    lines.append(
        f"{record['metric']}: identity {_shown(record['identity'])}, cross-fitted {_shown(record['cross_fitted'])}, "
        f"plain {_shown(record['plain'])}, optimism {_shown(record['optimism'], '+.4f')}; "
        f"{passes:.1f} passes and {pixels:.1f} times the pixels an image"
    )
    return lines


def _shown(value: float | None, form: str = ".4f") -> str:
    return "" if value is None else format(value, form)


def _number(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _settled(folder: FoldPaths, chosen: tuple[str, ...], sources: Sources) -> bool:
    return read_bundle(folder.folder).chosen == chosen and (sources.predicted is None or folder.test.exists())


def _apply(
    run: _Run, folder: FoldPaths, fold: int, chosen: tuple[str, ...], sources: Sources, machine: Machine
) -> None:
    """Bring one fold's files to its chosen views. bundle.json tells of which views oof.parquet and test.parquet are."""
    name, id_column = str(run.config.name), run.data.settings.id
    bundle = read_bundle(folder.folder)
    if bundle.chosen != chosen:
        folder.test.unlink(missing_ok=True)
    run.predict(fold, run.folders[fold].index(folder), chosen).write(folder.oof, id_column)
    if bundle.chosen != chosen:
        write_bundle(folder.bundle, replace(bundle, chosen=chosen))
    if sources.predicted is None or folder.test.exists():
        return
    bundle, model = load_bundle(folder.folder)
    predict_bundle(
        bundle,
        model,
        sources.predicted,
        sources.predicted.ids,
        batch_size=run.config.tta.batch_size,
        machine=machine,
        what=f"{name} {folder.folder.name}: predicting",
        frame=run.data.test,
    ).write(folder.test, id_column)
