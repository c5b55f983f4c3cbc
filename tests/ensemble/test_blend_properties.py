"""What holds for every way to blend: order changes nothing, and a fold's labels never reach its own blend."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from goldfold.config.schema import BlendMethod
from goldfold.ensemble import Blend, CrossFit, cross_fit, fit
from goldfold.ensemble import search as search_room
from goldfold.ensemble import stacking as stacking_room
from goldfold.ensemble.rows import Stack
from goldfold.errors import BadInput
from goldfold.metrics import get_metric, score
from goldfold.records import Floats, Ints
from goldfold.tasks import Task

BINARY = Task("binary", ("1",), "0")
THREE = Task("multiclass", ("a", "b", "c"))
GRADES = Task("ordinal", ("0", "1", "2"))
LABELS = Task("multilabel", ("a", "b"))
VALUES = Task("regression", ("y", "z"))
METHODS: tuple[BlendMethod, ...] = ("mean", "gmean", "rank_mean", "simplex", "greedy", "stacking")
CASES = [
    (THREE, "log_loss"),
    (THREE, "macro_f1"),
    (BINARY, "auc"),
    (GRADES, "qwk"),
    (LABELS, "macro_auc"),
    (VALUES, "rmse"),
    (VALUES, "mae"),
]


def problem(task: Task, seed: int, rows: int = 45, count: int = 3) -> tuple[list[Floats], Floats, Ints]:
    """Members that lean towards the targets, coarse enough for ties; folds of equal size."""
    rng = np.random.default_rng(seed)
    width = len(task.classes)
    if task.name == "regression":
        targets = rng.normal(size=(rows, width))
        members = [targets + rng.normal(size=(rows, width)) for _ in range(count)]
    elif task.name in ("multiclass", "ordinal"):
        targets = np.eye(width)[rng.permutation(rows) % width]
        members = [np.round(targets + 2 * rng.random((rows, width)), 1) + 0.1 for _ in range(count)]
        members = [member / member.sum(axis=1, keepdims=True) for member in members]
    else:
        targets = np.stack([rng.permutation(rows) % 2 for _ in range(width)], axis=1)
        members = [np.round((targets + 2 * rng.random((rows, width))) / 3, 1) for _ in range(count)]
    folds = (np.arange(rows) % 3).astype(np.int64)
    return [member.astype(np.float32) for member in members], targets.astype(np.float32), folds


def suits(method: BlendMethod, task: Task) -> bool:
    return task.name != "regression" or method not in ("gmean", "rank_mean")


def same(one: Blend, other: Blend) -> bool:
    return one.to_dict() == other.to_dict()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    method=st.sampled_from(METHODS),
    case=st.sampled_from(CASES),
    count=st.sampled_from([1, 2, 3, 9]),
)
def test_the_order_of_rows_and_members_changes_no_bit(
    seed: int, method: BlendMethod, case: tuple[Task, str], count: int
) -> None:
    task, metric = case[0], get_metric(case[1])
    if not suits(method, task):
        return
    members, targets, _ = problem(task, seed, 24, count)
    names = [f"run{number}" for number in range(count)]
    rng = np.random.default_rng(seed)
    rows, order = rng.permutation(24), rng.permutation(count)
    before = fit(method, names, members, targets, task, metric)
    turned = [names[number] for number in order]
    after = fit(method, turned, [members[number][rows] for number in order], targets[rows], task, metric)
    assert dict(zip(turned, after.weights, strict=True)) == dict(zip(names, before.weights, strict=True))
    there = before.apply(members, task)
    back = after.apply([members[number][rows] for number in order], task)
    assert np.array_equal(there[rows], back)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    method=st.sampled_from(METHODS),
    case=st.sampled_from(CASES),
    fold=st.integers(0, 2),
    count=st.sampled_from([2, 9]),
)
def test_a_folds_labels_never_reach_its_own_blend(
    seed: int, method: BlendMethod, case: tuple[Task, str], fold: int, count: int
) -> None:
    task, metric = case[0], get_metric(case[1])
    if not suits(method, task):
        return
    members, targets, folds = problem(task, seed, 45, count)
    flipped = targets.copy()
    held = folds == fold
    flipped[held] = np.roll(targets[held], 1, axis=1) if task.name in ("multiclass", "ordinal") else 1 - targets[held]
    names = [f"run{number}" for number in range(count)]
    before, after = (cross_fit(method, names, members, truth, folds, task, metric) for truth in (targets, flipped))
    assert same(before.fold_blends[fold], after.fold_blends[fold])
    assert before.values is not None
    assert after.values is not None
    assert np.array_equal(before.values[held], after.values[held])


@pytest.mark.parametrize("method", ["simplex", "greedy", "stacking"])
def test_the_labels_matter_where_they_may_be_seen(method: BlendMethod) -> None:
    """Else the test above would pass for a fit that looks at nothing."""
    members, targets, folds = problem(THREE, 1, 90, 4)
    flipped = targets.copy()
    flipped[folds == 1] = np.roll(targets[folds == 1], 1, axis=1)
    names = ["a", "b", "c", "d"]
    before, after = (
        cross_fit(method, names, members, truth, folds, THREE, get_metric("log_loss")) for truth in (targets, flipped)
    )
    assert not same(before.blend, after.blend)
    assert not same(before.fold_blends[0], after.fold_blends[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", [BINARY, THREE, LABELS], ids=lambda task: task.name)
def test_a_fold_with_one_class(method: BlendMethod, task: Task) -> None:
    """Without the other folds there is one class to fit on: equal weights, and numbers all the same."""
    members, targets, _ = problem(task, 3, 30)
    folds = np.repeat([0, 1], 15).astype(np.int64)
    targets[folds == 1] = targets[0]
    metric = get_metric("auc" if task is BINARY else "macro_auc")
    found = cross_fit(method, ["a", "b", "c"], members, targets, folds, task, metric)
    assert found.values is not None
    assert np.isfinite(found.values).all()
    assert found.fold_blends[0].weights == pytest.approx([1 / 3] * 3)
    assert found.score is not None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(METHODS), case=st.sampled_from(CASES))
def test_a_blend_is_normal_and_survives_json(seed: int, method: BlendMethod, case: tuple[Task, str]) -> None:
    task, metric = case[0], get_metric(case[1])
    if not suits(method, task):
        return
    members, targets, _ = problem(task, seed, 30)
    blend = fit(method, ["b", "a", "c"], members, targets, task, metric)
    assert (blend.weights >= 0).all()
    assert blend.weights.sum() == pytest.approx(1, abs=1e-12)
    values = blend.apply(members, task)
    assert values.dtype == np.float32
    assert values.shape == targets.shape
    if task.name != "regression":
        assert values.min() >= 0
        assert values.max() <= 1
    if task.name in ("multiclass", "ordinal"):
        assert values.sum(axis=1) == pytest.approx(np.ones(30), abs=1e-6)
    again = Blend.from_dict(json.loads(json.dumps(blend.to_dict())))
    assert same(again, blend)
    assert np.array_equal(again.apply(members, task), values)


@pytest.mark.parametrize("method", ["simplex", "greedy", "stacking"])
def test_the_number_of_threads_changes_no_bit(method: BlendMethod) -> None:
    task = Task("multiclass", tuple("abcde"))
    members, targets, _ = problem(task, 18, 6000, 12)
    names = [f"run{number:02d}" for number in range(12)]
    found = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            blend = fit(method, names, members, targets, task, get_metric("log_loss"))
            found.append((blend, blend.apply(members, task)))
    assert same(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])


def test_records_that_are_no_blends_are_refused() -> None:
    good = Blend("mean", ("a", "b"), np.array([0.5, 0.5])).to_dict()
    for change in (
        {"method": "magic"},
        {"weights": None},
        {"weights": [1, 1]},
        {"weights": ["x", "y"]},
        {"weights": [1.0]},
        {"method": "stacking"},
        {"members": None},
        {"intercept": [0.0]},
    ):
        with pytest.raises(BadInput):
            Blend.from_dict({**good, **change})
    with pytest.raises(BadInput, match="KeyError"):
        Blend.from_dict({})


def test_linear_blends_say_so() -> None:
    members, targets, _ = problem(THREE, 0)
    blends = [fit(method, ["a", "b", "c"], members, targets, THREE, get_metric("log_loss")) for method in METHODS]
    assert [blend.method for blend in blends if blend.linear] == ["mean", "simplex", "greedy"]
    for blend in blends:
        mean = sum(weight * member for weight, member in zip(blend.weights, members, strict=True))
        assert np.allclose(blend.apply(members, THREE), mean, atol=1e-6) == blend.linear


def test_optimism_is_positive_where_the_plain_score_looks_better() -> None:
    blend = Blend("mean", ("a",), np.ones(1))
    values = np.zeros((1, 1), np.float32)
    assert CrossFit(blend, values, 0.9, True, values, 0.7).optimism == pytest.approx(0.2)
    assert CrossFit(blend, values, 0.7, False, values, 0.9).optimism == pytest.approx(0.2)
    assert CrossFit(blend, values, 0.7, False).optimism is None


class TestSimplex:
    @settings(max_examples=25, deadline=None)
    @given(
        seed=st.integers(0, 10_000), case=st.sampled_from([case for case in CASES if case[1] in ("log_loss", "rmse")])
    )
    def test_a_smooth_optimum_is_one(self, seed: int, case: tuple[Task, str]) -> None:
        """No step towards a member, and none back, makes the loss smaller: the problem is convex, so this is all."""
        task, metric = case[0], get_metric(case[1])
        members, targets, _ = problem(task, seed, 40, 4)
        weights = fit("simplex", ["a", "b", "c", "d"], members, targets, task, metric).weights

        def loss(weights: np.ndarray) -> float:
            return score(metric, task, targets, Blend("simplex", ("a", "b", "c", "d"), weights).apply(members, task))

        reached = loss(weights)
        for vertex in np.eye(4):
            for share in (0.05, 0.01):
                assert loss((1 - share) * weights + share * vertex) >= reached - 1e-6

    def test_multilabel_log_loss(self) -> None:
        members, targets, _ = problem(LABELS, 5, 60)
        metric = get_metric("log_loss")
        blend = fit("simplex", ["a", "b", "c"], members, targets, LABELS, metric)
        reached = score(metric, LABELS, targets, blend.apply(members, LABELS))
        grid = np.linspace(0, 1, 11)
        for one in grid:
            for two in grid[grid <= 1 - one + 1e-9]:
                trial = Blend("simplex", ("a", "b", "c"), np.array([one, two, max(1 - one - two, 0)]))
                assert score(metric, LABELS, targets, trial.apply(members, LABELS)) >= reached - 1e-6

    def test_r2_and_squares_agree_for_one_target(self) -> None:
        task = Task("regression", ("y",))
        members, targets, _ = problem(task, 6)
        found = [
            fit("simplex", ["a", "b", "c"], members, targets, task, get_metric(name)).weights for name in ("r2", "rmse")
        ]
        assert found[0] == pytest.approx(found[1], abs=1e-4)

    def test_a_constant_truth_has_no_r2(self) -> None:
        task = Task("regression", ("y",))
        members, targets, _ = problem(task, 6)
        weights = fit("simplex", ["a", "b", "c"], members, np.ones_like(targets), task, get_metric("r2")).weights
        assert weights == pytest.approx([1 / 3] * 3)

    @pytest.mark.parametrize(("task", "name"), [(THREE, "accuracy"), (BINARY, "auc"), (GRADES, "qwk"), (VALUES, "mae")])
    def test_the_search_beats_every_start(self, task: Task, name: str) -> None:
        members, targets, _ = problem(task, 7, 90, 5)
        metric = get_metric(name)
        sign = 1 if metric.greater_is_better else -1
        names = tuple("abcde")
        smooth = get_metric("rmse" if task is VALUES else "log_loss")
        starts = [*np.eye(5), np.full(5, 0.2), fit("simplex", names, members, targets, task, smooth).weights]
        weights = fit("simplex", names, members, targets, task, metric).weights
        reached, *others = (
            sign * score(metric, task, targets, Blend("simplex", names, each).apply(members, task))
            for each in (weights, *starts)
        )
        assert reached >= max(others) - 1e-9


class TestGreedy:
    def test_bags_spread_the_weight(self) -> None:
        members, targets, _ = problem(THREE, 8, 90, 10)
        names = [f"m{number}" for number in range(10)]
        metric = get_metric("log_loss")
        one, many = (fit("greedy", names, members, targets, THREE, metric, bags=bags).weights for bags in (1, 10))
        assert (many > 0).sum() > (one > 0).sum()
        assert fit("greedy", names, members, targets, THREE, metric).weights.tolist() == many.tolist()
        other = fit("greedy", names, members, targets, THREE, metric, seed=1).weights
        assert other.tolist() != many.tolist()

    def test_no_more_picks_than_overfit(self) -> None:
        """Weights of one selection are counts over at most 25 picks."""
        members, targets, _ = problem(THREE, 9, 90, 5)
        weights = fit("greedy", list("abcde"), members, targets, THREE, get_metric("log_loss")).weights
        assert any(np.allclose(weights * size, np.round(weights * size), atol=1e-9) for size in range(1, 26))


class TestStacking:
    def test_repairs_temperature(self) -> None:
        """Over-confident members: a mean stays so, a regression on their log-probabilities does not."""
        rng = np.random.default_rng(10)
        truth = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 600)]
        logits = [truth + rng.normal(size=(600, 3)) for _ in range(3)]
        members = [np.exp(5 * each) / np.exp(5 * each).sum(axis=1, keepdims=True) for each in logits]
        tables = [member.astype(np.float32) for member in members]
        folds = (np.arange(600) % 3).astype(np.int64)
        metric = get_metric("log_loss")
        mean, stacked = (
            cross_fit(method, ["a", "b", "c"], tables, truth, folds, THREE, metric) for method in ("mean", "stacking")
        )
        assert stacked.score is not None
        assert mean.score is not None
        assert stacked.score < mean.score - 0.05

    def test_a_useless_member_has_a_small_share(self) -> None:
        members, targets, _ = problem(VALUES, 11, 200, 2)
        noise = np.random.default_rng(0).normal(size=targets.shape).astype(np.float32)
        blend = fit("stacking", ["a", "b", "c"], [*members, noise], targets, VALUES, get_metric("rmse"))
        assert blend.coefficients is not None
        assert blend.coefficients.shape == (2, 3)
        assert blend.weights[2] < 0.1

    def test_ridge_learns_a_shift_and_a_scale(self) -> None:
        task = Task("regression", ("y",))
        members, targets, _ = problem(task, 12, 300, 2)
        bent = [100 + 50 * targets + member - targets for member in members]
        metric = get_metric("rmse")
        blend = fit("stacking", ["a", "b"], bent, targets, task, metric)
        assert score(metric, task, targets, blend.apply(bent, task)) < 0.1

    def test_two_classes_of_a_multiclass_task(self) -> None:
        task = Task("multiclass", ("a", "b"))
        members, targets, _ = problem(task, 13, 120)
        blend = fit("stacking", ["a", "b", "c"], members, targets, task, get_metric("log_loss"))
        assert blend.coefficients is not None
        assert blend.coefficients.shape == (2, 3, 2)
        assert score(get_metric("accuracy"), task, targets, blend.apply(members, task)) > 0.7

    def test_many_features_are_fitted_class_by_class(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stacking_room, "FEATURES", 5)
        members, targets, _ = problem(THREE, 14, 120)
        blend = fit("stacking", ["a", "b", "c"], members, targets, THREE, get_metric("log_loss"))
        assert blend.coefficients is not None
        assert blend.coefficients.shape == (3, 3)
        values = blend.apply(members, THREE)
        assert values.sum(axis=1) == pytest.approx(np.ones(120), abs=1e-6)
        assert score(get_metric("accuracy"), THREE, targets, values) > 0.7

    def test_a_class_without_rows_leaves_members_equal(self, capsys: pytest.CaptureFixture[str]) -> None:
        members, targets, _ = problem(THREE, 15, 30)
        kept = targets[:, 2] == 0
        tables = [member[kept] for member in members]
        blend = fit("stacking", ["a", "b", "c"], tables, targets[kept], THREE, get_metric("log_loss"))
        assert "no row of the class 'c'" in capsys.readouterr().err
        equal = Blend("gmean", ("a", "b", "c"), np.full(3, 1 / 3))
        assert blend.apply(tables, THREE) == pytest.approx(equal.apply(tables, THREE), abs=1e-6)


class TestSample:
    def test_is_stratified_and_does_not_depend_on_order(self) -> None:
        rng = np.random.default_rng(16)
        targets = np.eye(3, dtype=np.float32)[np.repeat([0, 1, 2], [4000, 960, 40])]
        values = rng.random((5000, 3)).astype(np.float32)
        stack = Stack.of([values], targets)
        chosen = stack.sample(stack.ordered(), THREE, 1000)
        counts = targets[chosen].sum(axis=0)
        assert counts.tolist() == [800, 192, 40]
        order = rng.permutation(5000)
        turned = Stack.of([values[order]], targets[order])
        assert np.array_equal(values[chosen], values[order][turned.sample(turned.ordered(), THREE, 1000)])
        other = Stack.of([values], targets, seed=1)
        assert not np.array_equal(values[chosen], values[other.sample(other.ordered(), THREE, 1000)])

    def test_is_spread_over_the_rows(self) -> None:
        values = np.linspace(0, 1, 5000, dtype=np.float32)[:, None]
        stack = Stack.of([values], np.zeros_like(values))
        assert values[stack.sample(stack.ordered(), VALUES, 1000)].mean() == pytest.approx(0.5, abs=0.03)
        assert all(first <= second for first, second in pairwise(stack.keys[stack.ordered()].tolist()))

    @pytest.mark.parametrize("method", ["simplex", "greedy", "stacking"])
    def test_a_fitted_sample_never_knows_the_held_out_labels(
        self, method: BlendMethod, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(search_room, "SEARCH_ROWS", 30)
        monkeypatch.setattr(stacking_room, "FIT_ROWS", 60)
        members, targets, folds = problem(THREE, 17, 300)
        monkeypatch.setattr("goldfold.ensemble.rows.RARE", 5)
        flipped = targets.copy()
        flipped[folds == 2] = np.roll(targets[folds == 2], 1, axis=1)
        before, after = (
            cross_fit(method, ["a", "b", "c"], members, truth, folds, THREE, get_metric("accuracy"))
            for truth in (targets, flipped)
        )
        assert same(before.fold_blends[2], after.fold_blends[2])
        assert before.plain.shape == targets.shape  # scored on all rows
        assert before.plain_score == score(get_metric("accuracy"), THREE, targets, before.plain)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    case=st.sampled_from([(THREE, "macro_auc"), (GRADES, "macro_auc"), (LABELS, "average_precision"), (BINARY, "auc")]),
    count=st.sampled_from([1, 2, 4]),
)
def test_ranks_keep_each_columns_order(seed: int, case: tuple[Task, str], count: int) -> None:
    """The mean of ranks of one member, or of several that order alike, scores as the member does, to the last bit."""
    task, metric = case[0], get_metric(case[1])
    members, targets, folds = problem(task, seed, 45, 1)
    powers = [1, 0.5, 2, 3][:count]  # another scale, the same order
    alike = [(members[0].astype(np.float64) ** power).astype(np.float32) for power in powers]
    found = cross_fit("rank_mean", [f"m{number}" for number in range(count)], alike, targets, folds, task, metric)
    assert found.plain_score == score(metric, task, targets, members[0])
    again = Blend.from_dict(json.loads(json.dumps(found.blend.to_dict())))
    assert np.array_equal(again.apply(alike, task), found.plain)


def test_ranks_are_rows_of_1_where_the_metric_weighs_classes_against_each_other() -> None:
    members, targets, _ = problem(THREE, 1)
    for name, by_column in (("macro_auc", False), ("log_loss", True), ("macro_f1", True)):
        blend = fit("rank_mean", ["a", "b", "c"], members, targets, THREE, get_metric(name))
        assert np.allclose(blend.apply(members, THREE).sum(axis=1), 1) == by_column
        assert blend.by_column != by_column
    older = {key: value for key, value in blend.to_dict().items() if key != "by_column"}
    assert not Blend.from_dict(older).by_column
