"""Whatever the tables on disk look like: the same ensemble, bit for bit, or one clear line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from goldfold import files
from goldfold.config.schema import BlendMethod
from goldfold.ensemble import load_member, make_ensemble
from goldfold.errors import BadInput
from goldfold.metrics import get_metric
from goldfold.paths import RunPaths
from goldfold.records import Floats, Ints
from goldfold.tasks import Task

TASKS = {
    "binary": (Task("binary", ("1",), "0"), "f1"),
    "multiclass": (Task("multiclass", ("a", "b", "c")), "macro_f1"),
    "ordinal": (Task("ordinal", ("0", "1", "2")), "qwk"),
    "multilabel": (Task("multilabel", ("x", "y")), "macro_f1"),
    "regression": (Task("regression", ("y",)), "rmse"),
}
ROWS = 18
IDS = [f"i{row}" for row in range(ROWS)]
METHODS = st.sampled_from(get_args(BlendMethod))


@pytest.fixture(autouse=True, scope="module")
def _no_picture() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("goldfold.ensemble.stage.draw_members", lambda *given: False)
        yield


def draw(task: Task, seed: int, one_class_fold: bool, ties: bool) -> tuple[list[Floats], Floats, Ints]:
    """Three members' predictions, targets, folds; with ``one_class_fold`` all rows of fold 1 have one class."""
    rng = np.random.default_rng(seed)
    classes = len(task.classes)
    fold = rng.permutation(np.arange(ROWS) % 3).astype(np.int64)
    if task.name in ("multiclass", "ordinal"):
        targets = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, ROWS)]
    elif task.name == "regression":
        targets = rng.normal(size=(ROWS, classes)).round(1).astype(np.float32)
    else:
        targets = rng.integers(0, 2, (ROWS, classes)).astype(np.float32)
    if one_class_fold:
        targets[fold == 1] = targets[fold == 1][0]
    members = []
    for _ in range(3):
        values = rng.random((ROWS, classes)) + 0.3 * targets
        # Tenths: many equal values in a column.
        members.append(task.normalise((np.ceil(values * 10) if ties else values * 10) / 14))
    return members, targets, fold


def write(folder: Path, name: str, task: Task, values: Floats, fold: Ints, order: Ints, test_order: Ints) -> None:
    """A finished run as ``goldfold train`` leaves it, its rows in some order."""
    paths = RunPaths(folder / name)
    columns = {f"p_{label}": values[:, column] for column, label in enumerate(task.classes)}
    oof = pd.DataFrame({"id": IDS, "fold": fold, **columns})
    test = pd.DataFrame(
        {"id": [f"t{row}" for row in range(ROWS)], **{key: part[::-1] for key, part in columns.items()}}
    )
    files.write_parquet(paths.oof, oof.iloc[order])
    files.write_parquet(paths.test, test.iloc[test_order])
    numbers = [{"fold": int(number)} for number in np.unique(fold)]
    files.write_json(paths.cv, {"leaky": False, "optimistic": False, "folds": numbers})


def blend(folder: Path, names: list[str], kind: str, targets: Floats, **settings: Any) -> dict[str, bytes]:
    """The files of the ensemble; of ensemble.json without what depends on the order of rows in the members' files."""
    task, metric = TASKS[kind]
    members = [load_member(RunPaths(folder / name)) for name in names]
    out = folder / "mix"
    make_ensemble(out, "mix", members, (IDS, targets), task, get_metric(metric), [], id_column="id", **settings)
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    record = json.loads(found["ensemble.json"])
    for member in record["members"]:
        del member["digest"]
    record["members"].sort(key=lambda member: member["name"])
    del record["fingerprint"]
    return {**found, "ensemble.json": json.dumps(record).encode()}


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(TASKS)),
    method=METHODS,
    seed=st.integers(0, 10_000),
    one_class_fold=st.booleans(),
    ties=st.booleans(),
    calibrated=st.booleans(),
    names=st.permutations(["one", "two", "three"]),
)
def test_any_order_is_the_same_ensemble(
    kind: str, method: BlendMethod, seed: int, one_class_fold: bool, ties: bool, calibrated: bool, names: list[str]
) -> None:
    task, _ = TASKS[kind]
    values, targets, fold = draw(task, seed, one_class_fold, ties)
    rng = np.random.default_rng(seed + 1)
    numbers = kind == "regression"  # which nothing calibrates or decides, and whose ranks and products mean nothing
    assume(not numbers or method not in ("gmean", "rank_mean"))
    settings = {"method": method, "decisions": "fixed" if numbers else "fitted"}
    settings["calibration"] = "temperature" if calibrated and method != "rank_mean" and not numbers else "none"
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, order in enumerate((["one", "two", "three"], names)):
            place = Path(folder) / str(number)
            for name, each in zip(("one", "two", "three"), values, strict=True):
                rows = [rng.permutation(ROWS) if number else np.arange(ROWS) for _ in range(2)]
                write(place, name, task, each, fold, *rows)
            found.append(blend(place, order, kind, targets, **settings))
    assert found[0] == found[1]
    record = json.loads(found[0]["ensemble.json"])
    assert [step["step"] for step in record["steps"]][-1] == ("blend" if numbers else "decisions")
    weights = np.array(list(record["fold_weights"]["1"].values()))
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)


FAULTS = ("missing", "stranger", "doubled", "fold", "folds", "classes", "test", "nan")


@settings(max_examples=25, deadline=None)
@given(fault=st.sampled_from(FAULTS), seed=st.integers(0, 10_000), names=st.permutations(["one", "two", "three"]))
def test_what_does_not_fit_is_one_clear_line(fault: str, seed: int, names: list[str]) -> None:
    task, _ = TASKS["multiclass"]
    values, targets, fold = draw(task, seed, False, False)
    rng = np.random.default_rng(seed)
    row = int(rng.integers(ROWS))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, each in zip(("one", "two", "three"), values, strict=True):
            write(root, name, task, each, fold, rng.permutation(ROWS), rng.permutation(ROWS))
        bad = RunPaths(root / "two")
        table = pd.read_parquet(bad.test if fault == "test" else bad.oof)
        place = int(np.flatnonzero(table["id"].str[1:] == str(row))[0])
        if fault in ("missing", "test"):
            table = table.drop(index=table.index[place])
        elif fault == "stranger":
            table.iloc[place, 0] = "stranger"
        elif fault == "doubled":
            table = pd.concat([table, table.iloc[[place]]])
        elif fault == "fold":
            table.iloc[place, 1] = (fold[row] + 1) % 3
        elif fault == "folds":
            table["fold"] = table["fold"].clip(upper=1)
        elif fault == "classes":
            table = table.rename(columns={"p_a": "p_z"})
        else:
            table.iloc[place, 2] = np.nan
        files.write_parquet(bad.test if fault == "test" else bad.oof, table)
        with pytest.raises(BadInput) as caught:
            blend(root, names, "multiclass", targets, method="mean")
        assert not (root / "mix").exists()
    line = str(caught.value)
    assert "\n" not in line
    assert "two" in line
    if fault in ("missing", "test", "doubled", "fold", "nan"):
        assert f"{'t' if fault == 'test' else 'i'}{row}" in line
