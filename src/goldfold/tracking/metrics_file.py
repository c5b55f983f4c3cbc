"""metrics.jsonl: what a fold's training says of each epoch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from goldfold import files


class MetricsFile:
    """One JSON line an epoch. It holds no times, so that a resumed run's file equals an uninterrupted one's."""

    def __init__(self, path: Path, first_epoch: int) -> None:
        """Keeps the lines before ``first_epoch``: those of a killed epoch that is run again are dropped."""
        self.path = path
        self.kept = [line for line in read_metrics(path) if line["epoch"] < first_epoch] if path.exists() else []
        files.write_text(path, "".join(f"{_line(values)}\n" for values in self.kept))

    def log(self, values: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{_line(values)}\n")
            file.flush()
            os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a kill cut short is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), allow_nan=False)
