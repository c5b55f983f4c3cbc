"""The picture of the demo's result: what it shows, and that it is only an extra."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from goldfold import files
from goldfold.config import Config
from goldfold.config.schema import EnsembleRound, SubmitRound, TrainRound
from goldfold.demo.picture import choose_tiles, draw_result, score_rows
from goldfold.paths import Workspace
from goldfold.pipeline.run import Outcome, RoundOutcome
from goldfold.records import Predictions
from goldfold.tasks import Task

BINARY = Task("binary", ("1",), "0")
TRAIN = TrainRound(kind="train", experiment="x.yaml")
BLEND, SUBMIT = (
    EnsembleRound(kind="ensemble", name="both", members=("shells",)),
    SubmitRound(kind="submit", source="shells"),
)
PRIVATE = {"shells": {"auc": 0.93, "accuracy": 0.86}, "both": {"auc": 0.94, "accuracy": 0.87}}


def predictions(values: list[list[float]], classes: tuple[str, ...] = ("1",)) -> Predictions:
    return Predictions(tuple("abcdefgh"[: len(values)]), np.array(values, dtype=np.float32), classes, "run")


def binary_targets(*labels: int) -> Any:
    return np.array(labels, dtype=np.float32)[:, None]


def ids(shelf: Any) -> list[str]:
    return [tile.id for tile in shelf.tiles]


class TestTiles:
    def test_binary(self) -> None:
        found = predictions([[0.9], [0.99], [0.1], [0.004], [0.8], [0.3]])
        shelves = choose_tiles(BINARY, found, binary_targets(1, 1, 0, 0, 0, 1), "broken", 5)
        assert [ids(shelf) for shelf in shelves] == [["b", "a"], ["d", "c"], ["e", "f"]]
        assert [shelf.title for shelf in shelves] == [
            "Right and surest: broken",
            "Right and surest: not broken",
            "Mistakes, surest first (2 of 6 are wrong)",
        ]
        assert [tile.right for shelf in shelves for tile in shelf.tiles] == [True] * 4 + [False] * 2
        assert [tile.predicted for tile in shelves[1].tiles] == ["p <0.01", "p 0.10"]
        assert shelves[2].tiles[0].true == "true 0"

    def test_multiclass(self) -> None:
        values = [
            [0.9, 0.1, 0.0],
            [0.2, 0.8, 0.0],
            [0.5, 0.3, 0.2],
            [0.1, 0.3, 0.6],
            [0.3, 0.0, 0.7],
            [0.95, 0.05, 0.0],
        ]
        task = Task("multiclass", ("cat", "dog", "fox"))
        targets = np.eye(3, dtype=np.float32)[[0, 1, 0, 1, 2, 0]]
        shelves = choose_tiles(task, predictions(values, task.classes), targets, "", 5)
        assert [ids(shelf) for shelf in shelves] == [["f", "b", "e"], ["c", "e", "b", "a", "f"], ["d"]]
        assert (shelves[2].tiles[0].predicted, shelves[2].tiles[0].true) == ("fox: p 0.60", "true dog")

    def test_ties_go_by_id_and_shelves_may_be_empty(self) -> None:
        found = Predictions(("c", "a", "b"), np.array([[0.9]] * 3, dtype=np.float32), ("1",), "run")
        shelves = choose_tiles(BINARY, found, binary_targets(1, 1, 1), "1", 2)
        assert [ids(shelf) for shelf in shelves] == [["a", "b"], [], []]


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    """A run and an ensemble of it, as far as the picture looks."""
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"id": [f"{number:03d}" for number in range(12)], "label": [0, 1] * 6})
    files.write_csv(data / "train.csv", rows.assign(id="t" + rows["id"]))
    files.write_csv(data / "test.csv", rows[["id"]])
    files.write_csv(data / "solution.csv", rows.iloc[::-1])
    for name in [*rows["id"], *("t" + rows["id"])]:
        Image.fromarray(rng.integers(0, 256, (20, 30)).astype(np.uint8)).save(data / f"{name}.png")
    values = rng.uniform(0, 1, (12, 1)).astype(np.float32)
    table = Predictions(tuple(rows["id"]), values, ("1",), "both")
    table.write(Workspace(tmp_path).ensemble("both") / "test.parquet", "id")
    competition = {
        "name": "shells",
        "task": "binary",
        "metric": "auc",
        "extra_metrics": ["accuracy"],
        "train_csv": "data/train.csv",
        "test_csv": "data/test.csv",
        "image_path": "data/{id}.png",
    }
    folds = [{"fold": number, "rows": 6, "auc": 0.9 + number / 100, "accuracy": 0.8} for number in range(2)]
    cv = {"metric": "auc", "mean": 0.905, "std": 0.007, "oof": {"auc": 0.9, "accuracy": 0.8}, "folds": folds}
    scores = {"score": 0.92, "std": 0.01, "folds": [{"fold": 0, "score": 0.9}, {"fold": 1, "score": 0.94}]}
    ensemble = {
        "members": [{"name": "shells", "weight": 1.0}],
        "method": "mean",
        "metric": "auc",
        "cv": {**scores, "score": 0.95},
        "cross_fitted": scores,
    }
    config = Config.model_validate({"name": "shells", "competition": competition})
    return Outcome(runs={"shells": cv}, ensembles={"both": ensemble}, configs={"shells": config})


def test_the_scores_of_members_and_ensemble(outcome: Outcome) -> None:
    member, ensemble = score_rows(outcome, PRIVATE)
    assert (member.name, member.note, member.folds) == ("shells", "weight 1.00", (0.9, 0.91))
    assert (member.mean, member.std, member.oof, member.cross_fitted) == (0.905, 0.007, 0.9, None)
    assert (ensemble.note, ensemble.folds, ensemble.std) == ("ensemble (mean)", (0.9, 0.94), 0.01)
    assert ensemble.mean == pytest.approx(0.92)
    assert (ensemble.oof, ensemble.cross_fitted, ensemble.private["auc"]) == (0.95, 0.92, 0.94)


def test_leaky_rounds_are_marked_and_rows_stand_in_the_order_of_the_rounds(outcome: Outcome) -> None:
    outcome.runs["student"] = {**outcome.runs["shells"], "leaky": True}
    outcome.ensembles["both"] |= {"leaky": True}
    made = [("shells", TRAIN), ("both", BLEND), ("student", TRAIN), ("shells", SUBMIT)]
    outcome.rounds = [RoundOutcome(number, step, name, "done") for number, (name, step) in enumerate(made, 1)]
    assert [row.name for row in score_rows(outcome, {})] == ["shells", "both (leaky)", "student (leaky)"]
    outcome.ensembles["late"] = outcome.ensembles["both"]
    assert score_rows(outcome, {})[0].note == "weight 1.00 in late"


def test_undefined_scores_are_left_out(outcome: Outcome, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    outcome.runs["shells"] |= {"mean": None, "std": None, "oof": {"auc": None}, "folds": [{"fold": 0, "auc": None}]}
    outcome.ensembles["both"] |= {"cross_fitted": None}
    member, ensemble = score_rows(outcome, {})
    assert (member.folds, member.mean, member.oof, dict(member.private)) == ((), None, None, {})
    assert (ensemble.cross_fitted, ensemble.oof) == (None, 0.95)
    assert draw_result(outcome, {}, Workspace(tmp_path), tmp_path / "data", tmp_path / "result.png")


def test_a_picture_is_written(outcome: Outcome, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "submissions" / "shells.png"
    assert draw_result(outcome, PRIVATE, Workspace(tmp_path), tmp_path / "data", path)
    assert [found.name for found in path.parent.iterdir()] == ["shells.png"]
    assert path.stat().st_size < 300_000
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (1400, 800))
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ((0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00), (0xE6, 0x9F, 0x00), (0xCC, 0x79, 0xA7)):
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) <= 3).sum() > 20, "frames and marks keep their colours"
    before = path.read_bytes()
    draw_result(outcome, PRIVATE, Workspace(tmp_path), tmp_path / "data", path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("metrics", [["accuracy"], []])
def test_published_accuracy_stands_beside_ours(
    outcome: Outcome, tmp_path: Path, metrics: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from goldfold.demo import picture

    drawn = []
    monkeypatch.setattr(picture, "PUBLISHED", {"shells": {"CNN": 0.88}})
    monkeypatch.setattr(picture, "_draw_published", lambda figure, rows, published: drawn.append(published))
    private = {name: {key: scores[key] for key in ["auc", *metrics]} for name, scores in PRIVATE.items()}
    draw_result(outcome, private, Workspace(tmp_path), tmp_path / "data", tmp_path / "result.png")
    assert drawn == ([{"CNN": 0.88}] if metrics else [])


def test_without_matplotlib_one_line_says_so(
    outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not draw_result(outcome, {}, Workspace(tmp_path), tmp_path / "data", tmp_path / "result.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert "matplotlib is not installed" in line
    assert not (tmp_path / "result.png").exists()
