"""A copy of a pack that is not whole is found, file by file, before anything is read from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import goldfold
from goldfold.errors import BadInput
from goldfold.kaggle.manifest import Damage, find_damage, read_manifest, verify, write_manifest

FILES = {
    "pack.json": b"{}",
    "weights/0.safetensors": bytes(range(200)),
    "weights/1.safetensors": b"",
    "a b/ä.txt": b"x",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "dataset-metadata.json").write_text("{}")
    write_manifest(tmp_path, "blend")
    return tmp_path


def test_all_files_are_listed_but_those_that_kaggle_takes_away(folder: Path) -> None:
    assert [entry.path for entry in read_manifest(folder)] == sorted(FILES)
    record = json.loads((folder / "MANIFEST.json").read_text())
    assert (record["source"], record["goldfold"]) == ("blend", goldfold.__version__)
    assert {item["path"]: item["bytes"] for item in record["files"]}["weights/0.safetensors"] == 200
    before = (folder / "MANIFEST.json").read_bytes()
    write_manifest(folder, "blend")
    assert (folder / "MANIFEST.json").read_bytes() == before
    (folder / "dataset-metadata.json").unlink()
    (folder / "more.txt").write_text("Kaggle adds files of its own")
    verify(folder)
    assert find_damage(folder) == []


@pytest.mark.parametrize(
    ("path", "change", "reason"),
    [
        ("weights/0.safetensors", lambda path: path.write_bytes(path.read_bytes()[:150]), "150 bytes instead of 200"),
        ("weights/0.safetensors", lambda path: path.write_bytes(bytes(200)), "other bytes"),
        ("a b/ä.txt", lambda path: path.unlink(), "missing"),
        ("weights/1.safetensors", lambda path: path.write_bytes(b"x"), "1 bytes instead of 0"),
        ("pack.json", lambda path: (path.unlink(), path.mkdir()), "bytes instead of 2"),
    ],
)
def test_damage_is_named(path: str, change: Callable[[Path], object], reason: str, folder: Path) -> None:
    change(folder / path)
    (found,) = find_damage(folder)
    assert found.path == path
    assert reason in found.reason
    with pytest.raises(BadInput, match=f"1 files are not those that were exported: {path}") as caught:
        verify(folder)
    assert "\n" not in str(caught.value)
    others = [name for name in FILES if name != path]
    verify(folder, others)
    assert [item.path for item in find_damage(folder, [path, others[0], path])] == [path]


def test_a_file_that_is_not_listed_is_damage(folder: Path) -> None:
    assert find_damage(folder, ["weights/2.safetensors"]) == [
        Damage("weights/2.safetensors", "MANIFEST.json does not list it")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "the file does not exist"),
        ("{", "not valid JSON"),
        ("[]", "not a manifest of format 1"),
        ('{"format": 2, "files": []}', "not a manifest of format 1"),
        ('{"format": 1}', "not a whole manifest"),
        ('{"format": 1, "files": [{"path": "a"}]}', "not a whole manifest"),
        ('{"format": 1, "files": [{"path": "../a", "bytes": 1, "sha256": ""}]}', "not a path within the pack"),
        ('{"format": 1, "files": [{"path": "/a", "bytes": 1, "sha256": ""}]}', "not a path within the pack"),
        ('{"format": 1, "files": [{"path": 3, "bytes": 1, "sha256": ""}]}', "not a path within the pack"),
    ],
)
def test_a_broken_manifest_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "MANIFEST.json").write_text(text)
    with pytest.raises(BadInput, match=message):
        find_damage(tmp_path)
