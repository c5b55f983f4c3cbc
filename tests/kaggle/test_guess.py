"""``goldfold data guess`` on layouts that competitions ship: what it proposes loads, fits the files, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from goldfold.cli import main
from goldfold.config import load_config
from goldfold.kaggle.guess import guess_competition
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.stages import try_folds
from tests.kaggle import layouts

Capture = pytest.CaptureFixture[str]
D = "data/comp"
EXPECTED: dict[str, dict[str, Any]] = {
    "plain": {
        "task": "multiclass",
        "metric": "macro_f1",
        "train_csv": f"{D}/train.csv",
        "test_csv": f"{D}/test.csv",
        "sample_submission": f"{D}/sample_submission.csv",
        "image_path": f"{D}/train_images/{{image_id}}.jpg",
        "test_image_path": f"{D}/test_images/{{image_id}}.jpg",
        "id": "image_id",
        "target": "label",
    },
    "with_suffix": {
        "task": "multiclass",
        "metric": "accuracy",
        "train_csv": f"{D}/train.csv",
        "test_csv": f"{D}/sample_submission.csv",
        "image_path": f"{D}/train_images/{{image_id}}",
        "test_image_path": f"{D}/test_images/{{image_id}}",
        "id": "image_id",
    },
    "class_folders": {
        "task": "multiclass",
        "metric": "log_loss",
        "train_csv": f"{D}/labels.csv",
        "image_path": f"{D}/train/{{breed}}/{{id}}.jpg",
        "test_image_path": f"{D}/test/{{id}}.jpg",
        "target": "breed",
    },
    "one_hot": {
        "task": "multilabel",
        "metric": "macro_auc",
        "image_path": f"{D}/images/{{image_id}}.jpg",
        "target": ["crab", "snail", "worm"],
        "folds.scheme": "multilabel",
    },
    "label_texts": {
        "task": "multilabel",
        "metric": "macro_f1",
        "target": "labels",
        "id": "image",
        "folds.scheme": "multilabel",
    },
    "bars": {"task": "multilabel", "separator": "|", "target": "findings_label", "id": "image"},
    "binary": {
        "task": "binary",
        "metric": "auc",
        "image_path": f"{D}/jpeg/train/{{image_name}}.jpg",
        "target": "target",
        "group": "patient_id",
        "folds.scheme": "stratified_group",
    },
    "regression": {"task": "regression", "metric": "rmse", "target": "Pawpularity", "id": "Id"},
    "several_numbers": {"task": "regression", "target": ["x", "y", "z"]},
    "grades": {"task": "ordinal", "metric": "qwk", "target": "diagnosis_grade", "id": "id_code"},
    "nested": {
        "task": "binary",
        "train_csv": f"{D}/dataset/v2/train.csv",
        "image_path": f"{D}/dataset/v2/img/train/{{region}}/{{id:0>6}}.png",
        "test_image_path": f"{D}/dataset/v2/img/test/{{region}}/{{id:0>6}}.png",
    },
    "paths_as_ids": {"image_path": f"{D}/photos/{{file}}", "id": "file", "target": "target", "task": "multiclass"},
    "prefixed": {"image_path": f"{D}/scans/scan_{{id}}.png", "task": "binary", "metric": "auc"},
    "sharded": {"image_path": f"{D}/images/{{id:.2}}/{{id}}.png", "task": "multiclass", "target": "category_id"},
    "hidden_test": {
        "image_path": f"{D}/train_images/{{image_id}}.png",
        "test_image_path": f"{D}/test_images/{{image_id}}.png",
        "test_csv": f"{D}/test.csv",
    },
}
ABSENT = {
    "plain": {"group", "separator"},
    "one_hot": {"test_image_path"},
    "paths_as_ids": {"test_image_path"},
    "prefixed": {"test_image_path", "group"},
    "bars": {"test_csv", "sample_submission"},
    "several_numbers": {"group"},
}
UNSURE = {
    "plain": {"metric"},
    "with_suffix": {"metric"},
    "grades": {"metric", "task"},
    "binary": {"metric", "group"},
    "hidden_test": {"metric", "test_image_path"},
    "bars": {"metric", "task", "submission"},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lay_out(name: str) -> None:
    getattr(layouts, name)(Path(D))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_layout(name: str, project: Path, capsys: Capture) -> None:
    lay_out(name)
    assert main(["data", "guess", D, "--out", "configs/comp.yaml"]) == 0
    text = Path("configs/comp.yaml").read_text()
    printed = capsys.readouterr().out
    assert printed == f"{text}wrote configs/comp.yaml\n"
    proposed = yaml.safe_load(text)
    for key, value in {"name": "comp", **EXPECTED[name]}.items():
        section, _, inner = key.rpartition(".")
        assert proposed[section or "competition"][inner] == value, key
    assert not ABSENT.get(name, set()) & set(proposed["competition"])
    found = guess_competition(Path(D), project)
    assert set(found.unsure) == UNSURE.get(name, set(found.unsure))
    assert "metric" in found.unsure
    assert text.count("UNSURE: ") == len(found.unsure)
    assert all(finding.why for finding in (*found.competition, *found.folds))
    assert max(len(line) for line in text.splitlines()) <= 120

    # It loads, and what it names is there: tables, targets, folds, and (but for a hidden test) every image.
    config = load_config(Path("configs/comp.yaml"))
    data = load_competition(config.competition, Path())
    try_folds(config, data)
    paths = data.train_paths if name == "hidden_test" else [*data.train_paths, *data.test_paths]
    assert all(path.is_file() for path in paths)
    assert len(data.train_paths) == len(data.ids) > 30


@pytest.mark.parametrize("name", ["plain", "binary", "one_hot"])
def test_check_passes_on_what_it_proposes(name: str, project: Path, capsys: Capture) -> None:
    lay_out(name)
    assert main(["data", "guess", D, "--out", "comp.yaml"]) == 0
    small = ["model.backbone=test_efficientnet", "model.pretrained=false", "input.size=32", "train.device=cpu"]
    assert main(["check", "comp.yaml", *small]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("plain", "UNSURE: classes are uneven (25 to 5 rows); else accuracy; read the competition's page Evaluation"),
        ("plain", "test.csv has it"),
        ("plain", "sample_submission.csv asks for a column of labels"),
        ("with_suffix", "the sample submission lists the 10 ids to predict"),
        ("with_suffix", "the column holds the suffix, too"),
        ("class_folders", "the columns of sample_submission.csv are the labels in it"),
        ("class_folders", "asks for a column each for border collie, chow, golden retriever, pug"),
        ("one_hot", "3 columns of 0 and 1, and rows with none or several 1"),
        ("label_texts", "texts of several labels, parted by spaces: healthy, mildew, rust, scab"),
        ("binary", "none of them is in test.csv"),
        ("binary", "a column with the probability of '1'"),
        ("grades", "by its name an order, else it is multiclass"),
        ("prefixed", "ids share their beginnings ('p0-…': 10 of them over 40 rows)"),
        ("hidden_test", "they may come with the hidden test"),
        ("bars", "there is no sample submission to go by"),
    ],
)
def test_it_says_why(name: str, told: str, project: Path, capsys: Capture) -> None:
    lay_out(name)
    assert main(["data", "guess", D]) == 0
    plain = " ".join(line.strip().removeprefix("#") for line in capsys.readouterr().out.splitlines())
    assert told in " ".join(plain.split())


def test_one_one_a_row_is_told(project: Path, capsys: Capture) -> None:
    train, test = layouts.numbered("a"), layouts.numbered("b", 10)
    layouts.images(Path(D) / "images", [f"{name}.jpg" for name in [*train, *test]])
    marks = {name: [int(row % 3 == place) for row in range(40)] for place, name in enumerate(("rust", "scab", "well"))}
    layouts.csv(Path(D) / "train.csv", image_id=train, **marks)
    layouts.csv(Path(D) / "sample_submission.csv", image_id=test, **{name: [0.3] * 10 for name in marks})
    found = guess_competition(Path(D), project)
    assert found.value("target") == ["rust", "scab", "well"]
    assert "task" in found.unsure
    assert "exactly one 1" in found.to_yaml()


def test_groups_that_the_test_shares_are_only_told(project: Path) -> None:
    train, test = layouts.numbered("a"), layouts.numbered("b", 10)
    layouts.images(Path(D) / "images", [f"{name}.jpg" for name in [*train, *test]])
    sites = [f"s{number}" for number in range(8)]
    layouts.csv(Path(D) / "train.csv", id=train, site=layouts.cycle(sites), label=layouts.cycle(["a", "b"]))
    layouts.csv(Path(D) / "test.csv", id=test, site=layouts.cycle(sites, 10))
    layouts.csv(Path(D) / "sample_submission.csv", id=test, label=["a"] * 10)
    found = guess_competition(Path(D), project)
    assert "group" not in [finding.key for finding in found.competition]
    assert any("'site' could be a group" in note and "share 8 of them" in note for note in found.notes)


def test_without_a_sample_the_label_is_found_among_decoys(project: Path) -> None:
    train, test = layouts.numbered("a"), layouts.numbered("b", 10)
    layouts.images(Path(D) / "images", [f"{name}.jpg" for name in [*train, *test]])
    decoys = {"fold": layouts.cycle([0, 1, 2, 3]), "caption": [f"a picture of {name}" for name in train]}
    decoys |= {"width": layouts.cycle([10, 12]), "constant": ["x"] * 40, "patient_id": layouts.cycle(list("abcdefgh"))}
    layouts.csv(Path(D) / "train.csv", id=train, **decoys, species=layouts.cycle(["ant", "bee", "fly"]))
    layouts.csv(Path(D) / "test.csv", id=test)
    found = guess_competition(Path(D), project)
    assert (found.value("target"), found.value("group")) == ("species", "patient_id")
    assert "caption" in next(finding.why for finding in found.competition if finding.key == "target")


def test_ids_of_another_name_in_the_sample_are_told(project: Path, capsys: Capture) -> None:
    layouts.plain(Path(D))
    sample = Path(D) / "sample_submission.csv"
    sample.write_text(sample.read_text().replace("image_id", "Id", 1))
    assert main(["data", "guess", D, "--out", "comp.yaml"]) == 0
    out = " ".join(capsys.readouterr().out.replace("#", "").split())
    assert "calls the ids otherwise (Id, label)" in out
    proposed = load_config(Path("comp.yaml")).competition
    assert (proposed.sample_submission, proposed.id) == (None, "image_id")


def test_rows_without_an_image_are_counted(project: Path) -> None:
    layouts.plain(Path(D))
    for path in sorted((Path(D) / "train_images").iterdir())[:4]:
        path.unlink()
    found = guess_competition(Path(D), project)
    (why,) = [finding.why for finding in found.competition if finding.key == "image_path"]
    assert "leads 36 of 40 rows" in why
    assert "image_path" in found.unsure


def test_a_folder_elsewhere_gets_whole_paths(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("disk") / "my comp!"
    layouts.plain(elsewhere)
    assert main(["data", "guess", str(elsewhere), "--out", "comp.yaml"]) == 0
    config = load_config(Path("comp.yaml"))
    assert config.competition.name == "my-comp"
    assert config.competition.train_csv == f"{elsewhere}/train.csv"
    assert all(path.is_file() for path in load_competition(config.competition, Path()).train_paths)
    assert main(["data", "guess", str(elsewhere), "--name", "theirs"]) == 0


def only_csvs(root: Path) -> None:
    layouts.csv(root / "train.csv", id=["a", "b"], label=[0, 1])


def only_images(root: Path) -> None:
    layouts.images(root, ["cat/1.jpg", "dog/2.jpg"])


def strangers(root: Path) -> None:
    only_csvs(root)
    layouts.images(root, ["other1.jpg", "other2.jpg"])


def no_labels(root: Path) -> None:
    layouts.csv(root / "train.csv", id=["a", "b"], width=[3, 4])
    layouts.images(root, ["a.jpg", "b.jpg"])


def boxes(root: Path) -> None:
    layouts.csv(root / "train.csv", id=["a", "a", "b"], label=[0, 1, 1])
    layouts.images(root, ["a.jpg", "b.jpg"])


def dicom(root: Path) -> None:
    only_csvs(root)
    (root / "a.dcm").write_bytes(b"x")


def zipped(root: Path) -> None:
    only_csvs(root)
    (root / "images.zip").write_bytes(b"x")


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        (only_csvs, "goldfold: data/comp: there are no images under it; unpack them, or name the folder"),
        (zipped, "there are no images under it; there are .zip files; unpack them"),
        (dicom, "its images are .dcm files, which Goldfold does not read; make PNGs of them"),
        (only_images, "there is no CSV file under it"),
        (strangers, "no CSV lists the images (CSVs: train.csv; images such as other1.jpg)"),
        (no_labels, "data/comp/train.csv: there is no column of labels; the columns are id, width"),
        (boxes, "'id' of train.csv names images several times; make a CSV with one row an image"),
    ],
)
def test_what_cannot_be_guessed_is_one_line(layout: layouts.Layout, told: str, project: Path, capsys: Capture) -> None:
    layout(Path(D))
    assert main(["data", "guess", D, "--out", "comp.yaml"]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("comp.yaml").exists()


def test_nothing_is_overwritten(project: Path, capsys: Capture) -> None:
    layouts.plain(Path(D))
    Path("comp.yaml").write_text("mine")
    assert main(["data", "guess", D, "--out", "comp.yaml"]) == 2
    assert Path("comp.yaml").read_text() == "mine"
    assert main(["data", "guess", "nowhere"]) == 2
    assert "nowhere: is not a folder" in capsys.readouterr().err


def test_no_image_is_decoded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.plain(Path(D))
    monkeypatch.setattr(Image, "open", lambda *arguments: pytest.fail("an image was opened"))
    guess_competition(Path(D), project)
