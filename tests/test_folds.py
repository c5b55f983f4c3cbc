"""Folds: how rows are dealt. What lies on disk is tested in test_fold_store.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from goldfold.config.schema import Folds
from goldfold.errors import BadInput
from goldfold.folds import class_counts, make_folds
from goldfold.folds.groups import deal_by_labels, deal_by_size
from goldfold.records import FoldTable
from goldfold.tasks import Task, encode, make_task

LABELS = ["cat"] * 20 + ["dog"] * 12 + ["owl"] * 7


def table(rows: int = 39) -> pd.DataFrame:
    generator = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "id": [f"im{row:03d}" for row in generator.permutation(rows)],
            "label": [LABELS[row % len(LABELS)] for row in range(rows)],
            "tags": [" ".join(tag for tag in "abc" if generator.random() < 0.4) for _ in range(rows)],
            "patient": [f"p{row % 13}" for row in range(rows)],
            "age": [str(value) for value in generator.integers(20, 80, rows)],
            "sex": [("f", "m")[row % 2] for row in range(rows)],
        }
    )


def deal(
    frame: pd.DataFrame, task: str = "multiclass", target: str = "label", group: str | None = None, **keys: Any
) -> list[FoldTable]:
    made: Task = make_task(task, frame, target)  # type: ignore[arg-type]
    return make_folds(
        Folds(**keys),
        frame,
        id_column="id",
        task=made,
        targets=encode(made, frame, target),
        target_columns=[target],
        group=group,
        source_sha256="0" * 64,
    )


def fold_of(made: FoldTable) -> dict[str, int]:
    return dict(zip(made.ids, made.fold.tolist(), strict=True))


SCHEMES: list[dict[str, Any]] = [
    {"scheme": "kfold"},
    {"scheme": "stratified"},
    {"scheme": "stratified", "stratify": ["sex", "age"], "bins": 2},
    {"scheme": "stratified", "task": "regression", "target": "age", "bins": 3},
    {"scheme": "group", "group": "patient"},
    {"scheme": "stratified_group", "group": "patient"},
    {"scheme": "multilabel", "task": "multilabel", "target": "tags"},
    {"scheme": "multilabel"},
    {"scheme": "group_multilabel", "task": "multilabel", "target": "tags", "group": "patient"},
]


@pytest.mark.parametrize("keys", SCHEMES, ids=lambda keys: "-".join(map(str, keys.values())))
class TestEveryScheme:
    def test_each_row_is_validated_once(self, keys: dict[str, Any]) -> None:
        (made,) = deal(table(), n=3, **keys)
        assert set(made.ids) == set(table()["id"])
        assert made.folds == [0, 1, 2]
        for fold in made.folds:
            valid, train = set(made.valid_ids(fold)), set(made.train_ids(fold))
            assert valid
            assert not valid & train
            assert valid | train == set(made.ids)

    def test_shuffled_rows_get_the_same_folds(self, keys: dict[str, Any]) -> None:
        frame = table()
        shuffled = frame.sample(frac=1, random_state=1)
        (first,), (second,) = deal(frame, n=3, **keys), deal(shuffled, n=3, **keys)
        assert second.ids == tuple(shuffled["id"])
        assert fold_of(first) == fold_of(second)

    def test_seed_decides(self, keys: dict[str, Any]) -> None:
        deals = [fold_of(deal(table(), n=3, seed=seed, **keys)[0]) for seed in (0, 0, 1)]
        assert deals[0] == deals[1]
        assert deals[0] != deals[2]

    def test_repeats_number_on_and_use_the_next_seed(self, keys: dict[str, Any]) -> None:
        first, second = deal(table(), n=3, repeats=2, seed=4, **keys)
        assert (first.folds, second.folds) == ([0, 1, 2], [3, 4, 5])
        (alone,) = deal(table(), n=3, seed=5, **keys)
        assert (second.seed, (second.fold - 3).tolist()) == (5, alone.fold.tolist())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=8, max_size=60), st.integers(2, 4), st.integers(0, 99))
def test_stratified_counts_differ_by_at_most_one(labels: list[str], n: int, seed: int) -> None:
    labels = [label for label in labels if labels.count(label) >= n]
    assume(len(set(labels)) >= 2)
    frame = pd.DataFrame({"id": [f"i{row}" for row in range(len(labels))], "label": labels})
    task = make_task("multiclass", frame, "label")
    tables = deal(frame, n=n, seed=seed)
    counts = class_counts(tables, task, encode(task, frame, "label"), frame["id"].tolist())
    assert ((counts.max() - counts.min()) <= 1).all()
    assert counts.sum().to_dict() == pd.Series(labels).value_counts().to_dict()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 11), min_size=30, max_size=80),
    st.sampled_from(["group", "stratified_group", "group_multilabel"]),
    st.integers(0, 99),
)
def test_a_group_never_crosses_folds(groups: list[int], scheme: str, seed: int) -> None:
    groups = [*groups, 0, 1, 2]  # at least as many groups as folds
    frame = pd.DataFrame(
        {
            "id": [f"i{row}" for row in range(len(groups))],
            "label": [str(row % 3) for row in range(len(groups))],
            "site": [f"s{group}" for group in groups],
        }
    )
    (made,) = deal(frame, scheme=scheme, group="site", n=2, seed=seed)
    found = pd.DataFrame({"site": frame["site"], "fold": made.fold})
    assert (found.groupby("site")["fold"].nunique() == 1).all()
    assert set(made.ids) == set(frame["id"])
    assert made.groups == tuple(frame["site"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=30), st.integers(0, 999))
def test_group_sizes_are_balanced_and_no_fold_is_empty(sizes: list[int], seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.bincount(deal_by_size(groups, 4, seed), minlength=4)
    assert rows.max() - rows.min() <= max(sizes)
    labels = np.random.default_rng(seed).random((len(groups), 3)) < 0.3
    assert (np.bincount(deal_by_labels(groups, labels, 4, seed), minlength=4) > 0).all()


def test_group_multilabel_balances_labels_better_than_groups_alone() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), generator.integers(1, 12, 60))
    rate = np.array([0.5, 0.15, 0.05])
    # Whole groups share a tendency, as the images of a patient do.
    labels = generator.random((len(groups), 3)) < (rate * generator.uniform(0, 2, (60, 1)))[groups]

    def unevenness(fold: np.ndarray[Any, Any]) -> float:
        counts = np.stack([labels[fold == number].sum(axis=0) for number in range(5)])
        return float((counts.std(axis=0) / counts.mean(axis=0)).mean())

    careful = np.mean([unevenness(deal_by_labels(groups, labels, 5, seed)) for seed in range(10)])
    careless = np.mean([unevenness(deal_by_size(groups, 5, seed)) for seed in range(10)])
    assert careful < careless / 3
    assert careful < 0.1


def test_multilabel_balances_every_label() -> None:
    frame = table(120)
    task = make_task("multilabel", frame, "tags")
    tables = deal(frame, "multilabel", "tags", scheme="multilabel", n=4)
    counts = class_counts(tables, task, encode(task, frame, "tags"), frame["id"].tolist())
    assert list(counts.columns) == ["a", "b", "c"]
    assert ((counts.max() - counts.min()) <= 2).all()


def test_regression_bins_spread_the_target() -> None:
    frame = table(200)
    task = make_task("regression", frame, "age")
    targets = encode(task, frame, "age")
    tables = deal(frame, "regression", "age", n=4, bins=10)
    summary = class_counts(tables, task, targets, frame["id"].tolist())
    assert list(summary.columns) == ["count", "mean", "std"]
    assert summary["count"].sum() == 200
    assert summary["mean"].std() < 1


def test_stratify_on_columns_spreads_their_combination() -> None:
    frame = table(80)
    frame["site"] = [f"s{row // 2 % 2}" for row in range(80)]
    (made,) = deal(frame, n=4, stratify=["sex", "site"])
    counts = pd.crosstab(made.fold, frame["sex"] + frame["site"])
    assert counts.to_numpy().tolist() == [[5, 5, 5, 5]] * 4


def test_rare_labels_of_a_multilabel_task_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    frame = table()
    frame.loc[0, "tags"] = "rare"
    deal(frame, "multilabel", "tags", scheme="multilabel", n=3, repeats=2)
    assert capsys.readouterr().err.count("'rare' (1)") == 1


def test_repeats_that_deal_alike_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    frame = table()
    frame["patient"] = ["p1", "p2"] * 19 + ["p1"]
    deal(frame, scheme="group", group="patient", n=2, repeats=3)
    assert "3 repeats gave 1 different deals" in capsys.readouterr().err


def test_class_counts_go_by_id() -> None:
    frame = table()
    task = make_task("multiclass", frame, "label")
    tables = deal(frame, n=3)
    counts = class_counts(tables, task, encode(task, frame, "label"), frame["id"].tolist())
    shuffled = frame.sample(frac=1, random_state=2)
    again = class_counts(tables, task, encode(task, shuffled, "label"), shuffled["id"].tolist())
    pd.testing.assert_frame_equal(counts, again)
    assert (
        counts.loc[0].to_dict()
        == frame["label"][[i in tables[0].valid_ids(0) for i in frame["id"]]].value_counts().to_dict()
    )


class TestGivenFolds:
    def test_holdout(self) -> None:
        frame = table(6)
        frame["label"] = ["cat", "dog"] * 3
        frame["held"] = ["1", "True", "yes", "0", "", "no"]
        (made,) = deal(frame, scheme="holdout", column="held")
        assert made.fold.tolist() == [0, 0, 0, -1, -1, -1]
        assert made.train_ids(0) == tuple(frame["id"][3:])

    def test_column(self) -> None:
        frame = table(6)
        frame["label"] = ["cat", "dog"] * 3
        frame["k"] = ["0", "1", "2.0", "-1", "1", "0"]
        (made,) = deal(frame, scheme="column", column="k")
        assert made.fold.tolist() == [0, 1, 2, -1, 1, 0]

    @pytest.mark.parametrize(
        ("scheme", "values", "says"),
        [
            ("holdout", ["1", "maybe", "0"], "'maybe' in row 3"),
            ("holdout", ["1", "1", "1"], "marks every row"),
            ("holdout", ["0", "0", "0"], "marks no row"),
            ("column", ["0", "1.5", "1"], "'1.5' in row 3 is not a whole number"),
            ("column", ["0", "2", "2"], "fold numbers 0, 2"),
            ("column", ["0", "-2", "1"], "fold numbers -2, 0, 1"),
            ("column", ["-1", "-1", "-1"], "fold numbers -1"),
            ("column", ["0", "0", "0"], "one fold only"),
            ("column", ["0", "", "1"], "'' in row 3"),
        ],
    )
    def test_refused(self, scheme: str, values: list[str], says: str) -> None:
        frame = pd.DataFrame({"id": list("abc"), "label": ["x", "y", "x"], "k": values})
        with pytest.raises(BadInput, match=says):
            deal(frame, scheme=scheme, column="k")

    def test_a_group_across_given_folds_is_refused(self) -> None:
        frame = pd.DataFrame({"id": list("abc"), "label": ["x", "y", "x"], "k": ["0", "1", "1"], "g": ["p", "p", "q"]})
        with pytest.raises(BadInput, match="groups lie in two folds: p"):
            deal(frame, scheme="column", column="k", group="g")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"scheme": "group"}, "needs a group column"),
        ({"scheme": "group", "group": "nope"}, "no column 'nope'"),
        ({"scheme": "stratified", "group": "patient"}, "'stratified' ignores .* use stratified_group"),
        ({"scheme": "kfold", "group": "patient"}, "'kfold' ignores .* use group,"),
        ({"scheme": "multilabel", "group": "patient"}, "use group_multilabel"),
        ({"scheme": "kfold", "stratify": ["sex"]}, "does not stratify"),
        ({"scheme": "kfold", "column": "sex"}, "does not read a column"),
        ({"scheme": "holdout", "column": "nope"}, "no column 'nope'"),
        ({"stratify": ["sex", "nope"]}, "no column nope"),
        ({"n": 8}, r"class 'owl' has 7 rows, fewer than the 8 folds; lower folds.n to 7 or less, merge .* kfold"),
        ({"n": 13}, r"'owl' has 7 rows.*\(and 1 more have too few\)"),
        ({"n": 40, "scheme": "kfold"}, "40 folds of 39 rows"),
        ({"n": 14, "scheme": "group", "group": "patient"}, "14 folds of 13 groups; lower folds.n to 13"),
        ({"stratify": ["sex", "label"]}, "the combination sex=m & label=owl has 3 rows.*drop a column"),
        ({"scheme": "stratified", "task": "multilabel", "target": "tags"}, "use multilabel"),
        ({"scheme": "multilabel", "task": "regression", "target": "age"}, "regression target has none"),
        ({"task": "regression", "target": "age", "bins": 20}, "the target's bin .* lower folds.bins"),
        ({"seed": -1}, "-1 is not a seed"),
    ],
)
def test_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        deal(table(), **keys)
    assert "\n" not in str(caught.value)


def test_bad_ids_and_groups_are_refused() -> None:
    frame = table()
    frame.loc[4, "id"] = frame.loc[7, "id"]
    with pytest.raises(BadInput, match="duplicate ids"):
        deal(frame)
    frame = table()
    frame.loc[4, "patient"] = " "
    with pytest.raises(BadInput, match="'patient' is empty in row 6"):
        deal(frame, scheme="group", group="patient")
    task = make_task("multiclass", frame, "label")
    with pytest.raises(BadInput, match="clashes with the fold columns"):
        make_folds(
            Folds(), frame.rename(columns={"id": "fold_1"}), id_column="fold_1", task=task,
            targets=encode(task, frame, "label"), target_columns=["label"], group=None, source_sha256="",
        )  # fmt: skip
