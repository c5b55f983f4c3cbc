"""The ensemble stage: finished runs in, ``ensembles/<name>/`` out."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from goldfold import files
from goldfold.config.schema import BlendMethod, CalibrationMethod, DecisionMethod
from goldfold.ensemble.blend import fit_rows, stack
from goldfold.ensemble.calibration import check_calibration
from goldfold.ensemble.crossfit import cross_fit
from goldfold.ensemble.decisions import check_decisions
from goldfold.ensemble.diversity import Diversity, correlation_table, measure_diversity
from goldfold.ensemble.load import Member, align
from goldfold.ensemble.plot import MemberRow, draw_members
from goldfold.ensemble.steps import Chain, Values, fit_chain, fit_steps
from goldfold.errors import BadInput, some
from goldfold.metrics import Metric, score
from goldfold.progress import warn
from goldfold.records import Floats, FoldTable, Ints, Predictions, check_ids
from goldfold.tasks import Task

Truth = tuple[Sequence[str], Floats]
"""The ids (N,) and targets (N, C) of labelled images."""

FORMAT = 3
SEED = 0
"""Of the bags of greedy, and of the rows that searches look at when there are very many."""


@dataclass(frozen=True)
class _Plan:
    """How an ensemble is made: the keys of an ensemble round."""

    method: BlendMethod
    bags: int | None
    calibration: CalibrationMethod
    decisions: DecisionMethod


def make_ensemble(
    folder: Path,
    name: str,
    members: Sequence[Member],
    truth: Truth,
    task: Task,
    metric: Metric,
    extra_metrics: Sequence[Metric],
    method: BlendMethod,
    id_column: str,
    *,
    bags: int | None = None,
    calibration: CalibrationMethod = "none",
    decisions: DecisionMethod = "fixed",
    repeats: Sequence[FoldTable] = (),
) -> dict[str, Any]:
    """Blend ``members`` and write ``folder`` (``ensembles/<name>``); returns the record of ``ensemble.json``.

    ``truth``: ids and (N, C) targets of the labelled images, in any order; rows without out-of-fold predictions (a
    holdout's training part) are left out. ``repeats``: the fold tables of further repeats, for whose folds blends are
    fitted too, so that the ensemble can teach them. Written, ``ensemble.json`` last:

    - ``oof.parquet``: the cross-fitted predictions, calibrated but not decided, by ascending id: no row's blend has seen
      its label (``"oof": "cross_fitted"``). With a single fold there are none: the plain ones (``"oof": "plain"``).
    - ``test.parquet``: the blend fitted on all rows, calibrated, if the members have test predictions.
    - ``members.csv``, ``correlation.csv``, ``members.png``: what each member is worth, and how their errors go together.
    - ``ensemble.json``: ``fitted`` and ``fold_fitted`` (blend, calibration, decisions); ``steps``: the scores after each
      of those; ``cv``: the plain score after the last, fitted and scored on the same rows; ``cross_fitted``: the honest
      one, or null; ``optimism``: how much better the plain one looks.

    The order of members or of rows changes nothing but the order in which ensemble.json lists members. When members,
    settings, metrics, classes and truth are those of the stored record, nothing is computed and that record is returned.
    Raises BadInput as ``align`` does, for images without a label, and for settings that do not suit task and metric.
    """
    plan = _Plan(method, bags, calibration, decisions)
    check_calibration(plan.calibration, plan.method, task)
    check_decisions(plan.decisions, task, metric)
    # A fixed order of members and rows: sums and ties come out the same however they were named.
    given = [member.name for member in members]
    ordered = align(sorted(members, key=lambda member: member.name))
    first = ordered[0]
    if first.oof.classes != task.classes:
        raise BadInput(
            first.oof.where,
            f"predicts the classes {some(first.oof.classes)}, the competition has {some(task.classes)}",
        )
    ids, targets = _labelled(first, truth)
    leaky = any(member.leaky for member in ordered)
    mark = files.fingerprint(
        {
            "format": FORMAT,
            "members": [[member.name, member.digest, member.leaky, member.optimistic] for member in ordered],
            "plan": [plan.method, plan.bags, plan.calibration, plan.decisions],
            "metrics": [[item.name, item.greater_is_better] for item in (metric, *extra_metrics)],
            "task": [task.name, task.classes, task.negative, task.threshold],
            "id": id_column,
            "truth": _digest(ids, targets),
            "repeats": [_digest(table.ids, table.fold) for table in repeats],
        }
        # Ranks once were brought to rows of 1 for these metrics too: such ensembles are made anew, and no others.
        | ({"by_column": True} if plan.method == "rank_mean" and metric.by_column else {})
    )
    stored = _stored(folder, mark, first.test is not None)
    if stored is not None:
        return {**stored, "members": _listed(stored["members"], given)}

    names = [member.name for member in ordered]
    rows = first.oof.rows(ids)  # align has given all members the first one's order
    assert first.oof.fold is not None  # align has seen to it
    folds = first.oof.fold[rows]
    values = [member.oof.values[rows] for member in ordered]
    fitted = cross_fit(plan.method, names, values, targets, folds, task, metric, SEED, plan.bags)
    done = fit_steps(fitted, values, targets, folds, task, metric, plan.calibration, plan.decisions)
    chains = {**done.fold_chains, **_of_repeats(repeats, ids, names, values, targets, task, metric, plan)}
    metrics = (metric, *extra_metrics)
    steps: list[dict[str, Any]] = []
    for step in done.steps:
        plain = _scores(metrics, task, targets, step.plain, folds)
        honest = None if step.cross_fitted is None else _scores(metrics, task, targets, step.cross_fitted, folds)
        steps.append(
            {
                "step": step.name,
                "cv": plain,
                "cross_fitted": honest,
                "optimism": None if honest is None else _advantage(metric, plain["score"], honest["score"]),
                "gain": _gain(metric, steps[-1], honest) if steps else None,
            }
        )
    diversity = measure_diversity(names, values, targets, folds, fitted, task, metric, SEED, plan.bags)
    own = [_number(score(metric, task, targets, each)) for each in values]
    last = steps[-1]
    listed = [
        {
            "name": member.name,
            "weight": float(weight),
            "score": single,
            "marginal_gain": _number(gain),
            "mean_correlation": _number(together),
            "leaky": member.leaky,
            "optimistic": member.optimistic,
            "digest": member.digest,
        }
        for member, weight, single, gain, together in zip(
            ordered, fitted.weights, own, diversity.gains, diversity.mean_correlation, strict=True
        )
    ]
    record = {
        "name": name,
        "method": plan.method,
        "bags": plan.bags,
        "calibration": plan.calibration,
        "decisions": plan.decisions,
        "leaky": leaky,
        "optimistic": any(member.optimistic for member in ordered),
        "members": _listed(listed, given),
        "marginal_gain": diversity.way,
        "metric": metric.name,
        "greater_is_better": metric.greater_is_better,
        "task": task.name,
        "classes": list(task.classes),
        "rows": len(ids),
        "cv": last["cv"],
        "cross_fitted": last["cross_fitted"],
        "optimism": last["optimism"],
        "steps": steps,
        "fitted": done.chain.to_dict(),
        "fold_fitted": {str(fold): chain.to_dict() for fold, chain in chains.items()},
        "fold_weights": {
            str(fold): {each: float(weight) for each, weight in zip(names, chain.blend.weights, strict=True)}
            for fold, chain in chains.items()
        },
        "oof": "plain" if fitted.values is None else "cross_fitted",
        "test": first.test is not None,
        "fingerprint": mark,
    }
    final = done.steps[-1].plain if fitted.values is None else done.steps[-1].cross_fitted
    assert final is not None
    oof = Predictions(ids, final.probabilities, task.classes, name, folds, folder / "oof.parquet")
    test = _blend_test(done.chain, ordered, task, name)
    # The record goes first and comes last: a folder that was cut off half-way has none.
    (folder / "ensemble.json").unlink(missing_ok=True)
    oof.write(folder / "oof.parquet", id_column)
    if test is None:
        (folder / "test.parquet").unlink(missing_ok=True)
    else:
        test.write(folder / "test.parquet", id_column)
    _write_members(folder, record, listed, diversity, metric)
    files.write_json(folder / "ensemble.json", record)
    return record


def _listed(members: Sequence[dict[str, Any]], given: Sequence[str]) -> list[dict[str, Any]]:
    by_name = {str(member["name"]): member for member in members}
    return [by_name[name] for name in given]


def _of_repeats(
    repeats: Sequence[FoldTable],
    ids: tuple[str, ...],
    names: Sequence[str],
    values: Sequence[Floats],
    targets: Floats,
    task: Task,
    metric: Metric,
    plan: _Plan,
) -> dict[int, Chain]:
    """By fold of a further repeat, what was fitted without that fold's labels."""
    chains: dict[int, Chain] = {}
    stacked = stack(names, values, targets, SEED) if repeats else None
    for table in repeats:
        folds = table.fold[table.rows(ids, "the fold table")]
        for fold in table.folds:
            assert stacked is not None
            rest = np.flatnonzero(folds != fold)
            blend = fit_rows(plan.method, names, stacked, task, metric, rest, plan.bags)
            blended = blend.apply([value[rest] for value in values], task)
            chains[fold] = fit_chain(blend, blended, targets[rest], task, metric, plan.calibration, plan.decisions)
    return chains


def _write_members(
    folder: Path, record: dict[str, Any], listed: Sequence[dict[str, Any]], diversity: Diversity, metric: Metric
) -> None:
    """``members.csv``, ``correlation.csv`` and ``members.png``, the best member first."""
    sign = -1 if metric.greater_is_better else 1
    order = sorted(
        range(len(listed)),
        key=lambda row: (listed[row]["score"] is None, sign * (listed[row]["score"] or 0), listed[row]["name"]),
    )
    rows = [
        MemberRow(
            *(listed[row][key] for key in ("name", "score", "weight", "marginal_gain", "mean_correlation", "leaky"))
        )
        for row in order
    ]
    correlation = diversity.correlation[np.ix_(order, order)]
    frame = pd.DataFrame(
        {
            "name": [row.name for row in rows],
            "score": [row.score for row in rows],
            "weight": [row.weight for row in rows],
            "marginal_gain": [row.gain for row in rows],
            "mean_correlation": [row.mean_correlation for row in rows],
            "leaky": [row.leaky for row in rows],
        }
    )
    files.write_csv(folder / "members.csv", frame)
    files.write_csv(folder / "correlation.csv", correlation_table([row.name for row in rows], correlation))
    kind = "cv" if record["cross_fitted"] is None else "cross_fitted"
    found = record["steps"][0][kind]["score"]
    number = "undefined" if found is None else f"{found:.4f}"
    title = f"{record['name']}{' (leaky)' if record['leaky'] else ''}, {record['method']}: "
    title += f"{metric.name} {number} {'in-sample' if kind == 'cv' else 'cross-fitted'}"
    (folder / "members.png").unlink(missing_ok=True)
    draw_members(rows, correlation, title, metric.name, metric.greater_is_better, folder / "members.png")


def _advantage(metric: Metric, first: float | None, second: float | None) -> float | None:
    """By how much the first score is better; None where one is undefined."""
    if first is None or second is None:
        return None
    return _number(first - second if metric.greater_is_better else second - first)


def _gain(metric: Metric, before: dict[str, Any], honest: dict[str, Any] | None) -> float | None:
    """By how much the cross-fitted score is better than that of the step before."""
    if honest is None or before["cross_fitted"] is None:
        return None
    return _advantage(metric, honest["score"], before["cross_fitted"]["score"])


def _labelled(member: Member, truth: Truth) -> tuple[tuple[str, ...], Floats]:
    ids, targets = truth
    check_ids(ids, "labels")
    if targets.shape != (len(ids), len(member.oof.classes)):
        raise BadInput(
            "labels", f"targets of shape {targets.shape} for {len(ids)} ids and {len(member.oof.classes)} classes"
        )
    known, predicted = pd.Index(ids), pd.Index(member.oof.ids)
    unknown = predicted.difference(known, sort=False)
    if len(unknown):
        raise BadInput(
            member.oof.where,
            f"{len(unknown)} predicted ids of '{member.name}' have no label: {some(unknown)}",
            "use the train CSV that the run was trained on",
        )
    # By ascending id, so that the order of the train CSV does not reach any sum.
    kept = np.flatnonzero(known.isin(predicted))
    kept = kept[np.argsort(known.to_numpy(dtype=str)[kept], kind="stable")]
    return tuple(ids[int(row)] for row in kept), targets[kept]


def _digest(ids: Sequence[str], numbers: Floats | Ints) -> str:
    state = hashlib.sha256("\n".join(ids).encode())
    state.update(np.ascontiguousarray(numbers, dtype=np.float32).tobytes())
    return state.hexdigest()


def _stored(folder: Path, mark: str, needs_test: bool) -> dict[str, Any] | None:
    path = folder / "ensemble.json"
    tables = ["oof.parquet", "members.csv", "correlation.csv", *(["test.parquet"] if needs_test else [])]
    if importlib.util.find_spec("matplotlib") is not None:
        tables.append("members.png")
    if not path.is_file() or not all((folder / table).is_file() for table in tables):
        return None
    record = files.read_json(path)
    return record if isinstance(record, dict) and record.get("fingerprint") == mark else None


def _number(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def _scores(metrics: Sequence[Metric], task: Task, targets: Floats, values: Values, folds: Ints) -> dict[str, Any]:
    metric, *extra = metrics
    each = [(int(fold), folds == fold) for fold in np.unique(folds)]
    of_folds = [values.score(metric, task, targets, rows) for _, rows in each]
    known = [value for value in of_folds if math.isfinite(value)]
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {
        "score": _number(values.score(metric, task, targets)),
        "std": _number(spread),
        "folds": [
            {"fold": fold, "score": _number(found), "rows": int(rows.sum())}
            for (fold, rows), found in zip(each, of_folds, strict=True)
        ],
        "extra": {item.name: _number(values.score(item, task, targets)) for item in extra},
    }


def _blend_test(chain: Chain, members: Sequence[Member], task: Task, name: str) -> Predictions | None:
    tests = [member.test for member in members if member.test is not None]
    if not tests:
        warn(f"the members of '{name}' have no test predictions, so the ensemble has none")
        return None
    # Sorted ids, so that the order of one member's rows is not that of the result.
    ids = tuple(sorted(tests[0].ids))
    rows = tests[0].rows(ids)
    values = chain.probabilities([test.values[rows] for test in tests], task)
    return Predictions(ids, values, task.classes, name, where=name)
