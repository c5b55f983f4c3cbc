"""The command line: exit codes, one line of what is wrong, and what each command prints and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from goldfold.cli import main
from goldfold.config import load_config
from goldfold.errors import BadInput

Capture = pytest.CaptureFixture[str]
CONFIG = "configs/tiny.yaml"


def refused(capsys: Capture, *arguments: str) -> str:
    """The one line of a command that must end with exit code 2."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = (line for line in err.splitlines() if line.startswith("goldfold: "))
    return line


def train(*overrides: str) -> None:
    assert main(["train", CONFIG, "train.epochs=1", *overrides]) == 0


# --- the process -------------------------------------------------------------------------------------------------------

ENDS = """
import atexit, sys, threading
from concurrent.futures import ThreadPoolExecutor
from goldfold.cli import __main__ as command

real, done = command.main, threading.Event()

def main():
    code = real()
    done.set()
    return code

command.main = main
pool = ThreadPoolExecutor(1)  # left idle, with a thread that waits for work
pool.submit(int).result()
threading.Thread(target=lambda: (done.wait(), print("a thread"))).start()
atexit.register(print, "a handler")
sys.argv = ["goldfold", "tricks", *sys.argv[1:]]
command.run()
"""


def test_a_command_ends_its_threads_and_handlers_and_loses_no_line() -> None:
    """Though the process then ends without being taken apart."""
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["a thread", "a handler"]
    assert "mixup" in done.stdout
    done = subprocess.run([sys.executable, "-c", ENDS, "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("goldfold: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to a disk that is full")
def test_output_that_cannot_be_written_is_a_failure() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "goldfold.cli", "tricks"], stdout=full, check=False)
    assert done.returncode not in (0, 2)
    command = f"{sys.executable} -m goldfold.cli tricks >&-"  # nobody listens, and nobody asked for an error
    assert subprocess.run(command, shell=True, check=False).returncode == 0


# --- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian", CONFIG],
        ["train"],
        ["train", CONFIG, "--flod", "1"],
        ["train", CONFIG, "--fold", "one"],
        ["train", CONFIG, "--fold", "1", "epochs"],
        ["ensemble", "tiny"],
        ["ensemble", "tiny", "--name", "x", "--method", "median"],
        ["submit"],
        [],
    ],
)
def test_wrong_arguments_exit_with_2_and_say_which(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "goldfold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("=3", "'=3' is not an override; write key.sub=value"),
        ("train..epochs=3", "train"),
        ("optim.lr=fast", "'optim.lr'"),
        ("train.epochs=0", "'train.epochs'"),
        ("train=3", "'train': should be a section of keys"),
        ("augment.train=[{Blur", "cannot read an override"),
        ("competition.task=binnary", "'competition.task'"),
        ("train.seeds=[0]", "train.seeds repeats a seed"),
    ],
)
def test_a_wrong_override_is_named(override: str, fragment: str, project: Path, capsys: Capture) -> None:
    line = refused(capsys, "folds", CONFIG, override)
    assert fragment in line
    assert not (project / "folds").exists()


def test_overrides_may_stand_on_both_sides_of_options(project: Path) -> None:
    assert main(["train", CONFIG, "train.epochs=1", "--fold", "0", "optim.lr=0.02", "--run", "x", "train.seed=3"]) == 0
    config = load_config(project / "runs/x/config.yaml")
    assert (config.train.epochs, config.optim.lr, config.train.seed) == (1, 0.02, 3)


@pytest.mark.parametrize("before", [True, False])
def test_the_project_folder_is_given_before_or_after_the_command(
    before: bool, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    folder = ["-C", str(project)]
    assert main([*folder, "folds", CONFIG] if before else ["folds", CONFIG, *folder]) == 0
    assert (project / "folds/tiny.csv").exists()
    assert not any(elsewhere.iterdir())


def test_a_project_folder_that_is_not_there(project: Path, capsys: Capture) -> None:
    assert "'nowhere' is not a folder" in refused(capsys, "-C", "nowhere", "folds", CONFIG)


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_where_an_error_was_raised(before: bool, project: Path) -> None:
    arguments = ["folds", "none.yaml"]
    with pytest.raises(BadInput, match="does not exist"):
        main(["--debug", *arguments] if before else [*arguments, "--debug"])


# --- schema and folds --------------------------------------------------------------------------------------------------


def resolve(schema: dict[str, object], part: dict[str, object]) -> dict[str, object]:
    reference = part.get("$ref")
    for form in part.get("anyOf", []):  # type: ignore[attr-defined]
        reference = form.get("$ref", reference)  # a section that a name may stand for
    if isinstance(reference, str):
        node: object = schema
        for key in reference.removeprefix("#/").split("/"):
            assert isinstance(node, dict)
            node = node[key]
        assert isinstance(node, dict)
        return node
    return part


def test_the_schemas_know_every_key_that_our_configurations_use(project: Path, capsys: Capture) -> None:
    assert main(["schema", "--to", "schemas"]) == 0
    schema = json.loads((project / "schemas/experiment.schema.json").read_text())
    assert json.loads((project / "schemas/pipeline.schema.json").read_text())["required"] == ["rounds"]
    assert schema["additionalProperties"] is False
    assert "required" not in schema  # a parent may give any key
    used = yaml.safe_load((project / CONFIG).read_text()) | {"extends": "../base.yaml"}
    for section, values in used.items():
        part = resolve(schema, schema["properties"][section])
        if isinstance(values, dict):
            assert part["additionalProperties"] is False
            assert set(values) <= set(part["properties"])  # type: ignore[call-overload]
    train_section = resolve(schema, schema["properties"]["train"])
    assert "description" in train_section["properties"]["epochs"]  # type: ignore[index]
    capsys.readouterr()
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema


def test_folds_prints_class_counts_and_stays_as_it_is(project: Path, capsys: Capture) -> None:
    assert main(["folds", CONFIG]) == 0
    first = capsys.readouterr().out
    files = {path: path.read_bytes() for path in (project / "folds").iterdir()}
    assert main(["folds", CONFIG]) == 0
    assert capsys.readouterr().out == first
    assert {path: path.read_bytes() for path in (project / "folds").iterdir()} == files
    table = [line.split() for line in first.splitlines()[1:]]
    assert table == [["cat", "dog", "fox"], ["fold"], ["0", "8", "8", "8"], ["1", "8", "8", "8"]]


def test_other_folds_need_an_explicit_remake(project: Path, capsys: Capture) -> None:
    assert main(["folds", CONFIG]) == 0
    before = (project / "folds/tiny.csv").read_bytes()
    line = refused(capsys, "folds", CONFIG, "folds.seed=1")
    assert "seed=0" in line
    assert "--remake" in line
    assert (project / "folds/tiny.csv").read_bytes() == before
    assert main(["folds", CONFIG, "folds.seed=1", "--remake"]) == 0
    assert (project / "folds/tiny.csv").read_bytes() != before


def test_a_harmless_change_of_the_train_csv_is_accepted_when_asked(project: Path, capsys: Capture) -> None:
    assert main(["folds", CONFIG]) == 0
    before = pd.read_csv(project / "folds/tiny.csv", dtype=str).set_index("id")["fold"]
    path = project / "data/tiny/train.csv"
    pd.read_csv(path, dtype=str).assign(note="x").to_csv(path, index=False)
    assert "--accept" in refused(capsys, "train", CONFIG)
    assert main(["folds", CONFIG, "--accept"]) == 0
    after = pd.read_csv(project / "folds/tiny.csv", dtype=str).set_index("id")["fold"]
    assert after.loc[before.index].equals(before)
    pd.read_csv(path, dtype=str).iloc[1:].to_csv(path, index=False)
    assert "1 id removed" in refused(capsys, "folds", CONFIG, "--accept")


# --- what needs a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["predict", "nobody"], ["runs/nobody", "there is no such run"]),
        (["submit", "nobody"], ["runs/nobody", "there is no such run"]),
        (["ensemble", "nobody", "--name", "x"], ["runs/nobody", "there is no such run"]),
        (["train", "none.yaml"], ["none.yaml", "does not exist"]),
        (["run", "none.yaml"], ["none.yaml", "does not exist"]),
        (["run", CONFIG], ["configs/tiny.yaml", "this is no pipeline"]),
        (["train", CONFIG, "--run", "../x"], ["'name'", "../x"]),
        (["score", "none.csv", "data/tiny/solution.csv", CONFIG], ["none.csv", "does not exist"]),
    ],
)
def test_what_does_not_exist_is_named(
    arguments: list[str], fragments: list[str], project: Path, capsys: Capture
) -> None:
    line = refused(capsys, *arguments)
    for fragment in fragments:
        assert fragment in line
    assert not (project / "ensembles").exists()


def test_an_unfinished_run_is_refused_by_name(project: Path, capsys: Capture) -> None:
    train("--fold", "0")
    for arguments in (["submit", "tiny"], ["ensemble", "tiny", "--name", "x"]):
        line = refused(capsys, *arguments)
        assert "runs/tiny" in line
        assert "not finished" in line


def test_two_runs_become_an_ensemble_and_a_submission(project: Path, capsys: Capture) -> None:
    train()
    train("--run", "second", "train.seed=1")
    capsys.readouterr()
    assert main(["ensemble", "tiny", "second", "--name", "both", "--method", "mean"]) == 0
    out = capsys.readouterr().out
    assert "both (mean)" in out
    assert "wrote ensembles/both" in out
    assert {path.name for path in (project / "ensembles/both").iterdir()} == {
        "correlation.csv",
        "ensemble.json",
        "members.csv",
        "members.png",
        "oof.parquet",
        "test.parquet",
    }
    parts = [pd.read_parquet(project / f"runs/{name}/test.parquet").set_index("id") for name in ("tiny", "second")]
    blend = pd.read_parquet(project / "ensembles/both/test.parquet").set_index("id")
    expected = (parts[0].loc[blend.index] + parts[1].loc[blend.index]) / 2
    assert np.abs(blend - expected).to_numpy().max() < 1e-6
    for source, out_file in (("both", "submissions/both.csv"), ("tiny", "mine/first.csv")):
        assert main(["submit", source, *([] if source == "both" else ["--out", out_file])]) == 0
        assert f"wrote {out_file}" in capsys.readouterr().out
        submission = pd.read_csv(project / out_file, dtype=str)
        sample = pd.read_csv(project / "data/tiny/sample_submission.csv", dtype=str)
        assert list(submission["id"]) == list(sample["id"])
        record = json.loads((project / out_file).with_suffix(".json").read_text())
        assert record["source"] == source
    assert "twice" in refused(capsys, "ensemble", "tiny", "tiny", "--name", "x")


def test_a_submission_of_an_old_sample_is_refused(project: Path, capsys: Capture) -> None:
    train()
    path = project / "data/tiny/sample_submission.csv"
    pd.read_csv(path, dtype=str).iloc[1:].to_csv(path, index=False)
    assert "ids" in refused(capsys, "submit", "tiny")
    assert not (project / "submissions").exists()


def test_predict_reads_any_csv_of_images(project: Path, capsys: Capture) -> None:
    train()
    (project / "new").mkdir()
    rows = pd.read_csv(project / "data/tiny/test.csv", dtype=str).head(3)
    for name in rows["id"]:
        (project / f"data/tiny/images/{name}.png").rename(project / f"new/{name}_a.png")
    rows.to_csv(project / "new.csv", index=False)
    assert main(["predict", "tiny", "--csv", "new.csv", "--images", "new/{id}_a.png", "--out", "new.parquet"]) == 0
    found = pd.read_parquet(project / "new.parquet")
    assert list(found["id"]) == list(rows["id"])
    trained = pd.read_parquet(project / "runs/tiny/test.parquet").set_index("id").loc[found["id"]]
    assert np.abs(found.set_index("id") - trained).to_numpy().max() < 1e-6
    assert "cannot be read" in refused(capsys, "predict", "tiny", "--csv", "new.csv")


def test_a_competition_without_test_rows_trains_and_submit_says_what_is_missing(project: Path, capsys: Capture) -> None:
    nothing = ["competition.test_csv=null", "competition.sample_submission=null"]
    assert main(["check", CONFIG, *nothing]) == 0
    train(*nothing)
    assert not list((project / "runs").rglob("test.parquet"))
    line = refused(capsys, "submit", "tiny")
    assert "no test predictions" in line
    assert "competition.test_csv" in line
    assert "name a CSV" in refused(capsys, "predict", "tiny")
    assert main(["predict", "tiny", "--csv", "data/tiny/test.csv"]) == 0
    line = refused(
        capsys,
        "train",
        CONFIG,
        *nothing,
        "--run",
        "x",
        "train.epochs=1",
        "teacher.runs=[tiny]",
        "teacher.pseudo.labels=soft",
    )
    assert "test_csv" in line


def test_a_submission_without_a_sample_has_the_test_ids(project: Path) -> None:
    train("competition.sample_submission=null")
    assert main(["submit", "tiny"]) == 0
    submission = pd.read_csv(project / "submissions/tiny.csv", dtype=str)
    assert sorted(submission["id"]) == sorted(pd.read_csv(project / "data/tiny/test.csv", dtype=str)["id"])
    assert list(submission.columns) == ["id", "label"]
