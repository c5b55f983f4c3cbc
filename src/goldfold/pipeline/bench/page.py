"""The results of `goldfold bench speed` as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

HEAD = """# How fast it is

Made by `goldfold bench speed`; [speed.md](speed.md) says how to read it. A ratio's two sides were measured in turns in one run;
shown are the median and, in brackets, the least and the largest of the repeats.
"""


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """A section a record: its machine, the command, the table, and what stands behind each row.

    A row that several records of one machine have is taken from the first that measured it.
    """
    parts, taken = [HEAD], _taken(records)
    for number, whole in enumerate(records):
        host = whole["host"]
        rows = [row for row in whole["rows"] if taken[_machine(whole), row["name"]] == number]
        if not rows and whole["rows"]:
            continue
        record = {**whole, "rows": rows}
        gpus = ", ".join(host["gpus"]) or "no GPU"
        parts.append(f"## {host['cpu']}, {host['cores']} cores, {gpus}\n")
        parts.append(f"    {record['command']}\n")
        versions = ", ".join(f"{name} {number}" for name, number in host["versions"].items())
        shown = f"{host['memory_gb']} GB of memory, {host['system']}, load {host['load']} at the start"
        parts.append(f"{record['measured'][:10]}; {shown}; {versions}.\n{_length(record)}\n")
        again = len(whole["rows"]) - len(rows)
        if again:
            parts.append(f"Rows of this run that another section shows: {again}.\n")
        parts.append(f"{table(record)}\n")
        notes = [line for row in record["rows"] for line in _notes(row)]
        if notes:
            parts.append("\n".join(notes) + "\n")
    return "\n".join(parts)


def _machine(record: Mapping[str, Any]) -> tuple[Any, ...]:
    host = record["host"]
    return (host["cpu"], host["cores"], *host["gpus"])


def _taken(records: Sequence[Mapping[str, Any]]) -> dict[tuple[tuple[Any, ...], str], int]:
    """By machine and row's name the number of the record that it is taken from."""
    found: dict[tuple[tuple[Any, ...], str], int] = {}
    for measured_ones in (True, False):
        for number, record in enumerate(records):
            for row in record["rows"]:
                if (row["figure"] is not None) is measured_ones:
                    found.setdefault((_machine(record), row["name"]), number)
    return found


def table(record: Mapping[str, Any]) -> str:
    """The rows as a Markdown table: what, goal, measured, verdict."""
    rows = [(row["title"], row["goal_text"], measured(row), judged(row)) for row in record["rows"]]
    return tabulate(rows, ("what", "goal", "measured", "verdict"), tablefmt="github", disable_numparse=True)


def measured(row: Mapping[str, Any]) -> str:
    figure = row["figure"]
    if figure is None:
        return "not measured"
    middle, least, most = (_number(row["kind"], figure[key]) for key in ("median", "min", "max"))
    return f"{middle} [{least}, {most}]"


def judged(row: Mapping[str, Any]) -> str:
    if row["reached"] is None:
        return str(row["why"])
    if row["reached"]:
        return "reached"
    return f"**falls short**: {row['why']}" if row["why"] else "**falls short**"


def _number(kind: str, value: float) -> str:
    return f"{value:.3f}" if kind == "rate_ratio" else f"{value:.2f} s" if kind == "seconds" else f"{value:+.1%}"


def _length(record: Mapping[str, Any]) -> str:
    length = f"Each side {record['seconds']:g} seconds or more, {record['repeats']} repeats."
    return f"{length} A quick trial: the figures mean nothing." if record["quick"] else length


def _notes(row: Mapping[str, Any]) -> list[str]:
    details = row["details"]
    parts = []
    if "per_second" in details:
        parts.append(f"{details['per_second']:g} against {details['base_per_second']:g} a second")
    if isinstance(details.get("rival"), dict):
        rival = details["rival"]
        parts.append(f"{rival['library']}, {rival['workers']} workers")
    shown = ("backbone", "size", "batch_size", "stages", "views", "epochs", "files", "rows")
    parts += [f"{key.replace('_', ' ')} {details[key]}" for key in shown if key in details]
    if "networks" in details:
        parts.append("; ".join(details["networks"]))
    if isinstance(details.get("machine"), dict):
        parts.append(", ".join(f"{key} {value}" for key, value in details["machine"].items()))
    if isinstance(details.get("images"), str):
        parts.append(details["images"])
    text = ". ".join([f"`{row['name']}`: {', '.join(parts)}" if parts else f"`{row['name']}`", *row["notes"]])
    return [f"- {text}"] if parts or row["notes"] else []
