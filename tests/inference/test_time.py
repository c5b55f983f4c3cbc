"""The time budget through the engine, on a clock that only predictions move: what is submitted when time is up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from goldfold import files
from goldfold.ensemble import Member, load_blend, make_ensemble
from goldfold.errors import GoldfoldError
from goldfold.inference import engine
from goldfold.inference.networks import Network
from goldfold.inference.run import Settings, predict
from goldfold.metrics import get_metric
from goldfold.records import Floats, Predictions
from tests.inference.conftest import Clock
from tests.inference.packs import TASK, Example, train_ids, truth_of

Make = Callable[..., Settings]
ROWS, FOLDS = 24, 2
ALL = ROWS * FOLDS * (1 + 2 + 4)
"""Seconds of everything: cheap takes 1 second an image, other 2, strong 4."""


def run(example: Example, given: Settings, clock: Clock) -> dict[str, Any]:
    assert predict(given, now=clock) == 0
    found = json.loads((given.working / "inference.json").read_text())
    assert isinstance(found, dict)
    return found


def folds_of(report: dict[str, Any]) -> dict[str, int]:
    return {member["name"]: member["folds"] for member in report["members"]}


def values_of(given: Settings, example: Example) -> np.ndarray[Any, np.dtype[np.float64]]:
    frame = files.read_csv(given.working / "submission.csv").set_index("id")
    return frame.loc[list(example.test()["id"]), list(TASK.classes)].to_numpy(dtype=np.float64)


def blend_of(example: Example, names: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The ensemble that would be made of these members alone."""
    monkeypatch.setattr("goldfold.ensemble.stage.draw_members", lambda *_: False)
    members = [
        Member(name, Predictions.read(example.root / "runs" / name / "oof.parquet", name), None, "0") for name in names
    ]
    truth = (train_ids(), truth_of(TASK)[0])
    make_ensemble(folder, "part", members, truth, TASK, get_metric("log_loss"), [], "simplex", "id")
    return load_blend(folder, None)


def expected(example: Example, blend: Any, done: dict[str, int]) -> Floats:
    """The blend of each member's mean over the folds that are done."""
    tables = [example.member_values(name, range(done[name])).values for name in blend.members]
    return np.asarray(blend.apply(tables, TASK), dtype=np.float32)


def test_with_ample_time_the_whole_ensemble_is_submitted(example: Example, settings: Make, clock: Clock) -> None:
    given = settings(example, hours=2 * ALL / 3600)
    report = run(example, given, clock)
    assert report["complete"]
    assert clock.time == ALL  # every image by every network once, what measured them included
    assert files.read_csv(given.working / "submission.csv").equals(example.submission(example.expected()))


@pytest.mark.parametrize("seconds", [75, 150, 260])
def test_what_is_done_in_time_is_blended_with_weights_fitted_for_that_very_subset(
    example: Example, settings: Make, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    given = settings(example, hours=seconds / 3600)
    report = run(example, given, clock)
    assert clock.time <= seconds
    done = folds_of(report)
    assert not report["complete"]
    assert report["predicted"] == ROWS
    names = [name for name, count in done.items() if count]
    assert len(names) == {75: 1, 150: 2, 260: 3}[seconds]
    blend = blend_of(example, names, tmp_path / "part", monkeypatch)
    assert values_of(given, example) == pytest.approx(expected(example, blend, done), abs=1e-5)
    record = files.read_json(tmp_path / "part" / "ensemble.json")
    assert report["score"] == pytest.approx(record["cross_fitted"]["score"])
    assert {each["name"]: each["weight"] for each in report["members"] if each["weight"]} == pytest.approx(
        {each["name"]: each["weight"] for each in record["members"]}
    )


def test_time_for_a_part_of_one_network_answers_those_images(
    example: Example, settings: Make, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    given = settings(example, hours=20 / 3600)
    report = run(example, given, clock)
    assert clock.time <= 20
    assert 0 < report["predicted"] < ROWS
    found = values_of(given, example)
    prior = np.isclose(found, 1 / 3, atol=1e-6).all(axis=1)
    assert int((~prior).sum()) == report["predicted"]
    whole = example.member_values("cheap", [0]).values
    assert found[~prior] == pytest.approx(whole[~prior], abs=1e-5)
    assert "too short for one network on all images" in capsys.readouterr().err


def test_no_time_at_all_is_the_prior_and_one_line(example: Example, settings: Make, clock: Clock) -> None:
    given = settings(example, hours=1e-4 / 3600)
    clock.time = 1.0
    with pytest.raises(GoldfoldError, match="too short for any image"):
        predict(given, now=_ticking(clock))
    assert values_of(given, example) == pytest.approx(np.full((ROWS, 3), 1 / 3), abs=1e-6)


def _ticking(clock: Clock) -> Callable[[], float]:
    def now() -> float:
        clock.time += 1.0
        return clock.time

    return now


def test_the_time_counts_from_the_kernels_start(example: Example, settings: Make, clock: Clock) -> None:
    given = settings(example, hours=10 * ALL / 3600, started=time.time() - 10 * ALL + 75)
    report = run(example, given, clock)
    assert not report["complete"]


def test_a_network_that_hangs_does_not_hold_up_the_end(
    example: Example, settings: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    whole = Network.predict

    def hanging(self: Network, pixels: Any, metadata: Any) -> Any:
        if clock.time > 60 and self.unit.member.name == "strong":
            clock.time = 1e6  # time is up, and this does not come back
            free.wait(60)
        return whole(self, pixels, metadata)

    monkeypatch.setattr(Network, "predict", hanging)
    given = settings(example, hours=190 / 3600)
    report = run(example, given, clock)
    free.set()
    assert not report["complete"]
    assert sum(folds_of(report).values()) >= 1
    assert report["predicted"] == ROWS
    assert len(values_of(given, example)) == ROWS


def test_a_file_that_hangs_gets_the_prior(
    example: Example, settings: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    read = Path.read_bytes

    def hanging(path: Path) -> bytes:
        if path.name == "009x.png":
            free.wait(60)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", hanging)
    given = settings(example)
    assert predict(given, now=clock, patience=0.5) == 0
    free.set()
    report = json.loads((given.working / "inference.json").read_text())
    assert report["unreadable"] == 1
    assert report["complete"]


def test_parts_share_the_time_and_none_is_left_without_predictions(
    example: Example, settings: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FEWEST_ROWS", 8)
    given = settings(example, hours=150 / 3600, store_gb=1e-5)
    report = run(example, given, clock)
    assert clock.time <= 150
    assert report["predicted"] == ROWS
    assert {step["part"] for step in report["steps"]} == {0, 1, 2}


def test_submissions_follow_each_other_and_get_no_worse(
    example: Example, settings: Make, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run(example, settings(example, hours=2 * ALL / 3600), clock)
    written = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wrote ")]
    scores = [float(line.rpartition("cross-fitted ")[2]) for line in written if "cross-fitted" in line]
    assert len(scores) >= 2
    assert scores == sorted(scores, reverse=True)
    assert pd.Series(scores).iloc[-1] == pytest.approx(
        files.read_json(example.pack / "ensemble.json")["cross_fitted"]["score"], abs=1e-5
    )
