"""The canary's table, its verdict, and canary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tabulate import tabulate

from goldfold.canary.checks import ALPHA, MEMORY, Check, Control, MetricScore
from goldfold.canary.settings import Listener
from goldfold.errors import some

Verdict = Literal["green", "red", "blind"]
ROWS = {"all": "all originals", "pool": "twin in the pool", "planted": "twin in other folds"}


@dataclass(frozen=True)
class Report:
    """All that was measured. ``few``: twin checks whose rows are too few to see half a memory."""

    pipeline: str
    rounds: tuple[Listener, ...]
    checks: tuple[Check, ...]
    controls: tuple[Control, ...]
    metric: str
    metrics: tuple[MetricScore, ...]
    few: tuple[Check, ...]
    settings: Mapping[str, Any]
    changes: Mapping[str, Any]

    @property
    def alarms(self) -> list[Check]:
        return [check for check in self.checks if check.verdict != "chance"]

    @property
    def forgetful(self) -> list[Control]:
        """Controls of first rounds that remember too little for their silence to mean anything."""
        first = {entry.name for entry in self.rounds if not entry.hears}
        return [control for control in self.controls if control.round in first and control.memory < MEMORY]

    @property
    def weak(self) -> list[Control]:
        """Controls of silent students that remember little."""
        loud = {entry.name for entry in self.rounds if not entry.hears} | {check.round for check in self.alarms}
        return [control for control in self.controls if control.round not in loud and control.memory < MEMORY / 2]

    @property
    def deaf(self) -> list[tuple[str, float]]:
        """Silent students, and the memory of the teachers of each, where it is too little to carry anything to them."""
        loud = {check.round for check in self.alarms}
        voices = [(entry.name, self._memory(entry.hears)) for entry in self.rounds if entry.learns]
        return [(name, memory) for name, memory in voices if name not in loud and memory < MEMORY / 2]

    def _memory(self, names: Sequence[str]) -> float:
        """The mean over runs and ensembles; an ensemble's is the mean over its members."""
        members = {entry.name: entry.hears for entry in self.rounds if not entry.learns and entry.hears}
        found = []
        for name in names:
            own = [control.memory for control in self.controls if control.round == name]
            found.append(sum(own) / len(own) if own else self._memory(members[name]))
        return sum(found) / len(found)

    @property
    def verdict(self) -> Verdict:
        if self.alarms:
            return "red"
        return "blind" if self.forgetful or self.deaf or self.few else "green"

    @property
    def exit_code(self) -> int:
        return 0 if self.verdict == "green" else 1

    def to_dict(self) -> dict[str, Any]:
        """For canary.json."""
        return {
            "format": 1,
            "pipeline": self.pipeline,
            "verdict": self.verdict,
            "alpha": ALPHA,
            "memory_needed": MEMORY,
            "metric": self.metric,
            **self.settings,
            "rounds": [asdict(entry) | {"hears": list(entry.hears)} for entry in self.rounds],
            "checks": [asdict(check) for check in self.checks],
            "controls": [asdict(control) for control in self.controls],
            "metrics": [asdict(value) for value in self.metrics],
            "changes": dict(self.changes),
        }

    def to_text(self) -> str:
        """Tables and verdict for people."""
        title = {entry.name: f"{entry.name} (leaky)" if entry.leaky else entry.name for entry in self.rounds}
        metrics = {value.round: value for value in self.metrics}
        rows = []
        for check in self.checks:
            value = metrics[check.round] if check.rows_of == "all" else None
            rows.append(
                [
                    title[check.round],
                    ROWS[check.rows_of],
                    str(check.rows),
                    f"{check.score:.3f}",
                    f"{check.chance:.3f} ({check.low:.3f} to {check.high:.3f})",
                    f"{check.p:.2g}",
                    check.verdict if check.verdict == "chance" else check.verdict.upper(),
                    "" if value is None else _metric(value),
                ]
            )
        headers = ["round", "rows", "n", "score", "chance (95 %)", "p", "verdict", f"{self.metric} (chance 95 %)"]
        control = [
            [title[c.round], f"{ROWS[c.twins]}", str(c.rows), f"{c.score:.3f}", f"{c.chance:.3f}", f"{c.memory:.2f}"]
            for c in self.controls
        ]
        return "\n".join(
            [
                tabulate(
                    rows, headers, disable_numparse=True, colalign=["left", "left", *["right"] * 4, "left", "left"]
                ),
                "",
                "Could it have sung? What models say of the twins of rows that they were trained on (memory: 0 chance, 1 all):",
                tabulate(
                    control,
                    ["round", "twins", "n", "score", "chance", "memory"],
                    disable_numparse=True,
                    colalign=["left", "left", *["right"] * 4],
                ),
                "",
                *self.verdict_lines(),
            ]
        )

    def verdict_lines(self) -> list[str]:
        """One line a finding; the last word is the exit code's."""
        lines = []
        leaky = {entry.name for entry in self.rounds if entry.leaky}
        if self.alarms:
            names = list(dict.fromkeys(check.round for check in self.alarms))
            meant = [name for name in names if name in leaky]
            note = f" (leaky on purpose: {some(meant, 20)})" if meant else ""
            what = "labels leak" if any(check.verdict == "leak" for check in self.alarms) else "scores shun the labels"
            lines.append(f"red: {what} in {some(names, 20)}{note}")
        lines += [
            f"blind: {control.round} remembers {control.memory:.2f} of the labels of a {ROWS[control.twins]}, {MEMORY} are "
            "needed: silence proves nothing; raise --epochs or optim.lr, or name another model.backbone"
            for control in self.forgetful
        ]
        lines += [
            f"blind: the teachers of {name} remember {memory:.2f} of a twin's label, {MEMORY / 2} are needed: its silence "
            "proves nothing; raise --epochs or optim.lr, or let others teach"
            for name, memory in self.deaf
        ]
        if self.few:
            names = list(dict.fromkeys(check.round for check in self.few))
            lines.append(f"blind: too few twins to see a leak in {some(names, 20)}; raise --rows or --seeds")
        lines += [
            f"note: {control.round} remembers {control.memory:.2f} of the labels of a {ROWS[control.twins]}, so its "
            "silence says little"
            for control in self.weak
        ]
        if self.verdict == "green":
            lines.append(f"green: {len(self.checks)} scores are at chance (false alarms: {ALPHA:g} a report)")
        return lines


def _metric(value: MetricScore) -> str:
    if value.score is None or value.low is None or value.high is None:
        return "undefined"
    return f"{value.score:.3f} ({value.low:.3f} to {value.high:.3f})"
