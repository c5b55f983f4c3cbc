"""External data sets: read as the competition is, never confused with its rows, and no way round the folds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from goldfold import paths
from goldfold.config.schema import Competition
from goldfold.errors import BadInput
from goldfold.images import ImageSpec, LazyImages, open_images
from goldfold.pipeline import external as external_module
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.external import (
    ExternalData,
    UnlabelledData,
    identical_rows,
    load_external,
    load_unlabelled,
    outside,
    pixel_digests,
)
from goldfold.tasks import make_task
from tests.pipeline.competitions import draw, make_competition

SPEC = ImageSpec(size=12, channels=3, resize="squash", interpolation="area", range="full")


def settings(*external: dict[str, Any], **keys: Any) -> Competition:
    return Competition(
        **{
            "name": "tiny",
            "task": "multiclass",
            "metric": "macro_f1",
            "train_csv": "data/tiny/train.csv",
            "image_path": "data/tiny/images/{id}.png",
            "external": external,
            **keys,
        }
    )


def write_csv(root: Path, name: str, **columns: Sequence[str]) -> dict[str, Any]:
    path = root / "data" / name / "rows.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)
    return {"csv": f"data/{name}/rows.csv", "image_path": f"data/{name}/{{file}}.png", "weight": 0.5}


def load(root: Path, competition: Competition, classes: Sequence[str] = ("cat", "dog", "fox")) -> list[ExternalData]:
    frame = pd.DataFrame({"label": list(classes)})
    task = make_task(competition.task, frame, "label", classes=classes)
    return load_external(competition, task, root, ["t1", "t2"], ["q1"])


def test_rows_become_what_the_competition_s_own_rows_become(project: Path) -> None:
    make_competition(project)
    one = write_csv(project, "one", id=["a7", "a8"], label=["fox", "cat"], file=["x", "y"], site=["s", "t"])
    two = {**write_csv(project, "two", id=["b1"], label=["dog"], file=["z"]), "weight": 2.0}
    own = load_competition(settings(one, two), project)
    first, second = load_external(own.settings, own.task, project, own.ids, own.test_ids)
    assert (first.ids, second.ids) == (("a7", "a8"), ("b1",))
    # fox and cat in the competition's classes, which hold dog too.
    assert first.targets.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert first.targets.dtype == np.float32
    assert first.paths == (project / "data/one/x.png", project / "data/one/y.png")
    assert (first.weight, second.weight) == (0.5, 2.0)
    assert first.csv == project / "data/one/rows.csv"
    assert first.frame["site"].tolist() == ["s", "t"]
    assert load_external(settings(), own.task, project, own.ids, own.test_ids) == []


def test_columns_are_those_of_the_competition(project: Path) -> None:
    entry = write_csv(project, "one", image=["a7"], top=["1"], low=["0"], file=["x"])
    competition = settings(entry, task="multilabel", target=("top", "low"), id="image")
    task = make_task("multilabel", pd.DataFrame({"top": ["0"], "low": ["1"]}), ("top", "low"))
    (found,) = load_external(competition, task, project, [], [])
    assert (found.ids, found.targets.tolist()) == (("a7",), [[1.0, 0.0]])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", "b"], "label": ["cat", "emu"]}, r"rows\.csv: unknown label 'emu'.*row 3; known: cat, dog, fox"),
        ({"id": ["a", "t2"], "label": ["cat", "cat"]}, r"rows\.csv: 1 ids are also in the train CSV: t2; .*prefix"),
        ({"id": ["q1", "b"], "label": ["cat", "cat"]}, r"rows\.csv: 1 ids are also in the test CSV: q1"),
        ({"id": ["a", "a"], "label": ["cat", "cat"]}, r"rows\.csv: duplicate ids: a"),
        ({"id": ["a", "b"], "klass": ["cat", "cat"]}, r"rows\.csv: the column 'label' is missing"),
        ({"id": [], "label": []}, r"rows\.csv: there are no rows"),
    ],
)
def test_bad_tables_are_one_line(project: Path, columns: dict[str, list[str]], message: str) -> None:
    entry = write_csv(project, "one", **columns, file=["../x"] * len(columns["id"]))
    with pytest.raises(BadInput, match=message) as caught:
        load(project, settings(entry))
    assert "\n" not in str(caught.value)


def test_paths_that_climb_out_and_missing_files_are_refused(project: Path) -> None:
    entry = write_csv(project, "one", id=["a"], label=["cat"], file=["../../etc"])
    with pytest.raises(BadInput, match="leads out of the image folder"):
        load(project, settings(entry))
    with pytest.raises(BadInput, match=r"none\.csv: the file does not exist"):
        load(project, settings({**entry, "csv": "data/one/none.csv"}))


def test_two_external_sets_may_not_share_an_id(project: Path) -> None:
    one = write_csv(project, "one", id=["a", "b"], label=["cat", "cat"], file=["x", "y"])
    two = write_csv(project, "two", id=["c", "b"], label=["dog", "dog"], file=["x", "y"])
    with pytest.raises(BadInput, match=r"two/rows\.csv: 1 ids are also in .*one/rows\.csv: b"):
        load(project, settings(one, two))


def load_pools(root: Path, *entries: dict[str, Any], external: Sequence[ExternalData] = ()) -> list[UnlabelledData]:
    pools = [{key: value for key, value in entry.items() if key != "weight"} for entry in entries]
    return load_unlabelled(settings(unlabelled=pools), root, ["t1", "t2"], ["q1"], external)


def test_unlabelled_images_need_no_labels(project: Path) -> None:
    entry = write_csv(project, "pool", id=["u1", "u2"], file=["x", "y"], site=["s", "t"])
    (found,) = load_pools(project, entry)
    assert found.ids == ("u1", "u2")
    assert found.paths == (project / "data/pool/x.png", project / "data/pool/y.png")
    assert found.frame["site"].tolist() == ["s", "t"]
    assert load_pools(project) == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["u", "t2"]}, r"pool/rows\.csv: 1 ids are also in the train CSV: t2; .*prefix"),
        ({"id": ["u", "q1"]}, r"pool/rows\.csv: 1 ids are also in the test CSV: q1"),
        ({"id": ["u", "e1"]}, r"pool/rows\.csv: 1 ids are also in .*one/rows\.csv: e1"),
        ({"id": ["u", "u"]}, r"pool/rows\.csv: duplicate ids: u"),
        ({"key": ["u", "v"]}, r"pool/rows\.csv: the column 'id' is missing"),
        ({"id": []}, r"pool/rows\.csv: there are no rows; take it out of competition\.unlabelled"),
    ],
)
def test_bad_tables_of_unlabelled_images_are_one_line(
    project: Path, columns: dict[str, list[str]], message: str
) -> None:
    one = write_csv(project, "one", id=["e1"], label=["cat"], file=["x"])
    external = load(project, settings(one))
    entry = write_csv(project, "pool", **columns, file=["x"] * len(next(iter(columns.values()))))
    with pytest.raises(BadInput, match=message) as caught:
        load_pools(project, entry, external=external)
    assert "\n" not in str(caught.value)


def test_two_unlabelled_sets_may_not_share_an_id(project: Path) -> None:
    one = write_csv(project, "one", id=["a", "b"], file=["x", "y"])
    two = write_csv(project, "two", id=["c", "b"], file=["x", "y"])
    with pytest.raises(BadInput, match=r"two/rows\.csv: 1 ids are also in .*one/rows\.csv: b"):
        load_pools(project, one, two)


@pytest.mark.parametrize("place", ["competitions/tiny/extra", "datasets/someone/extra", "extra", "tiny/extra"])
def test_on_kaggle_a_set_is_found_under_its_own_name_too(
    project: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    kaggle = project / "kaggle"
    monkeypatch.setattr(paths, "KAGGLE_INPUT", kaggle)
    (kaggle / place / "pictures").mkdir(parents=True)
    pd.DataFrame({"id": ["a"], "label": ["cat"]}).to_csv(kaggle / place / "rows.csv", index=False)
    (found,) = load(project, settings({"csv": "data/extra/rows.csv", "image_path": "data/extra/pictures/{id}.png"}))
    assert found.csv == kaggle / place / "rows.csv"
    assert found.paths == (kaggle / place / "pictures" / "a.png",)


class Counted:
    """Images given as an array, with the largest block that was asked for."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.ids = tuple(f"r{row}" for row in range(len(pixels)))
        self.shape: tuple[int, int, int] = pixels.shape[1:]  # type: ignore[assignment]
        self.digest = None
        self.largest = 0
        self._pixels = pixels

    def read(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        self.largest = max(self.largest, len(rows))
        return self._pixels[np.asarray(rows)]


def noise(n: int, seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)


def test_copies_of_the_named_rows_are_found_and_of_other_rows_not() -> None:
    own, foreign = noise(10, 0), noise(7, 1)
    foreign[2], foreign[5], foreign[6] = own[3], own[8], own[1]
    foreign[4] = own[3]
    foreign[4, 5, 5, 2] ^= 1  # one bit less than a copy
    found = identical_rows(Counted(foreign), Counted(own), np.array([3, 8, 9]))
    assert found.dtype == np.bool_
    assert found.tolist() == [False, False, True, False, False, True, False]
    assert not identical_rows(Counted(foreign), Counted(own), np.array([], dtype=np.int64)).any()


def test_copies_of_hidden_rows_are_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    own, foreign = noise(10, 0), noise(4, 1)
    foreign[2] = own[3]
    assert outside(Counted(foreign), Counted(own), np.array([3]), "pool").tolist() == [0, 1, 3]
    assert capsys.readouterr().err == "pool: 1 of 4 images are validation images, left out\n"
    assert outside(Counted(foreign), Counted(own), np.array([4]), "pool").tolist() == [0, 1, 2, 3]
    assert capsys.readouterr().err == ""


def test_pixels_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_module, "BLOCK_BYTES", 3 * 6 * 6 * 3)
    own, foreign = Counted(noise(10, 0)), Counted(noise(10, 0)[::-1].copy())
    assert identical_rows(foreign, own, np.arange(10)).all()
    assert (own.largest, foreign.largest) == (3, 3)
    assert pixel_digests(own, np.array([4, 2])) == [pixel_digests(own)[4], pixel_digests(own)[2]]


def test_the_same_picture_in_another_format_is_a_copy_in_either_kind_of_store(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [draw(kind, rng) for kind in range(3)]
    png, bmp = ([tmp_path / f"{row}.{suffix}" for row in range(3)] for suffix in ("png", "bmp"))
    for picture, first, second in zip(pictures, png, reversed(bmp), strict=True):
        picture.save(first)
        picture.save(second)
    Image.fromarray(255 - np.asarray(pictures[0])).save(bmp[2])
    stored = open_images(tmp_path / "store", ["a", "b", "c"], png, SPEC, workers=1)
    lazy = LazyImages(["x", "y", "z"], bmp, SPEC)
    assert identical_rows(lazy, stored, np.arange(3)).tolist() == [True, True, False]
    assert identical_rows(stored, lazy, np.arange(3)).tolist() == [False, True, True]


def test_stores_of_different_shapes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        identical_rows(Counted(noise(2, 0)), Counted(noise(2, 0)[:, :5]), np.arange(2))
