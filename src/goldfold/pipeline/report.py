"""Tables for people: what a pipeline made and what it scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from goldfold.pipeline.run import Outcome


def summary(outcome: Outcome, private: Mapping[str, Mapping[str, float | None]] | None = None) -> str:
    """The end table: a row a run and a row an ensemble; ``private`` holds scores on held-back labels, by name.

    fold scores: mean ± standard deviation over folds; OOF: all out-of-fold rows together; cross-fitted: each fold
    blended with weights that its labels did not shape.
    """
    private = private or {}
    weights = {name: record["members"] for name, record in outcome.ensembles.items()}
    metric = _metric(outcome)
    headers = ["", f"{metric} over folds", f"OOF {metric}", "cross-fitted", *[f"weight in {name}" for name in weights]]
    rows: list[list[str]] = []
    for name, cv in outcome.runs.items():
        shares = [
            next((_number(m["weight"], 3) for m in members if m["name"] == name), "") for members in weights.values()
        ]
        rows.append(
            [name, spread(cv.get("mean"), cv.get("std")), _number((cv.get("oof") or {}).get(metric)), "", *shares]
        )
    for name, record in outcome.ensembles.items():
        plain, fitted = record["cv"]["score"], (record.get("cross_fitted") or {}).get("score")
        rows.append([f"{name} ({record['method']})", "", _number(plain), _number(fitted), *[""] * len(weights)])
    if private:
        keys = list(dict.fromkeys(key for scores in private.values() for key in scores))
        headers += [f"private {key}" for key in keys]
        names = [*outcome.runs, *outcome.ensembles]
        for name, row in zip(names, rows, strict=True):
            row += [_number(private.get(name, {}).get(key)) for key in keys]
    return tabulate(rows, headers, disable_numparse=True, colalign=["left"] + ["right"] * (len(headers) - 1))


def spread(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "unfinished"
    return _number(mean) if std is None else f"{mean:.4f} ± {std:.4f}"


def _metric(outcome: Outcome) -> str:
    records: list[dict[str, Any]] = [*outcome.runs.values(), *outcome.ensembles.values()]
    return next((str(record["metric"]) for record in records if record), "score")


def _number(value: Any, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"
