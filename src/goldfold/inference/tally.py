"""What is predicted so far, and the best submission that can be made of it."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold import files
from goldfold.inference.frontier import Fits, Fitted
from goldfold.inference.inputs import HiddenRows
from goldfold.inference.running import Progress
from goldfold.kaggle.pack import Pack
from goldfold.records import Floats, Predictions
from goldfold.submission import check_submission, format_submission
from goldfold.tasks import Decisions


@dataclass(frozen=True, eq=False)
class Part:
    """Rows (n,) of the test CSV that are answered by the same blend; ``fitted`` None: by the prior."""

    rows: npt.NDArray[np.int64]
    values: Floats
    fitted: Fitted | None


class Tally:
    """Sums of the whole units, by member and chunk; a member counts with as many folds as it has there.

    ``folds``: by member, how many it has; ``bounds``: where chunks begin, and the number of rows. Safe between threads.
    """

    def __init__(self, folds: Mapping[str, int], bounds: Sequence[int], classes: int) -> None:
        self.bounds = tuple(bounds)
        self._lock = threading.Lock()
        self._all = dict(folds)
        self._sums = {name: np.zeros((bounds[-1], classes)) for name in folds}
        self._counts = {name: np.zeros(len(bounds) - 1, dtype=np.int64) for name in folds}
        self._begun: dict[int, list[Progress]] = {}
        self._unreadable = np.zeros(bounds[-1], dtype=np.bool_)
        self._closed = False
        self.version = 0
        """Rises with every change that a submission would show."""

    @property
    def chunks(self) -> int:
        return len(self.bounds) - 1

    def add(self, chunk: int, progress: Progress) -> None:
        """A unit that is whole for a chunk."""
        name = progress.unit.member.name
        with self._lock:
            if self._closed:
                return
            # In float64 the sum of float32 probabilities is exact, in whatever order they come.
            self._sums[name][self._rows(chunk)] += progress.values
            self._counts[name][chunk] += 1
            self._begun.pop(chunk, None)
            self.version += 1

    def begin(self, chunk: int, progress: Progress) -> None:
        """A unit that is being predicted: while its chunk has nothing whole, the one with most rows counts there."""
        with self._lock:
            if not self._closed and not self._whole(chunk) and progress not in self._begun.setdefault(chunk, []):
                self._begun[chunk].append(progress)

    def drop(self, chunk: int, progress: Progress) -> None:
        """A unit that was given up."""
        with self._lock:
            if progress in self._begun.get(chunk, []):
                self._begun[chunk].remove(progress)

    def close(self) -> None:
        """Nothing is added any more: what comes after the last submission is no part of it."""
        with self._lock:
            self._closed = True

    def mark_unreadable(self, chunk: int, rows: npt.NDArray[np.bool_]) -> None:
        """Rows (n,) of a chunk that have no image."""
        with self._lock:
            if not self._closed:
                self._unreadable[self._rows(chunk)] = rows

    @property
    def unreadable(self) -> int:
        return int(self._unreadable.sum())

    def folds(self, name: str) -> list[int]:
        """How many folds of a member are done, chunk by chunk."""
        return [int(count) for count in self._counts[name]]

    def has_partial(self) -> bool:
        """Whether rows count that are no part of a whole unit, which change no version."""
        with self._lock:
            return any(progress.done.any() for begun in self._begun.values() for progress in begun)

    def has_whole(self, chunk: int) -> bool:
        with self._lock:
            return self._whole(chunk)

    def complete(self, names: Collection[str]) -> bool:
        """Whether every fold of these members is done on all rows."""
        return not self.bounds[-1] or all((self._counts[name] == self._all[name]).all() for name in names)

    def parts(self, fits: Fits, prior: Sequence[float]) -> list[Part]:
        """The rows by the blend that answers them, the most rows first; rows without a prediction are among the last.

        Chunks of which the same members are done are blended together, each member by the mean of its folds there.
        """
        complete = self.complete(fits.needed)
        with self._lock:
            members = [
                frozenset(name for name, counts in self._counts.items() if counts[chunk])
                for chunk in range(self.chunks)
            ]
            open_ = np.ones(self.bounds[-1], dtype=np.bool_)
            parts = []
            for group in sorted(set(members) - {frozenset[str]()}, key=sorted):
                chunks = [chunk for chunk in range(self.chunks) if members[chunk] == group]
                rows = np.concatenate([np.arange(*self.bounds[chunk : chunk + 2]) for chunk in chunks])
                rows = rows[~self._unreadable[rows]]
                open_[rows] = False
                fitted = fits.best(group, complete)
                values = {name: self._mean(name, rows) for name in group & frozenset(fitted.members)}
                parts.append(Part(rows, fitted.apply(values, fits.task), fitted))
            for chunk, begun in ((chunk, begun) for chunk, begun in self._begun.items() if begun):
                progress = max(begun, key=lambda each: int(each.rows().sum()))
                mine = np.flatnonzero(progress.rows())
                rows = mine + self.bounds[chunk]
                mine, rows = mine[~self._unreadable[rows]], rows[~self._unreadable[rows]]
                if len(rows):
                    open_[rows] = False
                    fitted = fits.fit(frozenset([progress.unit.member.name]))
                    values = {progress.unit.member.name: progress.values[mine]}
                    parts.append(Part(rows, fitted.apply(values, fits.task), fitted))
        parts.sort(key=lambda part: -len(part.rows))
        rest = np.flatnonzero(open_)
        if len(rest) or not parts:
            parts.append(Part(rest, np.tile(_prior(parts, prior), (len(rest), 1)), None))
        return parts

    def _rows(self, chunk: int) -> slice:
        return slice(self.bounds[chunk], self.bounds[chunk + 1])

    def _whole(self, chunk: int) -> bool:
        return any(counts[chunk] for counts in self._counts.values())

    def _mean(self, name: str, rows: npt.NDArray[np.int64]) -> Floats:
        chunk_of = np.searchsorted(self.bounds, rows, side="right") - 1
        return (self._sums[name][rows] / self._counts[name][chunk_of][:, None]).astype(np.float32)


def all_prior(rows: int, prior: Sequence[float]) -> Part:
    """What is submitted before anything is predicted."""
    return Part(np.arange(rows), np.tile(_prior((), prior), (rows, 1)), None)


def _prior(parts: Sequence[Part], prior: Sequence[float]) -> Floats:
    """What answers rows without a prediction: the prior; among ranks, the middle of those that there are."""
    fitted = parts[0].fitted if parts and len(parts[0].values) else None
    if fitted is not None and fitted.chain is not None and fitted.chain.blend.method == "rank_mean":
        return np.asarray(parts[0].values.mean(axis=0), dtype=np.float32)
    return np.array(prior, dtype=np.float32)


def make_submission(pack: Pack, hidden: HiddenRows, parts: Sequence[Part]) -> pd.DataFrame:
    """The table to submit, checked: the sample's columns, ids and order. Each part is decided by its own blend's decisions;
    rows without a prediction, and ids without an image, by those of the largest part. Raises BadInput."""
    groups: list[tuple[list[str], list[Floats], Decisions | None]] = []
    for part in parts:
        ids = [hidden.ids[row] for row in part.rows]
        if part.fitted is None and groups:
            groups[0][0].extend(ids)
            groups[0][1].append(part.values)
        else:
            groups.append((ids, [part.values], None if part.fitted is None else part.fitted.decisions))
    if hidden.without_image:
        missing = np.tile(_prior(parts, pack.prior), (len(hidden.without_image), 1))
        groups[0][0].extend(hidden.without_image)
        groups[0][1].append(missing)
    tables = [
        Predictions(tuple(ids), np.concatenate(values), pack.task.classes, pack.source, where=pack.source)
        for ids, values, _ in groups
    ]
    key = pack.submission.id_column
    frames = []
    for table, (_, _, decisions) in zip(tables, groups, strict=True):
        sample = hidden.sample
        if sample is not None and len(tables) > 1:
            sample = sample[sample[key].isin(table.ids)]
        frames.append(format_submission(table, pack.task, pack.submission, sample, decisions))
    frame = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    order = list(hidden.ids) if hidden.sample is None else list(hidden.sample[key])
    frame = frame.iloc[pd.Index(frame[key]).get_indexer(pd.Index(order, dtype=object))].reset_index(drop=True)
    check_submission(frame, hidden.sample, pack.submission, pack.task)
    return frame


def write_submission(path: Path, frame: pd.DataFrame) -> None:
    """Atomic: whoever looks finds a whole submission, this one or the one before."""
    files.write_csv(path, frame)


def score_of(parts: Sequence[Part]) -> float | None:
    """The out-of-fold score of the blend that answers all rows but those without an image; None where there are several."""
    fitted: Mapping[int, Fitted] = {id(part.fitted): part.fitted for part in parts if part.fitted is not None}
    return next(iter(fitted.values())).score if len(fitted) == 1 else None
