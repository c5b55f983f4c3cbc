"""The embedded competitions, as Kaggle would lay them out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from goldfold import files
from goldfold.demo import digits as digits_room
from goldfold.demo import elpv as elpv_room
from goldfold.demo import layout, prepare_digits, prepare_elpv
from goldfold.errors import BadInput

TABLES = {"train.csv", "test.csv", "sample_submission.csv", "solution.csv"}
needs_elpv = [
    pytest.mark.demo,
    pytest.mark.skipif(find_spec("elpv_dataset") is None, reason='needs: pip install "goldfold[demo]"'),
]
Prepare = Callable[[Path, int], Path]
EACH = pytest.mark.parametrize(
    "prepare", [pytest.param(prepare_digits, id="digits"), pytest.param(prepare_elpv, id="elpv", marks=needs_elpv)]
)


@pytest.fixture(scope="module")
def elpv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_elpv(tmp_path_factory.mktemp("elpv"), 0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_digits(tmp_path_factory.mktemp("digits"), 0)


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Path)
    return found


BOTH = pytest.mark.parametrize("folder", ["digits", pytest.param("elpv", marks=needs_elpv)], indirect=True)


def table(folder: Path, name: str) -> pd.DataFrame:
    return files.read_csv(folder / name)


@BOTH
def test_exactly_these_files(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*TABLES, "images", layout.RECORD}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    ids = {*table(folder, "train.csv")["id"], *table(folder, "test.csv")["id"]}
    assert {path.name for path in (folder / "images").iterdir()} == {f"{name}.png" for name in ids}


@BOTH
def test_ids_are_disjoint_and_tables_agree(folder: Path) -> None:
    train, test = table(folder, "train.csv"), table(folder, "test.csv")
    assert not set(train["id"]) & set(test["id"])
    assert train["id"].is_unique
    assert test["id"].is_unique
    for name in ("sample_submission.csv", "solution.csv"):
        assert list(table(folder, name)["id"]) == list(test["id"])


@BOTH
def test_ids_tell_neither_label_nor_split(folder: Path) -> None:
    train, solution = table(folder, "train.csv"), table(folder, "solution.csv")
    target = solution.columns[1]
    cells = pd.concat([train.assign(split=0), solution.assign(split=1)])
    cells["number"] = cells["id"].str.extract(r"(\d+)$").astype(int)
    cells["label"] = cells[target].astype(float)
    ranks = cells[["number", "label", "split"]].rank().corr().to_numpy()
    # In ELPV's own order the number and the label correlate by -0.38.
    assert abs(ranks[0, 1]) < 0.06
    assert abs(ranks[0, 2]) < 0.06


@pytest.mark.demo
@pytest.mark.skipif(find_spec("elpv_dataset") is None, reason='needs: pip install "goldfold[demo]"')
class TestElpv:
    def test_columns(self, elpv: Path) -> None:
        assert list(table(elpv, "train.csv")) == ["id", "defective", "grade", "cell_type"]
        assert list(table(elpv, "test.csv")) == ["id", "cell_type"]
        assert list(table(elpv, "sample_submission.csv")) == ["id", "defective"]
        assert list(table(elpv, "solution.csv")) == ["id", "defective"]
        assert set(table(elpv, "sample_submission.csv")["defective"]) == {"0.5"}

    def test_neighbours_do_not_share_a_label(self, elpv: Path) -> None:
        cells = pd.concat([table(elpv, "train.csv"), table(elpv, "solution.csv")]).sort_values("id")
        same = (cells["defective"] == cells["defective"].shift()).mean()
        assert same < 0.61  # by chance 0.57; in ELPV's own order, which goes by module, 0.80

    def test_a_quarter_is_held_back(self, elpv: Path) -> None:
        assert len(table(elpv, "train.csv")) == 1968
        assert len(table(elpv, "test.csv")) == 656

    def test_defective_follows_the_grade(self, elpv: Path) -> None:
        train = table(elpv, "train.csv")
        pairs = set(zip(train["grade"], train["defective"], strict=True))
        assert pairs == {("0.000", "0"), ("0.333", "0"), ("0.667", "1"), ("1.000", "1")}

    def test_stratified_by_grade_and_cell_type(self, elpv: Path) -> None:
        train, test, solution = (table(elpv, name) for name in ("train.csv", "test.csv", "solution.csv"))
        # Counts of the whole set, by grade and type.
        whole = {
            ("0.000", "mono"): 588,
            ("0.000", "poly"): 920,
            ("0.333", "mono"): 117,
            ("0.333", "poly"): 178,
            ("0.667", "mono"): 56,
            ("0.667", "poly"): 50,
            ("1.000", "mono"): 313,
            ("1.000", "poly"): 402,
        }
        for (grade, kind), count in whole.items():
            found = ((train["grade"] == grade) & (train["cell_type"] == kind)).sum()
            assert abs(found - 0.75 * count) <= 1, (grade, kind)
        assert abs((test["cell_type"] == "mono").sum() - 1074 / 4) <= 2
        assert abs((solution["defective"] == "1").sum() - 821 / 4) <= 2

    def test_each_picture_is_the_packages_own(self, elpv: Path) -> None:
        train = table(elpv, "train.csv")
        package = elpv_room._package()
        labels = elpv_room._read_labels(package / "labels.csv")
        originals = {files.sha256_file(package / row["path"]): row for row in labels.head(60).to_dict("records")}
        seen = 0
        for row in train.to_dict("records"):
            original = originals.get(files.sha256_file(elpv / "images" / f"{row['id']}.png"))
            if original is not None:
                seen += 1
                assert (original["grade"], original["cell_type"]) == (row["grade"], row["cell_type"])
        assert seen > 30
        with Image.open(elpv / "images" / f"{train['id'][0]}.png") as picture:
            assert (picture.mode, picture.size) == ("L", (300, 300))

    def test_copied_where_links_are_impossible(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr("os.link", refuse)
        source = elpv_room._package() / "images" / "cell0001.png"
        layout.link_or_copy(source, tmp_path / "copy.png")
        assert (tmp_path / "copy.png").read_bytes() == source.read_bytes()
        assert (tmp_path / "copy.png").stat().st_ino != source.stat().st_ino


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elpv_room, "find_spec", lambda _: None)
    with pytest.raises(BadInput, match=r'elpv-dataset; pip install "goldfold\[demo\]"'):
        prepare_elpv(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


class TestDigits:
    def test_columns(self, digits: Path) -> None:
        assert list(table(digits, "train.csv")) == ["id", "label"]
        assert list(table(digits, "test.csv")) == ["id"]
        assert list(table(digits, "sample_submission.csv")) == ["id", "label"]
        assert set(table(digits, "sample_submission.csv")["label"]) == {"0"}

    def test_a_quarter_of_each_class_is_held_back(self, digits: Path) -> None:
        train, solution = table(digits, "train.csv"), table(digits, "solution.csv")
        assert (len(train), len(solution)) == (1347, 450)
        counts = pd.DataFrame({"train": train["label"].value_counts(), "test": solution["label"].value_counts()})
        assert len(counts) == 10
        assert ((counts["test"] / counts.sum(axis=1)).sub(0.25).abs() < 0.01).all()

    def test_pictures(self, digits: Path) -> None:
        for name in table(digits, "train.csv")["id"].head(20):
            with Image.open(digits / "images" / f"{name}.png") as picture:
                assert (picture.mode, picture.size) == ("L", (32, 32))
                assert np.asarray(picture).max() > 200


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@EACH
def test_the_seed_decides(prepare: Prepare, tmp_path: Path) -> None:
    first, again, other = (contents(prepare(tmp_path / name, seed)) for name, seed in (("a", 7), ("b", 7), ("c", 8)))
    assert first == again
    assert first["train.csv"] != other["train.csv"]


@EACH
def test_a_second_call_changes_nothing(prepare: Prepare, tmp_path: Path) -> None:
    folder = prepare(tmp_path, 0)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")}
    assert prepare(tmp_path, 0) == folder
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")} == before


def test_another_seed_or_a_touched_folder_is_refused(tmp_path: Path) -> None:
    folder = prepare_digits(tmp_path, 0)
    with pytest.raises(BadInput, match="was prepared with seed 0 instead of 1; delete the folder"):
        prepare_digits(tmp_path, 1)
    picture = next((folder / "images").iterdir())
    content = picture.read_bytes()
    picture.unlink()
    with pytest.raises(BadInput, match="changed since the demo wrote it: images"):
        prepare_digits(tmp_path, 0)
    picture.write_bytes(content)
    prepare_digits(tmp_path, 0)
    (folder / "train.csv").unlink()
    with pytest.raises(BadInput, match=r"changed since the demo wrote it: train\.csv"):
        prepare_digits(tmp_path, 0)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "data" / "digits" / "train.csv"
    mine.parent.mkdir(parents=True)
    mine.write_text("id,label\n")
    with pytest.raises(BadInput, match="the demo did not write this folder; move it away"):
        prepare_digits(tmp_path, 0)
    assert mine.read_text() == "id,label\n"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits_room, "write_tables", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare_digits(tmp_path, 0)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_kill_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys\n"
        "from goldfold.demo import digits\n"
        "digits.write_tables = lambda *_, **__: os._exit(9)\n"
        "digits.prepare_digits(pathlib.Path(sys.argv[1]), 0)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=False)
    assert killed.returncode == 9, killed.stderr.decode()
    data = tmp_path / "data"
    (left,) = data.iterdir()
    assert left.name.startswith(".digits.")
    assert not (data / "digits").exists()
    folder = prepare_digits(tmp_path, 0)
    assert table(folder, "train.csv").shape == (1347, 2)
    assert left.exists(), "a young folder may belong to another process"


def test_old_leftovers_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "data" / ".digits.abc.tmp"
    left.mkdir(parents=True)
    monkeypatch.setattr(layout, "STALE_SECONDS", -1.0)
    prepare_digits(tmp_path, 0)
    assert not left.exists()


def test_two_at_once_agree(tmp_path: Path) -> None:
    """The second of two processes that finish together keeps the first one's folder."""
    target = tmp_path / "data" / "digits"

    def build(folder: Path) -> None:
        (folder / "train.csv").write_text("id\n")
        if not target.exists():
            layout.lay_out(target, {"seed": 0}, build_plain)

    def build_plain(folder: Path) -> None:
        (folder / "train.csv").write_text("id\n")

    assert layout.lay_out(target, {"seed": 0}, build) == target
    assert [path.name for path in target.parent.iterdir()] == ["digits"]
