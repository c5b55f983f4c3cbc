"""Lines and tables for people about single runs and ensembles; a pipeline's table is in ``rounds_report``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from goldfold.pipeline.lineage import named
from goldfold.pipeline.rounds_report import labels_line, mean_std, spreads


def run_lines(cv: Mapping[str, Any]) -> list[str]:
    """What ``goldfold train`` says of a finished run."""
    metric, oof = cv["metric"], cv["oof"][cv["metric"]]
    name = named(cv["run"], cv["leaky"])
    whole = "" if oof is None else f", {oof:.4f} over all out-of-fold rows"
    lines = [f"{name}: {metric} {mean_std(cv['mean'], cv['std']) or 'undefined'} over folds{whole}"]
    for key, (count, std) in spreads(cv).items():
        values = ", ".join(
            "undefined" if value is None else f"{value:.4f}"
            for value in (entry["oof"][metric] for entry in cv[f"by_{key.removesuffix('s')}"])
        )
        lines.append(f"{name}: out-of-fold {metric} of {count} {key}: {values} (standard deviation {std:.4f})")
    if cv["pseudo"] is not None:
        lines.append(f"{name}: {labels_line(cv['pseudo'])}")
    return lines


def ensemble_table(record: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> str:
    """An ensemble and its members, whose cv.json are ``runs``.

    over folds: mean ± standard deviation; OOF: all out-of-fold rows together; cross-fitted: each fold blended by what its
    labels did not shape; optimism: by how much the score before it looks better; gain: the cross-fitted score with a
    member less the one without it, positive where it helps. Calibration and decisions add a row each.
    """
    metric, name = record["metric"], record["name"]
    headers = ["", f"{metric} over folds", f"OOF {metric}", "cross-fitted", "optimism", "weight", "gain"]
    rows = []
    for member in record["members"]:
        cv = runs[member["name"]]
        own = [mean_std(cv["mean"], cv["std"]), _number(cv["oof"][metric]), "", ""]
        rows.append(
            [named(member["name"], cv["leaky"]), *own, f"{member['weight']:.3f}", _signed(member["marginal_gain"])]
        )
    titles = {
        "blend": f"{named(name, record['leaky'])} ({record['method']})",
        "calibration": f"  then {record['calibration'].replace('_', ' ')}",
        "decisions": "  then fitted decisions",
    }
    for step in record["steps"]:
        fitted = (step["cross_fitted"] or {}).get("score")
        scores = [_number(step["cv"]["score"]), _number(fitted), _signed(step["optimism"])]
        rows.append([titles[step["step"]], "", *scores, "", _signed(step["gain"])])
    return tabulate(rows, headers, disable_numparse=True, colalign=["left"] + ["right"] * (len(headers) - 1))


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
