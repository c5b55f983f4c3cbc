"""One optimizer step's micro-batches, in smaller pieces where memory is short: the same gradient, counted once.

A micro-batch is made whole (its draws of augmentation and mixing never depend on memory) and passed through the network
in ``progress.pieces`` parts, each weighted by its share of the rows. What differs is what a network computes over the
rows that it sees at once, batch-norm statistics, and the masks of dropout, which are drawn a piece.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from goldfold.data import TrainBatch
from goldfold.errors import GoldfoldError
from goldfold.memory import is_out_of_memory
from goldfold.progress import say
from goldfold.training.session import Session

Pass = Callable[[bool], Tensor]
"""Adds the gradients of one micro-batch and returns its loss; whether the processes' gradients are to be averaged."""

TRIED = 2
"""Steps in which all that a step allocates has been: the second begins with the optimizer's moments in place."""


class Window:
    """Passes over the micro-batches of one step. When memory is short all of them are repeated, in smaller pieces.

    Of several processes each must know before gradients are exchanged whether another is short. So the first steps, after
    which memory no longer grows, exchange gradients by themselves and later ones within the backward pass, beside it.
    """

    def __init__(self, session: Session, what: str) -> None:
        """``what`` names the training in messages."""
        self.session, self.what, self.rows = session, what, 0
        self.several = session.accelerator.num_processes > 1
        self.careful = self.several and session.tried < TRIED
        self.passes: list[Pass] = []
        self.losses: list[Tensor] = []
        self.short = ""

    def add(self, forward_backward: Pass, rows: int, last: bool) -> None:
        """Pass over a further micro-batch of ``rows``, the ``last`` of the step or not. Raises as ``settle`` does."""
        self.passes.append(forward_backward)
        self.rows = max(self.rows, rows)
        if not self.short:
            self._try(forward_backward, last)

    def settle(self) -> list[Tensor]:
        """Losses of the step's micro-batches, once the gradients of all of them are there.

        Raises GoldfoldError when not even one image fits, and when one of several processes runs short after all have
        agreed on a size.
        """
        while self._any_short():
            self._split()
            self.losses.clear()
            for number, forward_backward in enumerate(self.passes, 1):
                if not self.short:
                    self._try(forward_backward, number == len(self.passes))
        if self.careful:
            for parameter in self.session.tail.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.session.accelerator.reduce(parameter.grad, "mean")
        self.session.tried += 1
        return self.losses

    def _try(self, forward_backward: Pass, last: bool) -> None:
        try:
            self.losses.append(forward_backward(last and not self.careful))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.several and not self.careful:
                raise GoldfoldError(
                    f"{self.what}: the memory is full on one of {self.session.accelerator.num_processes} processes; "
                    "halve train.batch_size and double train.accumulate for the same effective batch"
                ) from None
            # Its text alone: the error's traceback holds on to what fills the memory.
            self.short = str(error).strip().split("\n")[0][:200] or type(error).__name__

    def _any_short(self) -> bool:
        if not self.careful:
            return bool(self.short)
        device = self.session.accelerator.device
        return bool(self.session.accelerator.reduce(torch.tensor(float(bool(self.short)), device=device), "sum") > 0)

    def _split(self) -> None:
        """Forget the step's gradients, free the memory, and halve the pieces."""
        session, at = self.session, self.session.progress
        session.optimizer.zero_grad()
        gc.collect()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        reason, self.short = self.short or "another process ran short", ""
        if at.pieces >= self.rows:
            raise GoldfoldError(
                f"{self.what}: the memory is full with a single image ({reason}); lower input.size or take a smaller "
                "model.backbone"
            )
        before, at.pieces = at.pieces, min(2 * at.pieces, self.rows)
        session.tried = 0
        self.careful = self.several
        norms = any(isinstance(layer, _BatchNorm) and layer.training for layer in session.tail.modules())
        if not session.accelerator.is_main_process:
            return
        say(
            f"{self.what}: the memory is full with {-(-self.rows // before)} images at once; goes on with "
            f"{-(-self.rows // at.pieces)}, {at.pieces} times accumulated: the same images, rate and number of steps"
            + (", but batch-norm statistics of fewer images" if norms else "")
        )


def in_pieces(
    batch: TrainBatch, images: Tensor, metadata: Tensor | None, pieces: int
) -> Iterator[tuple[TrainBatch, Tensor, Tensor | None, float]]:
    """A made batch of B rows in ``pieces`` parts, equal to one row: the part's rows, images, metadata, and share of B.

    ``images`` (V x B, ...) and ``metadata`` (V x B, M) hold V views of the batch, one after another, as a part of it
    does. One part is the batch itself. Raises ValueError for more pieces than rows.
    """
    rows = len(batch.targets)
    if not 1 <= pieces <= rows:
        raise ValueError(f"{pieces} pieces of {rows} rows")
    if pieces == 1:
        yield batch, images, metadata, 1.0
        return
    views = len(images) // rows
    edges = [rows * number // pieces for number in range(pieces + 1)]
    for start, end in itertools.pairwise(edges):
        part = TrainBatch(*(tensor[start:end] if len(tensor) == rows else tensor[:0] for tensor in batch))
        yield (
            part,
            _rows(images, views, start, end),
            None if metadata is None else _rows(metadata, views, start, end),
            (end - start) / rows,
        )


def _rows(values: Tensor, views: int, start: int, end: int) -> Tensor:
    """Rows ``start`` to ``end`` of each view."""
    if views == 1:
        return values[start:end]
    rows = len(values) // views
    return torch.cat([values[view * rows + start : view * rows + end] for view in range(views)])
