"""Who teaches fold k: bundles that left it out, combined by weights that were fitted without its labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from goldfold.errors import BadInput
from goldfold.paths import Workspace
from goldfold.rounds import combine, excluded_fold, members, online_bundles, open_teachers
from goldfold.tasks import Task
from tests.rounds.conftest import write_ensemble

TASK = Task("binary", ("1",), "0")


def finish(root: Path, name: str, folds: tuple[int, ...] = (0, 1), seeds: tuple[int, ...] = (0,), leaky: bool = False):  # type: ignore[no-untyped-def]
    """The records of a finished run, without networks."""
    run = Workspace(root).run(name)
    run.folder.mkdir(parents=True)
    run.config.write_text("")
    run.record.write_text(json.dumps({"leaky": leaky}))
    marks = {"leaky": leaky, "optimistic": False}
    run.cv.write_text(json.dumps({"folds": [{"fold": fold} for fold in folds], "seeds": list(seeds), **marks}))
    from goldfold.records import Predictions

    values = np.zeros((2, 1), dtype=np.float32)
    Predictions(("a", "b"), values, ("1",), name, np.array([0, 1])).write(run.oof, "id")
    for fold in folds:
        for place, seed in enumerate(seeds):
            path = run.fold(fold, seed if place else None)
            path.folder.mkdir()
            path.bundle.write_text(json.dumps({"fold": fold}))
            path.done.write_text("{}")
    return run


def values(**runs: float) -> dict[str, np.ndarray]:
    return {name: np.full((2, 1), value, dtype=np.float32) for name, value in runs.items()}


def test_a_run_teaches_by_its_fold_s_bundles_of_all_seeds(tmp_path: Path) -> None:
    run = finish(tmp_path, "one", folds=(0, 1, 10), seeds=(0, 5))
    (teacher,) = open_teachers(["one"], Workspace(tmp_path))
    assert [path.folder.name for path in teacher.runs[0].bundles(1)] == ["fold1", "fold1-seed5"]
    assert [path.folder.name for path in teacher.runs[0].bundles(10)] == ["fold10", "fold10-seed5"]
    assert len(teacher.runs[0].bundles(None)) == 6
    assert excluded_fold([teacher], 10) == 10
    assert excluded_fold([teacher], None) is None
    assert combine([teacher], 1, values(one=0.3), TASK).tolist() == [[pytest.approx(0.3)]] * 2
    (run.fold(1, 5).folder / "DONE").unlink()
    with pytest.raises(BadInput, match=r"fold1-seed5: the teacher's fold 1 is not finished"):
        teacher.runs[0].bundles(1)
    with pytest.raises(BadInput, match=r"the teacher has no fold 2; it has 0, 1, 10: teachers and students need"):
        teacher.runs[0].bundles(2)


def test_a_bundle_that_was_trained_on_another_fold_is_noticed(tmp_path: Path) -> None:
    run = finish(tmp_path, "one")
    run.fold(0).bundle.write_text(json.dumps({"fold": 1}))
    teachers = open_teachers(["one"], Workspace(tmp_path))
    with pytest.raises(BadInput, match=r"a bundle of fold 1 lies in the folder of fold 0"):
        excluded_fold(teachers, 0)
    assert excluded_fold(teachers, 1) == 1


def test_an_ensemble_teaches_by_the_weights_without_the_fold(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        finish(tmp_path, name)
    write_ensemble(tmp_path, "all", ["one", "two", "three"], {None: (0.2, 0.2, 0.6), 0: (0.5, 0.5, 0), 1: (0, 1, 0)})
    teachers = open_teachers(["all"], Workspace(tmp_path))
    assert [run.name for run in members(teachers, 0)] == ["one", "two"]
    assert [run.name for run in members(teachers, 1)] == ["two"]
    assert [run.name for run in members(teachers, None)] == ["one", "three", "two"]
    assert combine(teachers, 0, values(one=0.2, two=0.6), TASK)[0, 0] == pytest.approx(0.4)
    assert combine(teachers, 1, values(two=0.6), TASK)[0, 0] == pytest.approx(0.6)
    assert combine(teachers, None, values(one=0, two=0.5, three=1), TASK)[0, 0] == pytest.approx(0.7)
    # Named teachers count equally, and a run may be among several.
    both = open_teachers(["all", "one"], Workspace(tmp_path))
    assert combine(both, 0, values(one=0.2, two=0.6), TASK)[0, 0] == pytest.approx(0.3)
    found = {path.folder.parent.name: weight for path, weight in online_bundles(both, 0)}
    assert found == {"one": pytest.approx(0.75), "two": pytest.approx(0.25)}
    assert {path.folder.name for path, _ in online_bundles(both, 0)} == {"fold0"}
    with pytest.raises(BadInput, match="no blend that was fitted without fold 2"):
        members(teachers, 2)


def test_online_weights_are_shared_by_seeds(tmp_path: Path) -> None:
    finish(tmp_path, "one", seeds=(0, 5))
    finish(tmp_path, "two")
    teachers = open_teachers(["one", "two"], Workspace(tmp_path))
    assert [(path.folder.name, weight) for path, weight in online_bundles(teachers, 1)] == [
        ("fold1", 0.25),
        ("fold1-seed5", 0.25),
        ("fold1", 0.5),
    ]
    assert sum(weight for _, weight in online_bundles(teachers, None)) == pytest.approx(1)


def test_a_calibrated_ensemble_teaches_with_the_temperature_of_its_fold(tmp_path: Path) -> None:
    for name in ("one", "two"):
        finish(tmp_path, name)
    half = (0.5, 0.5)
    write_ensemble(tmp_path, "all", ["one", "two"], {None: half, 0: half, 1: half})
    path = tmp_path / "ensembles/all/ensemble.json"
    record = json.loads(path.read_text())
    record["calibration"] = "temperature"
    record["fitted"]["calibration"] = {"temperatures": [9.0]}
    record["fold_fitted"]["0"]["calibration"] = {"temperatures": [2.0]}
    record["fold_fitted"]["1"]["calibration"] = {"temperatures": [0.5]}
    path.write_text(json.dumps(record))
    teachers = open_teachers(["all"], Workspace(tmp_path))
    # Odds of 4: their square root at a temperature of 2, their square at a half.
    assert combine(teachers, 0, values(one=0.8, two=0.8), TASK)[0, 0] == pytest.approx(2 / 3, abs=1e-5)
    assert combine(teachers, 1, values(one=0.8, two=0.8), TASK)[0, 0] == pytest.approx(16 / 17, abs=1e-5)
    with pytest.raises(BadInput, match="is calibrated, which online distillation cannot do"):
        online_bundles(teachers, 0)


def test_equal_weights_teach_where_nothing_was_cross_fitted(tmp_path: Path) -> None:
    for name in ("one", "two"):
        finish(tmp_path, name)
    write_ensemble(tmp_path, "all", ["one", "two"], {None: (0.5, 0.5)}, method="mean")
    teachers = open_teachers(["all"], Workspace(tmp_path))
    assert combine(teachers, 0, values(one=0.2, two=0.6), TASK)[0, 0] == pytest.approx(0.4)


def test_a_geometric_mean_teaches_stored_labels_but_not_online(tmp_path: Path) -> None:
    for name in ("one", "two"):
        finish(tmp_path, name)
    half = (0.5, 0.5)
    write_ensemble(tmp_path, "all", ["one", "two"], {None: half, 0: half}, method="gmean")
    teachers = open_teachers(["all"], Workspace(tmp_path))
    assert combine(teachers, 0, values(one=0.1, two=0.9), TASK)[0, 0] == pytest.approx(0.5)
    with pytest.raises(BadInput, match=r"teacher\.distill\.how: the ensemble 'all' is blended by gmean, .* use stored"):
        online_bundles(teachers, 0)


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    finish(tmp_path, "one")
    write_ensemble(tmp_path, "ranks", ["one"], {None: (1.0,), 0: (1.0,)}, method="rank_mean")
    with pytest.raises(BadInput, match="the ensemble 'ranks' is a mean of ranks, which are no probabilities"):
        open_teachers(["ranks"], workspace)
    write_ensemble(tmp_path, "one", ["one"], {None: (1.0,)})
    with pytest.raises(BadInput, match="'one' is a run and an ensemble"):
        open_teachers(["one"], workspace)
    with pytest.raises(BadInput, match="the run 'nobody' does not exist"):
        open_teachers(["nobody"], workspace)
    finish(tmp_path, "begun").cv.unlink()
    with pytest.raises(BadInput, match="the run 'begun' is not finished"):
        open_teachers(["begun"], workspace)


def test_bundles_of_a_leaky_teacher_have_seen_every_fold(tmp_path: Path) -> None:
    finish(tmp_path, "one")
    finish(tmp_path, "told", leaky=True)
    write_ensemble(tmp_path, "all", ["one", "told"], {None: (0.5, 0.5), 0: (1.0, 0.0)})
    for names in (["told"], ["one", "told"], ["all"]):
        teachers = open_teachers(names, Workspace(tmp_path))
        assert excluded_fold(teachers, 0) is None
