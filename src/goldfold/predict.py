"""Probabilities of a network for images, over test-time views."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError
from torch import Tensor

from goldfold.bundle import Bundle, read_bundle
from goldfold.config.schema import Tta
from goldfold.errors import BadInput, GoldfoldError
from goldfold.forward import Shown, answers, on_device, on_host
from goldfold.images import Images, ImageSpec
from goldfold.images.batches import plain_loader, rows_of
from goldfold.images.colour import InputColours
from goldfold.machine import Machine
from goldfold.memory import AtOnce, free_memory
from goldfold.models import Classifier
from goldfold.progress import progress
from goldfold.records import Floats, Ints, Predictions
from goldfold.tasks import Task
from goldfold.tta import IDENTITY, View, make_views, merge, pick_views, single_view

SHARE_OF_MEMORY = 0.25
"""Of what is free, the most that the weights of networks that are predicted together may take."""


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
    shown = Shown(model, views, metadata, known or {}, what)
    return _merged([shown], [task], [how], images, rows, batch_size, machine, size or model.spec.size, what)[0]


def predict_views(
    model: Classifier,
    images: Images,
    rows: Ints,
    *,
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
    ``batch_size``: the most images at once; fewer where memory is short (``AtOnce``).
    Raises GoldfoldError when the network gives NaN, and when a single image does not fit into memory.
    """
    shown = Shown(model, views, metadata, known or {}, what)
    (values,) = predict_members([shown], images, rows, batch_size=batch_size, machine=machine, size=size, what=what)
    return values


def predict_members(
    members: Sequence[Shown],
    images: Images,
    rows: Ints,
    *,
    batch_size: int,
    machine: Machine,
    size: int | None = None,
    what: str = "predicting",
) -> list[Floats]:
    """Probabilities (V, N, C) float32 of each member's views of the same ``rows``: an image is read once for all members.

    ``size``: side to which images are brought for all of them; None: that of the first one's input. The rest is as for
    ``predict_views``. Raises ValueError where the members' colours differ.
    """
    parts = [
        [each.numpy() for each in found] for found in _batches(members, images, rows, batch_size, machine, size, what)
    ]
    if not parts:
        empty = [member.model.probabilities(torch.zeros(0, member.model.spec.n_logits)) for member in members]
        return [np.zeros((len(m.views), *e.shape), dtype=np.float32) for m, e in zip(members, empty, strict=True)]
    return [np.concatenate(found, axis=1) for found in zip(*parts, strict=True)]


@contextmanager
def in_inference(model: Classifier) -> Iterator[None]:
    """Batch-norm and dropout as at prediction; afterwards the model is in the mode in which it came, errors or not."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _merged(
    members: Sequence[Shown],
    tasks: Sequence[Task],
    how: Sequence[str],
    images: Images,
    rows: Ints,
    batch_size: int,
    machine: Machine,
    size: int | None,
    what: str,
) -> list[Floats]:
    """Probabilities (N, C) float32 of each member, merged batch by batch: the views of all rows may be large."""
    parts = [
        [
            merge(list(seen), way, yes_or_no=task.activation == "sigmoid").numpy()
            for seen, way, task in zip(batch, how, tasks, strict=True)
        ]
        for batch in _batches(members, images, rows, batch_size, machine, size, what)
    ]
    if not parts:
        return [task.normalise(np.zeros((0, len(task.classes)), dtype=np.float32)) for task in tasks]
    return [task.normalise(np.concatenate(found)) for task, found in zip(tasks, zip(*parts, strict=True), strict=True)]


@torch.inference_mode()
def _batches(
    members: Sequence[Shown],
    images: Images,
    rows: Ints,
    batch_size: int,
    machine: Machine,
    size: int | None,
    what: str,
) -> Iterator[list[Tensor]]:
    """Batch by batch the probabilities (V, B, C) of each member on the CPU."""
    if not len(rows) or not members:
        return
    if all(view.name in member.known for member in members for view in member.views):
        yield [torch.from_numpy(np.stack([member.known[view.name] for view in member.views])) for member in members]
        return
    colours, *others = {InputColours(member.model.spec.colour, member.model.spec.local_mean) for member in members}
    if others:
        raise ValueError(f"networks that see {colours} and {others} are not shown the same pixels")
    loader = plain_loader(
        images,
        rows,
        size or members[0].model.spec.size,
        batch_size,
        workers=machine.workers,
        pin_memory=machine.device.type == "cuda",
        colours=colours,
    )
    at_once = AtOnce(batch_size, machine.device, machine.precision, what)

    def computed() -> Iterator[list[Tensor]]:
        start = 0
        for pixels in on_device(progress(loader, what, len(loader), "batches"), machine.device):
            place = slice(start, start + len(pixels))
            start += len(pixels)
            yield answers([member.of(place) for member in members], pixels, machine, at_once)

    with ExitStack() as modes:
        for member in members:
            modes.enter_context(in_inference(member.model))
        for found in on_host(computed()):
            for member, seen in zip(members, found, strict=True):
                if not seen.isfinite().all():
                    mend = "train with a lower optim.lr, or with train.precision=fp32"
                    raise GoldfoldError(f"{member.name or what}: the network gives NaN; {mend}")
            yield found


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
    these images before, (B, C). Shown in parts as ``predict_views`` does.
    """
    at_once = AtOnce(len(pixels), machine.device, machine.precision, "predicting")
    return answers([Shown(model, views, metadata, known or {})], pixels, machine, at_once)[0].cpu()


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
            except (RuntimeError, AssertionError, ValueError) as error:
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
    views = _named_views(json.dumps(bundle.views, sort_keys=True), bundle.model.size, bundle.chosen)
    return list(views)


@lru_cache(maxsize=64)
def _named_views(views: str, size: int, chosen: tuple[str, ...] | None) -> tuple[View, ...]:
    """The same objects for the same words: networks that are shown one view share it."""
    try:
        settings = Tta(views=json.loads(views))
    except ValidationError:
        raise BadInput("bundle.json", f"there are no views {views}", "export it with this version") from None
    if chosen is None:
        return tuple(make_views(settings, size))
    known = {view.name: view for view in _named_views(views, size, None)}
    return tuple(known.get(view.name, view) for view in pick_views(settings, size, chosen))


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
    """Predictions of ``ids`` by a loaded bundle. The rest is as for ``predict_bundles``."""
    loaded = [(bundle, model)]
    return predict_bundles(loaded, images, ids, batch_size=batch_size, machine=machine, what=what, frame=frame)[0]


def predict_bundles(
    loaded: Sequence[tuple[Bundle, Classifier]],
    images: Images,
    ids: Sequence[str],
    *,
    batch_size: int,
    machine: Machine,
    what: str,
    names: Sequence[str] = (),
    frame: pd.DataFrame | None = None,
) -> list[Predictions]:
    """Predictions of ``ids`` by loaded bundles of one ``sight``, each over the views and at the size that it was made with.

    An image is read once for all of them. ``names``: of the bundles, in messages. ``frame``: the CSV's rows of ``ids`` in
    their order, for networks that know metadata. Raises BadInput without it.
    """
    members = []
    for place, (bundle, model) in enumerate(loaded):
        model.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
        metadata = _metadata_of(bundle, frame, what)
        members.append(Shown(model, bundle_views(bundle), metadata, name=names[place] if names else what))
    values = _merged(
        members,
        [bundle.task for bundle, _ in loaded],
        [bundle.merge for bundle, _ in loaded],
        images,
        rows_of(images, ids),
        batch_size,
        machine,
        loaded[0][0].side if loaded else None,
        what,
    )
    return [
        Predictions(tuple(ids), found, bundle.task.classes, bundle.run)
        for (bundle, _), found in zip(loaded, values, strict=True)
    ]


def _metadata_of(bundle: Bundle, frame: pd.DataFrame | None, what: str) -> Floats | None:
    if bundle.metadata is None:
        return None
    if frame is None:
        raise BadInput(what, "the network needs the CSV's metadata columns", "predict from a CSV that has them")
    return bundle.metadata.transform(frame, what, bundle.id_column)


def sight(bundle: Bundle) -> tuple[ImageSpec, int, str, str]:
    """What bundles must have in common to be shown the same pixels: the stored images, their side, the colours."""
    return bundle.images, bundle.side, bundle.model.colour, bundle.model.local_mean


def in_groups(folders: Sequence[Path], machine: Machine) -> list[list[Path]]:
    """Bundles' folders that are predicted together, in order: of one ``sight``, and as many as memory has room for.

    Raises BadInput for a broken bundle.
    """
    room = SHARE_OF_MEMORY * free_memory(machine.device)
    groups: list[list[Path]] = []
    last, used = None, 0
    for folder in folders:
        seen, size = sight(read_bundle(folder)), (folder / "model.safetensors").stat().st_size
        if seen != last or used + size > room:
            groups.append([])
            used = 0
        groups[-1].append(folder)
        last, used = seen, used + size
    return groups
