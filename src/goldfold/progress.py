"""Progress of long work: a bar on a terminal, plain lines elsewhere (logs, Kaggle, CI)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0

_plain = False


def plain_lines() -> None:
    """No bars in this process from now on: several processes share the terminal."""
    global _plain
    _plain = True


def say(text: str) -> None:
    """A line for the person who watches (standard error, so that standard output stays the result)."""
    print(f"{text}\n", end="", file=sys.stderr, flush=True)  # one write, whole among other processes' lines


def warn(text: str) -> None:
    say(f"warning: {text}")


def progress(items: Iterable[T], what: str, total: int, unit: str = "it") -> Iterator[T]:
    """Iterate over ``items`` and show how far it is; ``total`` items are expected."""
    if sys.stderr.isatty() and not _plain:
        yield from tqdm(items, desc=what, total=total, unit=unit, leave=False, dynamic_ncols=True)
        return
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= SECONDS_BETWEEN_LINES and done < total:
            shown = now
            say(f"{what}: {done}/{total} {unit}, {done / (now - start):.0f} {unit}/s")
