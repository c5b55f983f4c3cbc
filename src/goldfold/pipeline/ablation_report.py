"""What an ablation found: paired differences with their intervals, as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Any

import pandas as pd
from tabulate import tabulate

from goldfold.metrics import Metric
from goldfold.pipeline.ablation_plan import Kind, Row
from goldfold.pipeline.paired import LEVEL, Interval, paired, verdict


@dataclass(frozen=True)
class Measure:
    """One trained fold: each metric on its validation rows (None: undefined there), and training speed."""

    row: str
    seed: int
    fold: int
    scores: Mapping[str, float | None]
    images_per_second: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of the table. ``mean`` and ``std`` (ddof 1) of the metric over seeds; ``others``: means of further metrics;
    ``ratio``: training speed over that of the first row."""

    row: Row
    by_seed: Mapping[int, float]
    mean: float | None
    std: float | None
    difference: Interval | None
    verdict: str
    images_per_second: float | None
    ratio: float | None
    others: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """``total``: last row against the first, of a stack; ``undefined``: folds left out as the metric is undefined in
    some run; ``runs``: finished and planned."""

    kind: Kind
    metric: Metric
    lines: tuple[Line, ...]
    total: Interval | None
    total_verdict: str
    folds: tuple[int, ...]
    undefined: tuple[int, ...]
    seeds: tuple[int, ...]
    runs: tuple[int, int]

    @property
    def others(self) -> list[str]:
        return list(self.lines[0].others)


def compare(
    kind: Kind,
    rows: Sequence[Row],
    measures: Sequence[Measure],
    metrics: Sequence[Metric],
    folds: Sequence[int],
    seeds: Sequence[int],
) -> Findings:
    """Compare rows by the runs whose every fold is trained. The first of ``metrics`` decides, the others are means."""
    main = metrics[0]
    by_run: dict[tuple[str, int], dict[int, Measure]] = {}
    for measure in measures:
        if measure.fold in folds and measure.seed in seeds:
            by_run.setdefault((measure.row, measure.seed), {})[measure.fold] = measure
    whole = {run: found for run, found in by_run.items() if len(found) == len(folds)}

    def scores(metric: Metric) -> tuple[dict[tuple[str, int], float], list[int]]:
        lost = [fold for fold in folds if any(found[fold].scores.get(metric.name) is None for found in whole.values())]
        kept = [fold for fold in folds if fold not in lost]
        values = {run: [found[fold].scores[metric.name] for fold in kept] for run, found in whole.items()}
        return {run: fmean(float(v) for v in each if v is not None) for run, each in values.items() if each}, lost

    table, undefined = scores(main)
    further = {metric.name: scores(metric)[0] for metric in metrics[1:]}
    of_row = {
        row.name: {seed: table[run] for seed in seeds if (run := (row.same_as or row.name, seed)) in table}
        for row in rows
    }
    lines: list[Line] = []
    for row in rows:
        values = of_row[row.name]
        trained = row.same_as or row.name
        speeds = [
            measure.images_per_second
            for (name, _), found in whole.items()
            if name == trained
            for measure in found.values()
            if measure.images_per_second is not None
        ]
        speed = median(speeds) if speeds else None
        first = lines[0].images_per_second if lines else speed
        against = None if row.against is None else rows[row.against]
        same = against is not None and trained == (against.same_as or against.name)
        difference = None if against is None or same else _difference(values, of_row[against.name])
        lines.append(
            Line(
                row=row,
                by_seed=values,
                mean=fmean(values.values()) if values else None,
                std=stdev(values.values()) if len(values) > 1 else None,
                difference=difference,
                verdict=_verdict(row, rows, difference, main),
                images_per_second=speed,
                ratio=speed / first if speed and first else None,
                others={
                    name: fmean(found)
                    if (found := [each[(trained, s)] for s in seeds if (trained, s) in each])
                    else None
                    for name, each in further.items()
                },
            )
        )
    total = _difference(of_row[rows[-1].name], of_row[rows[0].name]) if kind == "stack" and len(rows) > 2 else None
    planned = {row.same_as or row.name for row in rows}
    return Findings(
        kind=kind,
        metric=main,
        lines=tuple(lines),
        total=total,
        total_verdict=_verdict(rows[-1], rows[:1], total, main) if total else "",
        folds=tuple(folds),
        undefined=tuple(undefined),
        seeds=tuple(seeds),
        runs=(sum(name in planned for name, _ in whole), len(planned) * len(seeds)),
    )


def _difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Interval | None:
    """Paired by seed, over the seeds that both have; None where there is none."""
    differences = [value - reference[seed] for seed, value in values.items() if seed in reference]
    return paired(differences) if differences else None


def _verdict(row: Row, rows: Sequence[Row], difference: Interval | None, metric: Metric) -> str:
    if row.against is None:
        return ""
    reference = rows[row.against] if row.against < len(rows) else rows[0]
    if (row.same_as or row.name) == (reference.same_as or reference.name):
        return f"same settings as row {rows.index(reference)}"
    return "not trained yet" if difference is None else verdict(difference, metric.greater_is_better)


def table_frame(findings: Findings) -> pd.DataFrame:
    """The table with every number unrounded, a line a row; the total of a stack is its last line."""
    metric = findings.metric.name
    records: list[dict[str, Any]] = [
        {
            "row": line.row.name,
            "title": line.row.title,
            "seeds": len(line.by_seed),
            f"{metric}_mean": line.mean,
            f"{metric}_std": line.std,
            **_difference_cells(line.difference),
            "verdict": line.verdict,
            "images_per_second": line.images_per_second,
            "speed_ratio": line.ratio,
            **{f"{name}_mean": value for name, value in line.others.items()},
        }
        for line in findings.lines
    ]
    if findings.total:
        records.append(
            {"row": "total", "title": "total", **_difference_cells(findings.total), "verdict": findings.total_verdict}
        )
    frame = pd.DataFrame(records)
    frame["seeds"] = frame["seeds"].astype("Int64")
    return frame


def _difference_cells(difference: Interval | None) -> dict[str, Any]:
    found = difference or Interval(0, math.nan)
    return {"difference": found.mean, "low": found.low, "high": found.high, "pairs": found.n}


def table_markdown(findings: Findings, title: str, command: str, competition: str, notes: Sequence[str] = ()) -> str:
    """The table for people, with what it takes to read and repeat it."""
    metric, stacked = findings.metric, findings.kind == "stack"
    reference = "the row above" if stacked else f"'{findings.lines[0].row.title}'"
    headers = ["", "row", f"{metric.name}, mean ± std", f"difference to {reference}", "95 % interval", "verdict"]
    headers += ["img/s", "speed", *findings.others]
    body = [
        [
            str(number),
            line.row.title,
            _spread(line.mean, line.std),
            _signed(line.difference.mean) if line.difference else "",
            _limits(line.difference),
            line.verdict,
            "" if line.images_per_second is None else f"{line.images_per_second:.0f}",
            "" if line.ratio is None else f"{line.ratio:.2f}×",
            *["" if value is None else f"{value:.4f}" for value in line.others.values()],
        ]
        for number, line in enumerate(findings.lines)
    ]
    if findings.total:
        total = [_signed(findings.total.mean), _limits(findings.total), findings.total_verdict]
        body.append(["", "total: last row to first", "", *total, *[""] * (2 + len(findings.others))])
    aligned = ["right", "left", "right", "right", "right", "left", *["right"] * (2 + len(findings.others))]
    table = tabulate(
        [[_cell(value) for value in line] for line in body],
        headers,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=aligned,
    )
    better = "higher" if metric.greater_is_better else "lower"
    done, planned = findings.runs
    text = [
        f"# Ablation: {title}",
        "",
        f"    {command}",
        "",
        f"Competition {competition}, metric {metric.name} ({better} is better). Score of a run: mean over the out-of-fold "
        f"scores of fold{_many(findings.folds)}. Mean ± sample standard deviation over seed{_many(findings.seeds)}.",
        f"Difference: score minus that of {reference}, paired by seed, with its 95 % confidence interval (Student's t "
        "over seeds). 'Within noise': the interval holds 0. Speed: training images a second over those of row 0.",
        "",
    ]
    if done < planned:
        text += [f"**Unfinished: {done} of {planned} runs.** The same command goes on.", ""]
    return "\n".join([*text, table, "", *(f"- {note}" for note in [*_warnings(findings), *notes]), ""])


def _warnings(findings: Findings) -> list[str]:
    count = sum(line.difference is not None for line in findings.lines) + (findings.total is not None)
    notes = []
    if count > 1:
        notes.append(
            f"{count} comparisons, each at 95 % and not corrected for their number: were every trick worth nothing, one "
            f"or more would still be called better or worse with a chance of about {100 * (1 - LEVEL**count):.0f} %."
        )
    if findings.kind == "drop":
        notes.append("The verdict is the row's: where a row without a trick is better, the trick hurts.")
    notes.append("The intervals cover the seeds' noise only: folds and data are the same in every run.")
    if findings.undefined:
        notes.append(f"Left out, as {findings.metric.name} is undefined there: fold{_many(findings.undefined)}.")
    return notes


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _many(numbers: Sequence[int]) -> str:
    return f"{'s' if len(numbers) != 1 else ''} {', '.join(str(number) for number in numbers)}"


def _spread(mean: float | None, std: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _limits(difference: Interval | None) -> str:
    if difference is None or difference.low is None or difference.high is None:
        return ""
    return f"{difference.low:+.4f} … {difference.high:+.4f}"
