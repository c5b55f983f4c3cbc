"""docs/formats.md is normative: the keys that it lists are those that a run really writes, no more and no fewer."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from goldfold.cli import main
from tests.pipeline.competitions import make_competition

PAGE = (Path(__file__).parents[2] / "docs/formats.md").read_text(encoding="utf-8")
FILES = {
    "Fold table": "folds/tiny.json",
    "bundle.json": "runs/tiny/fold0/bundle.json",
    "labels.json": "runs/student/fold0/labels.json",
    "DONE": "runs/tiny/fold0/DONE",
    "run.json": "runs/tiny/run.json",
    "cv.json": "runs/tiny/cv.json",
    "views.json": "runs/auto/views.json",
    "ensemble.json": "ensembles/both/ensemble.json",
    "Pipeline": "pipelines/rounds.json",
    "lr-find": "lr-find/tiny.json",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, their ensemble, and submissions of a run and of the ensemble."""
    root = tmp_path_factory.mktemp("formats")
    torch.set_num_threads(1)
    with contextlib.chdir(root):
        config = str(make_competition(root, rows=24, test_rows=6))
        assert main(["train", config, "train.epochs=1"]) == 0
        assert main(["train", config, "train.epochs=1", "train.seed=1", "--run", "other"]) == 0
        views = ["tta.views=auto", "tta.candidates=flip", "--run", "auto"]
        assert main(["train", config, "train.epochs=1", *views]) == 0
        assert main(["ensemble", "tiny", "other", "--name", "both"]) == 0
        student = {"kind": "pseudo_label", "experiment": "tiny.yaml", "name": "student", "teachers": ["tiny"]}
        rounds = [{"kind": "train", "experiment": "tiny.yaml"}, student]
        Path("configs/rounds.yaml").write_text(yaml.safe_dump({"name": "rounds", "rounds": rounds}))
        assert main(["run", "configs/rounds.yaml", "train.epochs=1"]) == 0
        assert main(["submit", "tiny"]) == 0
        assert main(["submit", "both"]) == 0
        assert main(["lr-find", config, "--steps", "40", "--from", "1e-5"]) == 0
    return root


def section(heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/formats.md has no section '{heading}'"
    return found.group(1)


def documented(heading: str) -> set[str]:
    """The keys in the first column of a section's table."""
    rows = re.findall(r"^\|([^|]*)\|", section(heading), re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def written(value: Any, known: set[str], path: str = "") -> set[str]:
    """The keys of a JSON value as the page names them; a key that the page lists is not opened."""
    if path in known:
        return {path}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {key for item in value for key in written(item, known, f"{path}[]")}
    if not isinstance(value, dict):
        return {path}
    found: set[str] = set()
    for key, inner in value.items():
        below = f"{path}.{key}" if path else key
        if not any(name == below or name.startswith((f"{below}.", f"{below}[")) for name in known):
            prefix = f"{path}." if path else ""
            free = {name[: name.index(">", len(prefix)) + 1] for name in known if name.startswith(f"{prefix}<")}
            below = next(iter(free), below)
        found |= written(inner, known, below)
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("heading", FILES)
def test_the_page_lists_exactly_the_keys_that_are_written(heading: str, project: Path) -> None:
    known = documented(heading)
    assert written(read(project / FILES[heading]), known) == known


@pytest.mark.parametrize("name", ["tiny", "both"])
def test_the_record_of_a_submission(name: str, project: Path) -> None:
    record = read(project / f"submissions/{name}.json")
    known = documented("Submission")
    assert written(record, known) == known
    expected = read(project / "runs/tiny/cv.json")["oof"]
    if name == "both":
        expected = read(project / "ensembles/both/ensemble.json")["cross_fitted"]
    assert record["score"] == expected


def test_lines_of_metrics(project: Path) -> None:
    known = documented("metrics.jsonl")
    for line in (project / "runs/tiny/fold0/metrics.jsonl").read_text(encoding="utf-8").splitlines():
        assert written(json.loads(line), known) == known


def test_the_index_of_decoded_images(project: Path) -> None:
    known = documented("Decoded images")
    (first, *_) = (project / ".cache/goldfold").glob("*/index.json")
    assert written(read(first), known) == known


def test_both_scores_of_an_ensemble_have_the_same_keys(project: Path) -> None:
    record = read(project / "ensembles/both/ensemble.json")
    assert record["cv"].keys() == record["cross_fitted"].keys()
    assert [fold.keys() for fold in record["cv"]["folds"]] == [fold.keys() for fold in record["cross_fitted"]["folds"]]


def test_tables_of_an_ensembles_members(project: Path) -> None:
    described = section("ensemble.json").partition("`members.csv` has")[2]
    members, correlation = (pd.read_csv(project / f"ensembles/both/{name}.csv") for name in ("members", "correlation"))
    assert list(members.columns) == re.findall(r"`([^`]+)`", described)[: len(members.columns)]
    assert list(correlation.columns) == ["name", *members["name"]]
    assert list(correlation["name"]) == list(members["name"])
    assert members["score"].is_monotonic_decreasing


def test_json_has_sorted_keys(project: Path) -> None:
    paths = [path for folder in ("folds", "runs", "ensembles", "submissions") for path in (project / folder).rglob("*")]
    records = [path for path in paths if path.suffix == ".json" or path.name == "DONE"]
    assert len(records) >= 13
    for path in records:
        assert path.read_text(encoding="utf-8") == json.dumps(read(path), indent=2, sort_keys=True) + "\n"


def test_columns_of_predictions(project: Path) -> None:
    assert {"fold", "p_<class>"} <= documented("Predictions")
    probabilities = ["p_cat", "p_dog", "p_fox"]
    for folder in ("runs/tiny", "runs/tiny/fold0", "ensembles/both"):
        oof, test = (pd.read_parquet(project / folder / f"{name}.parquet") for name in ("oof", "test"))
        assert list(oof.columns) == ["id", "fold", *probabilities]
        assert list(test.columns) == ["id", *probabilities]
        assert oof["fold"].dtype == "int64"
        assert all(frame[name].dtype == "float32" for frame in (oof, test) for name in probabilities)


def test_columns_of_views(project: Path) -> None:
    assert {"view", "p_<class>"} <= set(re.findall(r"`([^`]+)`", section("Views")))
    frame = pd.read_parquet(project / "runs/auto/fold0/views.parquet")
    assert list(frame.columns) == ["id", "view", "p_cat", "p_dog", "p_fox"]
    assert set(frame["view"]) == {"identity", "HorizontalFlip"}
    assert all(frame[name].dtype == "float32" for name in frame.columns[2:])


def test_columns_of_the_fold_table(project: Path) -> None:
    assert list(pd.read_csv(project / "folds/tiny.csv").columns) == ["id", "fold"]
