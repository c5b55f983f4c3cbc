"""The ensemble stage: members meet by id, the record is honest, and nothing depends on order."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from goldfold.config.schema import BlendMethod
from goldfold.ensemble import Member, align, load_blend, load_member, make_ensemble
from goldfold.errors import BadInput
from goldfold.metrics import Metric, get_metric, score
from goldfold.paths import RunPaths
from goldfold.records import Floats, FoldTable, Ints, Predictions
from goldfold.tasks import Task

TASK = Task("multiclass", ("a", "b", "c"))
ROWS = 24
IDS = tuple(f"img{row:02d}" for row in range(ROWS))
TEST_IDS = tuple(f"test{row}" for row in range(6))
FOLD = (np.arange(ROWS) % 3).astype(np.int64)
TARGETS = np.eye(3, dtype=np.float32)[np.arange(ROWS) // 3 % 3]


def mean_nll(task: Task, targets: Floats, values: Floats) -> float:
    return float(-np.log((targets * values).sum(axis=1).clip(1e-7)).mean())


# As log_loss, without scikit-learn's checks: a search asks for it hundreds of times.
LOSS = Metric("nll", False, "probability", frozenset({"multiclass"}), mean_nll)


def table(seed: int, rows: int) -> Floats:
    raw = np.random.default_rng(seed).random((rows, 3)) + 0.01
    return (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)


def member(name: str, seed: int, test: bool = True) -> Member:
    oof = Predictions(IDS, table(seed, ROWS), TASK.classes, name, FOLD, where=f"{name} oof")
    rest = Predictions(TEST_IDS, table(seed + 1000, 6), TASK.classes, name, where=f"{name} test") if test else None
    return Member(name, oof, rest, f"digest-{seed}")


def shuffled(one: Member, seed: int) -> Member:
    rng = np.random.default_rng(seed)
    oof_ids = [IDS[row] for row in rng.permutation(ROWS)]
    test = None if one.test is None else one.test.take([TEST_IDS[row] for row in rng.permutation(6)])
    return replace(one, oof=one.oof.take(oof_ids), test=test)


def with_oof(
    one: Member, ids: tuple[str, ...] = IDS, fold: Ints = FOLD, classes: tuple[str, ...] = ("a", "b", "c")
) -> Member:
    values = np.full((len(ids), len(classes)), 1 / len(classes), np.float32)
    return replace(one, oof=Predictions(ids, values, classes, one.name, fold))


def make(folder: Path, members: list[Member], method: BlendMethod = "simplex", **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "folder": folder,
        "name": folder.name,
        "members": members,
        "truth": (IDS, TARGETS),
        "task": TASK,
        "metric": LOSS,
        "extra_metrics": [get_metric("accuracy")],
        "method": method,
        "id_column": "id",
    }
    return make_ensemble(**{**given, **changes})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def one_line(caught: pytest.ExceptionInfo[BadInput]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_record_and_tables(tmp_path: Path) -> None:
    members = [member("one", 1), member("two", 2), member("three", 3)]
    record = make(tmp_path / "mix", members)
    assert record == json.loads((tmp_path / "mix" / "ensemble.json").read_text())
    assert [each["name"] for each in record["members"]] == ["one", "two", "three"]
    weights = np.array([each["weight"] for each in record["members"]])
    assert weights.sum() == pytest.approx(1)
    assert [each["score"] for each in record["members"]] == [
        pytest.approx(score(LOSS, TASK, TARGETS, one.oof.values)) for one in members
    ]
    assert [each["digest"] for each in record["members"]] == ["digest-1", "digest-2", "digest-3"]
    assert (record["metric"], record["greater_is_better"], record["oof"]) == ("nll", False, "cross_fitted")
    assert (record["task"], record["classes"], record["rows"]) == ("multiclass", ["a", "b", "c"], ROWS)

    plain = sum(weight * one.oof.values for weight, one in zip(weights, members, strict=True))
    assert record["cv"]["score"] == pytest.approx(score(LOSS, TASK, TARGETS, plain.astype(np.float32)), abs=1e-6)
    folds = [score(LOSS, TASK, TARGETS[k == FOLD], plain[k == FOLD].astype(np.float32)) for k in range(3)]
    assert [each["score"] for each in record["cv"]["folds"]] == pytest.approx(folds, abs=1e-6)
    assert record["cv"]["std"] == pytest.approx(np.std(folds, ddof=1), abs=1e-6)
    # Smaller is better here, so optimism is how far the plain score lies below the honest one.
    assert record["optimism"] == pytest.approx(record["cross_fitted"]["score"] - record["cv"]["score"])
    assert record["optimism"] > 0
    assert set(record["cross_fitted"]["extra"]) == {"accuracy"}

    oof = Predictions.read(tmp_path / "mix" / "oof.parquet", "mix")
    assert oof.ids == IDS
    assert oof.fold is not None
    assert oof.fold.tolist() == FOLD.tolist()
    assert score(LOSS, TASK, TARGETS, oof.values) == record["cross_fitted"]["score"]
    for k in range(3):
        of_fold = [record["fold_weights"][str(k)][one.name] for one in members]
        expected = sum(weight * one.oof.values[k == FOLD] for weight, one in zip(of_fold, members, strict=True))
        assert oof.values[k == FOLD] == pytest.approx(expected, abs=1e-6)

    test = Predictions.read(tmp_path / "mix" / "test.parquet", "mix").take(TEST_IDS)
    tests = [one.test.values for one in members if one.test is not None]
    assert test.values == pytest.approx(sum(w * each for w, each in zip(weights, tests, strict=True)), abs=1e-6)


@pytest.mark.parametrize("method", ["mean", "gmean", "rank_mean", "simplex", "greedy", "stacking"])
def test_order_of_rows_and_members_changes_nothing(tmp_path: Path, method: BlendMethod) -> None:
    members = [member("one", 1), member("two", 2), member("three", 3)]
    make(tmp_path / "a" / "mix", members, method)
    make(tmp_path / "b" / "mix", [shuffled(one, seed) for seed, one in enumerate(members)], method)
    before = files_of(tmp_path / "a" / "mix")
    tables = ["correlation.csv", "members.csv", "members.png", "oof.parquet", "test.parquet"]
    assert list(before) == sorted(["ensemble.json", *tables])
    assert before == files_of(tmp_path / "b" / "mix")
    turned = make(tmp_path / "c" / "mix", [members[2], members[0], members[1]], method)
    after = files_of(tmp_path / "c" / "mix")
    assert {name: after[name] for name in tables} == {name: before[name] for name in tables}
    first = json.loads(before["ensemble.json"])
    assert [each["name"] for each in turned["members"]] == ["three", "one", "two"]
    by_name = {each["name"]: each for each in turned["members"]}
    assert [by_name[each["name"]] for each in first["members"]] == first["members"]
    assert {**turned, "members": None} == {**first, "members": None}


def test_held_out_labels_do_not_touch_the_stored_oof(tmp_path: Path) -> None:
    members = [member("one", 1), member("two", 2), member("three", 3)]
    spoilt = TARGETS.copy()
    spoilt[FOLD == 2] = np.roll(spoilt[FOLD == 2], 1, axis=1)
    make(tmp_path / "a", members)
    make(tmp_path / "b", members, truth=(IDS, spoilt))
    rows = [Predictions.read(tmp_path / name / "oof.parquet", name).values for name in ("a", "b")]
    assert np.array_equal(rows[0][FOLD == 2], rows[1][FOLD == 2])
    assert not np.array_equal(rows[0][FOLD != 2], rows[1][FOLD != 2])


def test_unchanged_is_skipped_and_changed_is_made_anew(tmp_path: Path) -> None:
    members = [member("one", 1), member("two", 2)]
    first = make(tmp_path / "mix", members)
    marker = tmp_path / "mix" / "ensemble.json"
    stamp = marker.stat().st_mtime_ns
    assert make(tmp_path / "mix", members) == first
    assert marker.stat().st_mtime_ns == stamp
    prints = {first["fingerprint"]}
    relabelled = np.roll(TARGETS, 1, axis=0)
    prints.add(make(tmp_path / "mix", members, "greedy")["fingerprint"])
    prints.add(make(tmp_path / "mix", members, metric=get_metric("accuracy"))["fingerprint"])
    prints.add(make(tmp_path / "mix", members, truth=(IDS, relabelled))["fingerprint"])
    prints.add(make(tmp_path / "mix", [members[0], replace(members[1], digest="new")])["fingerprint"])
    assert len(prints) == 5
    # A table that has gone is made again.
    (tmp_path / "mix" / "oof.parquet").unlink()
    make(tmp_path / "mix", [members[0], replace(members[1], digest="new")])
    assert (tmp_path / "mix" / "oof.parquet").is_file()


def test_one_member_alone(tmp_path: Path) -> None:
    one = member("one", 1)
    record = make(tmp_path / "solo", [one])
    assert record["members"][0]["weight"] == 1.0
    assert record["optimism"] == 0
    assert Predictions.read(tmp_path / "solo" / "oof.parquet", "solo").values == pytest.approx(one.oof.values)


def test_a_holdout_has_no_cross_fitted_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids, fold = IDS[:8], np.zeros(8, np.int64)
    members = [
        replace(member(name, seed, test=False), oof=Predictions(ids, table(seed, 8), TASK.classes, name, fold))
        for seed, name in enumerate(("one", "two"))
    ]
    record = make(tmp_path / "hold", members)
    assert (record["cross_fitted"], record["optimism"], record["oof"], record["rows"]) == (None, None, "plain", 8)
    assert record["cv"]["std"] is None
    assert not (tmp_path / "hold" / "test.parquet").exists()
    said = capsys.readouterr().err
    assert "one fold" in said
    assert "no test predictions" in said


def test_an_undefined_score_is_null(tmp_path: Path) -> None:
    task = Task("binary", ("1",), "0")
    one = Member("one", Predictions(IDS, np.full((ROWS, 1), 0.5, np.float32), ("1",), "one", FOLD), None, "d")
    record = make(tmp_path / "nan", [one], truth=(IDS, np.ones((ROWS, 1), np.float32)), task=task,
                  metric=get_metric("auc"), extra_metrics=[])  # fmt: skip
    assert record["cv"]["score"] is None
    assert record["members"][0]["score"] is None
    assert "NaN" not in (tmp_path / "nan" / "ensemble.json").read_text()


def test_folds_without_a_score_are_left_out_of_the_deviation(tmp_path: Path) -> None:
    """Fold 2 holds one class alone, so it has no AUC; the others still have a spread."""
    task, metric = Task("binary", ("1",), "0"), get_metric("auc")
    truth = (np.arange(ROWS) // 3 % 2).astype(np.float32)[:, None]
    truth[FOLD == 2] = 0

    def one(name: str, seed: int) -> Member:
        values = np.random.default_rng(seed).random((ROWS, 1)).astype(np.float32)
        return Member(name, Predictions(IDS, values, ("1",), name, FOLD), None, f"digest-{seed}")

    record = make(
        tmp_path / "mix", [one("one", 2), one("two", 3)], truth=(IDS, truth), task=task, metric=metric, extra_metrics=[]
    )
    for kind in ("cv", "cross_fitted"):
        scores = [each["score"] for each in record[kind]["folds"]]
        assert scores[2] is None
        assert record[kind]["std"] == pytest.approx(np.std(scores[:2], ddof=1))
        assert record[kind]["std"] > 0
    # With a single one left there is no spread.
    truth[FOLD == 1] = 1
    record = make(
        tmp_path / "mix", [one("one", 2), one("two", 3)], truth=(IDS, truth), task=task, metric=metric, extra_metrics=[]
    )
    assert [each["score"] is None for each in record["cv"]["folds"]] == [False, True, True]
    assert record["cv"]["std"] is None


def test_align_takes_the_first_members_order() -> None:
    first, second = shuffled(member("one", 1), 5), member("two", 2)
    aligned = align([first, second])
    assert aligned[1].oof.ids == first.oof.ids
    assert np.array_equal(aligned[1].oof.values, second.oof.take(first.oof.ids).values)
    assert aligned[1].test is not None
    assert first.test is not None
    assert aligned[1].test.ids == first.test.ids


def test_other_ids_are_refused_by_name() -> None:
    other = with_oof(member("two", 2), (*IDS[:-1], "stranger"))
    with pytest.raises(BadInput) as caught:
        align([member("one", 1), other])
    line = one_line(caught)
    assert all(word in line for word in ("'one'", "'two'", "img23", "stranger"))


def test_missing_test_ids_are_refused() -> None:
    two = member("two", 2)
    assert two.test is not None
    with pytest.raises(BadInput, match=r"test ids differ.*test5"):
        align([member("one", 1), replace(two, test=two.test.take(TEST_IDS[:5]))])


def test_doubled_ids_and_members_are_refused() -> None:
    with pytest.raises(BadInput, match="duplicate ids: img00"):
        with_oof(member("two", 2), (IDS[0], *IDS[:-1]))
    with pytest.raises(BadInput, match="twice: one"):
        align([member("one", 1), member("one", 2)])
    with pytest.raises(BadInput, match="no members"):
        align([])


def test_other_folds_are_refused_by_name() -> None:
    fold = FOLD.copy()
    fold[4] = (fold[4] + 1) % 3
    with pytest.raises(BadInput) as caught:
        align([member("one", 1), shuffled(with_oof(member("two", 2), fold=fold), 9)])
    line = one_line(caught)
    assert all(word in line for word in ("'one'", "'two'", "1 ids are in different folds: img04"))


def test_other_repeats_are_refused_by_number() -> None:
    once, twice = replace(member("one", 1), folds=(0, 1, 2)), replace(member("two", 2), folds=tuple(range(6)))
    align([once, member("three", 3)])
    with pytest.raises(BadInput, match=r"'one' has 3 folds .* 'two' has 6 folds .*2 repeats of 3") as caught:
        align([once, twice])
    one_line(caught)
    fewer = with_oof(member("four", 4), fold=np.minimum(FOLD, 1))
    with pytest.raises(BadInput, match=r"'one' has 3 folds .* 'four' has 2 folds"):
        align([once, fewer])


def test_another_deal_of_further_repeats_is_refused() -> None:
    """Of repeats the out-of-fold table names the first one's folds alone."""
    one, two = (
        replace(member(name, seed), folds=tuple(range(6)), fold_table="first")
        for name, seed in (("one", 1), ("two", 2))
    )
    align([one, two])
    align([one, replace(two, fold_table="")])  # of a run whose record is gone nothing is known
    with pytest.raises(BadInput, match="members 'one' and 'two': their fold tables differ; train both") as caught:
        align([one, replace(two, fold_table="second")])
    one_line(caught)
    once = [replace(each, folds=(0, 1, 2)) for each in (one, replace(two, fold_table="second"))]
    align(once)  # every id's fold is compared


def test_other_classes_and_lone_test_predictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="classes differ: a, b, c against a, c, b"):
        align([member("one", 1), with_oof(member("two", 2), classes=("a", "c", "b"))])
    with pytest.raises(BadInput, match="'two' has none"):
        align([member("one", 1), member("two", 2, test=False)])
    with pytest.raises(BadInput, match="the competition has x, y, z"):
        make(tmp_path / "mix", [member("one", 1)], task=Task("multiclass", ("x", "y", "z")))


def test_images_without_a_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="1 predicted ids of 'one' have no label: img23") as caught:
        make(tmp_path / "mix", [member("one", 1)], truth=(IDS[:-1], TARGETS[:-1]))
    one_line(caught)
    assert not (tmp_path / "mix").exists()


def test_shuffled_labels_are_the_same_ensemble(tmp_path: Path) -> None:
    members = [member("one", 1), member("two", 2)]
    order = np.random.default_rng(3).permutation(ROWS)
    make(tmp_path / "a" / "mix", members)
    make(tmp_path / "b" / "mix", members, truth=([IDS[row] for row in order], TARGETS[order]))
    assert files_of(tmp_path / "a" / "mix") == files_of(tmp_path / "b" / "mix")


def test_a_leaky_member_marks_the_ensemble(tmp_path: Path) -> None:
    honest = make(tmp_path / "honest", [member("one", 1), member("two", 2)])
    leaky = make(tmp_path / "honest", [member("one", 1), replace(member("two", 2), leaky=True)])
    assert (honest["leaky"], leaky["leaky"]) == (False, True)
    assert [each["leaky"] for each in leaky["members"]] == [False, True]
    rows = pd.read_csv(tmp_path / "honest" / "members.csv").set_index("name")
    assert rows["leaky"].to_dict() == {"one": False, "two": True}


def test_an_optimistic_member_marks_the_ensemble(tmp_path: Path) -> None:
    """And an ensemble that was made before the member became one is made anew."""
    plain, chosen = member("one", 1), replace(member("two", 2), optimistic=True)
    honest = make(tmp_path / "mix", [plain, replace(chosen, optimistic=False)])
    marked = make(tmp_path / "mix", [shuffled(plain, 3), shuffled(chosen, 4)])
    assert (honest["optimistic"], marked["optimistic"]) == (False, True)
    assert [each["optimistic"] for each in marked["members"]] == [False, True]
    assert marked["leaky"] is False
    assert json.loads((tmp_path / "mix" / "ensemble.json").read_text()) == marked


@pytest.mark.parametrize("method", ["simplex", "rank_mean", "stacking"])
def test_stored_blends_are_read_back(tmp_path: Path, method: BlendMethod) -> None:
    members = [member("two", 2), member("one", 1)]
    make(tmp_path / "mix", members, method)
    oof, test = (Predictions.read(tmp_path / "mix" / f"{name}.parquet", "mix") for name in ("oof", "test"))
    found = load_blend(tmp_path / "mix", None)
    assert found.members == ("one", "two")
    tests = [one.test.take(test.ids).values for one in reversed(members) if one.test is not None]
    assert np.array_equal(found.apply(tests, TASK), test.values)
    for fold in range(3):
        held = fold == FOLD
        values = [one.oof.values[held] for one in reversed(members)]
        assert np.array_equal(load_blend(tmp_path / "mix", fold).apply(values, TASK), oof.values[held])
    with pytest.raises(BadInput, match="without fold 3; it has those without fold 0, 1, 2"):
        load_blend(tmp_path / "mix", 3)
    with pytest.raises(BadInput, match="does not exist"):
        load_blend(tmp_path / "none", 0)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "ensemble.json").write_text("{}")
    with pytest.raises(BadInput, match="another version"):
        load_blend(tmp_path / "old", None)


def test_folds_of_further_repeats_have_blends(tmp_path: Path) -> None:
    members = [member("one", 1), member("two", 2), member("three", 3)]
    again = np.random.default_rng(4).permutation(FOLD) + 3
    table = FoldTable((*IDS, "unseen"), np.append(again, -1), "kfold", 0, "")
    make(tmp_path / "mix", members, repeats=[table])
    spoilt = TARGETS.copy()
    spoilt[again == 4] = np.roll(spoilt[again == 4], 1, axis=1)
    make(tmp_path / "spoilt", members, repeats=[table], truth=(IDS, spoilt))
    for fold in range(6):
        weights = [load_blend(tmp_path / name, fold).weights.tolist() for name in ("mix", "spoilt")]
        # Only the blend that was fitted without those labels is the same.
        assert (weights[0] == weights[1]) == (fold == 4)


def test_without_matplotlib_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    make(tmp_path / "mix", [member("one", 1), member("two", 2)])
    assert not (tmp_path / "mix" / "members.png").exists()
    assert (tmp_path / "mix" / "members.csv").is_file()
    assert "no members.png: the package matplotlib is not installed" in capsys.readouterr().err


def test_load_member(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "runs" / "one")
    with pytest.raises(BadInput, match="does not exist; run 'goldfold train'"):
        load_member(paths)
    one = member("one", 1)
    assert one.test is not None
    one.oof.write(paths.oof, "id")
    with pytest.raises(BadInput, match=r"not finished .*goldfold train"):
        load_member(paths)
    marks = {"leaky": True, "optimistic": True}
    for lacking in ({}, {"folds": [], "leaky": True}, {"folds": [], "optimistic": True}):
        paths.cv.write_text(json.dumps(lacking))
        with pytest.raises(BadInput, match="not the scores of a run"):
            load_member(paths)
    paths.cv.write_text(json.dumps({**marks, "folds": [{"fold": fold} for fold in (2, 0, 1)]}))
    bare = load_member(paths)
    assert bare.test is None
    assert bare.leaky
    assert bare.optimistic
    assert bare.folds == (0, 1, 2)
    assert bare.fold_table == ""
    paths.record.write_text(json.dumps({"inputs": {"folds": "abc"}}))
    assert load_member(paths).fold_table == "abc"
    one.test.write(paths.test, "id")
    whole = load_member(paths)
    assert whole.name == "one"
    assert whole.test is not None
    assert np.array_equal(whole.oof.values, one.oof.values)
    assert whole.digest != bare.digest
    assert load_member(paths).digest == whole.digest
