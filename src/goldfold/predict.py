"""Probabilities of a network for images, over test-time views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError
from torch import Tensor

from goldfold.bundle import Bundle
from goldfold.config.schema import Tta
from goldfold.errors import BadInput, GoldfoldError
from goldfold.images import Images
from goldfold.images.batches import plain_loader, rows_of
from goldfold.images.colour import InputColours
from goldfold.machine import Machine
from goldfold.models import Classifier
from goldfold.progress import progress
from goldfold.records import Floats, Ints, Predictions
from goldfold.tasks import Task
from goldfold.tta import IDENTITY, View, make_views, merge, pick_views, single_view


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
    size: int | None = None,
    metadata: Floats | None = None,
    known: Mapping[str, Floats] | None = None,
    what: str = "predicting",
) -> Floats:
    """Probabilities (N, C) float32 of ``rows``, the views merged by ``how``. The rest is as for ``predict_views``."""
    parts = [
        merge(list(batch), how, yes_or_no=task.activation == "sigmoid").numpy()
        for batch in _batches(
            model, images, rows, views, batch_size, machine, size or model.spec.size, metadata, known or {}, what
        )
    ]
    return task.normalise(np.concatenate(parts) if parts else np.zeros((0, len(task.classes)), dtype=np.float32))


def predict_views(
    model: Classifier,
    images: Images,
    rows: Ints,
    *,
    task: Task,
    views: Sequence[View],
    batch_size: int,
    machine: Machine,
    size: int | None = None,
    metadata: Floats | None = None,
    known: Mapping[str, Floats] | None = None,
    what: str = "predicting",
) -> Floats:
    """Probabilities (V, N, C) float32 of each view of ``rows``: an image is read once, a view is one forward pass.

    ``size``: side in pixels to which images are brought before the views; None: that of the network's input. ``metadata``
    (N, M) belongs to ``rows``. ``known``: by a view's name what it gave of these rows before, which is not computed again.
    Raises GoldfoldError when the network gives NaN.
    """
    side = size or model.spec.size
    parts = [
        batch.numpy()
        for batch in _batches(model, images, rows, views, batch_size, machine, side, metadata, known or {}, what)
    ]
    empty = np.zeros((len(views), 0, len(task.classes)), dtype=np.float32)
    return np.concatenate(parts, axis=1) if parts else empty


@contextmanager
def in_inference(model: Classifier) -> Iterator[None]:
    """Batch-norm and dropout as at prediction; afterwards the model is in the mode in which it came, errors or not."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def _batches(
    model: Classifier,
    images: Images,
    rows: Ints,
    views: Sequence[View],
    batch_size: int,
    machine: Machine,
    size: int,
    metadata: Floats | None,
    known: Mapping[str, Floats],
    what: str,
) -> Iterator[Tensor]:
    """Batch by batch the probabilities (V, B, C) on the CPU."""
    if not len(rows):
        return
    if all(view.name in known for view in views):
        yield torch.from_numpy(np.stack([known[view.name] for view in views]))
        return
    pinned = machine.device.type == "cuda"
    colours = InputColours(model.spec.colour, model.spec.local_mean)
    loader = plain_loader(images, rows, size, batch_size, workers=machine.workers, pin_memory=pinned, colours=colours)
    with in_inference(model):
        start = 0
        for pixels in progress(loader, what, len(loader), "batches"):
            place = slice(start, start + len(pixels))
            columns = None if metadata is None else metadata[place]
            start += len(pixels)
            batch = forward_views(
                model, pixels, views, machine, columns, {name: values[place] for name, values in known.items()}
            )
            if not batch.isfinite().all():
                mend = "train with a lower optim.lr, or with train.precision=fp32"
                raise GoldfoldError(f"{what}: the network gives NaN; {mend}")
            yield batch


@torch.inference_mode()
def forward_views(
    model: Classifier,
    pixels: Tensor,
    views: Sequence[View],
    machine: Machine,
    metadata: Floats | None = None,
    known: Mapping[str, Floats] | None = None,
) -> Tensor:
    """Probabilities (V, B, C) float32 on the CPU of uint8 ``pixels`` (B, S, S, C), a forward pass a view.

    ``model`` is in eval mode on the machine's device. ``metadata`` (B, M); ``known``: by a view's name what it gave of
    these images before, (B, C).
    """
    prepared = model.prepare(pixels.to(machine.device, non_blocking=True), machine.memory_format)
    columns = None
    if metadata is not None and metadata.shape[1]:
        columns = torch.from_numpy(metadata).to(machine.device)
    seen = []
    for view in views:
        if known and view.name in known:
            seen.append(torch.from_numpy(known[view.name]).to(machine.device))
            continue
        # Turning an image may change its memory format, and convolutions would pay for it.
        shown = view(prepared).contiguous(memory_format=machine.memory_format)
        with machine.autocast():
            logits = model(shown, columns)
        seen.append(model.probabilities(logits))
    return torch.stack(seen).cpu()


def try_views(model: Classifier, tta: Tta) -> None:
    """Show the network each view of two blank images of the test size, as prediction will.

    Raises BadInput in one line where it cannot take a view: networks of a fixed size take no other.
    """
    spec = model.spec
    device = next(model.parameters()).device
    side = tta.size or spec.size
    metadata = None if spec.metadata is None else torch.zeros(2, spec.metadata.width, device=device)
    blank = torch.zeros(2, side, side, spec.channels, dtype=torch.uint8, device=device)
    tried: set[tuple[int, ...]] = set()
    with in_inference(model):
        for view in (single_view(tta, spec.size), *make_views(tta, spec.size)):
            try:
                with torch.inference_mode():
                    seen = view(model.prepare(blank))
                    shape = tuple(seen.shape[2:])
                    if shape not in tried:
                        model(seen, metadata)
                    tried.add(shape)
            except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
                if isinstance(error, torch.OutOfMemoryError | BadInput):
                    raise
                reason = " ".join(str(error).split())[:160]
                shown = f"the view '{view.name}' of images of side {side}"
                where = "tta.size" if view.name == IDENTITY and tta.size else "tta.views"
                mend = (
                    f"leave tta.size at {spec.size}"
                    if where == "tta.size"
                    else "take views of one size, such as flip or d4"
                )
                raise BadInput(where, f"{spec.backbone} cannot take {shown} ({reason})", mend) from error


def bundle_views(bundle: Bundle) -> list[View]:
    """The views that a bundle predicts with. Raises BadInput where it names views that there are not."""
    try:
        settings = Tta(views=bundle.views)
    except ValidationError:
        raise BadInput("bundle.json", f"there are no views {bundle.views!r}", "export it with this version") from None
    if bundle.chosen is None:
        return make_views(settings, bundle.model.size)
    return pick_views(settings, bundle.model.size, bundle.chosen)


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
    """Predictions of ``ids`` by a loaded bundle, over the views and at the size that it was made with.

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
        views=bundle_views(bundle),
        how=bundle.merge,
        batch_size=batch_size,
        machine=machine,
        size=bundle.side,
        metadata=metadata,
        what=what,
    )
    return Predictions(tuple(ids), values, bundle.task.classes, bundle.run)
