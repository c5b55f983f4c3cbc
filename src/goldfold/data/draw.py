"""Which rows an epoch shows: labelled ones, dealt by the balance of classes, and those that teachers labelled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from goldfold.balance import draw_epoch
from goldfold.config.schema import Balance
from goldfold.data.examples import PSEUDO
from goldfold.records import Floats, Ints
from goldfold.seeds import derive_seed
from goldfold.tasks import Task

TAKEN = 1
"""What the derived seed of a draw is for: the pseudo-labelled rows, apart from the draw of the others."""


def draw_rows(
    kind: npt.NDArray[np.int8],
    targets: Floats,
    balance: Balance,
    task: Task,
    seed: int,
    *,
    pseudo: bool = True,
    sampling_prob: float | None = None,
) -> Ints:
    """The row numbers of one epoch in their order, a pure function of the arguments; every seed gives equally many.

    ``kind`` (N,): LABELLED, EXTERNAL or PSEUDO; ``targets`` (N, C). Without ``sampling_prob``: all rows, as
    ``balance.draw_epoch`` deals them. With it: as many rows as that deals of the N - P rows that are not PSEUDO; of
    these n slots round(sampling_prob * n) hold PSEUDO rows (without replacement where there are enough, else with) and
    the others a chance subset of the deal. ``pseudo`` false, or no PSEUDO row at all: the deal of the others alone.

    A fixed share keeps a large pool of unlabelled images from drowning the labelled ones and fixes an epoch's length,
    as the ratio of labelled to unlabelled images in a batch does (Xie et al. 2020, "Self-training with Noisy Student";
    Sohn et al. 2020, "FixMatch"). Raises BadInput where the balance needs classes and the task has none.
    """
    taken = np.flatnonzero(kind == PSEUDO)
    if not len(taken) or (pseudo and sampling_prob is None):
        return draw_epoch(balance, targets, task, seed)
    others = np.flatnonzero(kind != PSEUDO)
    deal = others[draw_epoch(balance, targets[others], task, seed)]
    if not pseudo or sampling_prob is None:
        return deal
    slots = round(sampling_prob * len(deal))
    rng = np.random.default_rng(derive_seed(seed, TAKEN))
    drawn = rng.choice(taken, slots, replace=slots > len(taken))
    # The deal is in chance order already, so its first rows are a chance subset.
    return rng.permutation(np.concatenate([deal[: len(deal) - slots], drawn]))


def counted_rows(kind: npt.NDArray[np.int8], sampling_prob: float | None) -> npt.NDArray[np.bool_]:
    """The rows (N,) by which the balance counts classes, for weights in the loss and for what is rare.

    All of them; without the PSEUDO ones where ``sampling_prob`` sets their share, since their number says nothing then.
    """
    return np.ones(len(kind), dtype=bool) if sampling_prob is None else kind != PSEUDO
