"""One fold of an experiment as training sees it, for commands that measure and leave no run behind."""

from __future__ import annotations

from goldfold.config import Config
from goldfold.errors import BadInput, some
from goldfold.machine import Machine
from goldfold.paths import Workspace
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.jobs import open_sources
from goldfold.pipeline.settling import settle
from goldfold.pipeline.stages import load_folds
from goldfold.pipeline.teaching import make_job
from goldfold.training import FoldJob


def open_fold(config: Config, workspace: Workspace, fold: int = 0) -> tuple[FoldJob, Machine]:
    """The job of a fold with ``train.seed``, and the machine. Decodes images, deals folds; makes no run. Raises BadInput."""
    assert config.name is not None
    data = load_competition(config.competition, workspace.root)
    tables = load_folds(config, data, workspace)
    table = next((table for table in tables if fold in table.folds), None)
    if table is None:
        known = [k for table in tables for k in table.folds]
        raise BadInput("--fold", f"there is no fold {fold}", f"the folds are {some(known, 30)}")
    sources = open_sources(config, data, workspace)
    images = len(table.train_ids(fold)) * config.train.epochs  # as a run would be settled
    machine = settle(config, data.task, workspace, images=images).machine
    # The run's folder is named but never made: nothing of this may look like a training.
    paths = workspace.run(config.name).fold(fold)
    job = make_job(config, data, workspace, table, fold, config.train.seed, paths, sources, "", machine)
    return job, machine
