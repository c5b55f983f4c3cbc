"""Cross-fitted teachers of training rows: each row is labelled by a network that has seen neither it nor fold k.

Fold k's teacher was trained on fold k's training rows, so it is surer of them than of new images. Inner folds mend that
at a cost: ``inner`` x members x folds further trainings, each on (inner - 1) / inner of a fold's training rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np
import pandas as pd

from goldfold.config.schema import Folds
from goldfold.errors import BadInput
from goldfold.folds import make_folds
from goldfold.paths import FoldPaths
from goldfold.records import Floats, FoldTable, Predictions
from goldfold.seeds import derive_seed
from goldfold.tasks import Task

INNER = 29
"""What the seed of the inner deal is derived with."""

SCHEMES = {"kfold": "group", "stratified": "stratified_group", "multilabel": "group_multilabel"}
"""The scheme that keeps groups whole, beside each that knows none."""


def inner_parts(
    settings: Folds,
    frame: pd.DataFrame,
    targets: Floats,
    task: Task,
    *,
    fold: int,
    inner: int,
    id_column: str,
    target_columns: Sequence[str],
    group: str | None,
) -> FoldTable:
    """Fold ``fold``'s training rows dealt to ``inner`` parts, as the competition's own rows are dealt to folds.

    ``frame``: the training rows of that fold alone, with ``targets`` (N, C). Groups stay whole. Folds that a column
    gives are stratified here (kfold where there is nothing to stratify on). The parts depend on ``folds.seed`` and the
    fold, not on a run. Raises BadInput when the rows cannot be dealt so, a class having too few of them, say.
    """
    scheme = settings.scheme
    if scheme in ("holdout", "column"):
        plain = "multilabel" if task.name == "multilabel" else "stratified"
        plain = "kfold" if task.name == "regression" and targets.shape[1] > 1 else plain
        scheme = SCHEMES[plain] if group is not None else plain  # type: ignore[assignment]
    values = settings.model_dump() | {
        "scheme": scheme,
        "n": inner,
        "seed": derive_seed(settings.seed, fold, INNER),
        "repeats": 1,
        "column": None,
    }
    try:
        (table,) = make_folds(
            Folds(**values),
            frame,
            id_column=id_column,
            task=task,
            targets=targets,
            target_columns=target_columns,
            group=group,
            source_sha256="",
        )
    except BadInput as error:
        raise BadInput(
            "teacher.distill.inner",
            f"the training rows of fold {fold} cannot be dealt to {inner} parts ({error})",
            "lower it, or set teacher.distill.how to stored",
        ) from error
    return table


def clear_inner(paths: FoldPaths) -> None:
    """Of a finished inner training keep what is used: ``oof.parquet``, and ``DONE``, which says of what it is."""
    for path in paths.folder.iterdir():
        if path not in (paths.oof, paths.done):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def gather_inner(folders: Sequence[FoldPaths], ids: Sequence[str], name: str) -> Floats:
    """(N, C) of ``ids`` from the parts' predictions. Raises BadInput unless each id is in exactly one part."""
    parts = [Predictions.read(folder.oof, name) for folder in folders]
    joined = Predictions(
        ids=tuple(found for part in parts for found in part.ids),
        values=np.concatenate([part.values for part in parts]),
        classes=parts[0].classes,
        run=name,
        where=f"inner predictions of {name}",
    )
    return joined.take(ids).values
