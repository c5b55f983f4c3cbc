"""What comes after a blend: calibration, then decisions, each cross-fitted as the blend is.

For fold k all three are fitted on the rows of the other folds: the blend, the temperatures of that blend's values, the
decisions on those calibrated values. No label of fold k shapes any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from goldfold.config.schema import CalibrationMethod, DecisionMethod
from goldfold.ensemble.blend import Blend
from goldfold.ensemble.calibration import Calibration, fit_calibration
from goldfold.ensemble.crossfit import CrossFit
from goldfold.ensemble.decisions import decides, fit_decisions
from goldfold.metrics import Metric, score
from goldfold.records import Floats, Ints
from goldfold.tasks import Decisions, Task

StepName = Literal["blend", "calibration", "decisions"]


@dataclass(frozen=True, eq=False)
class Chain:
    """A blend with what was fitted to its values: None where that was not asked for."""

    blend: Blend
    calibration: Calibration | None
    decisions: Decisions | None

    def probabilities(self, members: Sequence[Floats], task: Task) -> Floats:
        """The calibrated blend (N, C) of M arrays (N, C)."""
        blended = self.blend.apply(members, task)
        return blended if self.calibration is None else self.calibration.apply(blended, task)

    def to_dict(self) -> dict[str, Any]:
        return {
            "blend": self.blend.to_dict(),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "decisions": None if self.decisions is None else self.decisions.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Values:
    """Predictions after a step: ``probabilities`` (N, C), and ``answers`` (N, C) of 0 and 1 where they were decided."""

    probabilities: Floats
    answers: Floats | None = None

    def score(self, metric: Metric, task: Task, targets: Floats, rows: npt.NDArray[np.bool_] | None = None) -> float:
        """The metric of some rows (None: all): of the answers, where it judges answers."""
        values = self.probabilities
        if self.answers is not None and decides(metric, task):
            # The answers are made: a threshold of 0 or 1 must not make them anew.
            values, task = self.answers, replace(task, threshold=0.5)
        kept = slice(None) if rows is None else rows
        return score(metric, task, targets[kept], values[kept])


@dataclass(frozen=True, eq=False)
class Step:
    """``plain``: fitted and applied to all rows; ``cross_fitted``: each fold by what has not seen its labels, or None."""

    name: StepName
    plain: Values
    cross_fitted: Values | None


@dataclass(frozen=True, eq=False)
class Steps:
    """``chain``: fitted on all rows; ``fold_chains``: fold → fitted without its labels; ``steps`` in their order."""

    chain: Chain
    fold_chains: dict[int, Chain]
    steps: tuple[Step, ...]


def fit_chain(
    blend: Blend,
    blended: Floats,
    targets: Floats,
    task: Task,
    metric: Metric,
    calibration: CalibrationMethod,
    decisions: DecisionMethod,
) -> Chain:
    """What follows ``blend``, fitted on its values ``blended`` (N, C) of the rows that it was fitted on itself."""
    temperatures = fit_calibration(calibration, blended, targets, task)
    values = blended if temperatures is None else temperatures.apply(blended, task)
    return Chain(blend, temperatures, fit_decisions(decisions, values, targets, task, metric))


def fit_steps(
    fitted: CrossFit,
    members: Sequence[Floats],
    targets: Floats,
    folds: Ints,
    task: Task,
    metric: Metric,
    calibration: CalibrationMethod,
    decisions: DecisionMethod,
) -> Steps:
    """Calibration and decisions after a cross-fitted blend of ``members``, M arrays (N, C)."""
    chain = fit_chain(fitted.blend, fitted.plain, targets, task, metric, calibration, decisions)
    chains: dict[int, Chain] = {}
    for fold, blend in fitted.fold_blends.items():
        rest = folds != fold
        wanted = calibration != "none" or decisions != "fixed"
        blended = blend.apply([member[rest] for member in members], task) if wanted else fitted.plain[rest]
        chains[fold] = fit_chain(blend, blended, targets[rest], task, metric, calibration, decisions)
    plain, honest = fitted.plain, fitted.values
    steps = [Step("blend", Values(plain), None if honest is None else Values(honest))]
    if chain.calibration is not None:
        plain = chain.calibration.apply(plain, task)
        if honest is not None:
            honest = honest.copy()
            for fold, each in chains.items():
                assert each.calibration is not None
                honest[folds == fold] = each.calibration.apply(honest[folds == fold], task)
        steps.append(Step("calibration", Values(plain), None if honest is None else Values(honest)))
    if chain.decisions is not None:
        answers = task.one_hot(task.decide(plain, chain.decisions))
        step = Step("decisions", Values(plain, answers), None)
        if honest is not None:
            answers = np.zeros_like(honest)
            for fold, each in chains.items():
                held = folds == fold
                answers[held] = task.one_hot(task.decide(honest[held], each.decisions))
            step = replace(step, cross_fitted=Values(honest, answers))
        steps.append(step)
    return Steps(chain, chains, tuple(steps))
