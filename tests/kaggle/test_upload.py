"""``--push`` calls Kaggle's client with what makes a whole data set; a stand-in on PATH records the calls."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from goldfold.errors import BadInput, GoldfoldError
from goldfold.kaggle.metadata import make_dataset
from goldfold.kaggle.upload import exists, find_owner, upload_dataset

# What the client prints and how it ends was seen with kaggle 2.2.4.
CLIENT = """#!{python}
import json, os, sys
from pathlib import Path
folder = Path({folder!r})
answers = json.loads((folder / "answers.json").read_text())
arguments = sys.argv[1:]
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps(arguments) + "\\n")
code, out, err = answers[" ".join(arguments[:2])]
print(out)
print(err, file=sys.stderr)
sys.exit(code)
"""
ANSWERS: dict[str, tuple[int, str, str]] = {
    "config view": (0, "Configuration values from /home/me\n- username: someone\n- auth_method: x\n- path: None", ""),
    "datasets status": (1, "", "403 Client Error: Forbidden for url: https://api.kaggle.com/x"),
    "datasets create": (0, "Upload successful\nYour private Dataset is being created. See https://k.co/new", "100%"),
    "datasets version": (0, "Dataset version is being created. See https://k.co/version", ""),
}


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in, first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "kaggle").write_text(CLIENT.format(python=sys.executable, folder=str(folder)))
    (folder / "kaggle").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    answer(folder)
    return folder


def answer(client: Path, **changes: tuple[int, str, str]) -> None:
    answers = ANSWERS | {key.replace("_", " "): value for key, value in changes.items()}
    (client / "answers.json").write_text(json.dumps(answers))


def calls(client: Path) -> list[list[str]]:
    return [json.loads(line) for line in (client / "calls.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pack").mkdir()
    write(tmp_path / "pack", make_dataset("elpv", "blend", "ensemble", None))
    return tmp_path / "pack"


def write(folder: Path, values: dict[str, Any]) -> None:
    (folder / "dataset-metadata.json").write_text(json.dumps(values))


def test_a_new_data_set_is_created_under_the_clients_name(client: Path, folder: Path) -> None:
    assert upload_dataset(folder, "first") == "Your private Dataset is being created. See https://k.co/new"
    assert calls(client)[1:] == [
        ["datasets", "status", "someone/elpv-blend-pack"],
        ["datasets", "create", "-p", str(folder), "--dir-mode", "zip", "--keep-tabular"],
    ]
    assert json.loads((folder / "dataset-metadata.json").read_text())["id"] == "someone/elpv-blend-pack"


def test_a_known_data_set_gets_a_version(client: Path, folder: Path) -> None:
    answer(client, datasets_status=(0, "ready", ""))
    write(folder, make_dataset("elpv", "blend", "ensemble", "team"))
    upload_dataset(folder, "second")
    assert calls(client)[1:] == [
        ["datasets", "status", "team/elpv-blend-pack"],
        ["datasets", "version", "-p", str(folder), "-m", "second", "--dir-mode", "zip", "--keep-tabular"],
    ]


def test_no_client_is_said_in_a_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="there is no command 'kaggle'; pip install"):
        upload_dataset(folder, "x")


@pytest.mark.parametrize(
    "said",
    [
        (1, "", "Authentication required to call the Kaggle API."),
        (0, "Configuration values from /home/me\n- username: None", ""),
        (1, "", "Traceback (most recent call last)\nOSError: Could not find kaggle.json"),
    ],
)
def test_no_token_is_said_in_a_line(said: tuple[int, str, str], client: Path, folder: Path) -> None:
    answer(client, config_view=said)
    with pytest.raises(BadInput, match="Kaggle's client has no valid token; run 'kaggle auth login'"):
        find_owner()
    with pytest.raises(BadInput):
        upload_dataset(folder, "x")
    assert {" ".join(call[:2]) for call in calls(client)} == {"config view"}


def test_a_broken_client_is_said_in_a_line(client: Path) -> None:
    answer(client, config_view=(1, "", "Traceback (most recent call last)\nModuleNotFoundError: No module named 'six'"))
    with pytest.raises(BadInput, match=r"the command is broken .*'six'.*; pip install"):
        find_owner()


def test_a_dead_network_creates_nothing(client: Path, folder: Path) -> None:
    answer(client, datasets_status=(1, "", "Traceback\nConnectionError: Failed to resolve 'api.kaggle.com'"))
    with pytest.raises(GoldfoldError, match="Failed to resolve"):
        upload_dataset(folder, "x")
    assert len(calls(client)) == 2
    answer(client, datasets_status=(0, "ready", ""))
    assert exists("a/b")


@pytest.mark.parametrize(
    "said",
    [
        (0, "Starting upload\nDataset creation error: The requested title is already in use", ""),
        (1, "Dataset creation failed", ""),
    ],
)
def test_a_refused_upload_is_a_failure(said: tuple[int, str, str], client: Path, folder: Path) -> None:
    answer(client, datasets_create=said)
    with pytest.raises(
        GoldfoldError, match=r"kaggle datasets create of someone/elpv-blend-pack failed: .*creation"
    ) as caught:
        upload_dataset(folder, "x")
    assert caught.value.exit_code == 1


def test_metadata_that_kaggle_would_refuse_are_not_sent(client: Path, folder: Path) -> None:
    write(folder, {**make_dataset("elpv", "blend", "ensemble", None), "licenses": []})
    with pytest.raises(BadInput, match="exactly one licence"):
        upload_dataset(folder, "x")
    assert [call[:2] for call in calls(client)] == [["config", "view"]]
