"""Probabilities of a network for images, over test-time views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from goldfold.bundle import Bundle
from goldfold.config.schema import Tta
from goldfold.data import plain_loader, rows_of
from goldfold.errors import BadInput, GoldfoldError
from goldfold.images import Images
from goldfold.images.colour import InputColours
from goldfold.machine import Machine
from goldfold.models import Classifier
from goldfold.progress import progress
from goldfold.records import Floats, Ints, Predictions
from goldfold.tasks import Task
from goldfold.tta import View, make_views, merge


@torch.inference_mode()
def predict_images(
    model: Classifier,
    images: Images,
    rows: Ints,
    *,
    task: Task,
    views: Sequence[View],
    how: str,
    batch_size: int,
    machine: Machine,
    metadata: Floats | None = None,
    what: str = "predicting",
) -> Floats:
    """Probabilities (N, C) float32 of ``rows``: each image is read once, each view is one forward pass.

    ``metadata`` (N, M) belongs to ``rows``. Raises GoldfoldError when the network gives NaN.
    """
    was_training = model.training
    model.eval()
    pinned = machine.device.type == "cuda"
    colours = InputColours(model.spec.colour, model.spec.local_mean)
    loader = plain_loader(
        images, rows, model.spec.size, batch_size, workers=machine.workers, pin_memory=pinned, colours=colours
    )
    parts, start = [], 0
    for pixels in progress(loader, what, len(loader), "batches"):
        prepared = model.prepare(pixels.to(machine.device, non_blocking=True), machine.memory_format)
        columns = None
        if metadata is not None and metadata.shape[1]:
            columns = torch.from_numpy(metadata[start : start + len(pixels)]).to(machine.device)
        start += len(pixels)
        merged = []
        for view in views:
            # Turning an image may change its memory format, and convolutions would pay for it.
            seen = view(prepared).contiguous(memory_format=machine.memory_format)
            with machine.autocast():
                logits = model(seen, columns)
            merged.append(model.probabilities(logits))
        parts.append(merge(merged, how).cpu())
    model.train(was_training)
    values = torch.cat(parts).numpy() if parts else np.zeros((0, len(task.classes)), dtype=np.float32)
    if not np.isfinite(values).all():
        raise GoldfoldError(f"{what}: the network gives NaN; train with a lower optim.lr, or with train.precision=fp32")
    return task.normalise(values)


def predict_bundle(
    bundle: Bundle,
    model: Classifier,
    images: Images,
    ids: Sequence[str],
    *,
    batch_size: int,
    machine: Machine,
    what: str,
    frame: pd.DataFrame | None = None,
) -> Predictions:
    """Predictions of ``ids`` by a loaded bundle, over the views that it was made with.

    ``frame``: the CSV's rows of ``ids`` in their order, for a network that knows metadata. Raises BadInput without it.
    """
    metadata = None
    if bundle.metadata is not None:
        if frame is None:
            raise BadInput(what, "the network needs the CSV's metadata columns", "predict from a CSV that has them")
        metadata = bundle.metadata.transform(frame, what, bundle.id_column)
    model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
    values = predict_images(
        model,
        images,
        rows_of(images, ids),
        task=bundle.task,
        views=make_views(Tta(views=bundle.views)),
        how=bundle.merge,
        batch_size=batch_size,
        machine=machine,
        metadata=metadata,
        what=what,
    )
    return Predictions(tuple(ids), values, bundle.task.classes, bundle.run)
