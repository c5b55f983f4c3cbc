"""The processes that train one model together draw apart: masks, augmentation, mixing and boxes; the first as if alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from goldfold.config import load_config
from goldfold.config.schema import Tracking
from goldfold.data import PixelBatches
from goldfold.data.loaders import Request
from goldfold.machine import find_machine
from goldfold.paths import Workspace
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.jobs import open_sources, plain_job
from goldfold.pipeline.stages import load_folds
from goldfold.seeds import derive_seed
from goldfold.tracking import WandbRun
from goldfold.training import FoldJob, loop, train_fold
from goldfold.training.job import EPOCH

CONFIG = Path("configs/tiny.yaml")
DRAWS = ["model.drop_rate=0.5", "augment.preset=light", "mix.mixup=0.4", "augment.erase.prob=0.5", "train.epochs=2"]

Draws = dict[str, list[int]]


class Seen(Exception):
    """Two epochs have begun; the rest of the training tells nothing."""


def make(project: Path) -> FoldJob:
    config = load_config(CONFIG, DRAWS)
    workspace = Workspace(project)
    data = load_competition(config.competition, project)
    table = load_folds(config, data, workspace)[0]
    paths = workspace.run("tiny").fold(0)
    paths.folder.mkdir(parents=True, exist_ok=True)
    return plain_job(config, data, workspace, table, 0, 0, paths, open_sources(config, data, workspace), "")


@pytest.fixture
def draws(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], Draws]:
    """The seeds of all that the process of a rank draws in two epochs; None: as the machine says, alone."""
    job = make(project)

    def of_rank(rank: int | None) -> Draws:
        found: Draws = {"masks": [], "augmentation": [], "mixing": [], "boxes": []}
        with monkeypatch.context() as patch:
            if rank is not None:
                patch.setattr(Accelerator, "process_index", property(lambda self: rank))
            epoch, mix, erase, batch = loop.train_epoch, loop.draw_mix, loop.erase_batch, PixelBatches.__getitems__

            def train_epoch(*arguments: Any) -> Any:
                found["masks"].append(torch.initial_seed())
                result = epoch(*arguments)
                if len(found["masks"]) == 2:
                    raise Seen
                return result

            def draw_mix(settings: Any, n: int, height: int, width: int, *seed: int) -> Any:
                found["mixing"].append(hash(seed))
                return mix(settings, n, height, width, *seed)

            def erase_batch(settings: Any, images: torch.Tensor, *seed: int) -> torch.Tensor:
                found["boxes"].append(hash(seed))
                return erase(settings, images, *seed)

            def getitems(self: PixelBatches, request: Request) -> Any:
                found["augmentation"].append(request.seed)
                return batch(self, request)

            for name, spy in (("train_epoch", train_epoch), ("draw_mix", draw_mix), ("erase_batch", erase_batch)):
                patch.setattr(loop, name, spy)
            patch.setattr(PixelBatches, "__getitems__", getitems)
            tracker = WandbRun(
                Tracking(), project="p", run="tiny", fold="fold0", job_type="train", config={}, folder=job.paths.folder
            )
            with pytest.raises(Seen):
                train_fold(job, find_machine(job.recipe.train), tracker)
        for path in (job.paths.metrics, *job.paths.last.glob("*")):
            path.unlink(missing_ok=True)
        return found

    return of_rank


def test_no_two_ranks_draw_alike_and_the_first_draws_as_one_that_is_alone(
    draws: Callable[[int | None], Draws],
) -> None:
    alone, first, second, third = (draws(rank) for rank in (None, 0, 1, 2))
    assert first == alone
    assert alone["masks"] == [derive_seed(0, 0, EPOCH, epoch) for epoch in (0, 1)]  # no rank in it
    assert {name: len(seeds) for name, seeds in alone.items()} == {
        "masks": 2,
        "augmentation": 6,
        "mixing": 6,
        "boxes": 6,
    }
    for name in alone:
        every = [*first[name], *second[name], *third[name]]
        assert len(set(every)) == 3 * len(alone[name]), name
