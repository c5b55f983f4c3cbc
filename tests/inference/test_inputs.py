"""Inputs are found in every layout that Kaggle has; ids to submit are the hidden test set's."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from goldfold.errors import BadInput
from goldfold.inference.inputs import HiddenRows, find_competition, find_pack, read_test
from goldfold.inference.tally import all_prior, make_submission
from goldfold.kaggle.pack import Pack, PackCompetition
from goldfold.submission import SubmissionFormat
from goldfold.tasks import Task

PACK = Pack(
    folder=Path(),
    source="both",
    kind="run",
    goldfold="0",
    leaky=False,
    optimistic=False,
    hours=9.0,
    task=Task("binary", ("1",), "0"),
    competition=PackCompetition("tiny", "id", ("label",), "auc", None, "test.csv", "images/{id}.png", "sample.csv"),
    submission=SubmissionFormat("probability", "id", ("label",), ("1",)),
    prior=(0.3,),
    members=(),
)


def make_pack(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "pack.json").write_text("{}")
    (folder / "MANIFEST.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    "place", ["datasets/me/my-pack", "my-pack", "datasets/me/my-pack/archive", "my-pack/archive"], ids=str
)
def test_a_pack_is_found_in_every_layout(tmp_path: Path, place: str) -> None:
    (tmp_path / "competitions" / "tiny" / "images").mkdir(parents=True)
    (tmp_path / "datasets" / "me" / "other").mkdir(parents=True)
    folder = make_pack(tmp_path / place)
    assert find_pack(tmp_path) == folder
    assert find_pack(tmp_path, "my-pack") == folder
    assert find_pack(tmp_path, str(folder)) == folder
    with pytest.raises(BadInput, match="no data set 'another' here"):
        find_pack(tmp_path, "another")


def test_none_or_several_packs_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no data set here holds pack\.json"):
        find_pack(tmp_path)
    make_pack(tmp_path / "one")
    second = make_pack(tmp_path / "datasets" / "me" / "two")
    with pytest.raises(BadInput, match="several packs"):
        find_pack(tmp_path)
    assert find_pack(tmp_path, "two") == second


@pytest.mark.parametrize("place", ["competitions/tiny", "datasets/someone/tiny", "tiny"])
def test_a_competition_is_found_in_every_layout(tmp_path: Path, place: str) -> None:
    (tmp_path / "competitions" / "tiny").mkdir(parents=True)  # there, but empty
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "sample.csv").touch()
    assert find_competition(tmp_path, "tiny", ["test.csv", "sample.csv"]) == tmp_path / place


def test_a_competition_under_another_name_is_found_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "competitions" / "renamed").mkdir(parents=True)
    (tmp_path / "competitions" / "renamed" / "test.csv").touch()
    assert find_competition(tmp_path, "tiny", ["test.csv"]).name == "renamed"
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "test.csv").touch()
    with pytest.raises(BadInput, match="no input folder of 'tiny'"):
        find_competition(tmp_path, "tiny", ["test.csv"])


def read(folder: Path, test: str | None, sample: str | None, pack: Pack = PACK) -> HiddenRows:
    for name, text in (("test.csv", test), ("sample.csv", sample)):
        if text is not None:
            (folder / name).write_text(text)
    return read_test(pack, folder)


def submitted(found: HiddenRows) -> list[str]:
    return list(found.ids) if found.sample is None else list(found.sample["id"])


def test_the_samples_order_where_it_has_all_test_ids(tmp_path: Path) -> None:
    found = read(tmp_path, "id\n007\nb\na\n", "id,label\na,0.5\n007,0.5\nb,0.5\n")
    assert found.ids == ("007", "b", "a")
    assert found.paths == tuple(tmp_path / "images" / f"{name}.png" for name in found.ids)
    assert submitted(found) == ["a", "007", "b"]
    assert found.without_image == ()


def test_ids_of_the_sample_that_are_not_to_be_predicted(tmp_path: Path) -> None:
    found = read(tmp_path, "id\na\n", "id,label\na,0\nx,0\ny,0\n")
    assert submitted(found) == ["a", "x", "y"]
    assert found.without_image == ("x", "y")


def test_an_old_sample_gives_its_columns_alone(tmp_path: Path) -> None:
    found = read(tmp_path, "id\nn1\nn2\nn3\n", "label,id\n0.5,a\n0.25,b\n")
    assert found.sample is not None
    assert list(found.sample.columns) == ["label", "id"]
    assert submitted(found) == ["n1", "n2", "n3"]
    assert list(found.sample["label"]) == ["0.5", "0.25", "0.5"]


def test_an_empty_sample_and_an_empty_test_set(tmp_path: Path) -> None:
    assert submitted(read(tmp_path, "id\na\nb\n", "id,label\n")) == ["a", "b"]
    found = read(tmp_path, "id\n", "id,label\n")
    assert found.ids == found.paths == ()
    assert submitted(found) == []


def test_without_a_sample_or_without_a_test_csv(tmp_path: Path) -> None:
    assert read(tmp_path, "id\nb\na\n", None).sample is None
    (tmp_path / "test.csv").unlink()
    found = read(tmp_path, None, "id,label\nq,0\n")
    assert found.ids == ("q",)


def test_columns_of_the_pattern_come_from_the_test_csv(tmp_path: Path) -> None:
    pack = replace(PACK, competition=replace(PACK.competition, test_images="{site}/{id:0>4}.jpg", sample_csv=None))
    assert read(tmp_path, "id,site\n7,north\n", None, pack).paths == (tmp_path / "north" / "0007.jpg",)


@pytest.mark.parametrize(
    ("test", "sample", "message"),
    [
        ("", None, "empty"),
        ("name\na\n", None, "no id column 'id'"),
        ("id,site\na,b,c\n", None, "more cells than its header has columns"),
        ("id\n../../secret\n", None, "leads out of"),
        ("id\na\n", "id,other\na,0\n", "no column label"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, test: str, sample: str | None, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        read(tmp_path, test, sample)
    assert "\n" not in str(caught.value)


def test_what_the_kernel_reads_goldfold_reads(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Doubled ids, another encoding, a comma at each row's end, a huge cell: no reason to submit the prior."""
    found = read(tmp_path, "id,site,\na,x,\nb,y,\na,z,\n", None)
    assert found.ids == ("a", "b")
    assert list(found.frame["site"]) == ["x", "y"]
    assert "1 rows have the id of another one (a); the first counts" in capfd.readouterr().err
    (tmp_path / "test.csv").write_bytes("id\nblätter\n".encode("latin-1"))
    assert read_test(PACK, tmp_path).ids == ("blätter",)
    assert "it is read as Latin-1" in capfd.readouterr().err
    assert read(tmp_path, f"id,note\na,{'x' * 140_000}\n", None).ids == ("a",)


def test_a_column_that_only_the_hidden_sample_has_is_submitted_as_it_stands(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = read(tmp_path, "id\na\nb\n", "id,label,Usage\nb,0.5,Private\na,0.5,Public\n")
    assert "knows no column Usage" in capfd.readouterr().err
    table = make_submission(PACK, found, [all_prior(2, PACK.prior)])
    assert list(table.columns) == ["id", "label", "Usage"]
    assert list(table["id"]) == ["b", "a"]
    assert list(table["Usage"]) == ["Private", "Public"]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        read(tmp_path, None, None)


def test_a_sample_stays_as_it_is(tmp_path: Path) -> None:
    text = "id,label\nb,0.5\na,0.5\n"
    found = read(tmp_path, "id\na\nb\n", text)
    assert found.sample is not None
    assert found.sample.equals(pd.DataFrame({"id": ["b", "a"], "label": ["0.5", "0.5"]}))
    shutil.rmtree(tmp_path)
