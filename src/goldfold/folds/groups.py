"""Dealing groups to folds, so that no group is in two."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from goldfold.records import Ints

Counts = npt.NDArray[np.float64]


def deal_by_size(groups: Ints, n: int, seed: int) -> Ints:
    """Groups in random order, each to the fold with the fewest rows so far.

    ``groups`` (N,) int64 from 0 on → (N,) fold numbers. Fold sizes differ by at most the largest group.
    scikit-learn's GroupKFold either balances rows and ignores the seed, or shuffles and balances only the number of
    groups; repeats need both.
    """
    sizes = np.bincount(groups)
    filled = np.zeros(n)
    fold = np.zeros(len(sizes), dtype=np.int64)
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        fold[group] = int(filled.argmin())
        filled[fold[group]] += sizes[group]
    return fold[groups]


def deal_by_labels(groups: Ints, labels: npt.NDArray[np.bool_], n: int, seed: int) -> Ints:
    """Iterative stratification over whole groups (Sechidis, Tsoumakas and Vlahavas, 2011, with a group as the example).

    ``groups`` (N,) int64 from 0 on, ``labels`` (N, L) → (N,) fold numbers. The rarest label left is dealt first, its
    largest groups first; each group goes to the fold that lacks most of that label, then most rows, then at random.
    With at least ``n`` groups no fold stays empty: an untouched fold lacks at least as much as any other.
    """
    generator = np.random.default_rng(seed)
    sizes = np.bincount(groups).astype(np.float64)
    counts: Counts = np.zeros((len(sizes), labels.shape[1]))
    np.add.at(counts, groups, labels)
    wanted_rows = np.full(n, sizes.sum() / n)
    wanted = np.tile(counts.sum(axis=0) / n, (n, 1))
    fold = np.full(len(sizes), -1, dtype=np.int64)
    order = generator.permutation(len(sizes))  # breaks the ties between equal groups

    def place(group: int, lack: Counts) -> None:
        best = np.flatnonzero(lack == lack.max())
        best = best[wanted_rows[best] == wanted_rows[best].max()]
        chosen = int(generator.choice(best))
        fold[group] = chosen
        wanted[chosen] -= counts[group]
        wanted_rows[chosen] -= sizes[group]

    while True:
        left = counts[fold < 0].sum(axis=0)
        if not (left > 0).any():
            break
        label = int(np.where(left > 0, left, np.inf).argmin())
        waiting = order[(fold[order] < 0) & (counts[order, label] > 0)]
        for group in waiting[np.argsort(-counts[waiting, label], kind="stable")]:
            place(int(group), wanted[:, label].copy())
    rest = order[fold[order] < 0]
    for group in rest[np.argsort(-sizes[rest], kind="stable")]:
        place(int(group), wanted_rows.copy())
    return fold[groups]
