"""What follows an epoch and the last one: scores, kept weights, predictions, the bundle, DONE."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from goldfold import files
from goldfold.averaging import average_states, greedy_soup, update_batch_norm
from goldfold.bundle import Bundle, load_weights, prediction_images, save_weights, write_bundle
from goldfold.data import rows_of
from goldfold.machine import Machine
from goldfold.metrics import better, score
from goldfold.models import Classifier
from goldfold.paths import FoldPaths
from goldfold.predict import predict_images, predict_views
from goldfold.pruning import apply_masks
from goldfold.records import Floats, Predictions
from goldfold.seeds import seed_everything
from goldfold.training.checkpoint import save_state
from goldfold.training.job import AUGMENT, BATCH_NORM, FoldJob
from goldfold.training.session import Session, make_loader, prepared, save
from goldfold.tta import IDENTITY, View, ViewTable, combine, make_views, single_view


def validate(job: FoldJob, machine: Machine, session: Session) -> dict[str, float | None]:
    """Scores of a single view at the test size; the views of ``tta`` are for the final predictions."""
    from accelerate.utils import broadcast_object_list  # imported late, as in session.start

    found: list[Any] = [None]
    if session.accelerator.is_main_process:
        seen = _validation_view(job, machine, session, session.evaluated)
        session.validated = (session.progress.epoch, seen)
        found = [_scores(job, seen)]
    # Batch-norm statistics differ between processes; all must agree on when to stop.
    return broadcast_object_list(found)[0]  # type: ignore[no-any-return]


def note_score(job: FoldJob, session: Session, value: float | None) -> None:
    """Keep the best epoch's weights where they are asked for; count epochs without gain."""
    at, train = session.progress, job.recipe.train
    at.scores.append(value)
    if train.prune.amount and session.masks is None:
        return  # epochs before the masks are another network: neither the best nor a reason to stop
    gain = train.early_stopping.min_delta * (1 if job.metrics[0].greater_is_better else -1)
    beaten = None if at.best_score is None else at.best_score + gain
    improved = value is not None and (beaten is None or better(job.metrics[0], value, beaten))
    if improved:
        at.best_score, at.best_epoch, at.stale = value, at.epoch, 0
        if train.keep == "best" and session.accelerator.is_main_process:
            save_weights(_best_weights(job.paths, at.epoch), session.evaluated)
    else:
        at.stale += 1
    at.stopped = 0 < train.early_stopping.patience <= at.stale


def keep_epoch(job: FoldJob, session: Session) -> None:
    """Add an epoch's weights to the averages over epochs that are asked for."""
    train, epoch = job.recipe.train, session.progress.epoch
    if session.swa is not None and epoch > train.epochs - train.swa.epochs:
        session.swa.update(session.model)
    if train.soup.epochs and epoch > train.epochs - train.soup.epochs and session.accelerator.is_main_process:
        save_weights(_soup_weights(job.paths, epoch), session.model)


def save_progress(job: FoldJob, session: Session, path: Path) -> None:
    """Write the resume state; then the best weights of earlier epochs may go."""
    if session.accelerator.is_main_process:
        save(session, path, save_state)
        for old in job.paths.last.glob("best-*.safetensors"):
            if old != _best_weights(job.paths, session.progress.best_epoch or 0):
                old.unlink()
    session.accelerator.wait_for_everyone()


def finish(job: FoldJob, machine: Machine, session: Session) -> None:
    """Predictions with all views, the bundle, and DONE last."""
    model, paths, train = session.evaluated, job.paths, job.recipe.train
    if session.accelerator.is_main_process:
        save_weights(paths.last / "model.safetensors", model)
        if train.keep == "best" and session.progress.best_epoch is not None:
            load_weights(_best_weights(paths, session.progress.best_epoch), model)
        chosen = _averaged(job, machine, session)
        save_weights(paths.weights, model)
        model = predictor(machine, model)
        recipe = job.recipe
        auto = recipe.tta.views == "auto"
        oof = _predict_valid(job, machine, session, model, _seen_before(session, chosen, train.keep))
        fold = np.full(len(job.valid_ids), job.fold, dtype=np.int64)
        Predictions(job.valid_ids, oof, job.task.classes, job.run, fold).write(paths.oof, job.id_column)
        if auto:
            # The views are chosen when all folds are done, and the test images predicted by those alone.
            paths.test.unlink(missing_ok=True)
        elif job.test is not None:
            test = predict_images(
                model,
                job.test,
                rows_of(job.test, job.test.ids),
                task=job.task,
                views=make_views(recipe.tta, job.spec.size),
                how=recipe.tta.merge,
                metadata=job.test_metadata,
                **_common(job, machine),
            )
            Predictions(job.test.ids, test, job.task.classes, job.run).write(paths.test, job.id_column)
        bundle = Bundle(
            run=job.run,
            fold=job.fold,
            seed=job.seed,
            task=job.task,
            model=job.spec,
            images=prediction_images(recipe.input, recipe.tta),
            views=recipe.tta.model_dump(mode="json")["candidates" if auto else "views"],
            merge=recipe.tta.merge,
            id_column=job.id_column,
            weights_sha256=files.sha256_file(paths.weights),
            metadata=job.metadata,
            size=recipe.tta.size or job.spec.size,
            chosen=(IDENTITY,) if auto else None,
        )
        write_bundle(paths.bundle, bundle)
        best = session.progress.best_epoch
        epochs = session.progress.epoch
        done = {"fingerprint": job.fingerprint, "kept": train.keep, "best_epoch": best, "epochs": epochs}
        files.write_json(paths.done, {**done, "averaged_epochs": chosen})
        drop_resume_state(paths)
    session.accelerator.wait_for_everyone()


def _averaged(job: FoldJob, machine: Machine, session: Session) -> list[int] | None:
    """Put the average over epochs into the model, its batch-norm statistics computed anew. Returns the epochs in it."""
    train = job.recipe.train
    if session.swa is not None:
        session.swa.store(session.model)
        _prune(session)
        _update_batch_norm(job, machine, session)
        return list(range(train.epochs - train.swa.epochs + 1, train.epochs + 1))
    if not train.soup.epochs:
        return None
    epochs = range(train.epochs - train.soup.epochs + 1, train.epochs + 1)
    paths = [_soup_weights(job.paths, epoch) for epoch in epochs]

    def put(state: dict[str, Tensor]) -> None:
        session.model.load_inference_state(state)
        _prune(session)
        _update_batch_norm(job, machine, session)

    def evaluate(state: dict[str, Tensor]) -> float:
        put(state)
        value = _scores(job, _validation_view(job, machine, session, session.model))[job.metrics[0].name]
        return math.nan if value is None else value

    if train.soup.method == "uniform":
        put(average_states(paths))
        return list(epochs)
    candidates = [(evaluate(average_states([path])), path) for path in paths]
    state, chosen = greedy_soup(candidates, evaluate, lambda new, old: better(job.metrics[0], new, old))
    put(state)
    return [epochs[place] for place in chosen]


def _prune(session: Session) -> None:
    """Epochs from before the masks bring pruned weights back into an average."""
    if session.masks is not None:
        apply_masks(session.model, session.masks)


def _update_batch_norm(job: FoldJob, machine: Machine, session: Session) -> None:
    order, loader = make_loader(job, machine, session, session.plan[-1])
    order.epoch = job.recipe.train.epochs
    seed_everything(job.seed, job.fold, BATCH_NORM)

    numbers = itertools.count()

    def forward(batch: Any) -> object:
        batch = batch.to(machine.device)
        seed = (order.epoch, next(numbers), session.accelerator.process_index)
        images = prepared(machine, session, batch.pixels, job.seed, job.fold, AUGMENT, *seed)
        metadata = batch.metadata.repeat(len(images) // len(batch.targets), 1) if batch.metadata.shape[1] else None
        with machine.autocast():
            return session.tail(images, metadata)

    with torch.no_grad():
        update_batch_norm(session.tail, forward, loader)


def is_done(paths: FoldPaths, fingerprint: str) -> bool:
    """Whether the fold was finished by this very configuration."""
    return paths.done.exists() and files.read_json(paths.done)["fingerprint"] == fingerprint


def drop_resume_state(paths: FoldPaths) -> None:
    """A finished fold needs no optimizer state; ``last/`` keeps the last epoch's weights."""
    for name in ("state.safetensors", "best-*.safetensors", "soup-*.safetensors"):
        for path in paths.last.glob(name):
            path.unlink(missing_ok=True)
    files.remove_leftovers(paths.last)
    files.remove_leftovers(paths.folder)


def _scores(job: FoldJob, seen: Floats) -> dict[str, float | None]:
    values = job.task.normalise(seen)
    scores = {metric.name: score(metric, job.task, job.valid_targets, values) for metric in job.metrics}
    return {name: float(value) if math.isfinite(value) else None for name, value in scores.items()}


def predictor(machine: Machine, model: Classifier) -> Classifier:
    """The network in the memory layout that predicts: itself, or a copy where it trains in another.

    The training's own weights stay as they lie: optimizers add along their layout.
    """
    predicting = machine.predicting
    if predicting.channels_last == machine.channels_last:
        return model
    return copy.deepcopy(model).to(memory_format=predicting.memory_format)  # type: ignore[call-overload, no-any-return]


def _validation_view(job: FoldJob, machine: Machine, session: Session, model: Classifier) -> Floats:
    """Probabilities (N, C) of the validation images in a single view."""
    images = job.images if job.valid_images is None else job.valid_images
    view = single_view(job.recipe.tta, job.spec.size)
    stored = _from_store(job, machine, session, model, [view], {})
    if stored:
        return stored[view.name]
    return predict_views(
        predictor(machine, model),
        images,
        rows_of(images, job.valid_ids),
        views=[view],
        metadata=job.valid_metadata,
        **_common(job, machine),
    )[0]


def _from_store(
    job: FoldJob, machine: Machine, session: Session, model: Classifier, views: Sequence[View], known: dict[str, Floats]
) -> dict[str, Floats]:
    """``known``, by view, with those views of the validation images whose features are stored: only the tail runs."""
    stored, same = session.stored, job.valid_images is None or job.valid_images is job.images
    if stored is None or not same or (job.recipe.tta.size or job.spec.size) != stored.size:
        return known
    rows = rows_of(job.images, job.valid_ids)
    lacking = {name: number for name, number in stored.find(views).items() if name not in known}
    return known | {
        name: stored.predict(job, machine.predicting, model, rows, number, job.valid_metadata)
        for name, number in lacking.items()
    }


def _seen_before(session: Session, averaged: list[int] | None, keep: str) -> Floats | None:
    """What the last validation computed, where it was by the very weights that are kept."""
    if session.validated is None or keep != "last" or averaged is not None:
        return None
    epoch, seen = session.validated
    return seen if epoch == session.progress.epoch else None


def _predict_valid(job: FoldJob, machine: Machine, session: Session, model: Classifier, seen: Floats | None) -> Floats:
    """Out-of-fold predictions (N, C). With ``tta.views: auto`` those of the identity, and views.parquet for the choice."""
    tta, images = job.recipe.tta, job.images if job.valid_images is None else job.valid_images
    views = make_views(tta, job.spec.size)
    known = {} if seen is None else {single_view(tta, job.spec.size).name: seen}
    known = _from_store(job, machine, session, model, views, known)
    rows = rows_of(images, job.valid_ids)
    if tta.views != "auto":
        common = {"how": tta.merge, "metadata": job.valid_metadata, "known": known, **_common(job, machine)}
        return predict_images(model, images, rows, task=job.task, views=views, **common)
    every = predict_views(
        model, images, rows, views=views, metadata=job.valid_metadata, known=known, **_common(job, machine)
    )
    table = ViewTable(job.valid_ids, tuple(view.name for view in views), every, job.task.classes)
    table.write(job.paths.views, job.id_column)
    return combine([every], [0], tta.merge, job.task)


def _common(job: FoldJob, machine: Machine) -> dict[str, Any]:
    tta = job.recipe.tta
    return {
        "batch_size": tta.batch_size,
        "machine": machine.predicting,
        "size": tta.size or job.spec.size,
        "what": f"{job.run} fold {job.fold}: predicting",
    }


def _best_weights(paths: FoldPaths, epoch: int) -> Path:
    return paths.last / f"best-{epoch}.safetensors"


def _soup_weights(paths: FoldPaths, epoch: int) -> Path:
    return paths.last / f"soup-{epoch}.safetensors"
