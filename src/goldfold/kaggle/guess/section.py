"""What was found, as the YAML that a competitor reads and mends."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from goldfold import files
from goldfold.config.schema import Competition, Folds

WIDTH = 116


@dataclass(frozen=True)
class Finding:
    """A key of the configuration with its value, why it is so, and whether that is a guess."""

    key: str
    value: Any
    why: str
    unsure: bool = False


@dataclass(frozen=True)
class Guess:
    """The sections ``competition`` and ``folds`` (keys that differ from the defaults), and what else was seen."""

    folder: Path
    competition: tuple[Finding, ...]
    folds: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    def value(self, key: str) -> Any:
        return next(finding.value for finding in (*self.competition, *self.folds) if finding.key == key)

    @property
    def unsure(self) -> list[str]:
        return [finding.key for finding in (*self.competition, *self.folds) if finding.unsure]

    def to_yaml(self) -> str:
        """YAML that ``load_config`` accepts; each key under a comment that says why."""
        for model, findings in ((Competition, self.competition), (Folds, self.folds)):
            model.model_validate({finding.key: finding.value for finding in findings})
        lines = [
            f"# Guessed from {self.folder} by `goldfold data guess`. Read every line marked UNSURE, and the competition's",
            "# pages Data and Evaluation; `goldfold check` then tries it all.",
        ]
        for note in self.notes:
            lines += _comment(f"NOTE: {note}", "")
        for name, findings in (("competition", self.competition), ("folds", self.folds)):
            if findings:
                lines += ["", f"{name}:"]
            for finding in findings:
                lines += _comment(f"UNSURE: {finding.why}" if finding.unsure else finding.why, "  ")
                lines.append(f"  {finding.key}: {_scalar(finding.value)}")
        return "\n".join([*lines, ""])


def write_guess(path: Path, text: str) -> None:
    files.write_text(path, text)


def _scalar(value: Any) -> str:
    """JSON is YAML; plain words stand without quotes."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_scalar(item) for item in value) + "]"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w/-]*(\.[a-z]+)?", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str, indent: str) -> list[str]:
    lines, line = [], f"{indent}#"
    for word in text.split():
        if len(line) + len(word) >= WIDTH:
            lines.append(line)
            line = f"{indent}#"
        line += f" {word}"
    return [*lines, line]
