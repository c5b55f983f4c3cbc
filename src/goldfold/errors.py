"""What can go wrong, in the two kinds that the command line knows."""

from __future__ import annotations

import copyreg
from collections.abc import Iterable


class GoldfoldError(Exception):
    """A run failed (exit code 1)."""

    exit_code = 1

    def __reduce__(self) -> tuple[object, ...]:
        # Subclasses take other arguments than the text they pass on, so pickle's usual way cannot rebuild them; loader
        # processes send errors so.
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class BadInput(GoldfoldError):
    """The user's input is wrong (exit code 2): one line that says where, what, and how to mend it."""

    exit_code = 2

    def __init__(self, where: object, what: str, mend: str = "") -> None:
        text = f"{where}: {what}"
        if mend:
            text = f"{text}; {mend}"
        super().__init__(" ".join(text.split()))


def some(items: Iterable[object], limit: int = 5) -> str:
    """The first few of many names, for a one-line message: ``a, b, c (and 7 more)``."""
    names = [str(item) for item in items]
    head = ", ".join(names[:limit])
    return head if len(names) <= limit else f"{head} (and {len(names) - limit} more)"
