"""Seconds and memory of ``goldfold ensemble`` on many members: python benchmarks/ensemble.py [--rows N] [--members M].

Makes members' run folders in a temporary folder, with correlated out-of-fold and test predictions, and runs the real
command once a method and metric, each in a process of its own. ``x mean`` compares with the least that any ensemble
does: reading the same tables with pandas and taking NumPy's mean. Ends with 1 when one took more time or memory than
30 members of 100,000 rows may.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from goldfold.records import Floats, Predictions

FOLDS = 5
SECONDS, GIGABYTES = 60, 4
"""What a method may take on 30 members of 100,000 rows and 5 classes."""
METHODS = (
    "mean:log_loss,gmean:log_loss,rank_mean:macro_auc,simplex:log_loss,simplex:macro_auc,simplex:macro_f1,"
    "simplex:accuracy,simplex:qwk,greedy:log_loss,greedy:macro_auc,greedy:macro_f1,stacking:log_loss,"
    "simplex:macro_f1:class_temperature:fitted,simplex:qwk:class_temperature:fitted,"
    "greedy:macro_f1:class_temperature:fitted,stacking:macro_f1:class_temperature:fitted"
)
PLAIN_MEAN = """
import sys
from pathlib import Path
import numpy as np, pandas as pd
for table in ("oof", "test"):
    frames = [pd.read_parquet(path) for path in sorted(Path(sys.argv[1]).glob(f"runs/*/{table}.parquet"))]
    columns = [name for name in frames[0] if name.startswith("p_")]
    mean = np.mean([frame[columns].to_numpy() for frame in frames], axis=0)
    pd.DataFrame(mean, columns=columns).to_parquet(Path(sys.argv[1]) / f"mean-{table}.parquet")
"""


def draw_members(
    generator: np.random.Generator, labels: npt.NDArray[np.int64], count: int, classes: int
) -> list[Floats]:
    """Probabilities (N, C) of members that share most of their errors, some more in families, and differ in quality."""
    rows = len(labels)
    shared = np.eye(classes)[labels] * 1.6 + generator.normal(size=(rows, classes)) * 1.1
    families = [generator.normal(size=(rows, classes)) for _ in range(4)]
    members = []
    for number in range(count):
        logits = shared * generator.uniform(0.6, 1.2) + families[number % 4] * generator.uniform(0.3, 0.8)
        logits += generator.normal(size=(rows, classes)) * generator.uniform(0.3, 1.0)
        powers = np.exp(logits * generator.uniform(0.8, 1.8))
        members.append((powers / powers.sum(axis=1, keepdims=True)).astype(np.float32))
    return members


def make_workspace(root: Path, rows: int, count: int, classes: int, seed: int) -> list[str]:
    """A project folder with a competition, its folds and ``count`` finished runs; returns the runs' names."""
    generator = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, classes + 1)
    labels = generator.choice(classes, 2 * rows, p=share / share.sum())
    labels[:classes] = np.arange(classes)
    ids = [f"img{row:07d}" for row in range(2 * rows)]
    pd.DataFrame({"id": ids[:rows], "label": labels[:rows]}).to_csv(root / "train.csv", index=False)
    pd.DataFrame({"id": ids[rows:]}).to_csv(root / "test.csv", index=False)
    experiment = {"competition": competition("log_loss"), "folds": {"n": FOLDS}}
    (root / "experiment.yaml").write_text(json.dumps(experiment), encoding="utf-8")
    subprocess.run(goldfold("folds", "experiment.yaml"), cwd=root, check=True, stdout=subprocess.DEVNULL)
    dealt = pd.read_csv(root / "folds" / "bench.csv").set_index("id")
    fold = dealt.loc[ids[:rows], "fold"].to_numpy(dtype=np.int64)
    names = [f"run{number:02d}" for number in range(count)]
    columns = tuple(str(number) for number in range(classes))
    for name, values in zip(names, draw_members(generator, labels, count, classes), strict=True):
        folder = root / "runs" / name
        # A run lists its rows fold by fold, not in the order of the CSV.
        order = np.argsort(fold, kind="stable")
        oof = Predictions(tuple(np.array(ids, dtype=object)[order]), values[order], columns, name, fold[order])
        oof.write(folder / "oof.parquet", "id")
        Predictions(tuple(ids[rows:]), values[rows:], columns, name).write(folder / "test.parquet", "id")
    return names


def competition(metric: str) -> dict[str, object]:
    return {
        "name": "bench",
        "task": "ordinal" if metric == "qwk" else "multiclass",
        "metric": metric,
        "train_csv": "train.csv",
        "test_csv": "test.csv",
        "image_path": "images/{id}.png",
        "id": "id",
        "target": "label",
    }


def set_metric(root: Path, names: list[str], metric: str) -> None:
    """The runs' records. Their own scores are only printed by the command, so they are left at 0."""
    cv = {
        "folds": [{"fold": number} for number in range(FOLDS)],
        "leaky": False,
        "optimistic": False,
        "mean": 0,
        "std": 0,
        "oof": {metric: 0},
    }
    for name in names:
        experiment = {"name": name, "competition": competition(metric), "folds": {"n": FOLDS}}
        (root / "runs" / name / "config.yaml").write_text(json.dumps(experiment), encoding="utf-8")
        (root / "runs" / name / "cv.json").write_text(json.dumps(cv), encoding="utf-8")


def goldfold(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from goldfold.cli import main; raise SystemExit(main())", *arguments]


def measure(command: list[str], root: Path) -> tuple[float, float, float]:
    """Seconds, seconds of CPU time, and peak memory (GB) of a command. Ends the benchmark with the command's output when it fails."""
    with (root / "output.txt").open("w+b") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=root, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"exit status {process.returncode}: {output.read().decode()}")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="training rows, and as many test rows")
    parser.add_argument("--members", type=int, default=30)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default=METHODS, metavar="METHOD:METRIC[:CALIBRATION[:DECISIONS]],...")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="goldfold-bench-"))
    try:
        names = make_workspace(root, options.rows, options.members, options.classes, options.seed)
        print(f"{options.members} members, {options.rows:,} rows, {options.classes} classes, {FOLDS} folds")
        least, work, memory = measure([sys.executable, "-c", PLAIN_MEAN, str(root)], root)
        print(
            f"{'method':10} {'metric':12} {'calibration':17} {'decisions':9} {'seconds':>8} {'CPU':>7} {'GB':>6} {'x mean':>7} {'cv':>9} {'cross-fitted':>13}"
        )
        print(f"{'(pandas + numpy mean)':51} {least:8.1f} {work:7.1f} {memory:6.2f} {1:7.1f}", flush=True)
        beyond = []
        for pair in options.methods.split(","):
            method, metric, *rest = pair.split(":")
            calibration, decisions = rest[0] if rest else "none", rest[1] if len(rest) > 1 else "fixed"
            set_metric(root, names, metric)
            shutil.rmtree(root / "ensembles", ignore_errors=True)
            settings = ["--method", method, "--calibration", calibration, "--decisions", decisions]
            seconds, work, memory = measure(goldfold("ensemble", *names, "--name", "bench", *settings), root)
            record = json.loads((root / "ensembles" / "bench" / "ensemble.json").read_text(encoding="utf-8"))
            print(
                f"{method:10} {metric:12} {calibration:17} {decisions:9} {seconds:8.1f} {work:7.1f} {memory:6.2f} {seconds / least:7.1f}"
                f" {record['cv']['score']:9.5f} {record['cross_fitted']['score']:13.5f}",
                flush=True,
            )
            if seconds > SECONDS or memory > GIGABYTES:
                beyond.append(pair)
        print(f"beyond {SECONDS} s or {GIGABYTES} GB: {', '.join(beyond) or 'none'}")
        return 1 if beyond else 0
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    raise SystemExit(main())
