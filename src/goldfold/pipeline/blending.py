"""The ensemble stage with what it needs of the competition: finished runs in, ``ensembles/<name>`` out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from goldfold.config.schema import Competition, EnsembleRound
from goldfold.ensemble import check_calibration, check_decisions, check_method, load_member, make_ensemble
from goldfold.errors import BadInput
from goldfold.metrics import get_metric
from goldfold.paths import Workspace
from goldfold.pipeline.competition import load_competition, same_rows
from goldfold.pipeline.lineage import find_source, run_config
from goldfold.pipeline.reporting import report_ensemble
from goldfold.pipeline.stages import load_folds
from goldfold.tasks import Task


def check_settings(settings: EnsembleRound, competition: Competition, root: Path) -> None:
    """Raises BadInput when a round's settings do not suit the competition's task and metric. Reads no table."""
    classes = ("1",) if competition.task == "binary" else ("1", "2")
    task = Task(competition.task, classes)
    metric = get_metric(competition.metric, competition.metric_direction, root)
    check_method(settings.method, task, metric)
    check_calibration(settings.calibration, settings.method, task)
    check_decisions(settings.decisions, task, metric)


def ensemble_runs(settings: EnsembleRound, workspace: Workspace) -> dict[str, Any]:
    """Blend finished runs into ``ensembles/<name>``; returns ensemble.json.

    Raises BadInput when they cannot be aligned, or when the name is a run's.
    """
    if workspace.run(settings.name).config.exists():
        raise BadInput(
            settings.name, f"it is the name of a run ({workspace.run(settings.name).folder})", "choose another name"
        )
    for member in settings.members:
        if find_source(member, workspace) == "ensemble":
            raise BadInput(member, "it is an ensemble, and members are runs", "name its members instead")
    config = run_config(settings.members[0], workspace)
    for other in settings.members[1:]:
        if not same_rows(run_config(other, workspace).competition, config.competition):
            raise BadInput(
                other,
                f"its competition section differs from that of {settings.members[0]}",
                "blend runs of one competition",
            )
    data = load_competition(config.competition, workspace.root)
    loaded = [load_member(workspace.run(member)) for member in settings.members]
    record = make_ensemble(
        workspace.ensemble(settings.name),
        settings.name,
        loaded,
        (data.ids, data.targets),
        data.task,
        data.metrics[0],
        data.metrics[1:],
        settings.method,
        config.competition.id,
        bags=settings.bags,
        calibration=settings.calibration,
        decisions=settings.decisions,
        repeats=load_folds(config, data, workspace)[1:],
    )
    report_ensemble(record, {member: run_config(member, workspace) for member in settings.members}, data, workspace)
    return record
