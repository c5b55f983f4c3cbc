"""What float16 weights cost, measured on out-of-fold rows before they are exported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from goldfold.bundle import load_bundle
from goldfold.config import Config
from goldfold.ensemble import load_blend, load_calibration, load_decisions
from goldfold.ensemble.steps import Chain, Values
from goldfold.images import Images, ImageSpec, open_images
from goldfold.kaggle.export import Source
from goldfold.kaggle.pack import Rounding
from goldfold.kaggle.weights import rounded
from goldfold.paths import Workspace
from goldfold.pipeline.competition import CompetitionData
from goldfold.pipeline.jobs import cache_folder
from goldfold.pipeline.settling import recalled
from goldfold.predict import predict_bundle
from goldfold.records import Floats, Predictions, average, concatenate

ROWS = 500
"""Out-of-fold rows that are predicted twice, dealt evenly to the folds."""

SEED = 0


def measure_rounding(
    sources: Sequence[Source],
    configs: Mapping[str, Config],
    data: CompetitionData,
    workspace: Workspace,
    ensemble: Path | None,
) -> Rounding:
    """Predict a sample of out-of-fold rows with the weights as they are and as float16 stores them, and compare.

    Each row is predicted by the networks that have not seen its label (of repeated folds: those of the first repeat), all
    on this machine, so that nothing but the rounding differs. Members are blended as the ensemble does.
    """
    wanted = _sample(Predictions.read(sources[0].oof, sources[0].name))
    before, after = [], []
    for source in sources:
        pair = _predict(source, configs[source.name], data, workspace, wanted)
        before.append(pair[0])
        after.append(pair[1])
    ids = before[0].ids
    names = [source.name for source in sources]
    values = [
        _blend({name: part.take(ids).values for name, part in zip(names, parts, strict=True)}, data, ensemble)
        for parts in (before, after)
    ]
    metric, targets = data.metrics[0], data.targets_of(ids)
    scores = [found.score(metric, data.task, targets) for found in values]
    largest = float(np.abs(values[1].probabilities.astype(np.float64) - values[0].probabilities).max())
    known = [score if math.isfinite(score) else None for score in scores]
    return Rounding(len(ids), metric.name, known[0], known[1], largest)


def _sample(oof: Predictions) -> dict[int, tuple[str, ...]]:
    """Fold → some of the ids that it validated; the same for the same table, whatever the order of its rows."""
    assert oof.fold is not None
    folds = [int(fold) for fold in np.unique(oof.fold)]
    share = math.ceil(ROWS / len(folds))
    found = {}
    for fold in folds:
        ids = sorted(name for name, own in zip(oof.ids, oof.fold, strict=True) if own == fold)
        kept = np.sort(np.random.default_rng(SEED).permutation(len(ids))[:share])
        found[fold] = tuple(ids[place] for place in kept)
    return found


def _predict(
    source: Source, config: Config, data: CompetitionData, workspace: Workspace, wanted: Mapping[int, tuple[str, ...]]
) -> tuple[Predictions, Predictions]:
    """A member's out-of-fold predictions of the wanted rows: as it is, and rounded."""
    # Whatever it was trained on: both halves of the comparison are made here.
    usual = config.train.model_copy(update={"device": "auto", "precision": "auto"})
    machine = recalled(usual, workspace.run(source.name).record).predicting
    every = [name for ids in wanted.values() for name in ids]
    paths = [data.train_paths[row] for row in data.rows_of(tuple(every))]
    stores: dict[ImageSpec, Images] = {}
    found: dict[int, tuple[list[Predictions], list[Predictions]]] = {fold: ([], []) for fold in wanted}
    for part in source.parts:
        if part.fold not in wanted:
            continue
        bundle, model = load_bundle(part.folder)
        if bundle.images not in stores:
            folder = cache_folder(config, workspace)
            stores[bundle.images] = open_images(folder, every, paths, bundle.images, what="out-of-fold images")
        ids = wanted[part.fold]
        frame = data.train.iloc[data.rows_of(ids)].reset_index(drop=True)
        for place, what in enumerate(("float32", "float16")):
            if place:
                model.to("cpu")
                model.load_inference_state({name: rounded(value) for name, value in model.inference_state().items()})
            predicted = predict_bundle(
                bundle,
                model,
                stores[bundle.images],
                ids,
                batch_size=config.tta.batch_size,
                machine=machine,
                what=f"{source.name} fold {part.fold}: {what} weights",
                frame=frame,
            )
            fold = np.full(len(ids), part.fold, dtype=np.int64)
            values = Predictions(ids, predicted.values, predicted.classes, source.name, fold)
            found[part.fold][place].append(values)
    before, after = (
        concatenate([average(parts[place], source.name) for parts in found.values()], source.name) for place in (0, 1)
    )
    return before, after


def _blend(members: Mapping[str, Floats], data: CompetitionData, ensemble: Path | None) -> Values:
    """The source's answer for rows that its members predicted, by what was fitted on all rows."""
    if ensemble is None:
        (values,) = members.values()
        return Values(values)
    chain = Chain(
        load_blend(ensemble, None), load_calibration(ensemble, data.task), load_decisions(ensemble, data.task)
    )
    # A stored blend lists its members by name, whatever their order in ensemble.json.
    probabilities = chain.probabilities([members[name] for name in chain.blend.members], data.task)
    if chain.decisions is None:
        return Values(probabilities)
    return Values(probabilities, data.task.one_hot(data.task.decide(probabilities, chain.decisions)))
