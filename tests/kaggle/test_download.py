"""``goldfold data download`` with stand-ins for Kaggle's client and for kagglehub: whole or nothing, and one line."""

from __future__ import annotations

import shutil
import sys
import types
import zipfile
from pathlib import Path

import pytest

from goldfold import files, paths
from goldfold.cli import main
from goldfold.errors import BadInput
from goldfold.kaggle.download import competition_slug
from tests.kaggle.test_unzip import pack, tree

Capture = pytest.CaptureFixture[str]
CLIENT = """
import os, shutil, sys
print(" ".join(sys.argv[1:]), file=open(os.environ["CALLS"], "a"))
how = os.environ["HOW"]
if sys.argv[1:] == ["config", "view"]:
    if how == "no token":
        sys.exit("Authentication required to call the Kaggle API.")
    print("- username: me")
elif how in ("403", "404", "401"):
    sys.exit(f"{how} Client Error: for url: https://api.kaggle.com/v1/download")
elif how == "cut":
    to = sys.argv[sys.argv.index("-p") + 1]
    open(os.path.join(to, "tiny.zip"), "wb").write(b"PK half")
    sys.exit("HTTPSConnectionPool: Max retries exceeded")
elif how != "nothing":
    to = sys.argv[sys.argv.index("-p") + 1]
    print("seen", sorted(os.listdir(to)), file=open(os.environ["CALLS"], "a"))
    shutil.copy(os.environ["SOURCE"], os.path.join(to, "tiny.zip"))
    print("100%|####| 1.2k/1.2k", file=sys.stderr)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN", raising=False)
    monkeypatch.setattr(paths, "KAGGLE_INPUT", tmp_path / "kaggle/input")
    entries: dict[str, bytes | str] = {"train.csv": "id,label\na,0\n", "images/a.png": "x", "test.zip": ""}
    inner = pack(tmp_path / "inner.zip", {"test/b.png": "y"})
    entries["test.zip"] = inner.read_bytes()
    pack(tmp_path / "tiny.zip", entries)
    return root


@pytest.fixture
def client(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command ``kaggle`` on PATH that does as HOW says; returns the file of its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "client.py").write_text(CLIENT)
    (folder / "kaggle").write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{folder}/client.py" "$@"\n')
    (folder / "kaggle").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("SOURCE", str(tmp_path / "tiny.zip"))
    monkeypatch.setenv("HOW", "")
    return tmp_path / "calls"


def left(project: Path) -> set[str]:
    return {path.relative_to(project).as_posix() for path in project.rglob("*") if path != project / "data"}


WHOLE = {"train.csv": b"id,label\na,0\n", "images/a.png": b"x", "test/b.png": b"y"}


def test_a_competition_comes_whole(client: Path, project: Path, capsys: Capture) -> None:
    assert main(["data", "download", "tiny"]) == 0
    assert tree(project / "data/tiny") == WHOLE
    assert left(project / "data") == {
        "tiny",
        *(f"tiny/{part}" for part in ("train.csv", "images", "images/a.png", "test", "test/b.png")),
    }
    out, err = capsys.readouterr()
    assert "data/tiny/images/  1 files" in out
    assert out.splitlines()[-1] == "next: goldfold data guess data/tiny"
    assert "100%|####|" in err  # the client's progress is seen
    assert client.read_text().splitlines()[:2] == [
        "config view",
        "competitions download -c tiny -p data/.tiny.download",
    ]
    # As any new folder of this user's, not as a private one.
    (project / "other").mkdir()
    assert (project / "data/tiny").stat().st_mode == (project / "other").stat().st_mode


def test_another_folder_and_an_address(client: Path, project: Path) -> None:
    (project / "there").mkdir()
    assert main(["data", "download", "https://www.kaggle.com/competitions/tiny/data", "--to", "there"]) == 0
    assert tree(project / "there") == WHOLE


@pytest.mark.parametrize("text", ["", "../x", "a b", "owner/slug", "-x", "a_b"])
def test_what_is_no_slug(text: str) -> None:
    with pytest.raises(BadInput, match="is no competition's slug"):
        competition_slug(text)


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("no token", 2, "kaggle: Kaggle's client has no valid token; run 'kaggle auth login', or set KAGGLE_API_TOKEN"),
        ("401", 2, "kaggle: Kaggle's client has no valid token"),
        (
            "403",
            2,
            "tiny: Kaggle refuses its files; join it and accept its rules at https://www.kaggle.com/competitions/tiny/rules",
        ),
        ("404", 2, "tiny: Kaggle knows no such competition; look at https://www.kaggle.com/competitions/tiny"),
        ("nothing", 1, "tiny: the download failed (nothing came)"),
    ],
)
def test_what_kaggle_refuses_is_one_line(
    how: str, code: int, told: str, client: Path, project: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOW", how)
    assert main(["data", "download", "tiny"]) == code
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith(f"goldfold: {told}")
    assert "Traceback" not in err
    assert left(project) == set()


def test_a_cut_download_goes_on(client: Path, project: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOW", "cut")
    assert main(["data", "download", "tiny"]) == 1
    assert "Max retries exceeded); the same command goes on with it" in capsys.readouterr().err
    assert left(project) == {"data/.tiny.download", "data/.tiny.download/tiny.zip"}  # nothing under data/tiny
    monkeypatch.setenv("HOW", "")
    assert main(["data", "download", "tiny"]) == 0
    assert "seen ['tiny.zip']" in client.read_text()  # the client finds what it had
    assert tree(project / "data/tiny") == WHOLE
    assert not (project / "data/.tiny.download").exists()


@pytest.mark.parametrize("damage", ["half", "evil"])
def test_a_broken_archive_leaves_nothing(
    damage: str, client: Path, project: Path, tmp_path: Path, capsys: Capture
) -> None:
    source = tmp_path / "tiny.zip"
    if damage == "half":
        source.write_bytes(source.read_bytes()[:-30])
    else:
        pack(source, {"train.csv": "x", "../../evil.txt": "x"})
    assert main(["data", "download", "tiny"]) == 1
    assert ("download it again" if damage == "half" else "leads out of the archive") in capsys.readouterr().err
    assert left(project) == set()
    assert not list(tmp_path.rglob("evil.txt"))


def test_what_a_killed_process_left_is_no_harm(client: Path, project: Path) -> None:
    leftover = project / "data/.tiny.unpacking/half.png"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half")
    assert main(["data", "download", "tiny"]) == 0
    assert tree(project / "data") == {f"tiny/{name}": data for name, data in WHOLE.items()}


def test_nothing_is_overwritten(client: Path, project: Path, capsys: Capture) -> None:
    (project / "data/tiny").mkdir(parents=True)
    (project / "data/tiny/mine.csv").write_text("mine")
    assert main(["data", "download", "tiny"]) == 2
    assert "data/tiny: it is there already; delete it, or name another folder with --to" in capsys.readouterr().err
    assert tree(project / "data") == {"tiny/mine.csv": b"mine"}
    assert not client.exists()  # Kaggle was not asked


def test_two_at_once(client: Path, project: Path, capsys: Capture) -> None:
    with files.locked(project / "data/.tiny.download"):
        assert main(["data", "download", "tiny"]) == 2
    assert "another process is downloading it" in capsys.readouterr().err


def test_never_inside_a_submissions_rerun(
    client: Path, project: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    assert main(["data", "download", "tiny"]) == 2
    err = capsys.readouterr().err
    assert "this is a submission's rerun (KAGGLE_IS_COMPETITION_RERUN is set)" in err
    assert "add the competition to the kernel's inputs" in err
    assert left(project) == set()
    assert not client.exists()


def test_what_kaggle_has_mounted_is_not_downloaded(
    client: Path, project: Path, tmp_path: Path, capsys: Capture
) -> None:
    mounted = tmp_path / "kaggle/input/competitions/tiny"
    mounted.mkdir(parents=True)
    (mounted / "train.csv").write_text("id\n")
    assert main(["data", "download", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert f"Kaggle has put it into {mounted}" in err
    assert str(mounted / "train.csv") in out
    assert not client.exists()
    assert left(project) == set()


# --- kagglehub, where there is no command ---------------------------------------------------------------------------------


@pytest.fixture
def hub(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module kagglehub that unpacks into its cache; no command ``kaggle``."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    module = types.ModuleType("kagglehub")
    cache = tmp_path / "cache/competitions/tiny"

    def competition_download(handle: str) -> str:
        assert handle == "tiny"
        with zipfile.ZipFile(tmp_path / "tiny.zip") as archive:
            archive.extractall(cache)
        return str(cache)

    module.competition_download = competition_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


def test_kagglehub_serves_as_well(hub: types.ModuleType, project: Path, tmp_path: Path) -> None:
    assert main(["data", "download", "tiny"]) == 0
    assert tree(project / "data/tiny") == WHOLE
    cache = tmp_path / "cache/competitions/tiny"
    assert (cache / "train.csv").samefile(project / "data/tiny/train.csv")  # no second copy
    assert (cache / "test.zip").exists()  # and the cache is as it was


def test_links_in_its_cache_are_refused(hub: types.ModuleType, project: Path, tmp_path: Path, capsys: Capture) -> None:
    cache = tmp_path / "cache/competitions/tiny"
    cache.mkdir(parents=True)
    (cache / "link").symlink_to("/etc")
    assert main(["data", "download", "tiny"]) == 1
    assert "a link, which no competition's files need" in capsys.readouterr().err
    assert not (project / "data/tiny").exists()


def test_its_errors_are_one_line(
    hub: types.ModuleType, project: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class UnauthenticatedError(Exception):
        pass

    def competition_download(handle: str) -> str:
        raise UnauthenticatedError("User is not authenticated")

    monkeypatch.setattr(hub, "competition_download", competition_download)
    assert main(["data", "download", "tiny"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("goldfold: kaggle: Kaggle's client has no valid token")
    assert left(project) == set()


def test_without_any_client(
    hub: types.ModuleType, project: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert main(["data", "download", "tiny"]) == 2
    err = capsys.readouterr().err
    assert "neither the command 'kaggle' nor the package kagglehub is there; pip install 'goldfold[kaggle]'" in err
    assert left(project) == set()
    assert shutil.which("kaggle") is None
