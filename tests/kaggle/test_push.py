"""``goldfold push`` with a stand-in for Kaggle's client on PATH: the order, the sources, and what stops it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from goldfold import files
from goldfold.cli import main
from goldfold.kaggle import push
from tests.kaggle.packs import write_example

Capture = pytest.CaptureFixture[str]
KERNEL: dict[str, Any] = {
    "id": "your-kaggle-name/tiny-kernel",
    "title": "Tiny Kernel",
    "code_file": "kernel.py",
    "language": "python",
    "kernel_type": "script",
    "enable_gpu": True,
    "dataset_sources": ["your-kaggle-name/something-pack", "someone/else"],
    "competition_sources": ["another"],
}
FAKE = Path(__file__).with_name("fake_kaggle.py")


class Kaggle:
    """What the stand-in was asked, and what it knows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set(calls=[], user="me", datasets={}, kernels=[], old_client=False, push_error="",
                 processing=["not_yet_persisted", "blobs_received", "ready"])  # fmt: skip
        self.add("someone/else", 7)

    def set(self, **changes: Any) -> None:
        before = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.path.write_text(json.dumps({**before, **changes}))

    def get(self, key: str) -> Any:
        return json.loads(self.path.read_text())[key]

    def add(self, dataset: str, version: int) -> None:
        self.set(datasets={**self.get("datasets"), dataset: {"status": "ready", "version": version, "coming": []}})

    def sent(self) -> list[list[str]]:
        """The calls that changed something."""
        return [call for call in self.get("calls") if call[1] in ("create", "version", "push")]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("example")
    write_example(root)
    return root


@pytest.fixture
def project(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with the pack of the ensemble ``both`` and a kernel."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(push, "POLL_SECONDS", 0.001)
    shutil.copytree(example / "pack", tmp_path / "packs/both")
    write_kernel(tmp_path)
    return tmp_path


@pytest.fixture
def kaggle(project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Kaggle:
    folder = tmp_path_factory.mktemp("bin")
    (folder / "kaggle").write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{FAKE}" "$@"\n')
    (folder / "kaggle").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_KAGGLE", str(folder / "state.json"))
    return Kaggle(folder / "state.json")


@pytest.fixture
def no_client(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project))


def write_kernel(root: Path, **changes: Any) -> None:
    files.write_json(root / "inference/kernel-metadata.json", {**KERNEL, **changes})
    (root / "inference/kernel.py").write_text("print('the kernel')\n")


def change_json(path: Path, **changes: Any) -> None:
    files.write_json(path, {**files.read_json(path), **changes})


def line_of(capsys: Capture, *arguments: str, code: int) -> str:
    """The one line that a command ends with which must fail."""
    capsys.readouterr()
    assert main(["push", *arguments]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = (line for line in err.splitlines() if line.startswith("goldfold: "))
    return line


# --- what is sent ------------------------------------------------------------------------------------------------------


def test_the_data_set_goes_first_and_the_kernel_once_it_is_processed(
    project: Path, kaggle: Kaggle, capsys: Capture
) -> None:
    assert main(["push", "packs/both", "--go"]) == 0
    create, kernel = kaggle.sent()
    # Folders would be left out without --dir-mode, and tables changed without --keep-tabular.
    assert create == ["datasets", "create", "-p", "packs/both", "--dir-mode", "zip", "--keep-tabular"]
    assert kernel[:3] == ["kernels", "push", "-p"]
    (pushed,) = kaggle.get("kernels")
    assert pushed["code"] == "print('the kernel')\n"
    assert (pushed["sources"]["me/tiny-both-pack"]["status"], pushed["sources"]["me/tiny-both-pack"]["version"]) == (
        "ready",
        1,
    )
    assert pushed["metadata"] == {
        **KERNEL,
        "id": "me/tiny-kernel",
        "dataset_sources": ["me/tiny-both-pack", "someone/else"],
        "competition_sources": ["tiny"],
        "enable_internet": False,
        "is_private": True,
        "machine_shape": "NvidiaTeslaT4",
    }
    assert kaggle.get("datasets")["me/tiny-both-pack"]["metadata"]["id"] == "me/tiny-both-pack"
    said = capsys.readouterr()
    assert "https://www.kaggle.com/code/me/tiny-kernel" in said.out
    assert "blobs_received" in said.err
    # The project's own file keeps its placeholders.
    assert files.read_json(project / "inference/kernel-metadata.json") == KERNEL


@pytest.mark.parametrize("old_client", [False, True])
def test_a_second_push_makes_a_version_and_the_kernel_gets_that_one(
    old_client: bool, project: Path, kaggle: Kaggle
) -> None:
    """Right after the upload Kaggle still says "ready", of the version before. Old clients do not tell which."""
    kaggle.add("me/tiny-both-pack", 4)
    kaggle.set(old_client=old_client)
    assert main(["push", "both", "--go"]) == 0  # by the ensemble's name
    version, _ = kaggle.sent()
    assert version[:6] == ["datasets", "version", "-p", "packs/both", "-m", "both, Goldfold 0"]
    (pushed,) = kaggle.get("kernels")
    if not old_client:
        assert pushed["sources"]["me/tiny-both-pack"]["version"] == 5
    waiting = kaggle.get("calls")[kaggle.get("calls").index(version) + 1 :]
    assert len([call for call in waiting if call[:2] == ["datasets", "status"]]) >= 2


def test_a_dry_run_sends_nothing_and_shows_what_go_sends(project: Path, kaggle: Kaggle, capsys: Capture) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert main(["push", "both"]) == 0
    printed = capsys.readouterr().out
    assert kaggle.sent() == []
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
    commands = [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("    kaggle ")]
    assert main(["push", "both", "--go"]) == 0
    assert [command for command in commands if command[1] != "status"] == kaggle.sent()
    (pushed,) = kaggle.get("kernels")
    shown = objects(printed)
    assert shown == [kaggle.get("datasets")["me/tiny-both-pack"]["metadata"], pushed["metadata"]]


def objects(text: str) -> list[Any]:
    """The JSON objects in a text."""
    found, decoder, place = list[Any](), json.JSONDecoder(), text.find("{\n")
    while place >= 0:
        value, end = decoder.raw_decode(text, place)
        found.append(value)
        place = text.find("{\n", end)
    return found


def test_a_dry_run_needs_no_client(project: Path, no_client: None, capsys: Capture) -> None:
    assert main(["push", "both"]) == 0
    out = capsys.readouterr().out
    assert "data set your-kaggle-name/tiny-both-pack" in out
    assert "kaggle datasets create -p packs/both" in out
    assert "kaggle datasets version -p packs/both" in out  # which of the two is not known
    assert "nothing was sent" in out


def test_a_switched_on_internet_is_told_and_switched_off(project: Path, kaggle: Kaggle, capsys: Capture) -> None:
    write_kernel(project, enable_internet=True)
    assert main(["push", "both", "--go"]) == 0
    assert kaggle.get("kernels")[0]["metadata"]["enable_internet"] is False
    assert "enable_internet is True" in capsys.readouterr().err


# --- what stops it -----------------------------------------------------------------------------------------------------


def test_without_the_client_it_says_how_to_get_it(project: Path, no_client: None, capsys: Capture) -> None:
    assert "pip install 'goldfold[kaggle]'" in line_of(capsys, "both", "--go", code=2)


def test_without_a_token_it_says_how_to_get_one(project: Path, kaggle: Kaggle, capsys: Capture) -> None:
    kaggle.set(user=None)
    assert "kaggle auth login" in line_of(capsys, "both", "--go", code=2)
    assert kaggle.sent() == []


def test_a_client_that_does_not_start_is_not_taken_for_a_missing_token(
    project: Path, kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("FAKE_KAGGLE", str(project / "nothing"))
    line = line_of(capsys, "both", "--go", code=2)
    assert "the command is broken (FileNotFoundError" in line


@pytest.mark.parametrize(
    ("file", "changes", "fragment"),
    [
        ("inference/kernel-metadata.json", {"title": "Tiny"}, "'title' has 4 characters"),
        ("inference/kernel-metadata.json", {"title": "Another Kernel"}, "gives the address 'another-kernel'"),
        ("inference/kernel-metadata.json", {"id": "tiny-kernel"}, "write owner/slug"),
        ("inference/kernel-metadata.json", {"id": None}, "'id'"),
        ("inference/kernel-metadata.json", {"code_file": "other.py"}, "'code_file' is 'other.py'"),
        ("inference/kernel-metadata.json", {"code_file": "../inference/kernel.py"}, "name a file of inference"),
        ("inference/kernel-metadata.json", {"code_file": None}, "'code_file' is missing"),
        ("inference/kernel-metadata.json", {"kernel_type": "file"}, "'kernel_type' is 'file'"),
        ("packs/both/dataset-metadata.json", {"licenses": []}, "exactly one licence"),
        ("packs/both/dataset-metadata.json", {"subtitle": "too short"}, "20 to 80 are allowed"),
        ("packs/both/dataset-metadata.json", {"title": "x" * 51}, "6 to 50 are allowed"),
        ("packs/both/dataset-metadata.json", {"id": "me/tiny"}, "at least 6 characters"),
        ("packs/both/ensemble.json", {"name": "other"}, "are not those that were exported: ensemble.json"),
    ],
)
def test_every_rule_is_checked_before_the_first_upload(
    file: str, changes: dict[str, Any], fragment: str, project: Path, kaggle: Kaggle, capsys: Capture
) -> None:
    change_json(project / file, **changes)
    assert fragment in line_of(capsys, "both", "--go", code=2)
    assert kaggle.sent() == []
    assert not (project / ".cache").exists()


def test_a_pack_that_is_older_than_its_ensemble_or_runs_is_refused(
    example: Path, project: Path, kaggle: Kaggle, capsys: Capture
) -> None:
    shutil.copytree(example / "runs", project / "runs")
    (project / "ensembles").mkdir()
    shutil.copytree(example / "ensemble", project / "ensembles/both")
    assert main(["push", "both"]) == 0
    change_json(project / "runs/shared/fold1/bundle.json", weights_sha256="0" * 64)
    assert "'shared' was trained anew" in line_of(capsys, "both", "--go", code=2)
    shutil.rmtree(project / "runs")
    change_json(project / "ensembles/both/ensemble.json", name="changed")
    line = line_of(capsys, "both", "--go", code=2)
    assert "the ensemble 'both' has changed" in line
    assert "goldfold export both --to packs/both" in line
    assert kaggle.sent() == []


def test_a_pack_is_found_by_its_source_and_only_one(project: Path, kaggle: Kaggle, capsys: Capture) -> None:
    assert "goldfold export nobody --to packs/nobody" in line_of(capsys, "nobody", code=2)
    assert "this folder is no pack" in line_of(capsys, "inference", code=2)
    shutil.copytree(project / "packs/both", project / "packs/again")
    line = line_of(capsys, "both", code=2)
    assert "packs/again, packs/both" in line
    assert main(["push", "packs/again"]) == 0


def test_a_kernel_that_kaggle_refuses_is_pushed_later_without_another_upload(
    project: Path, kaggle: Kaggle, capsys: Capture
) -> None:
    kaggle.set(push_error="Maximum batch GPU session count of 2 reached.")
    line = line_of(capsys, "both", "--go", code=1)
    assert "Maximum batch GPU session count" in line
    assert "the data set is uploaded and processed" in line
    (again,) = [part for part in line.replace(";", "(").split("(") if "goldfold push" in part]
    command = again.split(" goes on")[0].split()
    assert command == ["goldfold", "push", "both", "--kernel-only", "--go"]
    kaggle.set(push_error="")
    before = len(kaggle.sent())
    assert main(command[1:]) == 0
    assert [call[:2] for call in kaggle.sent()[before:]] == [["kernels", "push"]]
    assert len(kaggle.get("kernels")) == 1


def test_the_kernel_alone_needs_a_data_set(project: Path, kaggle: Kaggle, capsys: Capture) -> None:
    assert "Kaggle has no such data set" in line_of(capsys, "both", "--go", "--kernel-only", code=2)
    assert kaggle.sent() == []


def test_a_source_that_kaggle_does_not_attach_is_a_failure(project: Path, kaggle: Kaggle, capsys: Capture) -> None:
    write_kernel(project, dataset_sources=["your-kaggle-name/x", "nobody/missing"])
    line = line_of(capsys, "both", "--go", code=1)
    assert "did not attach the dataset ['nobody/missing']" in line


@pytest.mark.parametrize(
    ("processing", "fragment"),
    [
        (["blobs_received", "failed"], "Kaggle says 'failed'"),
        (["blobs_received"], "not processed after 0.0001 minutes (blobs_received)"),
    ],
)
def test_no_kernel_without_a_processed_data_set(
    processing: list[str], fragment: str, project: Path, kaggle: Kaggle, capsys: Capture
) -> None:
    kaggle.set(processing=processing)
    minutes = "0.0001" if "minutes" in fragment else "1"
    line = line_of(capsys, "both", "--go", "--wait", minutes, code=1)
    assert fragment in line
    assert "the data set is uploaded; goldfold push both --kernel-only --go goes on" in line
    assert kaggle.get("kernels") == []
