"""A pipeline's rounds in order. The graph is checked before anything runs; what is finished is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from goldfold.config import Config
from goldfold.config.schema import EnsembleRound, Round, SubmitRound, TrainRound
from goldfold.errors import BadInput, GoldfoldError, some
from goldfold.machine import several_processes
from goldfold.paths import Workspace
from goldfold.pipeline.blending import ensemble_runs
from goldfold.pipeline.graph import Plan, Planned, plan_rounds, refuse_problems
from goldfold.pipeline.parallel import Jobs, Place
from goldfold.pipeline.stages import train_run
from goldfold.pipeline.submitting import submit
from goldfold.progress import say

State = Literal["done", "failed", "skipped"]


@dataclass(frozen=True)
class RoundOutcome:
    """How a round ended; ``reason`` says why it failed or was skipped."""

    number: int
    step: Round
    name: str
    state: State
    reason: str = ""
    exit_code: int = 0


@dataclass
class Outcome:
    """What a pipeline made: cv.json of each run, ensemble.json of each ensemble, paths of the submissions."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    ensembles: dict[str, dict[str, Any]] = field(default_factory=dict)
    submissions: dict[str, Path] = field(default_factory=dict)
    configs: dict[str, Config] = field(default_factory=dict)
    rounds: list[RoundOutcome] = field(default_factory=list)
    pipeline: str = ""

    @property
    def missing(self) -> list[RoundOutcome]:
        """The rounds that failed or were skipped."""
        return [item for item in self.rounds if item.state != "done"]


class PipelineFailed(GoldfoldError):
    """Some rounds failed; ``outcome`` is what the others made."""

    def __init__(self, outcome: Outcome) -> None:
        names = [f"{item.step.kind} {item.name} ({item.reason})" for item in outcome.missing]
        super().__init__(f"{outcome.pipeline}: not made: {some(names, 20)}; the same command goes on")
        self.outcome = outcome
        self.exit_code = 1 if any(item.exit_code == 1 for item in outcome.missing) else 2


def run_pipeline(
    path: Path, workspace: Workspace, overrides: Sequence[str] = (), jobs: Jobs = 1, place: Place = "here"
) -> Outcome:
    """Run every round that is not finished; ``jobs`` folds of a round at a time.

    A round that fails, or finds its input wrong, does not stop those that do not need it. Raises BadInput before anything
    runs when the rounds do not fit together, and PipelineFailed at the end when a round failed.
    """
    plan = plan_rounds(path, overrides, workspace)
    refuse_problems(plan)
    outcome = Outcome(configs=plan.configs, pipeline=str(plan.pipeline.name))
    for item in plan.rounds:
        outcome.rounds.append(_run_round(item, plan, outcome, workspace, jobs, place))
    if outcome.missing:
        raise PipelineFailed(outcome)
    return outcome


def _run_round(
    item: Planned, plan: Plan, outcome: Outcome, workspace: Workspace, jobs: Jobs, place: Place
) -> RoundOutcome:
    step, name = item.step, str(item.name)
    title = f"round {item.number}/{len(plan.rounds)}: {step.kind} {name}"
    # A submission may have the name of a run; only runs and ensembles are needed by other rounds.
    lost = [
        other.name for other in outcome.missing if not isinstance(other.step, SubmitRound) and other.name in item.needs
    ]
    if lost:
        reason = f"it needs {some(lost)}"
        say(f"{title}: skipped, {reason}")
        return RoundOutcome(item.number, step, name, "skipped", reason)
    say(f"{title} of {', '.join(step.members)}" if isinstance(step, EnsembleRound) else title)
    try:
        if isinstance(step, TrainRound):
            assert item.config is not None  # else the plan has a problem
            outcome.runs[name] = train_run(item.config, workspace, jobs=jobs, place=place)
        elif isinstance(step, EnsembleRound):
            outcome.ensembles[name] = ensemble_runs(step, workspace)
        else:
            outcome.submissions[name] = submit(step.source, workspace, workspace.submission(name))
    except GoldfoldError as error:
        if isinstance(error, BadInput) and several_processes():
            raise  # perhaps of this process alone, and none may go on to another round alone
        say(f"{title}: failed: {error}")
        return RoundOutcome(item.number, step, name, "failed", str(error), error.exit_code)
    return RoundOutcome(item.number, step, name, "done")
