"""A blend and an honest score for it: each fold is predicted by a blend that was fitted without its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from goldfold.config.schema import BlendMethod
from goldfold.ensemble.blend import Blend, Weights, check_method, fit_rows, stack
from goldfold.errors import BadInput
from goldfold.metrics import Metric, score
from goldfold.progress import progress, warn
from goldfold.records import Floats, Ints
from goldfold.tasks import Task


@dataclass(frozen=True, eq=False)
class CrossFit:
    """What ``cross_fit`` found.

    ``blend``, ``plain`` (N, C) and ``plain_score``: fitted, applied and scored on all rows. ``values`` (N, C) and
    ``score``: each fold predicted by a blend that has not seen its labels; None with a single fold. ``fold_blends``:
    fold → the blend used on it. A score is nan where the metric is undefined.
    """

    blend: Blend
    plain: Floats
    plain_score: float
    greater_is_better: bool
    values: Floats | None = None
    score: float | None = None
    fold_blends: dict[int, Blend] = field(default_factory=dict)

    @property
    def optimism(self) -> float | None:
        """By how much the plain score looks better than the cross-fitted one; None with a single fold."""
        if self.score is None:
            return None
        gap = self.plain_score - self.score
        return gap if self.greater_is_better else -gap

    @property
    def weights(self) -> Weights:
        """The weights (M,) fitted on all rows."""
        return self.blend.weights

    @property
    def fold_weights(self) -> dict[int, Weights]:
        """Fold → the weights (M,) fitted without its labels."""
        return {fold: blend.weights for fold, blend in self.fold_blends.items()}


def cross_fit(
    method: BlendMethod,
    names: Sequence[str],
    members: Sequence[Floats],
    targets: Floats,
    folds: Ints,
    task: Task,
    metric: Metric,
    seed: int = 0,
    bags: int | None = None,
) -> CrossFit:
    """Fit and score a blend twice: on all rows, and for each fold with a blend fitted on the other folds' rows.

    ``members``: M arrays (N, C) float32 of out-of-fold predictions, called ``names``; ``targets`` (N, C); ``folds``
    (N,). The first score judges a blend on the labels that chose it and flatters; the second does not, and the
    difference is the optimism. One small debt remains, as in all stacking on shared folds: the models behind the other
    folds' predictions have themselves trained on fold k.

    ``rank_mean`` ranks fold k's rows among themselves, as the test images will be ranked among themselves.

    With one fold there are no other rows to fit on: ``values`` and ``score`` are None, and a warning says so. Scores are
    of all rows, whatever sample of them a search may have looked at. Members are never copied whole. Raises BadInput as
    ``fit`` does, and when ``folds`` do not match.
    """
    check_method(method, task, metric)
    if len(np.unique(folds)) < 2:
        warn("the members have one fold only: an ensemble's score cannot be cross-fitted and is optimistic")
    return fit_folds(method, names, members, targets, folds, task, metric, seed, bags)


def fit_folds(
    method: BlendMethod,
    names: Sequence[str],
    members: Sequence[Floats],
    targets: Floats,
    folds: Ints,
    task: Task,
    metric: Metric,
    seed: int = 0,
    bags: int | None = None,
) -> CrossFit:
    """``cross_fit`` without its warnings, for a search over many subsets of members."""
    stacked = stack(names, members, targets, seed)
    if folds.shape != (len(targets),):
        raise BadInput("ensemble", f"folds of shape {folds.shape} for {len(targets)} rows")
    blend = fit_rows(method, names, stacked, task, metric, bags=bags)
    plain = blend.apply(members, task)
    plain_score = score(metric, task, targets, plain)
    numbers = [int(number) for number in np.unique(folds)]
    if len(numbers) < 2:
        return CrossFit(blend, plain, plain_score, metric.greater_is_better)
    values = np.empty(targets.shape, dtype=np.float32)
    fold_blends = {}
    for number in progress(numbers, f"cross-fitting {method}", len(numbers), "fold"):
        held = folds == number
        found = fit_rows(method, names, stacked, task, metric, np.flatnonzero(~held), bags)
        values[held] = found.apply([member[held] for member in members], task)
        fold_blends[number] = found
    return CrossFit(
        blend, plain, plain_score, metric.greater_is_better, values, score(metric, task, targets, values), fold_blends
    )
