"""goldfold kernel-test: a kernel shut in as on Kaggle, and what it leaves behind judged."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from goldfold import files
from goldfold.cli import main
from goldfold.errors import BadInput, GoldfoldError
from goldfold.images import UnreadableImage, decode
from goldfold.inference.inputs import find_competition, find_pack
from goldfold.kaggle.manifest import write_manifest
from goldfold.kaggle.pack import PackCompetition, read_pack
from goldfold.kaggle.simulate import LAYOUTS, Report, Simulation, environment, find_kernel, simulate, simulation
from goldfold.kaggle.simulate.environment import Layer, kaggle_environment, make_layer
from goldfold.kaggle.simulate.hidden import HiddenTest, make_hidden
from goldfold.kaggle.simulate.isolation import namespaces_work
from goldfold.kaggle.simulate.watch import watch
from goldfold.kaggle.wheels import write_wheels
from tests.inference.packs import Example, Kind, make_example
from tests.kaggle.kernels import KERNEL, Kaggle, describe_pack, load_kernel, sample_of, write_rows

ABOUT = PackCompetition(
    "pets", "id", ("label",), "accuracy", None, "test.csv", "images/{id}.png", "sample_submission.csv"
)
IDS = tuple(f"i{number}" for number in range(6))
COLUMNS = ("ant", "bee", "cow")


# --- the hidden test set -----------------------------------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A competition's files: six test images that differ, a train CSV and training images."""
    folder = tmp_path / "pets"
    sample = sample_of(IDS, COLUMNS)
    sample["ant"] = [f"0.{number}" for number in range(6)]
    write_rows(folder, IDS, sample)
    (folder / "train").mkdir()
    (folder / "images").mkdir()
    for number, name in enumerate(IDS):
        write_image(folder / "images" / f"{name}.png", number)
    write_image(folder / "train/t.png", 9)
    (folder / "train.csv").write_text("id,label\nt,ant\n")
    return folder


def write_image(path: Path, shade: int) -> None:
    from PIL import Image

    Image.fromarray(np.full((8, 8, 3), shade, dtype=np.uint8)).save(path)


def lay_out(pets: Path, about: PackCompetition = ABOUT, **settings: object) -> tuple[Path, HiddenTest]:
    target = pets.parent / "mounted"
    return target, make_hidden(pets, target, about, COLUMNS, **settings)  # type: ignore[arg-type]


def shade_of(path: Path) -> int:
    return int(decode(path, 3)[0, 0, 0])


def test_fewer_rows_are_some_of_the_public_ones(pets: Path) -> None:
    target, hidden = lay_out(pets, rows=4)
    test, sample = files.read_csv(target / "test.csv"), files.read_csv(target / "sample_submission.csv")
    assert len(set(hidden.ids)) == 4
    assert set(hidden.ids) < set(IDS)
    assert tuple(test["id"]) == hidden.ids
    assert list(test.columns) == ["id", "site"]
    assert set(sample["id"]) == set(hidden.ids)
    for name, cell in zip(sample["id"], sample["ant"], strict=True):
        assert shade_of(target / f"images/{name}.png") == IDS.index(name) == int(cell[-1])
    assert sorted(path.stem for path in (target / "images").iterdir()) == sorted(hidden.ids)
    # All else is as it was.
    assert (target / "train.csv").read_text() == (pets / "train.csv").read_text()
    assert shade_of(target / "train/t.png") == 9
    assert hidden.public_rows == 6


def test_more_rows_show_images_again_under_new_ids(pets: Path) -> None:
    target, hidden = lay_out(pets, rows=14)
    assert len(set(hidden.ids)) == 14
    assert {"i0-h1", "i1-h2", *IDS} <= set(hidden.ids)
    for name in hidden.ids:
        assert shade_of(target / f"images/{name}.png") == IDS.index(name.split("-")[0])
    assert list(hidden.ids) != sorted(hidden.ids)


def test_the_default_has_another_size_and_other_seeds_another_order(pets: Path) -> None:
    target, hidden = lay_out(pets)
    assert len(hidden.ids) == 10
    shutil.rmtree(target)
    assert lay_out(pets)[1].ids == hidden.ids
    shutil.rmtree(target)
    assert lay_out(pets, seed=1)[1].ids != hidden.ids


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one(rows: int, pets: Path) -> None:
    target, hidden = lay_out(pets, rows=rows, unreadable=3)
    assert len(hidden.ids) == len(hidden.unreadable) == rows
    assert list(files.read_csv(target / "test.csv").columns) == ["id", "site"]
    assert len(files.read_csv(target / "sample_submission.csv")) == rows


def test_unreadable_images_are_broken_and_only_they(pets: Path) -> None:
    target, hidden = lay_out(pets, rows=9, unreadable=4)
    assert len(hidden.unreadable) == 4
    for name in hidden.ids:
        path = target / f"images/{name}.png"
        if name in hidden.unreadable:
            with pytest.raises(UnreadableImage):
                decode(path, 3)
        else:
            decode(path, 3)
    for number, name in enumerate(IDS):
        assert shade_of(pets / f"images/{name}.png") == number  # the originals are as they were


def test_an_old_sample_is_the_public_one(pets: Path) -> None:
    target, hidden = lay_out(pets, rows=9, old_sample=True)
    assert (target / "sample_submission.csv").read_text() == (pets / "sample_submission.csv").read_text()
    assert set(hidden.sample["id"]) == set(hidden.ids)
    shutil.rmtree(target)
    # Where it has all of the hidden ids, it is what must be submitted.
    assert set(lay_out(pets, rows=3, old_sample=True)[1].sample["id"]) == set(IDS)


def test_other_places_and_patterns(pets: Path) -> None:
    (pets / "csv").mkdir()
    frame = files.read_csv(pets / "test.csv")
    frame["file"] = [f"{name}.png" for name in IDS]
    files.write_csv(pets / "csv/test.csv", frame)
    (pets / "csv/notes.txt").write_text("x")
    about = replace(ABOUT, test_csv="csv/test.csv", test_images="images/{file}", sample_csv=None)
    target, hidden = lay_out(pets, about, rows=8)
    assert len(files.read_csv(target / "csv/test.csv")) == 8
    assert (target / "csv/notes.txt").read_text() == "x"
    assert list(hidden.sample.columns) == ["id", *COLUMNS]
    # The file's name is a column of its own: a row with a new id shows the old file.
    assert sorted(path.name for path in (target / "images").iterdir()) == sorted(frame["file"])


def test_ids_with_an_ending_keep_it(pets: Path) -> None:
    for name in ("test.csv", "sample_submission.csv"):
        frame = files.read_csv(pets / name)
        frame["id"] += ".png"
        files.write_csv(pets / name, frame)
    target, hidden = lay_out(pets, replace(ABOUT, test_images="images/{id}"), rows=7)
    assert "i0-h1.png" in hidden.ids
    assert shade_of(target / "images/i0-h1.png") == 0


def test_a_competition_that_lacks_something_is_refused(pets: Path) -> None:
    (pets / "images/i3.png").unlink()
    with pytest.raises(BadInput, match=r"i3\.png: the image does not exist"):
        lay_out(pets, rows=6)
    write_rows(pets, (), sample_of((), COLUMNS))
    with pytest.raises(BadInput, match="no rows to make a hidden test set of"):
        lay_out(pets, rows=6)


# --- shut in -----------------------------------------------------------------------------------------------------------

GOOD = """
import csv, os, shutil, sys
from pathlib import Path
root = Path(os.environ.get("GOLDFOLD_INPUT", "/kaggle/input"))
working = Path(os.environ.get("GOLDFOLD_WORKING", "/kaggle/working"))
(sample,) = root.glob("competitions/*/sample_submission.csv")
shutil.copyfile(sample, working / "submission.csv")
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment of its own for each simulation: the test's interpreter does."""
    monkeypatch.setattr(
        simulation, "make_layer", lambda *_: Layer(Path(sys.executable), tmp_path / "nowhere", "this interpreter")
    )


def simulated(
    pets: Path, script: str, lines: list[str] | None = None, out: Path | None = None, **settings: object
) -> Report:
    """A simulation of ``script`` as the kernel, with a pack that only describes itself."""
    kernel = pets.parent / "script.py"
    kernel.write_text(script)
    if not (pets.parent / "pack").exists():
        describe_pack(pets.parent / "pack")
    plan = Simulation(pets.parent / "pack", pets, kernel, environment="own")
    shown = [] if lines is None else lines
    return simulate(replace(plan, **settings), pets.parent / "cache", shown.append, out)  # type: ignore[arg-type]


def needs_namespaces(tmp_path: Path) -> None:
    reason = namespaces_work(tmp_path)
    if reason:
        pytest.skip(reason)


@pytest.mark.usefixtures("here")
def test_in_a_namespace_nothing_is_reached_and_inputs_cannot_be_written(pets: Path, tmp_path: Path) -> None:
    needs_namespaces(tmp_path / "probe")
    script = """
import os, socket, sys
from pathlib import Path
try:
    socket.create_connection(("127.0.0.1", PORT), timeout=5)
    print("reached")
except OSError as error:
    print("refused", error.errno)
with socket.socket() as own:  # the kernel's own processes may talk to each other
    own.bind(("127.0.0.1", 0))
    own.listen()
    socket.create_connection(own.getsockname(), timeout=5).close()
print("local")
for place in ("/kaggle/input/x", "/kaggle/input/competitions/pets/x", "PETS/x", "PACK/x"):
    try:
        Path(place).write_text("x")
        print("wrote", place)
    except OSError as error:
        print("not written", error.errno)
print(Path.cwd(), __file__, os.environ["KAGGLE_IS_COMPETITION_RERUN"], "GOLDFOLD_INPUT" in os.environ)
"""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        script = script.replace("PORT", str(server.getsockname()[1]))
        script = script.replace("PETS", str(pets)).replace("PACK", str(tmp_path / "pack"))
        lines: list[str] = []
        report = simulated(pets, script + GOOD, lines, isolation="namespace")
    assert lines == ["refused 111", "local", *["not written 30"] * 4, "/kaggle/working /kaggle/src/script.py 1 False"]
    assert report.problems == ()
    assert "namespace" in report.facts["network"]
    assert not (pets / "x").exists()


def test_the_guard_refuses_other_machines_and_names(pets: Path) -> None:
    script = """
import socket, subprocess, sys
for call in (
    lambda: socket.create_connection(("192.0.2.1", 80), timeout=5),
    lambda: socket.create_connection(("example.org", 80), timeout=5),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
    lambda: socket.socket(socket.AF_INET6).connect_ex(("2001:db8::1", 80)),
):
    try:
        call()
        print("reached")
    except OSError as error:
        print(error)
with socket.socket() as own:
    own.bind(("127.0.0.1", 0))
    own.listen()
    socket.create_connection(own.getsockname(), timeout=5).close()
code = "import socket; socket.gethostbyname('x'); socket.create_connection(('192.0.2.1', 80), timeout=5)"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip().splitlines()[-1])
"""
    lines: list[str] = []
    report = simulated(pets, script.replace("socket.gethostbyname('x'); ", "") + GOOD, lines, isolation="guard")
    assert len(lines) == 5, lines
    assert all("no internet" in line for line in lines), lines
    assert report.problems == ()
    assert "sockets refused" in report.facts["network"]
    assert "permissions" in report.facts["inputs"]
    assert shade_of(pets / "images/i0.png") == 0  # still there, and still writable by its owner
    (pets / "images/i0.png").unlink()


@pytest.mark.usefixtures("here")
def test_namespaces_that_are_forbidden_are_told(pets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without unshare
    assert namespaces_work(tmp_path) == "this system has no 'unshare'"
    with pytest.raises(BadInput, match=r"does not allow namespaces .* take auto or guard"):
        simulated(pets, GOOD, isolation="namespace")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_three_layouts(layout: str, pets: Path) -> None:
    script = """
import os
from pathlib import Path
root = Path(os.environ.get("GOLDFOLD_INPUT", "/kaggle/input"))
print(*sorted(path.parent.relative_to(root).as_posix() for name in ("pack.json", "test.csv") for path in root.rglob(name)))
print(*sorted(path.name for path in next(root.rglob("pack.json")).parent.iterdir()))
"""
    lines: list[str] = []
    pack = describe_pack(pets.parent / "pack").folder
    files.write_json(pack / "dataset-metadata.json", {"id": "me/pets-pack"})
    simulated(pets, script, lines, layout=layout)
    places = {
        "competitions": "competitions/pets datasets/me/pets-pack",
        "datasets": "datasets/me/pets-pack datasets/somebody/pets",
        "flat": "pets pets-pack",
    }
    assert lines == [places[layout], "pack.json"]  # Kaggle keeps the metadata to itself


@pytest.mark.usefixtures("here")
def test_a_data_set_by_the_competitions_name_is_refused_where_both_lie_in_one_folder(pets: Path) -> None:
    pack = describe_pack(pets.parent / "pack").folder
    files.write_json(pack / "dataset-metadata.json", {"id": "me/pets"})
    with pytest.raises(BadInput, match="the data set's slug 'pets' is the competition's"):
        simulated(pets, GOOD, layout="flat")
    assert simulated(pets, GOOD).problems == ()


@pytest.mark.usefixtures("here")
def test_gpus_are_hidden_from_the_kernel_on_demand(pets: Path) -> None:
    script = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES', 'as they are'))" + GOOD
    seen: list[str] = []
    simulated(pets, script, seen, gpu=False)
    simulated(pets, script, seen)
    assert seen[0] == "-1"
    assert seen[1] != "-1"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_kernel_and_goldfold_find_the_same_inputs(layout: str, tmp_path: Path) -> None:
    kaggle, kernel = Kaggle(tmp_path, layout), load_kernel()
    describe_pack(kaggle.pack)
    write_manifest(kaggle.pack, "run")
    write_rows(kaggle.competition, IDS, None)
    folder, pack = kernel.find_pack(kaggle.input)
    assert folder == find_pack(kaggle.input) == kaggle.pack
    assert kernel.find_competition(kaggle.input, pack) == kaggle.competition
    assert find_competition(kaggle.input, "pets", ["test.csv"]) == kaggle.competition


# --- judged ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_a_good_kernel_passes_and_its_submission_is_kept(pets: Path, tmp_path: Path) -> None:
    report = simulated(pets, GOOD, out=tmp_path / "out/kept.csv")
    assert report.problems == ()
    assert report.to_text().endswith("passed")
    assert len(files.read_csv(tmp_path / "out/kept.csv")) == 10
    assert set(report.facts) >= {"pack", "packages", "network", "inputs", "test set", "time", "memory", "submission"}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("", ["there is no submission.csv"]),
        ("raise SystemExit(3)", ["failed with exit code 3", "there is no submission.csv"]),
        (GOOD + "raise ValueError", ["failed with exit code 1"]),
        (GOOD + "(working / 'submission.csv').write_text('id,ant,bee,cow\\n')", ["10 ids of the sample submission"]),
        (
            GOOD + "text = (working / 'submission.csv').read_text(); (working / 'submission.csv').write_text("
            "text.replace(',0,', ',x,', 1))",
            ["'x' in column 'bee'"],
        ),
        (
            GOOD + '(working / \'kernel.json\').write_text(\'{"submission": "the fallback", "problem": "no luck"}\')',
            ["the submission is the fallback: no luck"],
        ),
    ],
)
def test_what_is_wrong_is_told(script: str, words: Sequence[str], pets: Path) -> None:
    report = simulated(pets, script)
    assert len(report.problems) == len(words)
    for problem, word in zip(report.problems, words, strict=True):
        assert word in problem
        assert f"FAILED: {problem}" in report.to_text()


@pytest.mark.usefixtures("here")
def test_a_kernel_over_its_time_is_killed_with_its_children(pets: Path, tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', CODE], process_group=0)\ntime.sleep(60)"
    )
    mark = tmp_path / "late"
    code = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    report = simulated(pets, GOOD + script.replace("CODE", repr(code)), hours=1.5 / 3600)
    assert report.problems == ("the kernel took longer than its time limit and was killed",)
    time.sleep(3)
    assert not mark.exists()


def test_memory_of_children_counts_once_and_a_limit_ends_all(tmp_path: Path) -> None:
    code = """
import mmap, os, sys, time
shared = mmap.mmap(-1, 80_000_000)
shared.write(b"x" * 80_000_000)
for _ in range(2):
    if os.fork() == 0:
        own = bytearray(os.urandom(1) * 40_000_000)
        sum(shared[::4096])
        time.sleep(SLEEP)
        os._exit(0)
time.sleep(SLEEP)
"""
    command = [sys.executable, "-I", "-S", "-c"]
    shown: list[str] = []
    ended = watch([*command, code.replace("SLEEP", "1.5")], tmp_path, {}, 60, 10**12, shown.append)
    assert (ended.code, ended.limit, shown) == (0, None, [])
    assert 150e6 < ended.memory_bytes < 280e6, ended  # counted thrice, the shared part would make 320e6
    ended = watch([*command, code.replace("SLEEP", "50")], tmp_path, {}, 60, 10**8, shown.append)
    assert ended.limit == "memory"
    assert ended.seconds < 20


# --- environments ------------------------------------------------------------------------------------------------------


def test_a_layer_takes_installs_and_leaves_what_lies_below_alone(tmp_path: Path) -> None:
    layer = make_layer(tmp_path / "layer", "own", tmp_path, tmp_path, own_wheel=False)
    assert layer.packages.is_relative_to(tmp_path)
    assert f"torch {torch.__version__.split('+')[0]}" in layer.words
    code = "import pip, goldfold, sys; print(goldfold.__file__, sys.prefix)"
    place, prefix = subprocess.run(
        [layer.python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert Path(prefix) == tmp_path / "layer"
    assert Path(place).is_file()
    assert sorted(path.name for path in layer.packages.iterdir()) == ["below.pth"]


def test_kaggles_packages_are_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constraints = tmp_path / "constraints-kaggle.txt"
    with pytest.raises(BadInput, match="take --env own"):
        kaggle_environment(constraints, tmp_path)
    constraints.write_text("torch==2.10.0\n")
    commands: list[list[str]] = []
    fail = [True]

    def run(command: Sequence[object], what: str) -> str:
        commands.append([str(part) for part in command])
        if "pip" in commands[-1] and fail:
            raise GoldfoldError(f"cannot {what}: no index")
        return f"Python {commands[-1][0]}"

    monkeypatch.setattr(environment, "_run", run)
    with pytest.raises(GoldfoldError, match=r"cannot install the packages of .*constraints-kaggle\.txt: no index"):
        kaggle_environment(constraints, tmp_path)
    fail.clear()
    first = kaggle_environment(constraints, tmp_path)  # a broken one is made anew
    assert commands[-1][-2:] == ["-r", str(constraints)]
    assert sum("pip" in command for command in commands) == 2
    assert kaggle_environment(constraints, tmp_path) == first
    assert sum("pip" in command for command in commands) == 2
    assert kaggle_environment(constraints, tmp_path, "sh") != first  # another interpreter
    with pytest.raises(BadInput, match=r"--python: there is no 'python9\.9'"):
        kaggle_environment(constraints, tmp_path, "python9.9")
    constraints.write_text("torch==2.11.0\n")
    assert kaggle_environment(constraints, tmp_path) != first


# --- Goldfold's own kernel ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """An exported ensemble, with wheels."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("simulate")
    found = make_example(root, [Kind("a", skill=0.8), Kind("b", "test_vit")], rows=10)
    write_wheels(found.pack / "wheels")
    write_manifest(found.pack, "both")
    return found


def kernel_test(example: Example, *options: str) -> int:
    own = ["--competition", str(example.competition), "--kernel", str(KERNEL), "--env", "own"]
    return main(["kernel-test", str(example.pack), *own, *options])


def test_an_exported_ensemble_predicts_as_goldfold_does(
    example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kernel_test(example, "--unreadable", "1", "--rows", "13", "--out", str(tmp_path / "s.csv")) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("passed\n")
    assert "installed goldfold" in printed
    assert "predicted   12 of 13 rows, 1 unreadable; complete: a 2/2, b 2/2" in printed
    found = files.read_csv(tmp_path / "s.csv").set_index("id").astype(float)
    expected = example.submission(example.expected()).set_index("id").astype(float)
    (broken,) = [name for name in found.index if found.loc[name].to_numpy() == pytest.approx([1 / 3] * 3, abs=1e-6)]
    for name in found.index.drop(broken):
        row = expected.loc[name.split("-h")[0]]
        assert found.loc[name, row.index].to_numpy() == pytest.approx(row.to_numpy(), abs=1e-5)


@pytest.mark.slow
def test_a_public_run_with_the_guard_and_without_gpu(
    example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--public", "--no-gpu", "--isolation", "guard", "--layout", "flat", "--out", str(tmp_path / "s.csv")]
    assert kernel_test(example, *options) == 0
    printed = capsys.readouterr().out
    assert "a public run" in printed
    assert "devices: CPU" in printed
    expected = example.submission(example.expected())
    found = files.read_csv(tmp_path / "s.csv")
    assert list(found["id"]) == list(expected["id"])
    values = [frame[list(frame.columns[1:])].astype(float).to_numpy() for frame in (found, expected)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


@pytest.mark.slow
def test_faults_in_the_simulated_kernel(example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By wheels, processes and a cut network: of four networks one is whole, and a hidden test set without rows."""
    pack = tmp_path / "pack"
    shutil.copytree(example.pack, pack)
    described = {name: pack / f"members/{name}/bundle.json" for name in ("a/fold0", "a/fold1", "b/fold0")}
    other = files.read_json(described["a/fold1"])
    other["task"]["classes"].reverse()
    files.write_json(described["a/fold1"], other)
    write_manifest(pack, "both")
    described["b/fold0"].unlink()
    cut_off = pack / read_pack(pack).member("a").folds[0].files[-1]
    cut_off.write_bytes(cut_off.read_bytes()[:-100])
    own = ["--competition", str(example.competition), "--kernel", str(KERNEL), "--env", "own"]
    assert main(["kernel-test", str(pack), *own, "--out", str(tmp_path / "s.csv")]) == 1
    printed = capsys.readouterr().out
    assert "valid" in printed
    assert "predicted   16 of 16 rows; not complete: a 0/2, b 1/2" in printed
    last = printed.splitlines()[-1]
    assert last.startswith("FAILED: the submission is the last good blend: 3 networks could not be used: ")
    for expected in (cut_off.name, "bundle.json: the file does not exist", "it predicts the classes fox, dog, cat"):
        assert expected in printed, expected
    assert len(files.read_csv(tmp_path / "s.csv")) > 0
    assert kernel_test(example, "--rows", "0", "--out", str(tmp_path / "none.csv")) == 0
    assert len(files.read_csv(tmp_path / "none.csv")) == 0


@pytest.mark.parametrize(
    "fault", ["bundle", "weights", "classes", "one row", "no rows", "no csv", "all", "no manifest"]
)
def test_faults_of_the_inputs(
    fault: str, example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each ends in a valid submission and, where something is wrong, one line. In this process, for speed."""
    from goldfold.inference.run import main as predict

    kernel, working, root = load_kernel(), tmp_path / "working", tmp_path / "input"
    working.mkdir()
    shutil.copytree(example.input, root)
    pack, competition = root / "datasets/someone/tiny-pack", root / "competitions/tiny"
    rows, expected = {"one row": 1, "no rows": 0}.get(fault, 10), None
    if fault == "bundle":
        shutil.rmtree(pack / "members/b")
        expected = "bundle.json: the file does not exist"
    elif fault == "weights":
        weights = max((pack / "weights").iterdir(), key=lambda path: path.stat().st_size)
        weights.write_bytes(weights.read_bytes()[:-100])
        expected = f"{weights.name} ({weights.stat().st_size} bytes instead of {weights.stat().st_size + 100})"
    elif fault == "classes":
        path = pack / "members/b/fold0/bundle.json"
        values = files.read_json(path)
        values["task"]["classes"].reverse()
        files.write_json(path, values)
        write_manifest(pack, "both")
        expected = "it predicts the classes fox, dog, cat"
    elif fault == "all":
        shutil.rmtree(pack / "weights")
        expected = "no network could be used"
    elif fault == "no manifest":
        (pack / "MANIFEST.json").unlink()
        expected = "MANIFEST.json"
    elif fault == "no csv":
        (competition / "test.csv").write_text("")
        expected = "test.csv: the CSV file is empty"
    else:
        for name in ("test.csv", "sample_submission.csv"):
            frame = files.read_csv(competition / name).sort_values("id")
            files.write_csv(competition / name, frame.iloc[:rows])
    variables = {
        "INPUT": root,
        "WORKING": working,
        "SCRATCH": tmp_path / "scratch",
        "PACK": "",
        "COMPETITION": "",
        "STARTED": "",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"GOLDFOLD_{name}", str(value))
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    monkeypatch.setattr(kernel, "install", lambda pack: [])

    def in_process(limit: float) -> None:
        if code := predict():
            raise kernel.Problem(f"predicting ended with exit code {code}: {capsys.readouterr().err.splitlines()[-1]}")

    monkeypatch.setattr(kernel, "predict", in_process)
    assert kernel.main() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    submission = files.read_csv(working / "submission.csv")
    assert len(submission) == rows
    assert submission.drop(columns="id").astype(float).sum(axis=1).to_numpy() == pytest.approx(np.ones(rows), abs=1e-4)
    if expected is None:
        assert lines == []
    else:
        (line,) = lines
        assert expected in line
        partial = fault in ("bundle", "weights", "classes")
        assert files.read_json(working / "kernel.json")["submission"] == (
            "the last good blend" if partial else "the fallback"
        )


def test_the_projects_kernel_comes_first(tmp_path: Path) -> None:
    assert find_kernel(tmp_path) == KERNEL
    (tmp_path / "inference").mkdir()
    shutil.copyfile(KERNEL, tmp_path / "inference/kernel.py")
    assert find_kernel(tmp_path) == tmp_path / "inference/kernel.py"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows", "-1"], "--rows: -1 is less than 0"),
        (["--hours", "0"], "--hours: 0.0 is no amount"),
        (
            ["--python", "python3"],
            "--python: the project's own environment has its own Python; take it with --env full",
        ),
        (["--kernel", "nowhere.py"], "nowhere.py: the file does not exist"),
        (
            ["--competition", "nowhere"],
            "nowhere: there is no such folder; name the competition's files with --competition",
        ),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], words: str, example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kernel_test(example, *options) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"goldfold: {words}"
