"""`goldfold lr-find`: which peak learning rate an experiment can bear. Leaves nothing but its plot and its figures."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from goldfold import files
from goldfold.config import Config
from goldfold.errors import GoldfoldError
from goldfold.lr_range import centred, plot, ramp, suggest
from goldfold.paths import Workspace
from goldfold.pipeline.one_fold import open_fold
from goldfold.training import find_lr_range


def lr_find(
    config: Config,
    workspace: Workspace,
    out: Path,
    fold: int = 0,
    lowest: float = 1e-7,
    highest: float = 10.0,
    steps: int = 100,
) -> dict[str, Any]:
    """Ramp the rate on one fold; writes ``out``.png and ``out``.json. Returns what the JSON holds. Raises BadInput."""
    assert config.name is not None
    ramp(lowest, highest, steps)  # refuses wrong rates before any image is read
    job, machine = open_fold(config, workspace, fold)
    found = find_lr_range(job, machine, lowest, highest, steps)
    title = (
        f"{config.name}, fold {fold}: {config.optim.name}, batch {config.train.batch_size * config.train.accumulate}"
    )
    picture = out.with_suffix(".png")
    try:
        suggestion = suggest(found.rates, found.losses)
    except GoldfoldError:
        if machine.is_main:
            plot(picture, found.rates, found.losses, None, title)  # the curve shows why there is nothing to suggest
        raise
    record = {
        "config": config.name,
        "fold": fold,
        "seed": config.train.seed,
        "optimizer": config.optim.name,
        "lr_scaling": config.optim.lr_scaling,
        "machine": machine.describe(),
        "suggestions": asdict(suggestion),
        "rates": list(found.rates),
        "losses": [loss if math.isfinite(loss) else None for loss in found.losses],
        "smoothed": centred(found.losses),
    }
    if not machine.is_main:
        return record
    files.write_json(out.with_suffix(".json"), record)
    plot(picture, found.rates, found.losses, suggestion, title)
    return record
