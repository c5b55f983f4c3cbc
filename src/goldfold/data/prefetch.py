"""The next batch on its way to the device while the present one is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from goldfold.data.loaders import TrainBatch


def prefetched(batches: Iterable[TrainBatch], device: torch.device) -> Iterator[TrainBatch]:
    """The same batches in the same order, on ``device``.

    On a GPU one batch is always ahead: it is copied from pinned memory on a stream of its own, beside the computation,
    and the computing stream waits for the copy, never the processor. Elsewhere each batch is moved when it is asked for.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: TrainBatch | None = None
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    for batch in batches:
        ready, arrived = ahead, copied
        with torch.cuda.stream(copying):
            ahead = batch.to(device)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(copying)
        if ready is not None:
            yield _handed_over(ready, arrived, device)
    if ahead is not None:
        yield _handed_over(ahead, copied, device)


def _handed_over(batch: TrainBatch, arrived: torch.cuda.Event, device: torch.device) -> TrainBatch:
    """The batch for the computing stream: it waits for the copy, and the memory is kept until it is done with it."""
    computing = torch.cuda.current_stream(device)
    computing.wait_event(arrived)
    for tensor in batch:
        tensor.record_stream(computing)
    return batch
