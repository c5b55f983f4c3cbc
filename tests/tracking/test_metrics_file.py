"""metrics.jsonl is exact after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from goldfold.tracking import MetricsFile, read_metrics


def test_lines_of_epochs_that_are_run_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 1)
    for epoch in (1, 2, 3):
        file.log({"epoch": epoch, "loss": 0.5, "auc": None})
    again = MetricsFile(path, 2)
    assert [line["epoch"] for line in read_metrics(path)] == [1]
    assert again.kept == [{"epoch": 1, "loss": 0.5, "auc": None}]
    again.log({"epoch": 2, "loss": 0.25, "auc": None})
    assert [line["loss"] for line in read_metrics(path)] == [0.5, 0.25]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1, "loss": 1.0}\n{"epoch": 2, "lo')
    assert [line["epoch"] for line in read_metrics(path)] == [1]
    MetricsFile(path, 3).log({"epoch": 3})
    assert path.read_text() == '{"epoch": 1, "loss": 1.0}\n{"epoch": 3}\n'


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    lines: list[dict[str, Any]] = [{"epoch": epoch, "loss": 1 / 3 / epoch} for epoch in range(1, 5)]
    file = MetricsFile(whole, 1)
    for line in lines:
        file.log(line)
    file = MetricsFile(cut, 1)
    for line in lines[:3]:
        file.log(line)
    file = MetricsFile(cut, 3)
    for line in lines[2:]:
        file.log(line)
    assert cut.read_bytes() == whole.read_bytes()


def test_nan_is_no_metric(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        MetricsFile(tmp_path / "m.jsonl", 1).log({"loss": float("nan")})
