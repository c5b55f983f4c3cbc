"""Archives: whole, checked, and never outside their folder."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from goldfold.errors import GoldfoldError
from goldfold.kaggle import unzip
from goldfold.kaggle.unzip import unpack, unpack_inner


def pack(path: Path, entries: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_folders_and_what_macos_adds(tmp_path: Path) -> None:
    entries: dict[str, bytes | str] = {
        "train.csv": "id\n1\n",
        "images/a/1.png": b"\x89",
        "images/empty/": "",
        "__MACOSX/x": "",
    }
    unpack(pack(tmp_path / "c.zip", entries), tmp_path / "out")
    assert tree(tmp_path / "out") == {"train.csv": b"id\n1\n", "images/a/1.png": b"\x89"}


@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "C:/evil.txt", "..\\evil.txt", "a\\..\\..\\e"]
)
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "deep/er/out"
    inside.mkdir(parents=True)
    archive = pack(tmp_path / "c.zip", {"good.txt": "x", name: "evil"})
    with pytest.raises(GoldfoldError, match=r"c\.zip: '.*' leads out of the archive; nothing of it is used"):
        unpack(archive, inside)
    assert tree(tmp_path).keys() == {"c.zip"}


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(GoldfoldError, match="'link' is a link"):
        unpack(tmp_path / "c.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_doubled_names_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("a.txt", "one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.txt", "two")
    with pytest.raises(GoldfoldError, match="two files of the archive have one name"):
        unpack(tmp_path / "c.zip", tmp_path / "out")


def test_a_file_that_is_a_folder_too_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GoldfoldError, match="a file and a folder of one name"):
        unpack(pack(tmp_path / "c.zip", {"a": "x", "a/b": "y"}), tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_broken_archives_are_told(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.txt", "x" * 1000)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:500]
    elif damage == "flipped":
        data[500] ^= 1  # a bit of the file's bytes: its checksum tells
    else:
        data = bytearray(b"<html>Too many requests</html>")
    path.write_bytes(data)
    with pytest.raises(GoldfoldError, match=r"not a whole zip archive .*; download it again"):
        unpack(path, tmp_path / "out")


def test_an_encrypted_archive_is_told(tmp_path: Path) -> None:
    path = pack(tmp_path / "c.zip", {"a.txt": "x"})
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of encryption, in both headers
        data[data.index(mark) + place] |= 1
    path.write_bytes(data)
    with pytest.raises(GoldfoldError, match=r"not a whole zip archive \(.*encrypted"):
        unpack(path, tmp_path / "out")


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(unzip.shutil, "disk_usage", lambda path: usage._replace(free=unzip.ROOM + 10))
    archive = pack(tmp_path / "c.zip", {"a.txt": "x" * 1000})
    (tmp_path / "out").mkdir()
    with pytest.raises(GoldfoldError, match="the disk has"):
        unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_inner_archives_take_their_place(tmp_path: Path) -> None:
    root = tmp_path / "comp"
    pack(root / "train.zip", {"train/1.png": "1", "train/2.png": "2"})  # with its own folder
    pack(root / "test.zip", {"3.png": "3"})  # without
    pack(root / "labels.csv.zip", {"labels.csv": "id"})  # a single file
    pack(root / "sub/one.zip", {"one/two/4.png": "4"})
    pack(root / "twin.zip", {"twin/5.png": "5"})
    (root / "twin").mkdir()
    (root / "twin/5.png").write_text("already there")
    unpack_inner(root)
    assert {name: data.decode() for name, data in tree(root).items() if name != "twin.zip"} == {
        "train/1.png": "1",
        "train/2.png": "2",
        "test/3.png": "3",
        "labels.csv": "id",
        "sub/one/two/4.png": "4",
        "twin/5.png": "already there",
    }
