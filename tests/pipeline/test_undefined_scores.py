"""A fold whose score is undefined: mean, deviation and differences are of the folds that have one, everywhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import pytest

from goldfold.cli import main
from tests.pipeline.competitions import make_competition
from tests.pipeline.test_rounds_graph import ensemble, train, write

QUICK = ["train.epochs=1"]


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def deal(project: Path, undefined: tuple[str, ...]) -> None:
    """A yes-or-no competition of three given folds; those of ``undefined`` hold no yes, so they have no AUC."""
    column = {"scheme": "column", "column": "part", "n": 3}
    make_competition(project, "binary", rows=36, test_rows=6, folds=column, competition={"extra_metrics": ["accuracy"]})
    path = Path("data/tiny/train.csv")
    frame = pd.read_csv(path, dtype=str)
    rows = frame.index.to_series()
    frame["part"] = (rows % 3).astype(str)
    yes = frame["label"] == "1"
    others = [part for part in "012" if part not in undefined]
    frame.loc[yes, "part"] = [others[row % len(others)] for row in range(yes.sum())]
    frame.to_csv(path, index=False)


def moments(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "mean": pytest.approx(fmean(known)),
        "std": pytest.approx(stdev(known)) if len(known) > 1 else None,
    }


@pytest.mark.parametrize("undefined", [("2",), ("0", "2")])
def test_moments_are_of_the_folds_that_have_a_score(
    undefined: tuple[str, ...], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deal(project, undefined)
    path = write(train("a", **{"train.seeds": [7]}), train("b", **{"train.seed": 5}), ensemble("e", "a", "b"))
    assert main(["run", path, *QUICK]) == 0
    shown = capsys.readouterr().out
    cv = read("runs/a/cv.json")
    of_folds = [fold["auc"] for fold in cv["folds"]]
    assert [value is None for value in of_folds] == [fold in undefined for fold in "012"]
    assert {key: cv[key] for key in ("mean", "std")} == moments(of_folds)
    assert all(fold["accuracy"] is not None for fold in cv["folds"])
    # Seeds and repeats by the same rule.
    whole = cv["by_repeat"][0]
    assert (whole["mean"], whole["std"]) == (cv["mean"], cv["std"])
    assert len(cv["by_seed"]) == 2
    for entry in cv["by_seed"]:
        assert (entry["std"] is None) == (len(undefined) == 2)
        assert math.isfinite(entry["mean"])
    record = read("ensembles/e/ensemble.json")
    for kind in ("cv", "cross_fitted"):
        blended = [fold["score"] for fold in record[kind]["folds"]]
        assert [value is None for value in blended] == [fold in undefined for fold in "012"]
        assert record[kind]["std"] == moments(blended)["std"]
    rows = {row["name"]: row for row in read("pipelines/rounds.json")["rounds"]}
    assert (rows["a"]["mean"], rows["a"]["std"]) == (cv["mean"], cv["std"])
    assert {key: rows["e"][key] for key in ("mean", "std")} == moments(blended)
    assert rows["e"]["difference"]["folds"] == 3 - len(undefined)
    score = f"{cv['mean']:.4f}" if cv["std"] is None else f"{cv['mean']:.4f} ± {cv['std']:.4f}"
    assert f" {score} " in shown
    assert "nan" not in shown.lower().split()
