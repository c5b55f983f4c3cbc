"""Stands for Kaggle's client: the same words and exit codes, and what Kaggle would know in a JSON file (FAKE_KAGGLE).

Run as a program of its own, without any package. ``state["calls"]`` has the arguments of every call.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

STATE = Path(os.environ.get("FAKE_KAGGLE", "fake-kaggle.json"))


def main(arguments: list[str]) -> int:
    state = json.loads(STATE.read_text())
    state["calls"].append(arguments)
    try:
        return answer(arguments, state)
    finally:
        STATE.write_text(json.dumps(state))


def answer(arguments: list[str], state: dict[str, Any]) -> int:
    if not state["user"]:
        print("Authentication required to call the Kaggle API.\n\nFirst, you will need a Kaggle account.")
        return 1
    command, rest = arguments[:2], arguments[2:]
    if command == ["config", "view"]:
        print(f"Configuration values from /root/.kaggle\n- username: {state['user']}\n- auth_method: ACCESS_TOKEN")
        return 0
    if command == ["datasets", "status"]:
        return status(rest, state)
    if command[0] == "datasets":
        return upload(command[1], rest, state)
    return push(rest, state)


def status(rest: list[str], state: dict[str, Any]) -> int:
    if state["old_client"] and "--format" in rest:
        print("usage: kaggle [-h]\nkaggle: error: unrecognized arguments: --format json", file=sys.stderr)
        return 2
    known = state["datasets"].get(rest[0])
    if known is None:
        print(f"403 Client Error: Forbidden for url: https://api.kaggle.com/{rest[0]}", file=sys.stderr)
        return 1
    if known["coming"]:  # a version is processed while one looks
        known["status"], known["version"] = known["coming"].pop(0)
    if "--format" in rest:
        print(json.dumps({"status": known["status"], "current_version_number": known["version"]}), end="")
    else:
        print(known["status"], end="")
    return 0


def upload(way: str, rest: list[str], state: dict[str, Any]) -> int:
    folder = Path(rest[rest.index("-p") + 1])
    metadata = json.loads((folder / "dataset-metadata.json").read_text())
    known = state["datasets"].get(metadata["id"])
    if (known is None) != (way == "create"):
        print("Dataset creation error: the requested title is already in use by a dataset.")
        return 0  # as the client does
    version = 1 if known is None else known["version"] + 1
    before = [] if known is None else [["ready", known["version"]]] * 3
    coming = [[name, version] for name in state["processing"]]
    state["datasets"][metadata["id"]] = {
        "status": "ready" if known else "not_yet_persisted",
        "version": version - 1,
        "coming": [*before, *coming],
        "metadata": metadata,
    }
    print("Starting upload for file pack.json", file=sys.stderr)
    print(f"Dataset version is being created. Please check progress at https://www.kaggle.com/{metadata['id']}")
    return 0


def push(rest: list[str], state: dict[str, Any]) -> int:
    folder = Path(rest[rest.index("-p") + 1])
    metadata = json.loads((folder / "kernel-metadata.json").read_text())
    if state["push_error"]:
        print(f"Kernel push error: {state['push_error']}")
        return 0  # as the client does
    code = (folder / metadata["code_file"]).read_text()
    sources = {name: state["datasets"].get(name) for name in metadata["dataset_sources"]}
    state["kernels"].append({"metadata": metadata, "code": code, "sources": sources})
    invalid = [name for name, known in sources.items() if known is None]
    if invalid:
        print(f"The following are not valid dataset sources and could not be added to the kernel: {invalid}")
    print(
        f"Kernel version 3 successfully pushed.  Please check progress at https://www.kaggle.com/code/{metadata['id']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
