"""Reads W&B's offline files (`run-<id>.wandb`) back: blocks of records as LevelDB writes its log, each a protobuf."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7


@dataclass
class OfflineRun:
    """What `wandb sync` would send of one run."""

    folder: Path
    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    sweep: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Type and name → the artifact's files and where they lie."""
    exit_code: int | None = None


def read_runs(root: Path) -> dict[str, OfflineRun]:
    """The offline runs under ``root``/wandb by name; a later one of the same name hides an earlier one."""
    import wandb

    wandb.teardown()  # its service writes the last lines when it ends
    found = [read_run(path) for path in sorted((root / "wandb").glob("offline-run-*/*.wandb"))]
    return {run.name: run for run in found}


def read_run(path: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun(path.parent)
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.name, run.group = record.run.run_id, record.run.display_name, record.run.run_group
            run.job_type, run.project, run.sweep = record.run.job_type, record.run.project, record.run.sweep_id
            run.tags = list(record.run.tags)
            run.config |= _values(record.run.config.update)
        elif kind == "config":
            run.config |= _values(record.config.update)
        elif kind == "history":
            run.history.append(_values(record.history.item) | {"step": record.history.step.num})
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        elif kind == "request" and record.request.HasField("log_artifact"):
            artifact = record.request.log_artifact.artifact
            run.artifacts[f"{artifact.type}/{artifact.name}"] = {
                entry.path: entry.local_path for entry in artifact.manifest.contents
            }
        elif kind == "artifact":
            run.artifacts[f"{record.artifact.type}/{record.artifact.name}"] = {
                entry.path: entry.local_path for entry in record.artifact.manifest.contents
            }
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    place, whole = HEAD, b""
    while place + HEAD <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEAD:  # the rest of a block is padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEAD])
        whole += data[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""
