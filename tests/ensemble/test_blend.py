"""Blends: known values, weights on the simplex, and cross-fitting that keeps its hands off the held-out labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfold.config.schema import BlendMethod
from goldfold.ensemble import Blend, CrossFit, check_method
from goldfold.ensemble import cross_fit as cross_fit_named
from goldfold.ensemble import fit as fit_named
from goldfold.ensemble.blend import Weights
from goldfold.errors import BadInput
from goldfold.metrics import Metric, get_metric, score
from goldfold.records import Floats, Ints
from goldfold.tasks import Task

BINARY = Task("binary", ("1",), "0")
THREE = Task("multiclass", ("a", "b", "c"))
VALUE = Task("regression", ("y",))
MULTI = Task("multilabel", ("a", "b"))


def mean_nll(task: Task, targets: Floats, values: Floats) -> float:
    return float(-np.log((targets * values).sum(axis=1).clip(1e-7)).mean())


def accuracy(task: Task, targets: Floats, values: Floats) -> float:
    return float((targets.argmax(axis=1) == values.argmax(axis=1)).mean())


# Without scikit-learn's checks: a search asks for them hundreds of times.
NLL = Metric("nll", False, "probability", frozenset({"multiclass"}), mean_nll)
ACCURACY = Metric("hits", True, "label", frozenset({"multiclass"}), accuracy)
METHODS: tuple[BlendMethod, ...] = ("mean", "gmean", "rank_mean", "simplex", "greedy", "stacking")
WEIGHTED: tuple[BlendMethod, ...] = METHODS[:-1]
"""The methods whose blend follows from weights alone."""


def names(count: int) -> list[str]:
    return [f"m{number:02d}" for number in range(count)]


def apply(method: BlendMethod, members: list[Floats], weights: Weights, task: Task) -> Floats:
    return Blend(method, tuple(names(len(members))), weights).apply(members, task)


def fit(method: BlendMethod, members: list[Floats], targets: Floats, task: Task, metric: Metric) -> Weights:
    return fit_named(method, names(len(members)), members, targets, task, metric).weights


def cross_fit(
    method: BlendMethod, members: list[Floats], targets: Floats, folds: Ints, task: Task, metric: Metric
) -> CrossFit:
    return cross_fit_named(method, names(len(members)), members, targets, folds, task, metric)


def column(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)[:, None]


def table(rng: np.random.Generator, rows: int, classes: int = 3) -> Floats:
    raw = rng.random((rows, classes)) ** 2 + 1e-3
    return (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)


def labels(rng: np.random.Generator, rows: int, classes: int = 3) -> Floats:
    return np.eye(classes, dtype=np.float32)[rng.permutation(np.arange(rows) % classes)]


def test_mean_by_hand() -> None:
    members = [np.array([[0.8, 0.2, 0.0]], np.float32), np.array([[0.2, 0.2, 0.6]], np.float32)]
    blend = apply("mean", members, np.array([0.75, 0.25]), THREE)
    assert blend.dtype == np.float32
    assert blend == pytest.approx(np.array([[0.65, 0.2, 0.15]]), abs=1e-7)


def test_gmean_by_hand_is_renormalised() -> None:
    members = [np.array([[0.8, 0.1, 0.1]], np.float32), np.array([[0.2, 0.4, 0.4]], np.float32)]
    # Roots of 0.16, 0.04 and 0.04: 0.4, 0.2 and 0.2, over their sum 0.8.
    assert apply("gmean", members, np.array([0.5, 0.5]), THREE) == pytest.approx(np.array([[0.5, 0.25, 0.25]]))


def test_gmean_of_yes_and_no_treats_both_alike() -> None:
    yes, no = (0.9 * 0.4) ** 0.5, (0.1 * 0.6) ** 0.5
    blend = apply("gmean", [column(0.9), column(0.4)], np.array([0.5, 0.5]), BINARY)
    assert blend == pytest.approx(column(yes / (yes + no)))
    turned = apply("gmean", [column(0.1), column(0.6)], np.array([0.5, 0.5]), BINARY)
    assert turned == pytest.approx(1 - blend, abs=1e-6)


def test_a_zero_is_no_veto_under_gmean() -> None:
    members = [np.array([[0.0, 1.0, 0.0]], np.float32), np.array([[1.0, 0.0, 0.0]], np.float32)]
    blend = apply("gmean", members, np.array([0.5, 0.5]), THREE)
    assert np.isfinite(blend).all()
    assert blend[0, 0] == pytest.approx(blend[0, 1])
    assert blend[0, 0] > 0.49


def test_rank_mean_by_hand_with_ties() -> None:
    first = column(0.1, 0.9, 0.5, 0.5)  # ranks 1, 4, 2.5, 2.5
    second = column(0.4, 0.3, 0.2, 0.1)  # ranks 4, 3, 2, 1
    blend = apply("rank_mean", [first, second], np.array([0.5, 0.5]), BINARY)
    ranks = (np.array([2.5, 3.5, 2.25, 1.75]) - 0.5) / 4
    assert blend[:, 0] == pytest.approx(ranks)


def test_rank_mean_sees_only_the_order() -> None:
    rng = np.random.default_rng(1)
    members = [rng.random((20, 2)).astype(np.float32) for _ in range(2)]
    bent = [members[0] ** 3, members[1]]
    half = np.array([0.5, 0.5])
    assert np.array_equal(apply("rank_mean", members, half, MULTI), apply("rank_mean", bent, half, MULTI))
    assert not np.array_equal(apply("mean", members, half, MULTI), apply("mean", bent, half, MULTI))


@pytest.mark.parametrize("method", WEIGHTED)
def test_rows_of_classes_sum_to_one(method: BlendMethod) -> None:
    rng = np.random.default_rng(2)
    members = [table(rng, 9) for _ in range(3)]
    blend = apply(method, members, np.array([0.5, 0.2, 0.3]), THREE)
    assert blend.sum(axis=1) == pytest.approx(np.ones(9))


@pytest.mark.parametrize("method", ["simplex", "greedy"])
def test_opposite_errors_cancel(method: BlendMethod) -> None:
    """Errors +3 and -1 cancel at weights 1/4 and 3/4."""
    truth = column(1, 2, 3, 4)
    weights = fit(method, [truth + 3, truth - 1], truth, VALUE, get_metric("rmse"))
    assert weights == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("method", ["simplex", "greedy"])
def test_a_perfect_member_takes_all(method: BlendMethod) -> None:
    rng = np.random.default_rng(3)
    truth = labels(rng, 12)
    members = [table(rng, 12), table(rng, 12), truth, table(rng, 12)]
    assert fit(method, members, truth, THREE, NLL) == pytest.approx([0, 0, 1, 0])


def test_ties_leave_members_equal_or_take_the_first() -> None:
    member = column(0.2, 0.8, 0.6, 0.3)
    twins = [member, member.copy(), member.copy()]
    truth = column(0, 1, 1, 0)
    assert fit("simplex", twins, truth, BINARY, get_metric("log_loss")).tolist() == [1 / 3] * 3
    assert fit("greedy", twins, truth, BINARY, get_metric("log_loss")).tolist() == [1, 0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_an_undefined_metric_leaves_members_equal(method: BlendMethod) -> None:
    members = [column(0.2, 0.8), column(0.4, 0.3)]
    assert fit(method, members, column(1, 1), BINARY, get_metric("auc")).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("method", WEIGHTED)
def test_one_member_has_all_the_weight(method: BlendMethod) -> None:
    rng = np.random.default_rng(4)
    members = [table(rng, 8)]
    weights = fit(method, members, labels(rng, 8), THREE, NLL)
    assert weights.tolist() == [1.0]
    if method != "rank_mean":
        assert apply(method, members, weights, THREE) == pytest.approx(members[0], abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 4),
    method=st.sampled_from(METHODS),
    chosen=st.sampled_from([NLL, ACCURACY]),
)
def test_weights_lie_on_the_simplex_and_never_lose_to_the_start(
    seed: int, count: int, method: BlendMethod, chosen: Metric
) -> None:
    rng = np.random.default_rng(seed)
    members = [table(rng, 15) for _ in range(count)]
    truth = labels(rng, 15)
    weights = fit(method, members, truth, THREE, chosen)
    assert weights.shape == (count,)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert np.array_equal(weights, fit(method, members, truth, THREE, chosen))
    if method in ("simplex", "greedy"):
        sign = 1 if chosen.greater_is_better else -1
        reached = sign * score(chosen, THREE, truth, apply(method, members, weights, THREE))
        singles = [sign * score(chosen, THREE, truth, member) for member in members]
        # Accuracy may tie at the edge of a rounding error, hence one row of slack.
        slack = 1e-6 if chosen is NLL else 1 / 15 + 1e-6
        assert reached >= max(singles) - slack


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(["mean", "gmean", "rank_mean"]))
def test_member_order_permutes_weights_only(seed: int, method: BlendMethod) -> None:
    rng = np.random.default_rng(seed)
    members = [table(rng, 10) for _ in range(3)]
    weights = rng.dirichlet(np.ones(3))
    order = rng.permutation(3)
    there = apply(method, members, weights, THREE)
    back = apply(method, [members[number] for number in order], weights[order], THREE)
    assert there == pytest.approx(back, abs=1e-6)


def test_cross_fit_differs_from_plain_on_noise() -> None:
    rng = np.random.default_rng(5)
    members = [table(rng, 30) for _ in range(5)]
    found = cross_fit("simplex", members, labels(rng, 30), np.arange(30) % 3, THREE, NLL)
    assert found.score is not None
    # Fitted on noise, weights look better on the rows that chose them than on rows that did not.
    assert found.plain_score < found.score


@pytest.mark.parametrize("method", ["simplex", "greedy"])
def test_cross_fit_never_sees_the_held_out_labels(method: BlendMethod) -> None:
    rng = np.random.default_rng(6)
    members = [table(rng, 30) for _ in range(4)]
    truth, folds = labels(rng, 30), np.arange(30) % 3
    spoilt = truth.copy()
    spoilt[folds == 1] = np.roll(truth[folds == 1], 1, axis=1)
    before, after = (cross_fit(method, members, targets, folds, THREE, NLL) for targets in (truth, spoilt))
    assert before.fold_weights[1].tolist() == after.fold_weights[1].tolist()
    assert before.values is not None
    assert after.values is not None
    assert np.array_equal(before.values[folds == 1], after.values[folds == 1])
    # The labels do matter where they may be seen.
    assert before.weights.tolist() != after.weights.tolist()
    assert before.score != after.score


def test_cross_fit_applies_each_fold_its_own_weights() -> None:
    rng = np.random.default_rng(7)
    members = [table(rng, 20) for _ in range(3)]
    truth, folds = labels(rng, 20), np.arange(20) % 2
    metric = NLL
    found = cross_fit("greedy", members, truth, folds, THREE, metric)
    assert found.values is not None
    for number in (0, 1):
        rest, held = folds != number, folds == number
        weights = fit("greedy", [member[rest] for member in members], truth[rest], THREE, metric)
        assert np.array_equal(found.values[held], apply("greedy", [member[held] for member in members], weights, THREE))
    assert found.score == score(metric, THREE, truth, found.values)


def test_cross_fit_ranks_within_the_fold() -> None:
    members = [column(0.9, 0.8, 0.2, 0.1)]
    found = cross_fit("rank_mean", members, column(1, 0, 1, 0), np.array([0, 0, 1, 1]), BINARY, get_metric("auc"))
    assert found.values is not None
    assert found.values[:, 0].tolist() == [0.75, 0.25, 0.75, 0.25]
    assert found.plain[:, 0].tolist() == [0.875, 0.625, 0.375, 0.125]


def test_one_fold_cannot_be_cross_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    members = [column(0.9, 0.2), column(0.6, 0.4)]
    found = cross_fit("simplex", members, column(1, 0), np.zeros(2, np.int64), BINARY, get_metric("log_loss"))
    assert (found.values, found.score, found.fold_weights) == (None, None, {})
    assert "one fold" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["gmean", "rank_mean"])
def test_regression_refuses_what_makes_no_sense(method: BlendMethod) -> None:
    with pytest.raises(BadInput, match="regression") as caught:
        fit(method, [column(-1, 2)], column(0, 1), VALUE, get_metric("rmse"))
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="regression"):
        apply(method, [column(-1, 2)], np.ones(1), VALUE)


def test_rank_mean_warns_where_calibration_counts(capsys: pytest.CaptureFixture[str]) -> None:
    check_method("rank_mean", BINARY, get_metric("auc"))
    check_method("mean", BINARY, get_metric("log_loss"))
    assert capsys.readouterr().err == ""
    check_method("rank_mean", BINARY, get_metric("log_loss"))
    assert "calibrated" in capsys.readouterr().err
    check_method("rank_mean", BINARY, get_metric("macro_f1"))
    assert "thresholds" in capsys.readouterr().err


def test_arrays_that_do_not_match_are_refused() -> None:
    with pytest.raises(BadInput, match="no members"):
        fit("mean", [], column(1), BINARY, get_metric("auc"))
    with pytest.raises(BadInput, match="member 1"):
        fit("mean", [column(0.1, 0.2), column(0.1)], column(1, 0), BINARY, get_metric("auc"))
    with pytest.raises(BadInput, match="weights"):
        Blend("mean", ("a",), np.ones(2))
    with pytest.raises(BadInput, match="values of 2 members"):
        Blend("mean", ("a",), np.ones(1)).apply([column(0.1)] * 2, BINARY)
    with pytest.raises(BadInput, match="named twice: a"):
        fit_named("mean", ["a", "a"], [column(0.1)] * 2, column(1), BINARY, get_metric("auc"))
    with pytest.raises(BadInput, match="sum to"):
        Blend("mean", ("a", "b"), np.array([0.5, np.nan]))
