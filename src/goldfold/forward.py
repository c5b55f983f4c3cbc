"""Batches of images through networks and views, and nothing beside it that takes the device's time.

Networks that see the same pixels share them: a batch is copied to the device once, normalised once for all networks that
normalise alike, and turned once for all that are shown the same view. Results come back while the next batch is computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from goldfold.errors import GoldfoldError
from goldfold.machine import Machine
from goldfold.memory import AtOnce, is_out_of_memory
from goldfold.models import Classifier
from goldfold.records import Floats
from goldfold.tta import View

IN_FLIGHT = 2
"""Batches whose results a GPU may still owe while the next one is sent to it."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A network in eval mode on the device, and the ``views`` that it is shown.

    ``metadata`` (N, M) belongs to the rows that are predicted; ``known``: by a view's name what it gave of these rows
    before, (N, C), which is not computed again. ``name`` stands in messages.
    """

    model: Classifier
    views: Sequence[View]
    metadata: Floats | None = None
    known: Mapping[str, Floats] = field(default_factory=dict)
    name: str = ""

    def of(self, rows: slice) -> Shown:
        metadata = None if self.metadata is None else self.metadata[rows]
        return replace(self, metadata=metadata, known={name: seen[rows] for name, seen in self.known.items()})


Done = dict[View, Tensor]
"""Probabilities (B, C) on the device of the views that a network has answered."""


@torch.inference_mode()
def answers(members: Sequence[Shown], pixels: Tensor, machine: Machine, at_once: AtOnce) -> list[Tensor]:
    """Probabilities (V, B, C) float32 of each member on the device, of uint8 ``pixels`` (B, S, S, C) from anywhere.

    When memory runs out, the forward pass that failed, and no other, is done again in halves, and so are all after it.
    Raises GoldfoldError when a single image is too much.
    """
    known = [{view: _moved(seen, machine) for view, seen in _known(member)} for member in members]
    return _answers(members, pixels, machine, at_once, known)


def _answers(
    members: Sequence[Shown], pixels: Tensor, machine: Machine, at_once: AtOnce, done: list[Done]
) -> list[Tensor]:
    if len(pixels) <= at_once.most:
        try:
            with machine.autocast():  # one for all: it keeps the weights that it has brought to half precision
                _fill(members, pixels, machine, done)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(pixels) < 2:
                mend = "lower tta.size or input.size, or take a smaller network"
                raise GoldfoldError(f"{at_once.what}: a single image does not fit into memory; {mend}") from None
        else:
            return [torch.stack([seen[view] for view in m.views]) for m, seen in zip(members, done, strict=True)]
        at_once.halve(len(pixels))
    parts, start = [], 0
    while start < len(pixels):  # ``most`` may fall on the way
        rows = slice(start, start + at_once.most)
        start += at_once.most
        own = [{view: seen[rows] for view, seen in each.items()} for each in done]
        parts.append(_answers([member.of(rows) for member in members], pixels[rows], machine, at_once, own))
    return [torch.cat(found, dim=1) for found in zip(*parts, strict=True)]


def _fill(members: Sequence[Shown], pixels: Tensor, machine: Machine, done: list[Done]) -> None:
    """Add to ``done`` what each member gives of its views, as far as memory lasts."""
    waiting = [place for place, member in enumerate(members) if any(view not in done[place] for view in member.views)]
    if not waiting:
        return
    pixels = pixels.to(machine.device, non_blocking=True)
    columns = [_columns(member, machine) for member in members]
    for group in _alike([members[place].model for place in waiting]):
        places = [waiting[number] for number in group]
        prepared = members[places[0]].model.prepare(pixels, machine.memory_format)
        for view in dict.fromkeys(view for place in places for view in members[place].views):
            own = [place for place in places if view in members[place].views and view not in done[place]]
            if not own:
                continue
            # Turning an image may change its memory format, and convolutions would pay for it.
            shown = view(prepared).contiguous(memory_format=machine.memory_format)
            for place in own:
                model = members[place].model
                done[place][view] = model.probabilities(model(shown, columns[place]))


def _alike(models: Sequence[Classifier]) -> list[list[int]]:
    """Places of the networks that take the same normalised images, together."""
    groups: dict[Any, list[int]] = {}
    for place, model in enumerate(models):
        spec = model.spec
        constants = (spec.mean, spec.std) if spec.normalise == "fixed" else None
        groups.setdefault((spec.in_chans, spec.normalise, constants), []).append(place)
    return list(groups.values())


def _known(member: Shown) -> Iterator[tuple[View, Floats]]:
    return ((view, member.known[view.name]) for view in member.views if view.name in member.known)


def _moved(values: Floats, machine: Machine) -> Tensor:
    return torch.from_numpy(values).to(machine.device, non_blocking=True)


def _columns(member: Shown, machine: Machine) -> Tensor | None:
    metadata = member.metadata
    return None if metadata is None or not metadata.shape[1] else _moved(metadata, machine)


def on_device(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The batches on the device. On a GPU the next one is copied on a stream of its own while one is computed."""
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Tensor, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            coming = (to_device(batch, device), _event(copying))
        if ahead is not None:
            yield _handed_over(*ahead, device)
        ahead = coming
    if ahead is not None:
        yield _handed_over(*ahead, device)


def _event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """What has happened when all that is on the stream by now is done."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


def to_device(batch: Tensor, device: torch.device) -> Tensor:
    """On the device, or where it is when there is no room for all of it at once."""
    try:
        return batch.to(device, non_blocking=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return batch


def _handed_over(batch: Tensor, arrived: torch.cuda.Event, device: torch.device) -> Tensor:
    computing = torch.cuda.current_stream(device)
    computing.wait_event(arrived)
    if batch.is_cuda:
        batch.record_stream(computing)
    return batch


def on_host(results: Iterable[list[Tensor]]) -> Iterator[list[Tensor]]:
    """The results in memory. Those of a GPU come ``IN_FLIGHT`` batches late, so that it need not wait for anyone."""
    flying: deque[tuple[list[Tensor], torch.cuda.Event]] = deque()
    for found in results:
        if not found or not found[0].is_cuda:
            yield found
            continue
        host = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in found]
        for own, each in zip(host, found, strict=True):
            own.copy_(each, non_blocking=True)
        flying.append((host, _event(torch.cuda.current_stream(found[0].device))))
        if len(flying) > IN_FLIGHT:
            yield _landed(*flying.popleft())
    while flying:
        yield _landed(*flying.popleft())


def _landed(host: list[Tensor], ready: torch.cuda.Event) -> list[Tensor]:
    ready.synchronize()
    return [each.clone() for each in host]  # page-locked memory is dear, and callers keep their results
