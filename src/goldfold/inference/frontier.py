"""The best blend of any subset of an ensemble's members, and its honest score: by the ensemble's own method, on the
out-of-fold predictions of that very subset."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from goldfold import files
from goldfold.config.schema import BlendMethod, CalibrationMethod, DecisionMethod
from goldfold.ensemble import load_blend, load_calibration, load_decisions
from goldfold.ensemble.crossfit import fit_folds
from goldfold.ensemble.stage import SEED
from goldfold.ensemble.steps import Chain, fit_steps
from goldfold.errors import BadInput, some
from goldfold.kaggle.manifest import read_manifest
from goldfold.kaggle.pack import Pack, read_oof, read_truth, verify
from goldfold.metrics import Metric, get_metric, score
from goldfold.progress import warn
from goldfold.records import Floats, Ints, Predictions
from goldfold.tasks import Decisions, Task


@dataclass(frozen=True, eq=False)
class Evidence:
    """Labelled rows that every member has predicted without having seen them.

    ``values``: by member (N, C); ``targets`` (N, C); ``folds`` (N,); the rest are the ensemble's settings. ``answers``:
    whether the submission holds hard answers, so that fitted decisions reach it.
    """

    values: Mapping[str, Floats]
    targets: Floats
    folds: Ints
    metric: Metric
    method: BlendMethod
    bags: int | None
    calibration: CalibrationMethod
    decisions: DecisionMethod
    answers: bool


@dataclass(frozen=True, eq=False)
class Fitted:
    """The blend of ``members``. ``chain``: None where a single run is passed on as it is. ``score``: the cross-fitted one
    of the metric (of one fold only: the plain one), None where it is unknown or undefined."""

    members: tuple[str, ...]
    chain: Chain | None
    score: float | None

    @property
    def weights(self) -> dict[str, float]:
        if self.chain is None:
            return dict.fromkeys(self.members, 1.0)
        blend = self.chain.blend
        return dict(zip(blend.members, blend.weights.tolist(), strict=True))

    @property
    def decisions(self) -> Decisions | None:
        return None if self.chain is None else self.chain.decisions

    def apply(self, values: Mapping[str, Floats], task: Task) -> Floats:
        """Probabilities (N, C) from those of its members."""
        if self.chain is None:
            return values[self.members[0]]
        # Members of no weight may be missing: any other's values stand for them.
        stand_in = next(iter(values.values()))
        return self.chain.probabilities([values.get(name, stand_in) for name in self.chain.blend.members], task)


class Fits:
    """Fitted blends of subsets, each made once.

    ``names``: all members; ``whole``: the stored blend of them all, or a single run; ``evidence``: None where there is
    none, and the weights of the whole are scaled up for a subset. ``gains``: by member what it is worth to the whole, by
    which subsets are judged where fitting many would take too long. ``prior`` (C,).
    """

    def __init__(
        self,
        names: Sequence[str],
        task: Task,
        whole: Fitted,
        evidence: Evidence | None = None,
        gains: Mapping[str, float] | None = None,
        prior: Sequence[float] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.names, self.task, self.whole, self.evidence = tuple(names), task, whole, evidence
        self.searches = evidence is not None
        """Whether ``quality`` fits the subsets that it is asked for."""
        self._gains = dict(gains or {})
        self._prior = np.array(prior, dtype=np.float32)
        self._fitted: dict[frozenset[str], Fitted] = {}
        self._clock = clock

    @property
    def needed(self) -> frozenset[str]:
        """The members whose predictions the blend of all depends on."""
        return frozenset(name for name, weight in self.whole.weights.items() if weight > 0)

    @property
    def sign(self) -> int:
        return 1 if self.evidence is None or self.evidence.metric.greater_is_better else -1

    def known(self) -> list[Fitted]:
        """All that was fitted so far, the whole first."""
        return [self.whole, *self._fitted.values()]

    def search_within(self, seconds: float) -> None:
        """Judge subsets by fitting them, unless a choice among the members would take longer than that."""
        count = len(self.needed)
        if self.evidence is None or count < 3:
            return
        least = min(sorted(self.needed), key=lambda name: self._gains.get(name, 0.0))
        begun = self._clock()
        self.fit(self.needed - {least})
        # A greedy choice looks at M (M + 1) / 2 subsets of half the size, on average.
        self.searches = (self._clock() - begun) * len(self.names) ** 2 / 4 <= seconds

    def fit(self, members: frozenset[str]) -> Fitted:
        """The blend of ``members``, at least one; the stored one where nothing that it needs is missing."""
        if members >= self.needed:
            return self.whole
        if members not in self._fitted:
            self._fitted[members] = self._make(sorted(members))
        return self._fitted[members]

    def weights(self, members: frozenset[str]) -> dict[str, float]:
        """Of each of ``members`` in their blend; of the whole's, scaled up, where subsets are not fitted."""
        if not members:
            return {}
        whole = members >= self.needed
        return (self.fit(members) if self.searches or whole else self._scaled(sorted(members))).weights

    def quality(self, members: frozenset[str]) -> float:
        """How good the blend of ``members`` is, larger is better; NaN where that is unknown. Of none: the prior."""
        if not members:
            return self._of_prior()
        if self.searches or members >= self.needed:
            return self._signed(self.fit(members).score)
        missing = self.needed - members
        whole = self._signed(self.whole.score)
        # What the whole loses by each that is missing; one of no gain is still better there than not.
        lost = sum(max(self._gains.get(name, 0.0), 1e-6) for name in missing)
        return (whole if math.isfinite(whole) else 0.0) - lost

    def best(self, members: frozenset[str], complete: bool = False) -> Fitted:
        """The best blend that is known of some of ``members``, of at least one; of all of them where none is better.

        ``complete``: all that the whole needs is done. Then it is the whole, which is what was asked for.
        """
        own = self.fit(members)
        if complete or own.score is None:
            return own
        known = list(self._fitted.values())  # at once: the other thread may fit one meanwhile
        others = [each for each in known if each.score is not None and members.issuperset(each.members)]
        return max([own, *others], key=lambda each: self._signed(each.score))

    def _make(self, names: Sequence[str]) -> Fitted:
        if self.evidence is not None:
            try:
                return fit_subset(self.evidence, names, self.task)
            except Exception as error:  # a metric of the user's own may raise anything; predictions must not end for it
                warn(f"no blend of {some(names)} can be fitted ({error}); the weights of the whole are scaled up")
                self.evidence, self.searches = None, False
        return self._scaled(names)

    def _signed(self, value: float | None) -> float:
        return math.nan if value is None else self.sign * value

    def _of_prior(self) -> float:
        evidence = self.evidence
        if evidence is None or not self.searches or not len(self._prior):
            return math.nan
        values = self.task.normalise(np.tile(self._prior, (len(evidence.targets), 1)))
        found = self._signed(score(evidence.metric, self.task, evidence.targets, values))
        if math.isfinite(found):
            return found
        singles = [self.quality(frozenset([name])) for name in self.names]
        known = [value for value in singles if math.isfinite(value)]
        # Where a constant has no score, as far below the worst member as that is below the best.
        return 2 * min(known) - max(known) - 1e-6 if known else math.nan

    def _scaled(self, names: Sequence[str]) -> Fitted:
        """The blend of all, of some members, their weights (or coefficients) scaled up to what all were together."""
        chain = self.whole.chain
        if chain is None:
            return self.whole
        kept = [chain.blend.members.index(name) for name in names]
        total = float(chain.blend.weights[kept].sum())
        weights = chain.blend.weights[kept] / total if total > 0 else np.full(len(kept), 1 / len(kept))
        coefficients = chain.blend.coefficients
        if coefficients is not None:
            coefficients = coefficients[:, kept] / (total or 1.0)
        blend = replace(chain.blend, members=tuple(names), weights=weights, coefficients=coefficients)
        return Fitted(tuple(names), replace(chain, blend=blend), None)


def fit_subset(evidence: Evidence, names: Sequence[str], task: Task) -> Fitted:
    """The blend of the members ``names`` with what follows it, and its score after the last step that is submitted."""
    values = [evidence.values[name] for name in names]
    fitted = fit_folds(
        evidence.method, names, values, evidence.targets, evidence.folds, task, evidence.metric, SEED, evidence.bags
    )
    steps = fit_steps(
        fitted,
        values,
        evidence.targets,
        evidence.folds,
        task,
        evidence.metric,
        evidence.calibration,
        evidence.decisions,
    )
    reaching = [step for step in steps.steps if step.name != "decisions" or evidence.answers]
    last = reaching[-1].cross_fitted or reaching[-1].plain
    found = last.score(evidence.metric, task, evidence.targets)
    return Fitted(tuple(names), steps.chain, found if math.isfinite(found) else None)


@dataclass(frozen=True, eq=False)
class Stored:
    """A stored ensemble: the blend of all its members, and its settings as ``Evidence`` has them."""

    whole: Fitted
    settings: Mapping[str, Any]


def load_stored(folder: Path, task: Task, answers: bool) -> Stored:
    """The ensemble in ``folder``; ``answers``: as in ``Evidence``. Raises BadInput when its record is broken."""
    where = folder / "ensemble.json"
    record = files.read_json(where)
    try:
        settings = {key: record[key] for key in ("method", "bags", "calibration", "decisions")}
        steps = [step for step in record["steps"] if step["step"] != "decisions" or answers]
        score = (steps[-1]["cross_fitted"] or steps[-1]["cv"])["score"]
    except (KeyError, TypeError, IndexError) as error:
        raise BadInput(where, f"not an ensemble's record ({error})", "make it again") from None
    blend, calibration = load_blend(folder, None), load_calibration(folder, task)
    chain = Chain(blend, calibration, load_decisions(folder, task))
    return Stored(Fitted(blend.members, chain, score), settings)


def fits_of_pack(pack: Pack) -> Fits:
    """The blends of a pack's members. Raises BadInput when the stored ensemble is broken.

    Where only the out-of-fold tables are broken, a warning says so, and the ensemble's own weights are scaled up for
    subsets of its members.
    """
    names = tuple(member.name for member in pack.members)
    if pack.ensemble is None:
        return Fits(names, pack.task, Fitted(names, None, pack.members[0].score))
    stored = load_stored(pack.ensemble, pack.task, pack.submission.holds_answers)
    if sorted(stored.whole.members) != sorted(names):
        what = f"blends {some(stored.whole.members)}, the pack has {some(names)}"
        raise BadInput(pack.ensemble / "ensemble.json", what, "export the pack again")
    gains = {member.name: member.marginal_gain or 0.0 for member in pack.members}
    try:
        evidence = _evidence(pack, stored.settings)
    except BadInput as error:
        warn(f"{error}; a part of the ensemble is blended with the weights of the whole, scaled up")
        evidence = None
    return Fits(names, pack.task, stored.whole, evidence, gains, pack.prior)


def _evidence(pack: Pack, settings: Mapping[str, Any]) -> Evidence:
    modules = [entry.path for entry in read_manifest(pack.folder) if entry.path.startswith("modules/")]
    verify(pack.folder, ["oof/truth.parquet", *(f"oof/{member.name}.parquet" for member in pack.members), *modules])
    truth = read_truth(pack)
    metric = get_metric(pack.competition.metric, pack.competition.metric_direction, pack.modules)
    oof = {member.name: read_oof(pack, member.name) for member in pack.members}
    return make_evidence(oof, truth.ids, truth.targets, truth.fold, metric, pack.submission.holds_answers, settings)


def make_evidence(
    oof: Mapping[str, Predictions],
    ids: Sequence[str],
    targets: Floats,
    folds: Ints,
    metric: Metric,
    answers: bool,
    settings: Mapping[str, Any],
) -> Evidence:
    """Out-of-fold predictions by member, and the labels (N, C) and ``folds`` (N,) of ``ids``, in one order: by ascending id,
    as ensembles are fitted. Raises BadInput when a member lacks an id."""
    order = np.array(sorted(range(len(ids)), key=lambda row: ids[row]), dtype=np.int64)
    ordered = [ids[row] for row in order]
    values = {name: table.take(ordered).values for name, table in oof.items()}
    return Evidence(values, targets[order], folds[order], metric, answers=answers, **settings)
