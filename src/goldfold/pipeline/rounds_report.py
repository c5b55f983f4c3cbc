"""The end table of a pipeline: a row a round, each beside what it has to beat.

A difference is that of the rounds' scores on the same folds, with the 95 % Student-t interval of its mean. Folds share
training rows, so such intervals are somewhat too narrow (Nadeau and Bengio 2003, "Inference for the Generalization
Error"): they warn of rounds that did not help rather than prove that one did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from goldfold import files
from goldfold.config.schema import EnsembleRound, SubmitRound, TrainRound
from goldfold.paths import Workspace
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.gather import score_rows
from goldfold.pipeline.lineage import find_source, named, run_config
from goldfold.pipeline.paired import Interval, paired, verdict
from goldfold.pipeline.run import Outcome, RoundOutcome
from goldfold.records import Predictions

FoldScores = Mapping[int, float | None]


@dataclass(frozen=True)
class RoundRow:
    """A round's line. ``difference``: to ``against``, positive where this round is better, whatever the metric.

    ``spread``: standard deviation of the OOF score over several ``seeds`` and ``repeats``, by which of them;
    ``pseudo``: as in cv.json; ``weights``: of an ensemble's members.
    """

    number: int
    kind: str
    name: str
    state: str = "done"
    reason: str = ""
    leaky: bool = False
    optimistic: bool = False
    mean: float | None = None
    std: float | None = None
    oof: float | None = None
    cross_fitted: float | None = None
    optimism: float | None = None
    against: str | None = None
    against_leaky: bool = False
    difference: Interval | None = None
    verdict: str = ""
    spread: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    pseudo: Mapping[str, Any] | None = None
    method: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return named(self.name, self.leaky)


@dataclass(frozen=True)
class RoundTable:
    """The rounds of a pipeline but for its submissions."""

    pipeline: str
    metric: str
    greater_is_better: bool
    rows: tuple[RoundRow, ...]


def compare_rounds(outcome: Outcome, workspace: Workspace) -> RoundTable:
    """Each round's scores and its difference to what it has to beat.

    A student has to beat the run of the same experiment file of an earlier plain train round, else its first teacher; an
    ensemble its best member by out-of-fold score; a run without teachers nothing. Raises BadInput where a record that
    this reads is missing.
    """
    records = {**outcome.runs, **outcome.ensembles}
    metric, greater = next(
        ((str(record["metric"]), bool(record["greater_is_better"])) for record in records.values()), ("score", True)
    )
    rows = []
    for item in outcome.rounds:
        if isinstance(item.step, SubmitRound):
            continue
        if item.state != "done":
            rows.append(RoundRow(item.number, item.step.kind, item.name, item.state, item.reason))
        elif isinstance(item.step, EnsembleRound):
            rows.append(_ensemble_row(item, outcome.ensembles[item.name], greater, workspace))
        else:
            rows.append(_run_row(item, outcome, metric, greater, workspace))
    return RoundTable(outcome.pipeline, metric, greater, tuple(rows))


def _run_row(item: RoundOutcome, outcome: Outcome, metric: str, greater: bool, workspace: Workspace) -> RoundRow:
    cv = outcome.runs[item.name]
    against = _to_beat(item, outcome)
    difference = None
    if against is not None:
        theirs = _fold_scores(against, metric, workspace)
        difference = _difference(_scores_of(cv, metric), theirs, greater)
    return RoundRow(
        item.number,
        item.step.kind,
        item.name,
        leaky=cv["leaky"],
        optimistic=cv["optimistic"],
        mean=cv["mean"],
        std=cv["std"],
        oof=cv["oof"][metric],
        against=against,
        against_leaky=against is not None and _record(against, workspace)["leaky"],
        difference=difference,
        verdict="" if difference is None else verdict(difference, greater_is_better=True, unit="fold"),
        spread=spreads(cv),
        pseudo=cv["pseudo"],
    )


def _ensemble_row(item: RoundOutcome, record: Mapping[str, Any], greater: bool, workspace: Workspace) -> RoundRow:
    members = [member for member in record["members"] if member["score"] is not None]
    best = None
    if members:
        best = str((max if greater else min)(members, key=lambda member: float(member["score"]))["name"])
    honest = record["cross_fitted"] or record["cv"]
    of_folds = {entry["fold"]: entry["score"] for entry in honest["folds"]}
    difference = None
    if best is not None and record["cross_fitted"] is not None:
        difference = _difference(of_folds, _member_scores(best, record["metric"], workspace), greater)
    known = [float(value) for value in of_folds.values() if value is not None]
    return RoundRow(
        item.number,
        item.step.kind,
        item.name,
        leaky=record["leaky"],
        optimistic=record["optimistic"],
        mean=sum(known) / len(known) if known else None,
        std=honest["std"],
        oof=record["cv"]["score"],
        cross_fitted=None if record["cross_fitted"] is None else record["cross_fitted"]["score"],
        optimism=record["optimism"],
        against=best,
        against_leaky=best is not None and _record(best, workspace)["leaky"],
        difference=difference,
        verdict="" if difference is None else verdict(difference, greater_is_better=True, unit="fold"),
        method=record["method"],
        weights={str(member["name"]): float(member["weight"]) for member in record["members"]},
    )


def _to_beat(item: RoundOutcome, outcome: Outcome) -> str | None:
    """The name of the run or ensemble that a training round has to beat."""
    assert isinstance(item.step, TrainRound)
    teachers = outcome.configs[item.name].teacher.runs
    if not teachers:
        return None
    for other in outcome.rounds:
        if other.number >= item.number or not isinstance(other.step, TrainRound) or other.state != "done":
            continue
        plain = not outcome.configs[other.name].teacher.runs
        if plain and Path(other.step.experiment) == Path(item.step.experiment):
            return other.name
    return teachers[0]


def _record(name: str, workspace: Workspace) -> dict[str, Any]:
    """cv.json of a run or ensemble.json of an ensemble."""
    if find_source(name, workspace) == "ensemble":
        return dict(files.read_json(workspace.ensemble(name) / "ensemble.json"))
    return dict(files.read_json(workspace.run(name).cv))


def _fold_scores(name: str, metric: str, workspace: Workspace) -> FoldScores:
    """A run's scores by fold; an ensemble's cross-fitted ones, or its plain ones where there are no others."""
    record = _record(name, workspace)
    if "members" not in record:
        return _scores_of(record, metric)
    return {entry["fold"]: entry["score"] for entry in (record["cross_fitted"] or record["cv"])["folds"]}


def _scores_of(cv: Mapping[str, Any], metric: str) -> FoldScores:
    return {entry["fold"]: entry[metric] for entry in cv["folds"]}


def _member_scores(name: str, metric: str, workspace: Workspace) -> FoldScores:
    """A member's scores on the folds of the ensemble: with repeats, those of its averaged out-of-fold predictions."""
    cv = _record(name, workspace)
    if len(cv["by_repeat"]) == 1:
        return _scores_of(cv, metric)
    data = load_competition(run_config(name, workspace).competition, workspace.root)
    oof = Predictions.read(workspace.run(name).oof, name)
    assert oof.fold is not None  # a run's out-of-fold predictions always have folds
    of_fold = {fold: [i for i, own in zip(oof.ids, oof.fold, strict=True) if own == fold] for fold in set(oof.fold)}
    return {int(fold): score_rows(data, oof.take(ids))[metric] for fold, ids in of_fold.items()}


def _difference(mine: FoldScores, theirs: FoldScores, greater: bool) -> Interval | None:
    """Paired by fold, over the folds where both are defined; positive: mine is better."""
    pairs = [(value, theirs.get(fold)) for fold, value in sorted(mine.items())]
    known = [(a - b) if greater else (b - a) for a, b in pairs if a is not None and b is not None]
    return paired(known) if known else None


def spreads(cv: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    """By what a run's OOF score was repeated: how often, and its standard deviation."""
    counts = {"seeds": len(cv.get("by_seed", ())), "repeats": len(cv.get("by_repeat", ()))}
    found = {key: (cv.get("spread") or {}).get(key) for key in counts}
    return {key: (counts[key], float(value)) for key, value in found.items() if value is not None}


def write_rounds(table: RoundTable, workspace: Workspace, command: str) -> Path:
    """Write ``pipelines/<name>.json`` and ``.md``, each left as it is when it would hold the same; returns the latter."""
    record, page = workspace.pipeline(table.pipeline), workspace.pipeline(table.pipeline).with_suffix(".md")
    values = rounds_record(table)
    if not record.exists() or files.read_json(record) != values:
        files.write_json(record, values)
    text = rounds_page(table, command)
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        files.write_text(page, text)
    return page


def rounds_record(table: RoundTable) -> dict[str, Any]:
    """The table with every number unrounded, for pipelines/<name>.json."""
    return {
        "pipeline": table.pipeline,
        "metric": table.metric,
        "greater_is_better": table.greater_is_better,
        "rounds": [
            {
                "round": row.number,
                "kind": row.kind,
                "name": row.name,
                "state": row.state,
                "reason": row.reason or None,
                "leaky": row.leaky,
                "optimistic": row.optimistic,
                "mean": row.mean,
                "std": row.std,
                "oof": row.oof,
                "cross_fitted": row.cross_fitted,
                "optimism": row.optimism,
                "pseudo": None if row.pseudo is None else dict(row.pseudo),
                "difference": None
                if row.difference is None
                else {
                    "against": row.against,
                    "mean": row.difference.mean,
                    "low": row.difference.low,
                    "high": row.difference.high,
                    "folds": row.difference.n,
                    "verdict": row.verdict,
                },
            }
            for row in table.rows
        ],
    }


def rounds_text(table: RoundTable, private: Mapping[str, Mapping[str, float | None]] | None = None) -> str:
    """The table for a terminal; ``private``: scores on held-back labels, by run or ensemble."""
    headers, body, aligned = _cells(table, private or {})
    text = tabulate(body, headers, disable_numparse=True, colalign=aligned)
    return "\n".join([text, "", *_notes(table)])


def rounds_page(table: RoundTable, command: str) -> str:
    """The table as Markdown."""
    headers, body, aligned = _cells(table, {})
    body = [[cell.replace("|", "\\|") for cell in line] for line in body]
    text = tabulate(body, headers, tablefmt="pipe", disable_numparse=True, colalign=aligned)
    notes = [f"- {note}" for note in _notes(table)]
    return "\n".join([f"# Pipeline: {table.pipeline}", "", f"    {command}", "", text, "", *notes, ""])


def _cells(
    table: RoundTable, private: Mapping[str, Mapping[str, float | None]]
) -> tuple[list[str], list[list[str]], list[str]]:
    keys = list(dict.fromkeys(key for scores in private.values() for key in scores))
    headers = ["round", "name", f"{table.metric} over folds", "OOF", "cross-fitted", "optimism"]
    headers += [f"private {key}" for key in keys]
    headers += ["difference", "against", ""]
    body = []
    for row in table.rows:
        label = f"{row.label} ({row.method})" if row.method else row.label
        optimism = "" if row.optimism is None else f"{row.optimism:+.4f}"
        scores = [mean_std(row.mean, row.std), _number(row.oof), _number(row.cross_fitted), optimism]
        if row.state != "done":
            scores = [row.state, "", "", ""]
        held = [_number(private.get(row.name, {}).get(key)) for key in keys]
        against = "" if row.against is None or row.difference is None else named(row.against, row.against_leaky)
        body.append([f"{row.number} {row.kind}", label, *scores, *held, _signed(row.difference), against, row.verdict])
    return headers, body, ["left", "left", *["right"] * (5 + len(keys)), "left", "left"]


def _notes(table: RoundTable) -> list[str]:
    better = "higher" if table.greater_is_better else "lower"
    notes = [
        f"{table.metric}: {better} is better. Over folds: mean ± standard deviation (of an ensemble: cross-fitted). OOF: "
        "all out-of-fold rows together. Cross-fitted: each fold blended by what its labels did not shape. Optimism: by how much the OOF score "
        "of an ensemble looks better than that.",
    ]
    if any(row.difference is not None for row in table.rows):
        notes.append(
            "Difference: paired by fold, mean ± half of its 95 % Student-t interval; positive is better"
            + ("" if table.greater_is_better else " (the sign is turned, as lower scores are better)")
            + ". 'within noise': the interval holds 0. Folds share training rows, so it is somewhat too narrow."
        )
    for row in table.rows:
        if row.state != "done":
            notes.append(f"round {row.number} {row.name}: {row.state}: {row.reason}")
        for key, (count, std) in row.spread.items():
            notes.append(f"{row.label}: OOF over {count} {key}: standard deviation {std:.4f}")
        if row.pseudo is not None:
            notes.append(f"{row.label}: {labels_line(row.pseudo)}")
        if row.weights:
            weights = ", ".join(f"{name} {weight:.3f}" for name, weight in row.weights.items())
            notes.append(f"{row.label}: weights {weights}")
    leaky = [row.name for row in table.rows if row.leaky]
    if leaky:
        notes.append(
            f"(leaky): {', '.join(leaky)} learned from teachers that have seen validated labels; such scores are inflated"
        )
    chosen = [row.name for row in table.rows if row.optimistic]
    if chosen:
        notes.append(f"{', '.join(chosen)}: validation labels chose the weights, so these scores are a little too good")
    return notes


def labels_line(pseudo: Mapping[str, Any]) -> str:
    """How many pseudo-labels a fold's student took, as means over folds."""
    classes = ", ".join(f"{name} {count:.0f}" for name, count in pseudo["classes"].items())
    return f"{pseudo['taken']:.0f} of {pseudo['candidates']:.0f} images pseudo-labelled a fold" + (
        f" ({classes})" if classes else ""
    )


def mean_std(mean: float | None, std: float | None) -> str:
    """A score over folds as tables show it."""
    if mean is None:
        return ""
    return _number(mean) if std is None else f"{mean:.4f} ± {std:.4f}"


def _signed(difference: Interval | None) -> str:
    if difference is None:
        return ""
    if difference.high is None:
        return f"{difference.mean:+.4f}"
    return f"{difference.mean:+.4f} ± {difference.high - difference.mean:.4f}"


def _number(value: Any, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"
