"""What each bundle of the teachers says of some images: read from its fold's tables, or predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from goldfold.bundle import load_bundle
from goldfold.errors import BadInput, some
from goldfold.images import Images, ImageSpec, open_images
from goldfold.machine import Machine
from goldfold.paths import FoldPaths
from goldfold.predict import in_groups, predict_bundles
from goldfold.records import Floats, Predictions
from goldfold.rounds.teachers import Run
from goldfold.tasks import Task

Voices = Mapping[str, Sequence[Floats]]
"""(N, C) of each bundle, by run name."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Images by file, so that each network opens them as it was trained to see them.

    ``paths`` and the rows of ``frame`` (for networks that know metadata) belong to ``ids``; ``chosen``: the ids to label.
    """

    what: str
    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    frame: pd.DataFrame
    chosen: tuple[str, ...]


class Stores:
    """Stores of one or several pools' images, opened once for all networks that see the same pixels."""

    def __init__(self, pools: Sequence[Pool], cache: Path | None) -> None:
        self.pools = tuple(pools)
        self._cache = cache
        self._opened: dict[tuple[int, ImageSpec], Images] = {}

    def open(self, number: int, spec: ImageSpec) -> Images:
        """The images of a pool. Raises BadInput as ``open_images`` does."""
        pool = self.pools[number]
        if (number, spec) not in self._opened:
            what = f"{pool.what} at {spec.size} px"
            self._opened[number, spec] = open_images(self._cache, pool.ids, pool.paths, spec, what=what)
        return self._opened[number, spec]

    @property
    def chosen(self) -> tuple[str, ...]:
        """The ids to label, of all pools."""
        return tuple(name for pool in self.pools for name in pool.chosen)


def mean_of(voices: Voices) -> dict[str, Floats]:
    """(N, C) of each run: the mean over its bundles."""
    means = {name: np.mean(np.stack(values), axis=0, dtype=np.float64) for name, values in voices.items()}
    return {name: np.asarray(mean, dtype=np.float32) for name, mean in means.items()}


def join(parts: Sequence[Voices]) -> dict[str, list[Floats]]:
    """The voices of several pools one below the other."""
    first = parts[0]
    return {
        name: [np.concatenate([part[name][place] for part in parts]) for place in range(len(first[name]))]
        for name in first
    }


def stored_voices(runs: Sequence[Run], fold: int | None, ids: Sequence[str], task: Task) -> dict[str, list[Floats]]:
    """What the bundles of ``fold`` (None: of all folds) said of the test images ``ids``: their test.parquet.

    Raises BadInput for missing tables and ids, other classes, and as ``Run.bundles`` does.
    """
    found: dict[str, list[Floats]] = {}
    for run in runs:
        found[run.name] = []
        for path in run.bundles(fold):
            if not path.test.exists():
                mend = "train the teacher with competition.test_csv"
                raise BadInput(path.test, "the teacher has no test predictions", mend)
            table = Predictions.read(path.test, run.name)
            _check_classes(path.test, table.classes, task)
            found[run.name].append(table.take(ids).values)
    return found


def predicted_voices(
    runs: Sequence[Run],
    fold: int | None,
    stores: Stores,
    task: Task,
    *,
    machine: Machine,
    batch_size: int,
) -> dict[str, list[Floats]]:
    """What the bundles of ``fold`` (None: of all folds) say of the chosen images of all pools, (N, C) each.

    Each network is in inference mode, in the machine's precision, and sees the images by its own bundle: stored size,
    channels, colours, views, metadata. Raises BadInput for other classes and as ``Run.bundles`` and ``open_images`` do.
    """
    return {run.name: _predict(run.name, run.bundles(fold), stores, task, machine, batch_size) for run in runs}


def _predict(
    name: str, paths: Sequence[FoldPaths], stores: Stores, task: Task, machine: Machine, batch_size: int
) -> list[Floats]:
    """(N, C) of each bundle of a run; those that see the same pixels read them once."""
    found: list[Floats] = []
    for group in in_groups([path.folder for path in paths], machine):
        loaded = [load_bundle(folder) for folder in group]
        for folder, (bundle, _) in zip(group, loaded, strict=True):
            _check_classes(folder / "bundle.json", bundle.task.classes, task)
        parts = []
        for number, pool in enumerate(stores.pools):
            rows = pd.Index(pool.ids).get_indexer(pd.Index(pool.chosen))
            parts.append(
                predict_bundles(
                    loaded,
                    stores.open(number, loaded[0][0].images),
                    pool.chosen,
                    batch_size=batch_size,
                    machine=machine,
                    what=f"{name} {', '.join(folder.name for folder in group)}: {pool.what}",
                    names=[f"{name} {folder.name}: {pool.what}" for folder in group],
                    frame=pool.frame.iloc[rows],
                )
            )
        found += [np.concatenate([each.values for each in own]) for own in zip(*parts, strict=True)]
    return found


def _check_classes(where: Path, classes: tuple[str, ...], task: Task) -> None:
    if classes != task.classes:
        raise BadInput(
            where,
            f"the teacher knows {some(classes, 10)}, the student {some(task.classes, 10)}",
            "teachers and students need the same classes in the same order",
        )
