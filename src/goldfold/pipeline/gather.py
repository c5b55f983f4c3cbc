"""A run's tables from its folds: averaged over seeds and repeats, scored by fold, by seed and by repeat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from goldfold import files
from goldfold.config import Config
from goldfold.errors import BadInput
from goldfold.metrics import score
from goldfold.paths import FoldPaths, RunPaths
from goldfold.pipeline.competition import CompetitionData
from goldfold.pipeline.lineage import optimistic
from goldfold.records import FoldTable, Predictions, average, concatenate

Scores = dict[str, float | None]


def gather(
    config: Config, data: CompetitionData, paths: RunPaths, tables: Sequence[FoldTable], leaky: bool
) -> dict[str, Any]:
    """Write the run's oof.parquet, test.parquet and, last, cv.json from its finished folds; returns cv.json.

    ``tables``: a table a repeat. Predictions are averaged over seeds, then over repeats. A file that would hold the same
    again is left as it is. Raises BadInput when folds do not fit together.
    """
    run = str(config.name)
    seeds = [config.train.seed, *config.train.seeds]
    folds = [fold for table in tables for fold in table.folds]
    places = {
        (fold, seed): paths.fold(fold, None if seed == config.train.seed else seed) for fold in folds for seed in seeds
    }
    parts = {key: Predictions.read(place.oof, run) for key, place in places.items()}
    by_fold = {fold: average([parts[fold, seed] for seed in seeds], run) for fold in folds}
    scores = [{"fold": fold, "rows": len(part.ids), **score_rows(data, part)} for fold, part in by_fold.items()]
    repeats = [concatenate([by_fold[fold] for fold in table.folds], run) for table in tables]
    oof = average(repeats, run)
    _write(oof, paths, "oof", config.competition.id)
    if data.test_csv is not None:
        tests = [Predictions.read(places[fold, seed].test, run) for fold in folds for seed in seeds]
        _write(average(tests, run), paths, "test", config.competition.id)
    main = data.metrics[0]
    by_seed = [_of_seed(seed, {fold: parts[fold, seed] for fold in folds}, tables, data, run) for seed in seeds]
    by_repeat: list[dict[str, Any]] = [
        {
            "repeat": number,
            "oof": score_rows(data, part),
            **_moments([entry[main.name] for entry in scores if entry["fold"] in table.folds]),
        }
        for number, (part, table) in enumerate(zip(repeats, tables, strict=True))
    ]
    cv = {
        "run": run,
        "metric": main.name,
        "greater_is_better": main.greater_is_better,
        **_moments([entry[main.name] for entry in scores]),
        "oof": score_rows(data, oof),
        "folds": scores,
        "seeds": seeds,
        "by_seed": by_seed,
        "by_repeat": by_repeat,
        "spread": {
            "seeds": _spread(by_seed, main.name),
            "repeats": _spread(by_repeat, main.name),
        },
        "keep": config.train.keep,
        "optimistic": optimistic(config),
        "leaky": leaky,
        "pseudo": summarise_labels(list(places.values())),
    }
    if not paths.cv.exists() or files.read_json(paths.cv) != cv:
        files.write_json(paths.cv, cv)
    return cv


def score_rows(data: CompetitionData, predictions: Predictions) -> Scores:
    """Each metric of the competition for predictions of training rows, by id; None where it is undefined."""
    truth = data.targets_of(predictions.ids)
    values = {metric.name: score(metric, data.task, truth, predictions.values) for metric in data.metrics}
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def summarise_labels(folds: Sequence[FoldPaths]) -> dict[str, Any] | None:
    """How many pseudo-labels a fold's student was offered and took, in all and by class, as means over folds and seeds.

    None where no fold had any (``labels.json``).
    """
    found = [files.read_json(path) for fold in folds if (path := fold.labels_record).exists()]
    if not found:
        return None
    classes = list(dict.fromkeys(name for record in found for name in record["classes"]))
    return {
        "candidates": fmean(record["candidates"] for record in found),
        "taken": fmean(record["taken"] for record in found),
        "classes": {name: fmean(record["classes"].get(name, 0) for record in found) for name in classes},
    }


def _of_seed(
    seed: int, parts: Mapping[int, Predictions], tables: Sequence[FoldTable], data: CompetitionData, run: str
) -> dict[str, Any]:
    """The scores that the run would have with this seed alone."""
    oof = average([concatenate([parts[fold] for fold in table.folds], run) for table in tables], run)
    of_folds = [score_rows(data, part)[data.metrics[0].name] for part in parts.values()]
    return {"seed": seed, "oof": score_rows(data, oof), **_moments(of_folds)}


def _moments(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {"mean": float(np.mean(known)) if known else None, "std": _std(values)}


def _spread(entries: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """The standard deviation of the OOF scores of single seeds or repeats."""
    return _std([entry["oof"][metric] for entry in entries])


def _std(values: Sequence[float | None]) -> float | None:
    """The sample standard deviation; None for fewer than two defined values."""
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def _write(table: Predictions, paths: RunPaths, kind: str, id_column: str) -> None:
    path = paths.oof if kind == "oof" else paths.test
    if path.exists() and _holds(path, table, id_column):
        return
    # The scores of other predictions must not stand beside these, even when writing is cut off.
    paths.cv.unlink(missing_ok=True)
    table.write(path, id_column)


def _holds(path: Path, table: Predictions, id_column: str) -> bool:
    try:
        old = Predictions.read(path, table.run)
    except BadInput:  # a broken file is written anew
        return False
    return (
        old.ids == table.ids
        and old.classes == table.classes
        and np.array_equal(old.values, table.values)
        and (old.fold is None) == (table.fold is None)
        and (old.fold is None or table.fold is None or np.array_equal(old.fold, table.fold))
        and files.read_parquet(path).columns[0] == id_column
    )
