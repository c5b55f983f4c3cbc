"""Fitted decisions: counts agree with the metrics, the best threshold is found, and nothing hangs on the order of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfold.ensemble import decisions as room
from goldfold.ensemble.decisions import check_decisions, decides, fit_decisions, fixed_decisions
from goldfold.ensemble.tally import METRICS, Tally, tally
from goldfold.errors import BadInput
from goldfold.metrics import METRICS as NAMES
from goldfold.metrics import Metric, get_metric, score
from goldfold.records import Floats, Ints
from goldfold.tasks import Decisions, Task

BINARY = Task("binary", ("1",), "0")
THREE = Task("multiclass", ("a", "b", "c"))
GRADES = Task("ordinal", ("0", "1", "2", "3"))
TAGS = Task("multilabel", ("x", "y", "z"))
ONE_TAG = Task("multilabel", ("x",))
TASKS = (BINARY, THREE, GRADES, TAGS, ONE_TAG)
PAIRS = [
    (task, name)
    for task in TASKS
    for name in NAMES
    if task.name in get_metric(name).tasks and decides(get_metric(name), task)
]


def rows(task: Task, count: int, seed: int, coarse: bool = False) -> tuple[Floats, Floats]:
    """Predictions that know a little of their targets, too low on average; ``coarse``: with many ties."""
    rng = np.random.default_rng(seed)
    classes = len(task.classes)
    if task.one_class_each and task.name != "binary":
        targets = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, count) // rng.integers(1, 3, count)]
        values = rng.random((count, classes)) + 0.5 * targets + np.linspace(0.5, 0, classes)
    else:
        targets = (rng.random((count, classes)) < 0.3).astype(np.float32)
        values = (0.6 * rng.random((count, classes)) + 0.3 * targets) / 1.5
    if coarse:
        values = np.round(values, 1) + 0.01
    return task.normalise(values), targets


def decided(task: Task, metric: Metric, targets: Floats, values: Floats, decisions: Decisions | None) -> float:
    return score(metric, task, targets, task.one_hot(task.decide(values, decisions)))


@pytest.mark.parametrize(("task", "name"), PAIRS, ids=lambda part: part if isinstance(part, str) else part.name)
def test_counts_give_the_metric(task: Task, name: str) -> None:
    """And every metric of answers is known."""
    metric = get_metric(name)
    for seed in range(6):
        values, targets = rows(task, 40 if seed else 5, seed)
        truth, answers = (np.asarray(found).astype(np.int64) for found in (task.truth(targets), task.decide(values)))
        if task.name == "multilabel":
            zeros = np.zeros(1)
            sums = [part.sum(axis=0).astype(np.float64) for part in (truth, truth & answers, answers)]
            counts = Tally(sums[0], sums[1][None], sums[2][None], zeros, zeros)
        else:
            counts = tally(truth, answers, len(task.labels()))
        with np.errstate(all="ignore"):
            found = METRICS[name](counts)[0]
        assert found == pytest.approx(score(metric, task, targets, values), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", ["f1", "accuracy", "mcc", "qwk", "macro_f1"])
def test_the_best_threshold_is_found(name: str) -> None:
    values, targets = rows(BINARY, 60, 1)
    metric = get_metric(name)
    found = fit_decisions("fitted", values, targets, BINARY, metric)
    assert found is not None
    every = [0.0, *((np.sort(values[:, 0])[1:] + np.sort(values[:, 0])[:-1]) / 2), 1.1]
    best = max(decided(BINARY, metric, targets, values, Decisions("thresholds", (float(each),))) for each in every)
    assert decided(BINARY, metric, targets, values, found) == best
    assert best > decided(BINARY, metric, targets, values, None)


def test_cut_points_undo_a_bend() -> None:
    """Expected grades that are halved: the cuts 0.25, 0.75, 1.25 tell the grades apart, the fixed ones do not."""
    rng = np.random.default_rng(2)
    grade = rng.integers(0, 4, 400)
    share = grade / 6 + rng.uniform(-0.03, 0.03, 400) + 0.05
    values = np.stack([1 - share, np.zeros(400), np.zeros(400), share], axis=1).astype(np.float32)
    targets = np.eye(4, dtype=np.float32)[grade]
    found = fit_decisions("fitted", values, targets, GRADES, get_metric("qwk"))
    assert found is not None
    assert found.kind == "cut_points"
    assert decided(GRADES, get_metric("qwk"), targets, values, found) == 1
    assert decided(GRADES, get_metric("qwk"), targets, values, None) < 0.9
    assert list(found.values) == sorted(found.values)


def test_multipliers_help_a_rare_class() -> None:
    rng = np.random.default_rng(3)
    truth = rng.choice(3, 600, p=[0.8, 0.15, 0.05])
    targets = np.eye(3, dtype=np.float32)[truth]
    values = THREE.normalise(rng.random((600, 3)) * 0.5 + 0.4 * targets + [0.5, 0.1, 0.0])
    metric = get_metric("macro_f1")
    found = fit_decisions("fitted", values, targets, THREE, metric)
    assert found is not None
    assert found.values[2] > found.values[0]
    assert decided(THREE, metric, targets, values, found) > decided(THREE, metric, targets, values, None) + 0.05


class TestSampledMultipliers:
    """Of very many rows some are searched; all of them judge what is found."""

    LIMIT = 500

    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(room, "SEARCH_ROWS", self.LIMIT)

    def rare(self, count: int) -> tuple[Floats, Floats]:
        """The third class is rare and its probabilities are too low."""
        rng = np.random.default_rng(3)
        truth = rng.choice(3, count, p=[0.6, 0.3, 0.1])
        targets = np.eye(3, dtype=np.float32)[truth]
        return THREE.normalise(rng.random((count, 3)) * 0.5 + 0.4 * targets + [0.5, 0.1, 0.0]), targets

    @pytest.mark.parametrize("count", [LIMIT, LIMIT + 1, 2 * LIMIT - 1, 3 * LIMIT, 20 * LIMIT + 7])
    def test_about_the_limit_is_searched_and_comes_from_everywhere(
        self, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values, targets = self.rare(count)
        values[:, 0] = np.linspace(0.1, 0.2, count)  # tells a row's place
        seen: list[tuple[Floats, Ints]] = []
        real = room._search_multipliers

        def spy(part: Floats, truth: Ints, quality: room.Quality) -> tuple[float, ...]:
            seen.append((part[:, 0].copy(), truth))
            return real(part, truth, quality)

        monkeypatch.setattr(room, "_search_multipliers", spy)
        fit_decisions("fitted", values, targets, THREE, get_metric("macro_f1"))
        ((part, truth),) = seen
        places = np.searchsorted(values[:, 0], part)
        assert np.array_equal(truth, targets.argmax(axis=1)[places])
        assert self.LIMIT / 2 < len(set(places)) == len(part) <= 1.1 * self.LIMIT
        assert np.histogram(places, bins=10, range=(0, count))[0].min() >= len(part) / 20
        assert count > self.LIMIT or len(part) == count

    def test_what_a_sample_finds_helps_all_rows(self) -> None:
        values, targets = self.rare(4 * self.LIMIT)
        metric = get_metric("macro_f1")
        found = fit_decisions("fitted", values, targets, THREE, metric)
        assert found is not None
        assert found.values[2] > found.values[0]
        reached, fixed = (decided(THREE, metric, targets, values, each) for each in (found, None))
        assert reached > fixed + 0.1

    @pytest.mark.parametrize("period", [2, 3, 4])
    def test_rows_that_alternate_are_all_searched_and_their_order_is_not_seen(self, period: int) -> None:
        """Ids that end in left and right, or a view each: the n-th rows are of one kind."""
        values, targets = self.rare(period * self.LIMIT)
        others = np.arange(len(values)) % period > 0
        values[others] = values[others][:, ::-1]
        targets[others] = targets[others][:, ::-1]
        metric = get_metric("macro_f1")
        found = fit_decisions("fitted", values, targets, THREE, metric)
        assert found is not None
        order = np.random.default_rng(0).permutation(len(values))
        assert fit_decisions("fitted", values[order], targets[order], THREE, metric) == found
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(room, "SEARCH_ROWS", len(values))
            best = fit_decisions("fitted", values, targets, THREE, metric)
        reached, most = (decided(THREE, metric, targets, values, each) for each in (found, best))
        assert reached > most - 0.03

    def test_what_would_harm_the_other_rows_is_not_taken(self) -> None:
        """The searched rows would like the third class everywhere; all others are right as they are."""
        count = 4 * self.LIMIT
        values = np.tile(np.array([0.5, 0.3, 0.2], dtype=np.float32), (count, 1))
        values[1::2] = [0.3, 0.5, 0.2]
        truth = values.argmax(axis=1)
        truth[::4] = 2
        targets = np.eye(3, dtype=np.float32)[truth]
        metric = get_metric("accuracy")
        sample = fit_decisions("fitted", values[::4], targets[::4], THREE, metric)
        assert sample is not None
        assert decided(THREE, metric, targets[::4], values[::4], sample) == 1
        assert decided(THREE, metric, targets, values, sample) < decided(THREE, metric, targets, values, None)
        assert fit_decisions("fitted", values, targets, THREE, metric) == fixed_decisions(THREE)


@pytest.mark.parametrize(("task", "name"), PAIRS, ids=lambda part: part if isinstance(part, str) else part.name)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 50), coarse=st.booleans())
def test_never_worse_than_fixed_and_blind_to_order(task: Task, name: str, seed: int, count: int, coarse: bool) -> None:
    metric = get_metric(name)
    values, targets = rows(task, count, seed, coarse)
    found = fit_decisions("fitted", values, targets, task, metric)
    assert found is not None
    order = np.random.default_rng(seed).permutation(count)
    assert fit_decisions("fitted", values[order], targets[order], task, metric) == found
    assert Decisions.from_dict(found.to_dict(), task) == found
    fitted, fixed = (decided(task, metric, targets, values, each) for each in (found, None))
    sign = 1 if metric.greater_is_better else -1
    assert np.isnan(fixed) or sign * fitted >= sign * fixed - 1e-9


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_fixed_decisions_are_what_a_task_does(task: Task) -> None:
    values, _ = rows(task, 200, 4)
    assert np.array_equal(task.decide(values), task.decide(values, fixed_decisions(task)))


def test_a_label_without_positives_keeps_its_threshold() -> None:
    values, targets = rows(TAGS, 50, 5)
    targets[:, 1] = 0
    found = fit_decisions("fitted", values, targets, replace(TAGS, threshold=0.4), get_metric("macro_f1"))
    assert found is not None
    assert found.values[1] == 0.4
    assert found.values[0] != 0.4


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(BadInput, match="would do nothing"):
        check_decisions("fitted", BINARY, get_metric("auc"))
    with pytest.raises(BadInput, match="regression"):
        check_decisions("fitted", Task("regression", ("y",)), get_metric("rmse"))
    own = Metric("hits", True, "label", frozenset({"binary"}), lambda task, targets, values: 0.0)
    with pytest.raises(BadInput, match="hits"):
        check_decisions("fitted", BINARY, own)
    with pytest.raises(BadInput, match="chance"):
        check_decisions("fitted", Task("multiclass", tuple(map(str, range(101)))), get_metric("accuracy"))
    check_decisions("fixed", BINARY, get_metric("auc"))
    assert fit_decisions("fixed", *rows(BINARY, 5, 1), BINARY, get_metric("auc")) is None
    for record in ({"kind": "cut_points", "values": [0.5]}, {"kind": "thresholds", "values": []}, {}, None):
        with pytest.raises(BadInput):
            Decisions.from_dict(record, BINARY)
