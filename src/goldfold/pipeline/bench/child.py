"""Measurements in a process of their own: on a part of the cores, with a peak of memory of their own, or likely to fail.

``python -m goldfold.pipeline.bench.child RESULT`` reads a JSON order from standard input and writes JSON to RESULT.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from goldfold import files
from goldfold.pipeline.bench.rows import CannotMeasure
from goldfold.progress import say


def run_child(job: str, argument: dict[str, Any], cores: int | None = None) -> Any:
    """What ``job`` returns in a new process, bound to the first ``cores`` cores. Raises CannotMeasure when it fails."""
    with tempfile.TemporaryDirectory(prefix="goldfold-bench-") as folder:
        result = Path(folder) / "result.json"
        process = subprocess.Popen(
            [sys.executable, "-m", "goldfold.pipeline.bench.child", str(result)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            process.stdin.write(json.dumps({"job": job, "argument": argument, "cores": cores}))
            process.stdin.close()
            last = ""
            for line in process.stdout:
                say(line.rstrip())  # its progress
                last = line.strip() or last
        if process.returncode == 0:
            return files.read_json(result)
    if process.returncode < 0:
        raise CannotMeasure(f"its process was ended by signal {-process.returncode} (9: the system ran out of memory)")
    raise CannotMeasure(last.removeprefix("goldfold: ") or f"its process ended with {process.returncode}")


def main() -> int:
    order = json.loads(sys.stdin.read())
    if order["cores"] is not None:
        # Before torch is imported: its threads are counted and bound then.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: order["cores"]])
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        files.write_json(Path(sys.argv[1]), _perform(order["job"], order["argument"]))
    except Exception as error:  # whatever it is, it costs this measurement alone, and the last line says why
        say(f"goldfold: {' '.join(str(error).split()) or type(error).__name__}")
        return 1
    return 0


def _perform(job: str, argument: dict[str, Any]) -> Any:
    if job == "train":
        from goldfold.pipeline.bench.training import train_in_child

        return train_in_child(**argument)
    if job == "memory":
        from goldfold.pipeline.bench.memory import memory_in_child

        return memory_in_child(**argument)
    assert job == "backbone", job
    from goldfold.pipeline.bench.candidates import measure_in_child

    return measure_in_child(**argument)


if __name__ == "__main__":
    sys.exit(main())
