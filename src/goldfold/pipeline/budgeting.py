"""``goldfold budget``: which members of an ensemble fit into a kernel's hours, and what score each amount of time buys.

The plan is the kernel's own (``goldfold.inference.budget``), on this machine's throughput or on figures that are given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from goldfold import files
from goldfold.bundle import read_bundle
from goldfold.config import Config
from goldfold.ensemble import load_member
from goldfold.errors import BadInput, some
from goldfold.images import ImageSpec
from goldfold.images.decode import Pixels
from goldfold.inference.budget import Candidate, Deadline, Step, plan
from goldfold.inference.frontier import Fits, load_stored, make_evidence
from goldfold.metrics import Metric
from goldfold.paths import Workspace
from goldfold.pipeline.budget_plot import draw_budget
from goldfold.pipeline.competition import CompetitionData, load_competition
from goldfold.pipeline.exporting import kernel_hours
from goldfold.pipeline.lineage import find_source, known_sources, named, refuse_stale, run_config
from goldfold.pipeline.speed import Speed, measure_reading, measure_speed, passes_of
from goldfold.pipeline.submitting import submission_format
from goldfold.progress import progress

EVERY_SUBSET = 6
"""Of so many members every subset is fitted; of more, those that a greedy choice meets at one of the limits below."""
LIMITS = 12
OTHERS = "ALL"
"""Stands for every member whose speed is not given by its name."""


@dataclass(frozen=True)
class Point:
    """A subset of the members: its cross-fitted score, and the hours that one network, or all networks, of each take.

    ``frontier``: whether nothing that takes as long (one network each) has a better score.
    """

    members: tuple[str, ...]
    score: float
    hours: float
    all_hours: float
    frontier: bool = False


@dataclass(frozen=True)
class Budget:
    """What ``goldfold budget`` found. ``hours``: the limit, of which the work may take ``work``; ``reading``: images a
    second; ``speeds``: by member; ``steps``: the plan; ``points``: the subsets that were looked at, the quickest first."""

    ensemble: str
    leaky: bool
    metric: Metric
    images: int
    hours: float
    work: float
    gpus: int
    reading: float
    speeds: Mapping[str, Speed]
    weights: Mapping[str, float]
    steps: tuple[Step, ...]
    points: tuple[Point, ...]
    partial: tuple[str, int] | None = None
    """Where the plan is empty: the member that the kernel runs all the same, and how many images it gets through."""

    @property
    def sign(self) -> int:
        return 1 if self.metric.greater_is_better else -1

    def plan_table(self) -> pd.DataFrame:
        """A row a network, in the order in which they run; ``score``: cross-fitted, of the members up to there."""
        rows = [
            {
                "step": number,
                "member": step.member,
                "network": step.number,
                "seconds": round(step.seconds, 3),
                "hours": step.ends / 3600,
                "members": " + ".join(sorted(step.members)),
                "score": self.sign * step.quality,
            }
            for number, step in enumerate(self.steps, 1)
        ]
        return pd.DataFrame(rows, columns=["step", "member", "network", "seconds", "hours", "members", "score"])

    def frontier_table(self) -> pd.DataFrame:
        """A row a subset; ``hours`` of one network of each member, ``all_hours`` of all."""
        rows = [
            {
                "members": " + ".join(point.members),
                "score": point.score,
                "hours": point.hours,
                "all_hours": point.all_hours,
                "frontier": point.frontier,
                "within": point.hours <= self.work,
            }
            for point in self.points
        ]
        return pd.DataFrame(rows, columns=["members", "score", "hours", "all_hours", "frontier", "within"])

    def to_text(self) -> str:
        way = "higher" if self.metric.greater_is_better else "lower"
        total = sum(len(speed.passes) for speed in self.speeds.values())
        planned = len(self.steps)
        members = [
            [
                name,
                f"{speed.rate:.1f}",
                _hours(speed.seconds(self.images)[0] / self.gpus),
                _hours(sum(speed.seconds(self.images)) / self.gpus),
                sum(step.member == name for step in self.steps),
                len(speed.passes),
                f"{self.weights.get(name, 0.0):.3f}",
            ]
            for name, speed in self.speeds.items()
        ]
        lines = [
            f"{named(self.ensemble, self.leaky)}: {self.images} images in {self.hours:g} hours, {self.work:.3g} of them for "
            f"work{f', {self.gpus} GPUs' if self.gpus > 1 else ''}; reading {self.reading:.0f} images/s: "
            f"{_hours(self.images / self.reading)}, beside the networks",
            "",
            _table(members, ["member", "images/s", "one network", "all", "planned", "of", "weight"], 1),
            "",
            f"plan: {planned} of {total} networks, in the order of gain per second ({self.metric.name}, {way} is better)",
            _table(
                [
                    [place, step.member, step.number, _hours(step.ends), f"{self.sign * step.quality:.5f}"]
                    for place, step in enumerate(self.steps, 1)
                ],
                ["", "member", "network", "done after", "cross-fitted"],
                2,
            ),
            *self._partly(),
            "",
            "frontier: the best cross-fitted score for the time of one network of each member",
            _table(
                [
                    [
                        _hours(point.hours * 3600),
                        _hours(point.all_hours * 3600),
                        f"{point.score:.5f}",
                        " + ".join(point.members),
                    ]
                    for point in self.points
                    if point.frontier
                ],
                ["one network", "all", "cross-fitted", "members"],
                3,
            ),
        ]
        return "\n".join(lines)

    def _partly(self) -> list[str]:
        if self.partial is None:
            return []
        member, rows = self.partial
        return [f"  '{member}' would answer about {rows} of {self.images} images; the others get the class prior"]


def budget(
    name: str,
    workspace: Workspace,
    hours: float | None,
    images: int,
    *,
    given: Mapping[str, float] | None = None,
    reading: float | None = None,
    gpus: int = 1,
    sample: int = 64,
) -> tuple[Budget, Path]:
    """Plan an ensemble for ``images`` test images in ``hours`` (None: as ``export`` takes them); writes budget.csv, frontier.csv and budget.png into its
    folder, which comes back too.

    ``given``: images a second by member (``ALL``: of those without a name), which are then not measured; ``reading``: images read a second. ``gpus``: of
    the kernel, each as fast as this machine's (or as ``given``). ``sample``: test images that are read to measure. Raises
    BadInput for what is no ensemble, unknown members, numbers below 1, and images that cannot be read.
    """
    for flag, value in (
        ("--hours", 1.0 if hours is None else hours),
        ("--images", images),
        ("--gpus", gpus),
        ("--sample", sample),
    ):
        if not (math.isfinite(value) and value > 0):
            raise BadInput(flag, f"{value:g} is not above 0", "give a larger number")
    if find_source(name, workspace) != "ensemble":
        known = [other for other in known_sources(workspace) if find_source(other, workspace) == "ensemble"]
        raise BadInput(name, "it is no ensemble", f"there are {some(known, 20)}" if known else "make one first")
    refuse_stale(name, workspace)
    folder = workspace.ensemble(name)
    record = files.read_json(folder / "ensemble.json")
    runs = [str(member["name"]) for member in record["members"]]
    given = dict(given or {})
    others = given.pop(OTHERS, None) if OTHERS not in runs else None
    unknown = [run for run in given if run not in runs]
    if unknown:
        raise BadInput("--img-per-second", f"'{unknown[0]}' is no member", f"the members are {some(runs, 20)}")
    if others is not None:
        given = dict.fromkeys(runs, others) | given
    configs = {run: run_config(run, workspace) for run in runs}
    if hours is None:
        hours = kernel_hours(name, configs)
    data = load_competition(configs[runs[0]].competition, workspace.root)
    fits = _fits(name, runs, data, workspace, record)
    speeds, reading = _speeds(configs, workspace, data, given, reading, sample)
    limit = Deadline(hours * 3600, 0.0)
    candidates = [Candidate(run, tuple(seconds / gpus for seconds in speeds[run].seconds(images))) for run in runs]
    work = hours * 3600 - limit.margin
    steps = plan(candidates, fits.quality, fits.weights, work, fits.needed, images / reading)
    partial = None if steps else _partial(candidates, fits, work, images, reading)
    points = _points(candidates, fits, images / reading)
    found = Budget(
        ensemble=name,
        leaky=bool(record["leaky"]),
        metric=data.metrics[0],
        images=images,
        hours=hours,
        work=work / 3600,
        gpus=gpus,
        reading=reading,
        speeds=speeds,
        weights=fits.whole.weights,
        steps=tuple(steps),
        points=tuple(points),
        partial=partial,
    )
    files.write_csv(folder / "budget.csv", found.plan_table())
    files.write_csv(folder / "frontier.csv", found.frontier_table())
    (folder / "budget.png").unlink(missing_ok=True)
    title = named(name, found.leaky)
    draw_budget(found.frontier_table(), found.plan_table(), found.metric, found.work, title, folder / "budget.png")
    return found, folder


def _partial(
    candidates: Sequence[Candidate], fits: Fits, work: float, images: int, reading: float
) -> tuple[str, int] | None:
    """Where no network gets through all images in ``work`` seconds: the one that a kernel runs, and its images."""
    steps = plan(candidates, fits.quality, fits.weights, math.inf, fits.needed, images / reading)
    return (steps[0].member, int(images * max(work, 0.0) / steps[0].ends)) if steps else None


def _fits(
    name: str, runs: Sequence[str], data: CompetitionData, workspace: Workspace, record: Mapping[str, object]
) -> Fits:
    folder = workspace.ensemble(name)
    answers = submission_format(data, folder).holds_answers
    stored = load_stored(folder, data.task, answers)
    oof = {run: load_member(workspace.run(run)).oof for run in runs}
    first = oof[runs[0]]
    assert first.fold is not None  # a run's has
    evidence = make_evidence(
        oof, first.ids, data.targets_of(first.ids), first.fold, data.metrics[0], answers, stored.settings
    )
    gains = {str(member["name"]): float(member["marginal_gain"] or 0.0) for member in record["members"]}  # type: ignore[attr-defined]
    prior = data.targets.mean(axis=0, dtype=np.float64)
    return Fits(runs, data.task, stored.whole, evidence, gains, prior.tolist())


def _speeds(
    configs: Mapping[str, Config],
    workspace: Workspace,
    data: CompetitionData,
    given: Mapping[str, float],
    reading: float | None,
    sample: int,
) -> tuple[dict[str, Speed], float]:
    """By member how fast it is, and the images read a second; measured where it is not given."""
    folders = {run: sorted(path.parent for path in workspace.run(run).folder.glob("fold*/DONE")) for run in configs}
    for run, found in folders.items():
        if not found:
            raise BadInput(workspace.run(run).folder, "no fold is finished", "goldfold train finishes it")
    unknown = [run for run in configs if run not in given]
    stores: dict[ImageSpec, Pixels] = {}
    if unknown or reading is None:
        paths = list(data.test_paths or data.train_paths)[:sample]
        specs = list(dict.fromkeys(read_bundle(each[0]).images for each in folders.values()))
        measured, stores = measure_reading(paths, specs)
        reading = measured if reading is None else reading
    speeds = {run: Speed(rate, tuple(passes_of(folder) for folder in folders[run]), 0.0) for run, rate in given.items()}
    for run in progress(unknown, "measuring", len(unknown), "members"):
        speeds[run] = measure_speed(configs[run], folders[run], stores)
    return {run: speeds[run] for run in configs}, float(reading or 1.0)


def _points(candidates: Sequence[Candidate], fits: Fits, reading: float) -> list[Point]:
    """The subsets that were looked at, and which of them nothing beats in as little time; the quickest first."""
    first = {candidate.name: candidate.seconds[0] for candidate in candidates}
    every = {candidate.name: sum(candidate.seconds) for candidate in candidates}
    names = list(first)
    if len(names) <= EVERY_SUBSET:
        subsets = [each for size in range(1, len(names) + 1) for each in itertools.combinations(names, size)]
        for each in progress(subsets, "fitting blends of subsets", len(subsets), "subsets"):
            fits.quality(frozenset(each))
    else:
        for limit in np.geomspace(min(first.values()), sum(every.values()), LIMITS):
            plan(candidates, fits.quality, fits.weights, float(limit), fits.needed)
    known = {frozenset(each.members): each for each in fits.known() if each.score is not None}
    # The whole does as well without the members that it gives no weight.
    whole = known.pop(frozenset(fits.whole.members), None)
    if whole is not None:
        known[fits.needed] = whole
    points = []
    for members, fitted in known.items():
        assert fitted.score is not None
        # One network runs while the images are read, the others after it.
        longest = max(first[name] for name in members)
        held_up = max(reading - longest, 0.0)
        one, all_ = ((sum(seconds[name] for name in members) + held_up) / 3600 for seconds in (first, every))
        points.append(Point(tuple(sorted(members)), fitted.score, one, all_))
    points.sort(key=lambda point: (point.hours, -fits.sign * point.score))
    best = -math.inf
    marked = []
    for point in points:
        better = fits.sign * point.score > best
        best = max(best, fits.sign * point.score)
        marked.append(Point(point.members, point.score, point.hours, point.all_hours, better))
    return marked


def _hours(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5970 else f"{seconds / 3600:.3g} h"


def _table(rows: Sequence[Sequence[object]], headers: Sequence[str], left: int) -> str:
    """``left``: how many columns hold text, at the left; or the place of the last where it does."""
    if not rows:
        return "  nothing fits"
    sides = ["left" if place < left else "right" for place in range(len(headers))]
    if headers[-1] == "members":
        sides = ["right"] * (len(headers) - 1) + ["left"]
    return tabulate([list(map(str, row)) for row in rows], headers, disable_numparse=True, colalign=sides)
