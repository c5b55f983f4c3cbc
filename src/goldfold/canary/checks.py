"""What is measured on the canary's finished rounds: scores that must lie at chance, and a memory that must not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from goldfold.canary.chance import Block, against_chance, agreement, by_rank
from goldfold.canary.plant import Planting
from goldfold.errors import GoldfoldError
from goldfold.metrics import Metric, score
from goldfold.paths import Workspace
from goldfold.records import Floats, Ints, Predictions, average
from goldfold.seeds import derive_seed
from goldfold.tasks import Task

ALPHA = 0.001
"""Chance of any false alarm in a report, over all its checks together."""
MEMORY = 0.5
"""How far from chance (0) to a perfect memory (1) the first rounds must have come."""
SIGHT = 0.5
"""A leak that carries this share of a memory must be beyond the alarm's limit; else there are too few rows."""
METRIC_ORDERS = 200

Rows = Literal["all", "pool", "planted"]
CHECKED: tuple[Rows, ...] = ("all", "pool", "planted")
"""All originals; originals with a twin in the pool; rows with a twin among the other folds' training rows."""
Verdict = Literal["chance", "leak", "below chance"]


@dataclass(frozen=True, eq=False)
class Seed:
    """One seed's finished competition. ``targets`` (M, C): the shuffled labels of the planting's training rows."""

    number: int
    planting: Planting
    targets: Floats
    workspace: Workspace


@dataclass(frozen=True)
class Check:
    """Honest rounds are at chance. ``score``: mean agreement of the out-of-fold predictions with the shuffled labels;
    ``low`` to ``high`` holds 95 % of the labels' orders; ``p`` two-sided; ``limit``: how far from chance the alarm is,
    about."""

    round: str
    rows_of: Rows
    rows: int
    score: float
    chance: float
    low: float
    high: float
    limit: float
    p: float
    verdict: Verdict


@dataclass(frozen=True)
class Control:
    """Whether a round's models carry a remembered label to a twin. ``memory``: 0 chance, 1 perfect."""

    round: str
    twins: Literal["pool", "planted"]
    rows: int
    score: float
    chance: float
    memory: float


@dataclass(frozen=True)
class MetricScore:
    """The competition's metric over all originals, mean over seeds, with 95 % of the labels' orders."""

    round: str
    score: float | None
    low: float | None
    high: float | None


def check_rounds(rounds: Mapping[str, str], seeds: Sequence[Seed], task: Task) -> list[Check]:
    """The three checks of each round, all seeds pooled. ``rounds``: kind by name."""
    checks: list[Check] = []
    level = ALPHA / (len(CHECKED) * len(rounds))
    for name, kind in rounds.items():
        tables = [(seed, out_of_fold(name, kind, seed)) for seed in seeds]
        for part in CHECKED:
            blocks = [block for seed, table in tables for block in fold_blocks(seed, table, task, _mask(seed, part))]
            rng = np.random.default_rng(derive_seed(0xC4EC, len(checks)))
            found = against_chance(blocks, level, rng)
            side: Verdict = "leak" if found.above else "below chance"
            checks.append(
                Check(
                    round=name,
                    rows_of=part,
                    rows=found.rows,
                    score=found.score,
                    chance=found.mean,
                    low=found.low,
                    high=found.high,
                    limit=_quantile(level) * found.deviation,
                    p=found.p,
                    verdict=side if found.p < level else "chance",
                )
            )
    return checks


def too_few_rows(checks: Sequence[Check]) -> list[Check]:
    """The checks of twins in which a leak that carries half of a memory would not reach the alarm.

    Predictions that are half a label and half something else vary less than sure ones: by a factor of √½."""
    return [c for c in checks if c.rows_of != "all" and c.limit * np.sqrt(0.5) > SIGHT * (1 - c.chance)]


def out_of_fold(name: str, kind: str, seed: Seed) -> Predictions:
    """A round's out-of-fold predictions in the order of the training rows. Raises GoldfoldError where there are none."""
    path = seed.workspace.ensemble(name) / "oof.parquet" if kind == "ensemble" else seed.workspace.run(name).oof
    if not path.exists():
        raise GoldfoldError(f"{path}: the round '{name}' left no out-of-fold predictions")
    return Predictions.read(path, name).take(seed.planting.ids)


def fold_blocks(seed: Seed, table: Predictions, task: Task, mask: np.ndarray) -> list[Block]:
    """A block a fold of the rows in ``mask`` (M,), against all labels of their fold."""
    blocks = []
    values, targets = _scaled(task, table.values, seed.targets)
    for fold in np.unique(seed.planting.fold):
        labels = np.flatnonzero(seed.planting.fold == fold)
        own = np.flatnonzero(mask[labels])
        if len(own):
            blocks.append(Block(agreement(task, values[labels[own]], targets[labels]), own))
    return blocks


def remember(name: str, folds: Sequence[int], seeds: Sequence[Seed], extra: Sequence[int], task: Task) -> list[Control]:
    """Whether the models of run ``name`` say a trained row's label of its twin: in the pool, and among training rows.

    ``folds``: the folds' numbers; ``extra``: the run's further seeds by canary seed 0, which shift with it."""
    pool: list[Block] = []
    planted: list[Block] = []
    for seed in seeds:
        plan, run = seed.planting, seed.workspace.run(name)
        numbers = [None, *(other + seed.number for other in extra)]
        parts = {
            fold: average([Predictions.read(run.fold(fold, n).test, name) for n in numbers], name) for fold in folds
        }
        oof = out_of_fold(name, "train", seed)
        pair = np.where(plan.twin >= 0, plan.twin, 0)
        for fold in np.unique(plan.fold):
            labels = np.flatnonzero(plan.fold == fold)
            # Models that were trained on these rows: those of the other folds.
            places = np.flatnonzero(plan.fold[plan.pool_of] == fold)
            ids = [plan.pool_ids[place] for place in places]
            others = average([parts[other].take(ids) for other in folds if other != fold], name)
            values, targets = _scaled(task, others.values, seed.targets)
            own = np.searchsorted(labels, plan.pool_of[places])
            pool.append(Block(agreement(task, values, targets[labels]), own))
            # The twin lies in another fold, whose model was trained on this fold's row.
            rows = labels[plan.twin[labels] >= 0]
            values, _ = _scaled(task, oof.values[pair[rows]], seed.targets)
            planted.append(Block(agreement(task, values, targets[labels]), np.searchsorted(labels, rows)))
    return [_control(name, "pool", pool, task), _control(name, "planted", planted, task)]


def _control(name: str, twins: Literal["pool", "planted"], blocks: Sequence[Block], task: Task) -> Control:
    rows = sum(len(block.own) for block in blocks)
    found, chance = sum(block.observed for block in blocks) / rows, sum(block.mean for block in blocks) / rows
    return Control(name, twins, rows, found, chance, (found - chance) / max(1 - chance, 1e-12))


def measure_metric(name: str, kind: str, seeds: Sequence[Seed], task: Task, metric: Metric) -> MetricScore:
    """The competition's metric, for the eye; the checks go by the agreement, which is sharper."""
    observed: list[float] = []
    orders = np.zeros(METRIC_ORDERS)
    rng = np.random.default_rng(derive_seed(0x5C02E))
    for seed in seeds:
        plan, table = seed.planting, out_of_fold(name, kind, seed)
        rows = np.flatnonzero(plan.original)
        observed.append(score(metric, task, seed.targets[rows], table.values[rows]))
        for order in range(METRIC_ORDERS):
            shuffled = seed.targets[_within_folds(plan.fold, rng)]
            orders[order] += score(metric, task, shuffled[rows], table.values[rows]) / len(seeds)
    known = orders[np.isfinite(orders)]
    value = float(np.mean(observed))
    if not np.isfinite(value) or not len(known):
        return MetricScore(name, None, None, None)
    low, high = np.quantile(known, [0.025, 0.975])
    return MetricScore(name, value, float(low), float(high))


def _within_folds(fold: Ints, rng: np.random.Generator) -> Ints:
    order = np.arange(len(fold))
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        order[rows] = rng.permutation(rows)
    return order


def _mask(seed: Seed, part: Rows) -> np.ndarray:
    plan = seed.planting
    return {"all": plan.original, "pool": plan.in_pool, "planted": plan.in_training}[part]


def _scaled(task: Task, values: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """A regression's values and targets by rank among all targets, which no order of the labels changes."""
    if task.name != "regression":
        return values, targets
    return by_rank(values, targets), by_rank(targets, targets)


def _quantile(level: float) -> float:
    from scipy.stats import norm

    return float(norm.isf(level / 2))
