"""inference/train.ipynb: its cells, in order, on a tiny competition in Kaggle's layout, on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from goldfold import files
from goldfold.kaggle.notebook import make_notebook, read_script
from goldfold.kaggle.wheels import write_wheels
from tests.pipeline.competitions import make_competition

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "inference/train.ipynb"
# What a notebook server does: the cells one after the other, in one process and one namespace.
EXECUTE = """
import json, pathlib, sys
cells = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]
space = {"__name__": "__main__"}
for number, cell in enumerate(cells):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"<cell {number}>", "exec"), space)
"""


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Kaggle's folders: the competition ``tiny``, and a data set with a project's source, of a version of its own."""
    project, root = tmp_path / "project", tmp_path / "kaggle"
    make_competition(project, rows=24, test_rows=6)
    shutil.copytree(project / "data/tiny", root / "input/competitions/tiny")
    (root / "input/competitions/tiny/solution.csv").unlink()
    source = root / "input/datasets/me/tiny-code"
    shutil.copytree(ROOT / "src/goldfold", source / "src/goldfold", ignore=shutil.ignore_patterns("__pycache__"))
    with (source / "src/goldfold/__init__.py").open("a") as file:
        file.write('\n__version__ = "0.0.0+copy"\n')
    shutil.copyfile(ROOT / "pyproject.toml", source / "pyproject.toml")
    config = yaml.safe_load((project / "configs/tiny.yaml").read_text()) | {"extends": "../base.yaml"}
    del config["name"]
    config["train"] |= {"batch_size": 4, "epochs": 1}
    configs = source / "configs/tiny"
    configs.mkdir(parents=True)
    (configs / "a.yaml").write_text(yaml.safe_dump(config))
    rounds = [
        {"kind": "train", "experiment": "a.yaml", "name": "first", "set": {"optim.lr": 0.005}},
        {"kind": "distill", "experiment": "a.yaml", "name": "later", "teachers": ["first"]},
    ]
    (configs / "pipeline.yaml").write_text(yaml.safe_dump({"rounds": rounds}))
    shutil.copyfile(ROOT / "configs/base.yaml", source / "configs/base.yaml")
    (source / "weights").mkdir()
    return root


def execute(kaggle: Path, python: str = sys.executable, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the notebook, in a working folder of its own."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "PYTHONPATH")
    }
    environment |= {"OMP_NUM_THREADS": "1", "GOLDFOLD_INPUT": str(kaggle / "input")}
    environment |= {"GOLDFOLD_WORKING": str(kaggle / "working"), "CUDA_VISIBLE_DEVICES": "", **settings}
    command = [python, "-c", EXECUTE, str(NOTEBOOK)]
    return subprocess.run(
        command, env=environment, cwd=kaggle, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_notebook_is_the_script() -> None:
    script = ROOT / "inference/train.py"
    assert json.loads(NOTEBOOK.read_text(encoding="utf-8")) == make_notebook(read_script(script), script), (
        "make it again: python -c 'from pathlib import Path; from goldfold.kaggle.notebook import write_notebook; "
        'write_notebook(Path("inference/train.py"), Path("inference/train.ipynb"))\''
    )


def test_two_processes_train_every_fold_and_a_later_version_goes_on(kaggle: Path) -> None:
    done = execute(kaggle, GOLDFOLD_PROCESSES="2")
    assert done.returncode == 0, done.stdout + done.stderr
    working = kaggle / "working"
    # Only what is worth keeping: Kaggle saves all that lies here. Decoded images lie elsewhere.
    assert {path.name for path in working.iterdir()} == {"configs", "folds", "runs"}
    assert (kaggle / "temp/goldfold").is_dir()
    run = working / "runs/first"
    assert sorted(path.parent.name for path in run.glob("fold*/DONE")) == ["fold0", "fold1"]
    assert yaml.safe_load((run / "config.yaml").read_text())["optim"]["lr"] == 0.005
    record = files.read_json(run / "run.json")
    assert record["versions"]["goldfold"] == "0.0.0+copy"  # the attached source, not what is installed here
    for fold in (0, 1):  # two processes with 4 images each: 12 rows are one step, and a single process would take three
        (line,) = (run / f"fold{fold}/metrics.jsonl").read_text().splitlines()
        assert json.loads(line)["step"] == 1
    assert "all is trained" in done.stdout
    assert f"macro_f1 {files.read_json(run / 'cv.json')['oof']['macro_f1']}" in done.stdout

    # A later version: the output of the first, cut off in its second fold, is attached as Kaggle attaches notebooks.
    earlier = kaggle / "input/notebooks/me/tiny-training"
    shutil.move(working, earlier)
    kept = pd.read_parquet(earlier / "runs/first/fold0/oof.parquet")
    for name in ("oof.parquet", "test.parquet", "cv.json", "fold1/DONE"):
        (earlier / "runs/first" / name).unlink()
    shutil.rmtree(kaggle / "temp")
    done = execute(kaggle, GOLDFOLD_PROCESSES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first fold0: finished before, skipped" in done.stderr
    assert "first fold 1 epoch" in done.stderr
    assert pd.read_parquet(run / "fold0/oof.parquet").equals(kept)
    assert (run / "cv.json").exists()
    assert (working / "folds/tiny.csv").read_bytes() == (earlier / "folds/tiny.csv").read_bytes()


@pytest.mark.slow
def test_when_the_time_is_up_the_notebook_ends_well(kaggle: Path) -> None:
    """Long before the last epoch; what is trained stays for a later version."""
    path = kaggle / "input/datasets/me/tiny-code/configs/tiny/a.yaml"
    config = yaml.safe_load(path.read_text())
    config["train"]["epochs"] = 100_000
    path.write_text(yaml.safe_dump(config))
    done = execute(kaggle, GOLDFOLD_PROCESSES="2", GOLDFOLD_HOURS=str(11 / 3600))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the time is up" in done.stdout
    assert "all is trained" not in done.stdout


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("nothing", "no Goldfold under"),
        ("no competition", "0 pipelines of configs/ are of an attached competition"),
    ],
)
def test_what_keeps_it_from_training_is_one_line(kaggle: Path, change: str, reason: str) -> None:
    if change == "nothing":
        shutil.rmtree(kaggle / "input/datasets")
    else:
        shutil.move(kaggle / "input/competitions", kaggle / "elsewhere")
    done = execute(kaggle, GOLDFOLD_PROCESSES="1")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Stop: ")
    assert reason in last
    assert not (kaggle / "working/runs").exists()


@pytest.mark.slow
def test_wheels_do_where_there_is_no_source(kaggle: Path, tmp_path: Path) -> None:
    """In an environment without Goldfold, which borrows all other packages, and pip, from this one."""
    shutil.rmtree(kaggle / "input/datasets")
    write_wheels(kaggle / "input/tiny-pack/wheels")  # the older layout, and a pack's folder
    shutil.copytree(kaggle / "input/competitions/tiny", kaggle / "input/digits")
    shutil.rmtree(kaggle / "input/competitions")
    (kaggle / "input/digits/train.csv").write_text("id,label\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "image"], check=True)
    (packages,) = (tmp_path / "image/lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    python = str(tmp_path / "image/bin/python")
    assert subprocess.run([python, "-c", "import goldfold.cli"], capture_output=True, check=False).returncode == 1
    done = execute(kaggle, python, GOLDFOLD_HOURS="0", GOLDFOLD_PROCESSES="1")
    assert done.returncode == 1
    # The pipeline is one of the wheel's own configurations.
    assert done.stderr.strip().splitlines()[-1] == (
        "Stop: goldfold check configs/digits/resnet.yaml: lines above say what is wrong"
    )
    assert "goldfold: " in done.stderr
    assert "train.csv" in done.stderr
    assert (packages / "goldfold/cli/__init__.py").is_file()
    assert not (kaggle / "working/runs").exists()
