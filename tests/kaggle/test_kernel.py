"""inference/kernel.py: whatever happens, a valid submission stays, and one line says what happened."""

from __future__ import annotations

import ast
import json
import os
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from goldfold import files
from goldfold.cli import main
from goldfold.errors import BadInput
from goldfold.kaggle.metadata import check_kernel
from goldfold.kaggle.notebook import make_notebook, read_script
from goldfold.kaggle.wheels import KAGGLE_IMAGE, normalised
from goldfold.records import Predictions
from goldfold.submission import check_submission, decide_format, format_submission
from goldfold.tasks import Task
from tests.contract.test_formats import documented, written
from tests.kaggle.kernels import BINARY, KERNEL, THREE, Kaggle, describe_pack, load_kernel, sample_of, write_rows

IDS = ("07", "7", "a b", "ü,9")
COLUMNS = ("ant", "bee", "cow")
PRIOR = {"ant": "0.2", "bee": "0.5", "cow": "0.3"}
RERUN = {"KAGGLE_IS_COMPETITION_RERUN": "1"}
PREDICT = """
header, *rows = submission.read_text(encoding="utf-8").splitlines()
better = submission.with_name("better")
better.write_text("\\n".join([header, *(row[: -len("0.2,0.5,0.3")] + "1,0,0" for row in rows), ""]), encoding="utf-8")
better.replace(submission)
"""


@pytest.fixture
def kaggle(tmp_path: Path) -> Kaggle:
    """A pack and a competition of three classes, without a Goldfold."""
    found = Kaggle(tmp_path)
    describe_pack(found.pack)
    write_rows(found.competition, IDS, sample_of(IDS, COLUMNS))
    return found


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    return load_kernel()


def fell_back(kaggle: Kaggle) -> None:
    frame = kaggle.rows()
    assert list(frame["id"]) == list(IDS)
    assert (frame[list(COLUMNS)] == pd.DataFrame([PRIOR] * 4)).all().all()


# --- the files ---------------------------------------------------------------------------------------------------------


def test_until_the_wheels_are_installed_only_the_standard_library_is_used() -> None:
    names = set()
    for node in ast.walk(ast.parse(KERNEL.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert names
    assert names <= sys.stdlib_module_names


def test_the_notebook_is_made_from_the_kernel() -> None:
    script = KERNEL.read_text(encoding="utf-8")
    stored = json.loads(KERNEL.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert stored == make_notebook(script), "goldfold kernel-notebook makes it again"
    code = read_script(KERNEL.with_suffix(".ipynb"))
    cells = ast.parse(script).body[1:]  # the docstring is a cell of text
    assert [ast.dump(node) for node in ast.parse(code).body] == [ast.dump(node) for node in cells]
    assert stored["metadata"]["kaggle"]["isInternetEnabled"] is False


def test_the_notebook_runs_in_one_namespace(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.stand_in(PREDICT)
    assert main(["kernel-notebook", "--kernel", str(KERNEL), "--out", str(tmp_path / "twin.ipynb")]) == 0
    cells = json.loads((tmp_path / "twin.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    script = tmp_path / "cells.py"
    script.write_text(f"space = {{'__name__': '__main__'}}\nfor cell in {sources!r}:\n    exec(cell, space)\n")
    done = kaggle.run(script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(kaggle.rows()["ant"]) == {"1"}


def test_a_notebook_is_refused_where_there_are_no_cells(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no cells"):
        make_notebook("print(1)\n")
    with pytest.raises(BadInput, match="not Python"):
        make_notebook("# %%\nif\n")
    (tmp_path / "x.ipynb").write_text("{}")
    with pytest.raises(BadInput, match="not a notebook"):
        read_script(tmp_path / "x.ipynb")


def test_the_metadata_keeps_the_internet_off() -> None:
    values = files.read_json(KERNEL.with_name("kernel-metadata.json"))
    check_kernel(values, "kernel-metadata.json")
    assert values["enable_internet"] is False
    assert values["is_private"] is True
    assert values["enable_gpu"] is True
    assert values["machine_shape"].startswith("NvidiaTeslaT4")  # the default is a P100, which Kaggle's torch cannot use
    assert (KERNEL.parent / values["code_file"]).is_file()
    assert values["competition_sources"]
    assert values["dataset_sources"]


def test_the_constraints_are_those_of_kaggles_image() -> None:
    lines = (KERNEL.with_name("constraints-kaggle.txt")).read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for name, version in KAGGLE_IMAGE.items():
        assert name in {normalised(pin) for pin in pins}
        if version is not None:
            assert f"{pins[name]}.".startswith(f"{version}."), name
    assert not {"goldfold", "ttach"} & pins.keys()


# --- where things lie --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["competitions", "datasets", "flat"])
def test_inputs_are_found_in_three_layouts(layout: str, tmp_path: Path) -> None:
    kaggle = Kaggle(tmp_path, layout)
    describe_pack(kaggle.pack)
    write_rows(kaggle.competition, IDS, sample_of(IDS, COLUMNS))
    (kaggle.input / "datasets/me/other").mkdir(parents=True)  # nothing of ours
    kaggle.stand_in(PREDICT + "print(os.environ['GOLDFOLD_PACK'], os.environ['GOLDFOLD_COMPETITION'])")
    done = kaggle.run()
    assert done.returncode == 0, done.stdout
    assert f"{kaggle.pack} {kaggle.competition}" in done.stdout.splitlines()


def test_a_pack_one_folder_deeper_and_a_competition_under_another_name(kernel: ModuleType, tmp_path: Path) -> None:
    describe_pack(tmp_path / "datasets/me/pack/unpacked")
    write_rows(tmp_path / "datasets/me/renamed", IDS, None)
    folder, pack = kernel.find_pack(tmp_path)
    assert folder == tmp_path / "datasets/me/pack/unpacked"
    assert kernel.find_competition(tmp_path, pack) == tmp_path / "datasets/me/renamed"
    write_rows(tmp_path / "datasets/me/second", IDS, None)
    with pytest.raises(kernel.Problem, match=r"attach the competition 'pets'"):
        kernel.find_competition(tmp_path, pack)
    write_rows(tmp_path / "pets", IDS, None)
    assert kernel.find_competition(tmp_path, pack) == tmp_path / "pets"


def test_of_several_packs_one_must_be_named(
    kernel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        describe_pack(tmp_path / "datasets/me" / name)
    with pytest.raises(kernel.Problem, match=r"2 packs: .*one, .*two; name one in GOLDFOLD_PACK"):
        kernel.find_pack(tmp_path)
    for wanted in ("two", str(tmp_path / "datasets/me/two")):
        monkeypatch.setenv("GOLDFOLD_PACK", wanted)
        assert kernel.find_pack(tmp_path)[0] == tmp_path / "datasets/me/two"
    monkeypatch.setenv("GOLDFOLD_PACK", "three")
    with pytest.raises(kernel.Problem, match=r"no pack 'three' .*datasets/me/one, datasets/me/two"):
        kernel.find_pack(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a readable pack"),
        ('{"format": 2}', "format 2, this kernel reads 1"),
        ('{"format": 1}', "not a readable pack"),
        ("[]", "not a readable pack"),
    ],
)
def test_a_broken_description_is_one_line_and_the_sample_is_submitted(text: str, words: str, kaggle: Kaggle) -> None:
    (kaggle.pack / "pack.json").write_text(text)
    done = kaggle.run(**RERUN)
    assert done.returncode == 0
    (line,) = (line for line in done.stdout.splitlines() if "FAILED" in line)
    assert words in line
    assert done.stderr == ""
    pd.testing.assert_frame_equal(kaggle.rows(), sample_of(IDS, COLUMNS), check_dtype=False)


def test_without_any_input_there_is_nothing_to_submit_and_the_kernel_fails(tmp_path: Path) -> None:
    kaggle = Kaggle(tmp_path)
    kaggle.input.mkdir()
    done = kaggle.run(**RERUN, GOLDFOLD_STRICT="0")
    assert done.returncode == 1
    assert "no pack under" in done.stdout
    assert "attach its data set" in done.stdout
    assert not kaggle.submission.exists()
    assert json.loads((kaggle.working / "kernel.json").read_text())["submission"] == "nothing"


# --- the fallback ------------------------------------------------------------------------------------------------------

GRADES = Task("ordinal", ("0", "1", "2"))
TAGS = Task("multilabel", ("red", "green", "blue"))
POINT = Task("regression", ("x", "y"))
# task, what the metric needs, the sample's columns (None: no sample), its cell, the prior
SHAPES: list[tuple[Task, str, tuple[str, ...] | None, str, tuple[float, ...]]] = [
    (BINARY, "probability", ("label",), "0.5", (0.3,)),
    (BINARY, "probability", ("is_cat",), "0.5", (0.3,)),
    (BINARY, "probability", ("p_dog", "p_cat"), "0", (0.3,)),
    (BINARY, "label", ("label",), "cat", (0.7,)),
    (BINARY, "label", ("label",), "0", (0.3,)),
    (THREE, "probability", ("p_cow", "p_ant", "p_bee"), "0", (0.2, 0.5, 0.3)),
    (THREE, "label", ("kind",), "ant", (0.2, 0.5, 0.3)),
    (GRADES, "label", ("grade",), "0", (0.5, 0.1, 0.4)),
    (GRADES, "probability", ("c0", "c1", "c2"), "0", (0.5, 0.1, 0.4)),
    (TAGS, "probability", ("red", "green", "blue"), "0", (0.1, 0.6, 0.7)),
    (TAGS, "label", ("blue", "green", "red"), "0", (0.1, 0.6, 0.7)),
    (TAGS, "label", ("tags",), "red", (0.1, 0.6, 0.7)),
    (TAGS, "label", ("tags",), "red", (0.1, 0.2, 0.3)),
    (POINT, "value", ("y", "x"), "0", (1.5, -2.0)),
    (THREE, "probability", None, "", (0.2, 0.5, 0.3)),
    (BINARY, "label", None, "", (0.5,)),
]  # fmt: skip


@pytest.mark.parametrize(("task", "needs", "columns", "cell", "prior"), SHAPES)
def test_the_fallback_is_what_goldfold_submits_for_the_prior(
    task: Task,
    needs: str,
    columns: tuple[str, ...] | None,
    cell: str,
    prior: tuple[float, ...],
    kernel: ModuleType,
    tmp_path: Path,
) -> None:
    sample = None if columns is None else sample_of(IDS[::-1], columns, cell)
    format = decide_format(task, needs, sample, "id", target=task.classes if task is POINT else "label")
    pack = describe_pack(tmp_path / "pack", task, format, prior, None if sample is None else "sample_submission.csv")
    write_rows(tmp_path, IDS, sample)
    table, sure = kernel.fallback(tmp_path, json.loads((pack.folder / "pack.json").read_text()))
    assert sure
    kernel.write_table(tmp_path / "submission.csv", table)
    written = files.read_csv(tmp_path / "submission.csv")
    check_submission(written, sample, format, task)
    values = np.tile(np.array(prior, dtype=np.float32), (4, 1))
    expected = format_submission(Predictions(IDS, values, task.classes, "prior"), task, format, sample)
    assert list(written.columns) == list(expected.columns)
    assert list(written["id"]) == list(IDS if sample is None else IDS[::-1])
    for name in format.columns:
        if format.holds_answers:
            assert list(written[name]) == list(expected[name].astype(str))
        else:
            assert written[name].astype(float).to_numpy() == pytest.approx(expected[name].astype(float).to_numpy())


def fallback_of(kernel: ModuleType, kaggle: Kaggle) -> list[list[str]]:
    found: list[list[str]]
    found, _ = kernel.fallback(kaggle.competition, json.loads((kaggle.pack / "pack.json").read_text()))
    return found


def test_rows_are_the_hidden_tests_and_not_the_public_samples(kernel: ModuleType, kaggle: Kaggle) -> None:
    header = ["id", *COLUMNS]
    prior = list(PRIOR.values())
    for hidden in (("n1", "n2"), ("7", "new"), ("new",)):
        write_rows(kaggle.competition, hidden, sample_of(IDS, COLUMNS))
        assert fallback_of(kernel, kaggle) == [header, *([name, *prior] for name in hidden)]
    # Where the sample has them all, it says what is to be submitted, and in which order.
    write_rows(kaggle.competition, IDS[1:3], sample_of(IDS, COLUMNS))
    assert fallback_of(kernel, kaggle) == [header, *([name, *prior] for name in IDS)]
    write_rows(kaggle.competition, (), sample_of((), COLUMNS))
    assert fallback_of(kernel, kaggle) == [header]
    (kaggle.competition / "test.csv").unlink()
    write_rows_of_sample = sample_of(("s1", "s2"), COLUMNS)
    write_rows_of_sample.to_csv(kaggle.competition / "sample_submission.csv", index=False)
    assert fallback_of(kernel, kaggle) == [header, *([name, *prior] for name in ("s1", "s2"))]


def test_unknown_columns_of_the_sample_keep_its_values(kernel: ModuleType, kaggle: Kaggle) -> None:
    write_rows(kaggle.competition, ("7", "new"), sample_of(IDS, ("odd",), "4"))
    assert fallback_of(kernel, kaggle) == [["id", "odd"], ["7", "4"], ["new", "4"]]


def test_cells_and_encodings_that_pandas_reads_are_read(kernel: ModuleType, kaggle: Kaggle) -> None:
    write_rows(kaggle.competition, ("n1", "n2"), sample_of(IDS, COLUMNS))
    table = kaggle.competition / "test.csv"
    table.write_text(f"id,note,\nn1,{'x' * 140_000},\nn2,y,\n")
    assert [row[0] for row in fallback_of(kernel, kaggle)] == ["id", "n1", "n2"]
    table.write_bytes("id\nblätter\n".encode("latin-1"))
    assert [row[0] for row in fallback_of(kernel, kaggle)] == ["id", "blätter"]


def test_a_test_csv_that_only_goldfold_can_read_costs_nothing(kaggle: Kaggle) -> None:
    """The fallback has the old sample's rows then, and Goldfold's own ids are believed."""
    (kaggle.competition / "test.csv").unlink()
    (kaggle.competition / "test.csv").mkdir()  # no reader of the kernel's takes it
    kaggle.stand_in("submission.write_text('id,ant,bee,cow\\nn1,1,0,0\\n')\nreturn 0")
    done = kaggle.run(**RERUN)
    assert "the fallback has the sample submission's rows" in done.stdout
    assert json.loads((kaggle.working / "kernel.json").read_text())["submission"] == "predictions", done.stdout
    assert list(kaggle.rows()["id"]) == ["n1"]


def test_a_pack_made_in_a_notebook_is_found_and_a_competitions_folders_are_not_searched(
    kernel: ModuleType, tmp_path: Path
) -> None:
    describe_pack(tmp_path / "notebooks/me/training")
    (tmp_path / "competitions/pets/images").mkdir(parents=True)
    (tmp_path / "competitions/pets/images/pack.json").write_text("{}")  # the competition's own file of that name
    assert kernel.find_pack(tmp_path)[0] == tmp_path / "notebooks/me/training"


def test_a_third_of_a_million_rows_take_seconds(kernel: ModuleType, kaggle: Kaggle) -> None:
    ids = [f"image_{number}" for number in range(300_000)]
    write_rows(kaggle.competition, ids, sample_of(ids, COLUMNS))
    started = os.times()
    table = fallback_of(kernel, kaggle)
    kernel.write_table(kaggle.submission, table)
    assert kernel.misfit(kaggle.submission, table, "id", True) is None
    ended = os.times()
    assert len(table) == 300_001
    assert ended.user + ended.system - started.user - started.system < 20


# --- what may fail after it --------------------------------------------------------------------------------------------

FAULTS = {
    "raises": ("raise ValueError('bad')", "exit code 1: ValueError: bad"),
    "refuses": (
        "print('goldfold: weights/0: 3 bytes instead of 9')\nreturn 2",
        "exit code 2: weights/0: 3 bytes instead",
    ),
    "memory": ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL, which may mean that memory ran out"),
    "crash": ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with SIGSEGV"),
    "silent": ("return 0", "no predictions were written"),
    "wrong ids": ("submission.write_text('id,ant,bee,cow\\n07,1,0,0\\n')", "not valid: its 1 ids are not the 4"),
    "wrong columns": ("submission.write_text('id,label\\n07,ant\\n')", "not valid: its columns are id, label"),
    "empty": ("submission.write_text('')", "without even a header"),
    "gone": ("submission.unlink()", "not a readable CSV"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_fails_the_fallback_stays(fault: str, kaggle: Kaggle) -> None:
    code, words = FAULTS[fault]
    kaggle.stand_in(code)
    done = kaggle.run(**RERUN)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "FAILED" in line)
    assert words in line
    assert "Traceback" not in done.stderr
    fell_back(kaggle)
    record = json.loads((kaggle.working / "kernel.json").read_text())
    assert record["submission"] == "the fallback"
    assert words in record["problem"]


def test_without_goldfold_the_fallback_stays(kaggle: Kaggle) -> None:
    kaggle.stand_in("")
    (kaggle.engine / "goldfold/inference/run.py").unlink()
    done = kaggle.run(**RERUN)
    assert done.returncode == 0
    assert "FAILED: predicting ended with exit code 1: ModuleNotFoundError" in done.stdout
    fell_back(kaggle)


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({}, 1),
        (RERUN, 0),
        ({"GOLDFOLD_STRICT": "0"}, 0),
        ({"GOLDFOLD_STRICT": "1"}, 1),
        ({**RERUN, "GOLDFOLD_STRICT": "1"}, 1),
        ({**RERUN, "GOLDFOLD_STRICT": "0"}, 0),
    ],
)
def test_a_public_run_fails_loudly_and_the_hidden_rerun_submits(
    variables: dict[str, str], code: int, kaggle: Kaggle
) -> None:
    kaggle.stand_in("return 1")
    done = kaggle.run(**variables)
    assert done.returncode == code
    assert ("the kernel fails" in done.stdout) == bool(code)
    fell_back(kaggle)


def test_the_last_good_blend_stays(kaggle: Kaggle) -> None:
    kaggle.stand_in(PREDICT + "raise MemoryError")
    done = kaggle.run(**RERUN)
    assert done.returncode == 0
    assert "submission.csv holds the last good blend" in done.stdout
    assert set(kaggle.rows()["ant"]) == {"1"}


def test_threads_that_still_run_do_not_spoil_the_end(kaggle: Kaggle) -> None:
    kaggle.stand_in(PREDICT + "import threading\nthreading.Thread(target=time.sleep, args=(600,)).start()")
    started = time.monotonic()
    done = kaggle.run()
    assert done.returncode == 0, done.stdout
    assert time.monotonic() - started < 60
    assert set(kaggle.rows()["ant"]) == {"1"}


def test_predicting_that_hangs_is_ended_with_its_children_before_the_limit(kaggle: Kaggle) -> None:
    child = "import subprocess\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    kaggle.stand_in(PREDICT + child + "print('child', child.pid, flush=True)\ntime.sleep(600)")
    done = kaggle.run(**RERUN, GOLDFOLD_HOURS=str(6 / 3600))
    assert done.returncode == 0
    assert "went on until the time limit" in done.stdout
    assert "holds the last good blend" in done.stdout
    assert json.loads((kaggle.working / "kernel.json").read_text())["seconds"] < 30
    (pid,) = (line.split()[1] for line in done.stdout.splitlines() if line.startswith("child"))
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_strictness_that_is_none_is_told(kaggle: Kaggle) -> None:
    kaggle.stand_in("return 1")
    done = kaggle.run(**RERUN, GOLDFOLD_STRICT="yes")
    assert done.returncode == 0
    assert "GOLDFOLD_STRICT=yes is neither 0 nor 1" in done.stdout


def test_the_prior_in_other_digits_is_still_the_fallback(kernel: ModuleType) -> None:
    early = [["p", "id", "kind"], ["0.2", "a", "x"], ["0.3", "b", "x"]]
    assert kernel.same_answers([early[0], ["0.30000001192", "b", "x"], ["0.2", "a", "x"]], early, "id")
    assert not kernel.same_answers([early[0], ["0.3", "a", "x"], ["0.2", "b", "x"]], early, "id")
    assert not kernel.same_answers([early[0], ["0.2", "a", "y"], ["0.3", "b", "x"]], early, "id")
    assert not kernel.same_answers(early[:2], early, "id")


@pytest.mark.parametrize("hours", ["soon", "0", "-1", "nan", "inf"])
def test_hours_that_are_none_are_one_line(hours: str, kaggle: Kaggle) -> None:
    kaggle.stand_in(PREDICT)
    assert f"GOLDFOLD_HOURS={hours}: not a number of hours" in kaggle.run(GOLDFOLD_HOURS=hours).stdout
    fell_back(kaggle)


def test_predictions_of_an_earlier_session_are_not_taken_for_new_ones(kaggle: Kaggle) -> None:
    kaggle.submission.write_text("id,ant,bee,cow\n" + "".join(f'"{name}",1,0,0\n' for name in IDS))
    (kaggle.competition / "test.csv").write_text("")
    (kaggle.competition / "sample_submission.csv").write_text("")
    assert kaggle.run(**RERUN).returncode == 1
    assert not kaggle.submission.exists()


def test_the_page_of_formats_lists_the_keys_of_kernel_json(kaggle: Kaggle) -> None:
    kaggle.stand_in(PREDICT)
    assert kaggle.run().returncode == 0
    text = (kaggle.working / "kernel.json").read_text(encoding="utf-8")
    known = documented("kernel.json")
    assert written(json.loads(text), known) == known
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


# --- wheels ------------------------------------------------------------------------------------------------------------


def write_wheel(folder: Path, name: str, version: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"version = '{version}'\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """An interpreter that sees this one's pip, and whose own packages may be written to."""
    from goldfold.kaggle.simulate.environment import make_layer

    return make_layer(tmp_path / "layer", "own", tmp_path, tmp_path, own_wheel=True).python


def test_missing_wheels_and_other_versions_are_installed_once(
    kaggle: Kaggle, layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(layer))
    write_wheel(kaggle.pack / "wheels", "gold_small", "1.0")
    kaggle.stand_in(PREDICT + "import gold_small\nprint('small', gold_small.version)")
    first = kaggle.run()
    assert "installed gold-small 1.0" in first.stdout, first.stdout
    assert "small 1.0" in first.stdout.splitlines()
    assert "nothing to install" in kaggle.run().stdout
    (kaggle.pack / "wheels/gold_small-1.0-py3-none-any.whl").unlink()
    write_wheel(kaggle.pack / "wheels", "gold_small", "1.1")
    again = kaggle.run()
    assert "installed gold-small 1.1" in again.stdout
    assert "small 1.1" in again.stdout.splitlines()


def test_a_broken_wheel_is_one_line(kaggle: Kaggle, layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(layer))
    kaggle.stand_in(PREDICT)
    wheel = write_wheel(kaggle.pack / "wheels", "gold_small", "1.0")
    entry = {"path": f"wheels/{wheel.name}", "bytes": wheel.stat().st_size, "sha256": files.sha256_file(wheel)}
    wheel.write_bytes(wheel.read_bytes()[:-40])
    without = kaggle.run(**RERUN)
    assert "FAILED: pip cannot install gold-small 1.0: " in without.stdout
    fell_back(kaggle)
    (kaggle.pack / "MANIFEST.json").write_text(json.dumps({"format": 1, "files": [entry]}))
    assert f"{wheel.name}: not the file that was exported" in kaggle.run(**RERUN).stdout
    fell_back(kaggle)


def test_settings_in_the_file_yield_to_the_environment(kaggle: Kaggle, tmp_path: Path) -> None:
    text = KERNEL.read_text(encoding="utf-8")
    edited = text.replace('# "GOLDFOLD_STRICT": "1"', '"GOLDFOLD_STRICT": "0"')
    assert edited != text
    (tmp_path / "edited.py").write_text(edited, encoding="utf-8")
    kaggle.stand_in("return 1")
    assert kaggle.run(tmp_path / "edited.py").returncode == 0
    assert kaggle.run(tmp_path / "edited.py", GOLDFOLD_STRICT="1").returncode == 1
