"""A kernel's process knows nothing of training: the engine is imported and run where those rooms cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from goldfold import files
from tests.inference.packs import Example

NEEDED = (
    "bundle", "config", "cores", "ensemble", "errors", "files", "forward", "images", "inference", "kaggle", "machine",
    "memory", "metadata", "metrics",
    "models", "npy", "paths", "predict", "progress", "records", "seeds", "submission", "tasks", "tta",
)  # fmt: skip
"""What a kernel may import; every other room, also one that is yet to be built, is removed."""
ROOMS = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "src/goldfold").iterdir()
    if path.stem not in (*NEEDED, "__init__", "__pycache__")
    and (path.suffix == ".py" or (path / "__init__.py").is_file())
)
CODE = """
import sys

class Removed:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if parts[0] == "goldfold" and len(parts) > 1 and parts[1] in ROOMS:
            raise ImportError(f"{name} is a training room")
        if parts[0] in ("albumentations", "accelerate", "wandb", "iterstrat"):
            raise ImportError(f"{name} is for training")

ROOMS = sys.argv[1].split(",")
sys.meta_path.insert(0, Removed())
try:
    import goldfold.training
except ImportError:
    print("removed")
from goldfold.inference.run import main
code = main()
print(sorted({name.split(".")[1] for name in sys.modules if name.startswith("goldfold.")} & set(ROOMS)))

import threading, time, torch
from goldfold.inference.run import leave_threads

def compute():
    network, images = torch.nn.Conv2d(16, 16, 3), torch.rand(8, 16, 64, 64)
    while True:
        network(images)

threading.Thread(target=compute, name="goldfold-compute", daemon=True).start()
time.sleep(0.3)
leave_threads(code + 7)
print("left")
raise SystemExit(code + 7)
"""


def test_the_engine_runs_without_the_training_rooms_and_ends_whatever_hangs(example: Example, tmp_path: Path) -> None:
    assert {"training", "data", "augment", "pipeline"} <= set(ROOMS)
    env = {
        "GOLDFOLD_INPUT": str(example.input),
        "GOLDFOLD_WORKING": str(tmp_path / "working"),
        "GOLDFOLD_SCRATCH": str(tmp_path / "scratch"),
        "OMP_NUM_THREADS": "1",
        "PATH": "",
    }
    command = [sys.executable, "-c", CODE, ",".join(ROOMS)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["removed", "[]", "left"], done.stderr
    # A network that still computes when the process ends would have torch abort it.
    assert done.returncode == 7, done.stderr
    found = files.read_csv(tmp_path / "working" / "submission.csv")
    assert found.equals(example.submission(example.expected()))
    assert list((tmp_path / "scratch").glob("*")) == []
