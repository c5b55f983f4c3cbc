"""Blends of subsets are the ensemble's own, fitted anew; where they cannot be fitted, its weights are scaled up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goldfold.config.schema import BlendMethod
from goldfold.ensemble import Blend, Member, make_ensemble
from goldfold.ensemble.steps import Chain
from goldfold.errors import BadInput
from goldfold.inference.frontier import Evidence, Fits, Fitted, fit_subset, load_stored, make_evidence
from goldfold.metrics import Metric, get_metric, score
from goldfold.records import Floats, Predictions
from goldfold.tasks import Task

pytestmark = pytest.mark.usefixtures("no_pictures")
TASK = Task("multiclass", ("a", "b", "c"))
ROWS = 90
IDS = tuple(f"r{row:02d}" for row in range(ROWS))
TARGETS = np.eye(3, dtype=np.float32)[np.arange(ROWS) % 3]
FOLDS = (np.arange(ROWS) // 3 % 3).astype(np.int64)
TESTS = tuple(f"t{row}" for row in range(9))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goldfold.ensemble.stage.draw_members", lambda *_: False)


def table(seed: int, skill: float, targets: Floats) -> Floats:
    rng = np.random.default_rng(seed)
    noise = rng.dirichlet(np.ones(3), len(targets))
    sure = rng.random((len(targets), 1)) < skill
    return TASK.normalise(np.where(sure, 0.6 * targets + 0.4 * noise, noise))


SKILLS = {"good": 0.7, "fair": 0.5, "poor": 0.1}
OOF = {name: table(seed, skill, TARGETS) for seed, (name, skill) in enumerate(SKILLS.items())}
TEST = {name: table(seed + 10, skill, TARGETS[:9]) for seed, (name, skill) in enumerate(SKILLS.items())}


def member(name: str) -> Member:
    return Member(name, Predictions(IDS, OOF[name], TASK.classes, name, FOLDS), Predictions(TESTS, TEST[name], TASK.classes, name), name)  # fmt: skip


def make(folder: Path, names: list[str], metric: str, method: BlendMethod, **settings: Any) -> dict[str, Any]:
    return make_ensemble(
        folder, folder.name, [member(name) for name in names], (IDS, TARGETS), TASK, get_metric(metric), [], method, "id",
        **settings,
    )  # fmt: skip


def fits_of(folder: Path, metric: str, answers: bool = True) -> Fits:
    stored = load_stored(folder, TASK, answers)
    oof = {name: Predictions(IDS, values, TASK.classes, name) for name, values in OOF.items()}
    turned = np.random.default_rng(5).permutation(ROWS)  # whatever the order of the rows
    evidence = make_evidence(
        oof, [IDS[row] for row in turned], TARGETS[turned], FOLDS[turned], get_metric(metric), answers, stored.settings
    )
    return Fits(tuple(OOF), TASK, stored.whole, evidence, {"good": 0.1, "fair": 0.01, "poor": 0.0}, (1 / 3,) * 3)


@pytest.mark.parametrize(
    ("method", "metric", "settings"),
    [
        ("simplex", "log_loss", {}),
        ("simplex", "macro_f1", {"decisions": "fitted"}),
        ("greedy", "macro_f1", {"calibration": "class_temperature", "decisions": "fitted"}),
        ("stacking", "log_loss", {"calibration": "temperature"}),
        ("gmean", "log_loss", {}),
        ("rank_mean", "macro_auc", {}),
    ],
)
def test_a_subset_is_the_ensemble_that_would_be_made_of_it(
    tmp_path: Path, method: BlendMethod, metric: str, settings: dict[str, Any]
) -> None:
    make(tmp_path / "all", list(OOF), metric, method, **settings)
    fits = fits_of(tmp_path / "all", metric)
    for names in (["good", "poor"], ["fair"]):
        record = make(tmp_path / "_".join(names), names, metric, method, **settings)
        found = fit_subset(fits.evidence, sorted(names), TASK)  # type: ignore[arg-type]
        assert found.score == record["cross_fitted"]["score"]
        assert found.chain is not None
        assert found.chain.to_dict() == record["fitted"]
        stored = Predictions.read(tmp_path / "_".join(names) / "test.parquet", "").take(TESTS)
        assert np.array_equal(found.apply(TEST, TASK), stored.values)


def test_the_whole_is_the_stored_ensemble(tmp_path: Path) -> None:
    record = make(tmp_path / "all", list(OOF), "log_loss", "simplex")
    fits = fits_of(tmp_path / "all", "log_loss")
    whole = fits.fit(frozenset(OOF))
    assert whole is fits.whole
    assert whole.score == record["cross_fitted"]["score"]
    stored = Predictions.read(tmp_path / "all" / "test.parquet", "").take(TESTS)
    assert np.array_equal(whole.apply(TEST, TASK), stored.values)


def test_decisions_count_only_where_answers_are_submitted(tmp_path: Path) -> None:
    record = make(tmp_path / "all", list(OOF), "macro_f1", "simplex", decisions="fitted")
    assert (
        fits_of(tmp_path / "all", "macro_f1", answers=True).whole.score == record["steps"][1]["cross_fitted"]["score"]
    )
    assert (
        fits_of(tmp_path / "all", "macro_f1", answers=False).whole.score == record["steps"][0]["cross_fitted"]["score"]
    )


def weightless() -> Fits:
    """An ensemble that gives ``poor`` no weight."""
    weights = np.array([0.75, 0.25, 0.0])
    whole = Fitted(
        ("good", "fair", "poor"), Chain(Blend("simplex", ("good", "fair", "poor"), weights), None, None), -0.5
    )
    evidence = Evidence(OOF, TARGETS, FOLDS, get_metric("log_loss"), "simplex", None, "none", "fixed", False)
    return Fits(tuple(OOF), TASK, whole, evidence, {"good": 0.1, "fair": 0.01, "poor": 0.0}, (1 / 3,) * 3)


def test_a_member_without_weight_is_not_needed() -> None:
    fits = weightless()
    assert fits.needed == {"good", "fair"}
    assert fits.fit(frozenset(["good", "fair"])) is fits.whole
    without = {name: values for name, values in TEST.items() if name != "poor"}
    assert np.array_equal(fits.whole.apply(without, TASK), fits.whole.apply(TEST, TASK))


def test_the_best_known_blend_is_kept_until_the_whole_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = weightless()
    alone = fits.fit(frozenset(["good"]))
    assert alone.score is not None
    whole = Fitted(fits.whole.members, fits.whole.chain, alone.score + 1)  # a larger log loss is worse
    monkeypatch.setattr(fits, "whole", whole)
    assert fits.best(frozenset(["good", "fair"])) is alone
    assert fits.best(frozenset(["good", "fair"]), complete=True) is whole
    monkeypatch.setattr(fits, "whole", Fitted(whole.members, whole.chain, alone.score - 1))
    assert fits.best(frozenset(["good", "fair"])) is fits.whole


def test_quality_grows_with_the_score_whichever_way_is_better() -> None:
    loss = weightless()
    found = loss.fit(frozenset(["good"])).score
    assert loss.quality(frozenset(["good"])) == -(found or 0)
    assert loss.quality(frozenset()) == pytest.approx(-np.log(3))
    assert loss.quality(frozenset(["good"])) > loss.quality(frozenset(["poor"]))


def test_a_prior_without_a_score_lies_below_the_worst_member() -> None:
    def undefined_for_constants(task: Task, targets: Floats, values: Floats) -> float:
        return float("nan") if np.ptp(values) < 1e-3 else float((targets * values).sum(axis=1).mean())

    metric = Metric("sure", True, "probability", frozenset({"multiclass"}), undefined_for_constants)
    evidence = Evidence(OOF, TARGETS, FOLDS, metric, "mean", None, "none", "fixed", False)
    fits = Fits(tuple(OOF), TASK, weightless().whole, evidence, {}, (1 / 3,) * 3)
    assert np.isfinite(fits.quality(frozenset()))
    assert fits.quality(frozenset()) < min(fits.quality(frozenset([name])) for name in OOF)


def test_without_tables_the_weights_of_the_whole_are_scaled_up() -> None:
    whole = weightless().whole
    fits = Fits(tuple(OOF), TASK, whole, None, {"good": 0.1, "fair": 0.01})
    assert fits.fit(frozenset(["fair"])).weights == {"fair": 1.0}
    assert fits.fit(frozenset(["good", "fair"])) is whole
    blend = Blend("simplex", ("good", "fair", "poor"), np.array([0.5, 0.3, 0.2]))
    fits = Fits(tuple(OOF), TASK, Fitted(blend.members, Chain(blend, None, None), None), None)
    found = fits.fit(frozenset(["good", "poor"]))
    assert found.weights == pytest.approx({"good": 0.5 / 0.7, "poor": 0.2 / 0.7})
    assert found.score is None
    expected = (0.5 * TEST["good"] + 0.2 * TEST["poor"]) / 0.7
    assert found.apply(TEST, TASK) == pytest.approx(expected, abs=1e-6)


def test_where_fitting_takes_too_long_gains_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(0, 10_000, 10))
    blend = Blend("simplex", ("fair", "good", "poor"), np.array([0.3, 0.5, 0.2]))
    whole = Fitted(blend.members, Chain(blend, None, None), 0.6)
    evidence = Evidence(OOF, TARGETS, FOLDS, get_metric("macro_f1"), "simplex", None, "none", "fixed", False)
    gains = {"good": 0.1, "fair": 0.01, "poor": -0.2}
    fits = Fits(tuple(OOF), TASK, whole, evidence, gains, (1 / 3,) * 3, clock=lambda: next(times))
    fits.search_within(1000)
    assert fits.searches
    fits.search_within(1)
    assert not fits.searches
    fitted = len(fits.known())
    assert fits.quality(frozenset(["good", "fair"])) == pytest.approx(0.6 - 1e-6)
    assert fits.quality(frozenset(["fair"])) == pytest.approx(0.6 - 0.1 - 1e-6)
    assert fits.weights(frozenset(["good", "fair"])) == pytest.approx({"fair": 0.375, "good": 0.625})
    assert len(fits.known()) == fitted


def test_a_metric_that_fails_leaves_the_scaled_weights(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(task: Task, targets: Floats, values: Floats) -> float:
        raise ZeroDivisionError("the user's own")

    blend = Blend("simplex", ("fair", "good", "poor"), np.array([0.3, 0.5, 0.2]))
    metric = Metric("own", True, "probability", frozenset({"multiclass"}), failing)
    evidence = Evidence(OOF, TARGETS, FOLDS, metric, "simplex", None, "none", "fixed", False)
    fits = Fits(tuple(OOF), TASK, Fitted(blend.members, Chain(blend, None, None), 0.6), evidence)
    assert fits.fit(frozenset(["good", "fair"])).weights == pytest.approx({"fair": 0.375, "good": 0.625})
    assert not fits.searches
    assert "the weights of the whole are scaled up" in capsys.readouterr().err


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.unlink(), lambda path: path.write_text("{"), lambda path: path.write_text('{"name": 1}')],
)
def test_a_broken_record_is_one_line(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    make(tmp_path / "all", list(OOF), "log_loss", "mean")
    spoil(tmp_path / "all" / "ensemble.json")
    with pytest.raises(BadInput) as caught:
        load_stored(tmp_path / "all", TASK, False)
    assert "\n" not in str(caught.value)


def test_scores_are_cross_fitted(tmp_path: Path) -> None:
    fits = weightless()
    found = fits.fit(frozenset(["good", "poor"]))
    evidence = fits.evidence
    assert evidence is not None
    plain = (
        found.apply(OOF, TASK) if found.chain is None else found.chain.probabilities([OOF["good"], OOF["poor"]], TASK)
    )
    assert found.score is not None
    assert found.score > score(get_metric("log_loss"), TASK, TARGETS, plain)  # the plain loss flatters
