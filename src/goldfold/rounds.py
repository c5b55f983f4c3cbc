"""Labels from teachers, a fold at a time: fold k's student hears fold k's teachers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from goldfold.bundle import load_bundle
from goldfold.errors import BadInput, some
from goldfold.images import Images
from goldfold.machine import Machine
from goldfold.paths import FoldPaths, RunPaths
from goldfold.predict import predict_bundle
from goldfold.records import Predictions, SoftLabels, average
from goldfold.tasks import Task


def pseudo_labels(
    teachers: Sequence[RunPaths], fold: int, task: Task, *, hard: bool, min_prob: float, weight: float
) -> SoftLabels:
    """Labels of the test images by the models that left out ``fold``, averaged over teachers with equal weights.

    An image is taken when its most likely class reaches ``min_prob`` (binary: p or 1 - p; multilabel: every label);
    regression takes all. ``hard`` turns probabilities into 0 and 1. Source: Lee 2013, "Pseudo-Label".
    Raises BadInput when a teacher has no such fold or no test predictions.
    """
    parts = []
    for teacher in teachers:
        for path in _fold_folders(teacher, fold):
            if not path.test.exists():
                raise BadInput(path.test, "the teacher has no test predictions", "train it with competition.test_csv")
            parts.append(Predictions.read(path.test, teacher.name))
    mean = average(parts, "teachers")
    values = mean.values
    if task.name == "regression":
        taken = np.ones(len(values), dtype=bool)
    elif task.name in ("binary", "multilabel"):
        taken = np.maximum(values, 1 - values).min(axis=1) >= min_prob
    else:
        taken = values.max(axis=1) >= min_prob
    targets = values
    if hard and task.name in ("binary", "multilabel"):
        targets = (values >= task.threshold).astype(np.float32)
    elif hard and task.name != "regression":
        targets = np.eye(len(task.classes), dtype=np.float32)[values.argmax(axis=1)]
    ids = tuple(name for name, yes in zip(mean.ids, taken, strict=True) if yes)
    weights = np.full(len(ids), weight, dtype=np.float32)
    return SoftLabels(ids, targets[taken], weights, excluded_fold=fold, where=_names(teachers))


def distill_labels(
    teachers: Sequence[RunPaths],
    fold: int,
    images: Images,
    ids: Sequence[str],
    machine: Machine,
    frame: pd.DataFrame | None = None,
) -> SoftLabels:
    """Probabilities of training rows by fold ``fold``'s teachers over their views (Hinton et al. 2015, temperature 1).

    These teachers were trained on the very rows, so they are surer of them than of new ones; they have not seen the
    validated fold. ``frame``: the CSV's rows of ``ids``, for teachers that know metadata. Raises BadInput when the stored images are not those that a teacher was trained on.
    """
    parts = []
    for teacher in teachers:
        for path in _fold_folders(teacher, fold):
            bundle, model = load_bundle(path.folder)
            if images.shape != (bundle.images.size, bundle.images.size, bundle.images.channels):
                raise BadInput(
                    path.bundle,
                    f"the teacher sees images of {bundle.images.size} px and {bundle.images.channels} channels, the student {images.shape}",
                    "give both the same input section",
                )
            what = f"{teacher.name} fold {fold}: labelling"
            parts.append(
                predict_bundle(bundle, model, images, ids, batch_size=128, machine=machine, what=what, frame=frame)
            )
    mean = average(parts, "teachers")
    return SoftLabels(mean.ids, mean.values, np.ones(len(ids), dtype=np.float32), fold, where=_names(teachers))


def _fold_folders(teacher: RunPaths, fold: int) -> list[FoldPaths]:
    """The bundles of a fold, one a seed."""
    found = [FoldPaths(path) for path in sorted(teacher.folder.glob(f"fold{fold}")) if (path / "DONE").exists()]
    found += [FoldPaths(path) for path in sorted(teacher.folder.glob(f"fold{fold}-seed*")) if (path / "DONE").exists()]
    if not found:
        raise BadInput(
            teacher.folder, f"the teacher has no finished fold {fold}", "teachers and students need the same folds"
        )
    return found


def _names(teachers: Sequence[RunPaths]) -> str:
    return f"labels of {some([teacher.name for teacher in teachers])}"
