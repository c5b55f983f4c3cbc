"""What a student is given: by its own fold's teachers, by each teacher's own preprocessing, once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from goldfold import files
from goldfold.bundle import load_bundle, save_weights, write_bundle
from goldfold.cli import main
from goldfold.config.schema import Train
from goldfold.data import EXTERNAL, LABELLED, PSEUDO, LeakError
from goldfold.images import open_images
from goldfold.machine import find_machine
from goldfold.pipeline import teaching
from goldfold.predict import predict_bundle
from goldfold.records import Floats, Predictions, SoftLabels
from goldfold.training import FoldJob
from tests.pipeline.competitions import make_competition
from tests.rounds.conftest import CONFIG, SHORT, write_ensemble

Heard = dict[str, FoldJob]

SOFT = "teacher.pseudo.labels=soft"
DISTIL = "teacher.distill.weight=0.5"
FIRST = ["--fold", "0"]


def student(*settings: str, runs: str = "tiny") -> list[str]:
    return ["train", CONFIG, *SHORT, "--run", "student", f"teacher.runs=[{runs}]", *settings]


def stored(root: Path, *folders: str, ids: tuple[str, ...]) -> Floats:
    """The mean of some test.parquet."""
    parts = [Predictions.read(root / "runs" / folder / "test.parquet", "x").take(ids).values for folder in folders]
    return np.asarray(np.mean(parts, axis=0), dtype=np.float32)


def said(folder: Path, ids: tuple[str, ...]) -> Floats:
    """What a bundle says of images of the tiny competition, by its own preprocessing."""
    bundle, model = load_bundle(folder)
    paths = [Path(f"data/tiny/images/{name}.png").absolute() for name in ids]
    images = open_images(None, ids, paths, bundle.images)
    machine = find_machine(Train(device="cpu"))
    return predict_bundle(bundle, model, images, ids, batch_size=128, machine=machine, what="").values


def rows(job: FoldJob, kind: int) -> tuple[tuple[str, ...], Floats]:
    """Ids and targets of one kind of row."""
    chosen = job.examples.kind == kind
    ids = tuple(name for name, yes in zip(job.examples.ids, chosen, strict=True) if yes)
    return ids, job.examples.targets[chosen]


def poison(folder: Path) -> None:
    """Whoever reads these files fails."""
    for name in ("test.parquet", "oof.parquet", "model.safetensors"):
        (folder / name).write_bytes(b"of another fold")


# --- pseudo-labels ----------------------------------------------------------------------------------------------------


def test_pseudo_labels_are_the_mean_of_the_fold_s_own_bundles(teachers: Path, heard: Heard) -> None:
    for run in ("tiny", "grey"):
        for folder in (teachers / "runs" / run).glob("fold1*"):
            poison(folder)
    for run in ("tiny", "grey"):
        poison_run = teachers / "runs" / run / "test.parquet"
        poison_run.write_bytes(b"of all folds")
    assert main([*student(SOFT, "teacher.pseudo.weight=0.3", runs="tiny,grey"), *FIRST]) == 0
    ids, targets = rows(heard["fold0"], PSEUDO)
    assert set(ids) == set(pd.read_csv("data/tiny/test.csv", dtype=str)["id"])
    # Seeds count equally in a run, runs equally among teachers.
    tiny, grey = stored(teachers, "tiny/fold0", "tiny/fold0-seed7", ids=ids), stored(teachers, "grey/fold0", ids=ids)
    assert np.allclose(targets, (tiny + grey) / 2, atol=1e-6)
    assert heard["fold0"].examples.weights[heard["fold0"].examples.kind == PSEUDO].tolist() == pytest.approx([0.3] * 12)
    assert not set(heard["fold0"].valid_ids) & set(heard["fold0"].examples.ids)
    # The other fold's student fails, as its own teachers are broken.
    assert main([*student(SOFT, "teacher.pseudo.weight=0.3", runs="tiny,grey"), "--fold", "1"]) == 2


def test_the_record_of_the_labels(teachers: Path, heard: Heard, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*student("teacher.pseudo.labels=hard", "teacher.pseudo.top_k=2", runs="tiny,grey")]) == 0
    printed = capsys.readouterr().err
    for fold in (0, 1):
        folder = teachers / f"runs/student/fold{fold}"
        record, soft = json.loads((folder / "labels.json").read_text()), SoftLabels.read(folder / "labels.parquet")
        ids, targets = rows(heard[f"fold{fold}"], PSEUDO)
        assert (soft.ids, soft.excluded_fold) == (ids, fold)
        assert np.array_equal(soft.targets, targets)
        assert (record["teachers"], record["excluded_fold"], record["candidates"]) == (["tiny", "grey"], fold, 12)
        counts = targets.sum(axis=0).astype(int).tolist()
        assert record["classes"] == dict(zip(("cat", "dog", "fox"), counts, strict=True))
        assert record["taken"] == len(ids) == sum(counts)
        assert max(counts) <= 2
        assert f"student fold{fold}: {len(ids)} of 12 images pseudo-labelled (cat: {counts[0]}, " in printed


def test_stored_labels_are_used_again_and_no_others(
    teachers: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[float] = []
    real = teaching.select

    def counted(*args: object) -> object:
        chosen.append(args[-1].min_prob)  # type: ignore[attr-defined]
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(teaching, "select", counted)
    seeds = "train.seeds=[4,5]"
    assert main(student(SOFT, seeds)) == 0
    assert len(chosen) == 2  # once a fold: the seeds' students are given the same
    targets = {name: job.examples.targets for name, job in heard.items()}
    assert len(targets) == 6
    before = {path: path.read_bytes() for path in Path("runs/student").rglob("labels.*")}
    assert len(before) == 12
    assert main(student(SOFT, seeds)) == 0
    assert len(chosen) == 2
    assert {path: path.read_bytes() for path in before} == before
    assert all(np.array_equal(job.examples.targets, targets[name]) for name, job in heard.items())
    # Without its table a record is worth nothing.
    for path in Path("runs/student").rglob("fold0*/labels.parquet"):
        path.unlink()
    assert main(student(SOFT, seeds)) == 0
    assert len(chosen) == 3
    # Nothing is trained yet, so the settings may change; the labels follow.
    assert main(student(SOFT, seeds, "teacher.pseudo.min_prob=0.36")) == 0
    assert chosen[3:] == [0.36, 0.36]


def test_labels_of_a_teacher_that_changed_are_made_again(teachers: Path, heard: Heard) -> None:
    assert main([*student(SOFT, DISTIL), *FIRST]) == 0
    _, before = rows(heard["fold0"], PSEUDO)
    shutil.rmtree("runs/tiny")
    assert main(["train", CONFIG, *SHORT, "optim.lr=0.02"]) == 0
    shutil.rmtree("runs/student/fold0/last")
    assert main([*student(SOFT, DISTIL), *FIRST]) == 0
    ids, after = rows(heard["fold0"], PSEUDO)
    assert not np.array_equal(before, after)
    assert np.allclose(after, stored(teachers, "tiny/fold0", ids=ids), atol=1e-6)


def test_no_image_that_passes_and_one_class_for_all_are_told(
    teachers: Path, heard: Heard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*student(SOFT, "teacher.pseudo.min_prob=1"), *FIRST]) == 0
    assert "warning: student fold0: no image passes teacher.pseudo" in capsys.readouterr().err
    assert len(rows(heard["fold0"], PSEUDO)[0]) == 0
    record = json.loads(Path("runs/student/fold0/labels.json").read_text())
    assert (record["taken"], record["mean_confidence"]) == (0, None)
    assert not Path("runs/student/fold0/labels.parquet").exists()
    for path in Path("runs/tiny").glob("fold0*/test.parquet"):
        table = Predictions.read(path, "tiny")
        values = np.tile(np.array([0.1, 0.8, 0.1], dtype=np.float32), (len(table.ids), 1))
        Predictions(table.ids, values, table.classes, "tiny").write(path, "id")
    assert main([*student(SOFT, "teacher.pseudo.min_prob=0.5"), *FIRST]) == 0
    assert "class 'dog' takes 100% of the pseudo-labels and has 33% of the labelled rows" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["regression", "multilabel", "binary"])
def test_other_tasks(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_competition(tmp_path, task)
    assert main(["train", CONFIG, *SHORT]) == 0
    settings = [] if task == "regression" else ["teacher.pseudo.min_prob=0.5", "teacher.pseudo.weighting=confidence"]
    assert main([*student(SOFT, DISTIL, *settings), *FIRST]) == 0
    ids, targets = rows(heard["fold0"], PSEUDO)
    expected = stored(Path(), "tiny/fold0", ids=ids)
    assert len(ids)
    assert np.allclose(targets, expected, atol=1e-6)
    own, _ = rows(heard["fold0"], LABELLED)
    given = heard["fold0"].examples.teacher[: len(own), 0]
    assert np.allclose(given, said(Path("runs/tiny/fold0"), own), atol=1e-5)
    if task == "multilabel":
        capsys.readouterr()
        assert main([*student(SOFT, "teacher.pseudo.min_prob={top: 0.5, up: 0.5}"), *FIRST]) == 2
        assert "there is no class up; the classes are top, low, both" in capsys.readouterr().err


# --- images without labels --------------------------------------------------------------------------------------------


def write_unlabelled(root: Path, copies: int = 3) -> dict[str, str]:
    """12 further pictures, the first of them copies of training images; returns the entry of the configuration."""
    folder = root / "data/tiny/more"
    folder.mkdir()
    known = sorted(pd.read_csv(root / "data/tiny/train.csv", dtype=str)["id"])
    rng = np.random.default_rng(5)
    names = [f"more{number}" for number in range(12)]
    for number, name in enumerate(names):
        if number < copies:
            shutil.copy(root / f"data/tiny/images/{known[number]}.png", folder / f"{name}.png")
        else:
            Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    pd.DataFrame({"id": names, "twin": [*known[:copies], *[""] * (12 - copies)]}).to_csv(
        root / "data/tiny/more.csv", index=False
    )
    entry = {"csv": "data/tiny/more.csv", "image_path": "data/tiny/more/{id}.png"}
    settings = yaml.safe_load((root / CONFIG).read_text())
    settings["competition"]["unlabelled"] = [entry]
    (root / CONFIG).write_text(yaml.safe_dump(settings))
    return entry


def test_unlabelled_images_are_predicted_as_each_teacher_sees_them(
    teachers: Path, heard: Heard, capsys: pytest.CaptureFixture[str]
) -> None:
    write_unlabelled(teachers)
    assert main(student(SOFT, "teacher.pseudo.images=unlabelled", "input.size=16", runs="grey")) == 0
    frame = pd.read_csv("data/tiny/more.csv", dtype=str, keep_default_na=False)
    for fold in (0, 1):
        job = heard[f"fold{fold}"]
        ids, targets = rows(job, PSEUDO)
        # Copies of what this fold validates are no training images.
        kept = frame[~frame["twin"].isin(job.valid_ids)]
        assert set(ids) == set(kept["id"])
        assert job.examples.images.shape == (16, 16, 3)
        bundle, model = load_bundle(Path(f"runs/grey/fold{fold}"))
        assert bundle.images.channels == 1
        paths = [Path(f"data/tiny/more/{name}.png").absolute() for name in ids]
        images = open_images(None, ids, paths, bundle.images)
        machine = find_machine(Train(device="cpu"))
        own = predict_bundle(bundle, model, images, ids, batch_size=128, machine=machine, what="").values
        assert np.allclose(targets, own, atol=1e-5)
    left = len(frame) - len(rows(heard["fold0"], PSEUDO)[0])
    assert left
    assert f"student fold 0: more.csv: {left} of 12 images are validation images, left out" in capsys.readouterr().err


def test_which_images_are_labelled(teachers: Path, heard: Heard, capsys: pytest.CaptureFixture[str]) -> None:
    write_unlabelled(teachers, copies=0)
    test_ids = set(pd.read_csv("data/tiny/test.csv", dtype=str)["id"])
    more = {f"more{number}" for number in range(12)}
    for which, expected in (("all", test_ids | more), ("test", test_ids), ("unlabelled", more)):
        assert main([*student(SOFT, f"teacher.pseudo.images={which}"), *FIRST]) == 0
        ids, targets = rows(heard["fold0"], PSEUDO)
        assert set(ids) == expected
        given = dict(zip(ids, targets, strict=True))
        one = sorted(expected)[0]
        pixels = heard["fold0"].examples.images
        assert np.array_equal(
            pixels.read([pixels.ids.index(one)])[0],
            np.asarray(Image.open(f"data/tiny/{'more' if one in more else 'images'}/{one}.png").convert("RGB")),
        )
        if one in test_ids:
            expected_values = stored(teachers, "tiny/fold0", "tiny/fold0-seed7", ids=(one,))[0]
            assert np.allclose(given[one], expected_values, atol=1e-6)
    capsys.readouterr()
    nothing = ["teacher.pseudo.images=unlabelled", "competition.unlabelled=[]"]
    assert main([*student(SOFT, *nothing), *FIRST]) == 2
    assert "teacher.pseudo.images" in capsys.readouterr().err


def test_a_changed_table_of_unlabelled_images_is_noticed(teachers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_unlabelled(teachers, copies=0)
    assert main([*student(SOFT), *FIRST]) == 0
    frame = pd.read_csv("data/tiny/more.csv", dtype=str)
    frame[:-1].to_csv("data/tiny/more.csv", index=False)
    capsys.readouterr()
    assert main(student(SOFT)) == 2
    assert "the file behind unlabelled_csv_0" in capsys.readouterr().err
    # A run that never looks at them does not mind.
    assert main(["train", CONFIG, *SHORT, "--run", "plain", *FIRST]) == 0


# --- probabilities of training rows -----------------------------------------------------------------------------------


def add_external(root: Path) -> None:
    """Three labelled pictures of another data set."""
    folder = root / "data/tiny/other"
    folder.mkdir()
    rng = np.random.default_rng(6)
    for name in ("o1", "o2", "o3"):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    frame = pd.DataFrame({"id": ["o1", "o2", "o3"], "label": ["cat", "dog", "fox"]})
    frame.to_csv(root / "data/tiny/other.csv", index=False)
    settings = yaml.safe_load((root / CONFIG).read_text())
    entry = {"csv": "data/tiny/other.csv", "image_path": "data/tiny/other/{id}.png"}
    settings["competition"]["external"] = [entry]
    (root / CONFIG).write_text(yaml.safe_dump(settings))


def test_stored_probabilities_are_of_the_teacher_s_own_images(teachers: Path, heard: Heard) -> None:
    for folder in (*Path("runs/grey").glob("fold1*"), *Path("runs/tiny").glob("fold1*")):
        poison(folder)
    add_external(teachers)
    assert main([*student(DISTIL, SOFT, "input.size=16", runs="grey"), *FIRST]) == 0
    examples = heard["fold0"].examples
    assert examples.teacher.shape[1:] == (1, 3)
    own = examples.kind == LABELLED
    ids = tuple(name for name, yes in zip(examples.ids, own, strict=True) if yes)
    assert np.allclose(examples.teacher[own, 0], said(Path("runs/grey/fold0"), ids), atol=1e-5)
    assert not set(ids) & set(heard["fold0"].valid_ids)
    # Images of other data sets are taught too, pseudo-labelled ones are not.
    assert examples.teacher_weights.tolist() == [float(kind != PSEUDO) for kind in examples.kind]
    assert (examples.kind == EXTERNAL).sum() == 3
    assert np.allclose(examples.teacher[examples.kind == EXTERNAL].sum(axis=2), 1, atol=1e-5)
    # The labels are the competition's still.
    assert set(np.unique(examples.targets[own])) == {0.0, 1.0}


def test_an_ensemble_teaches_by_the_weights_of_its_fold(teachers: Path, heard: Heard) -> None:
    write_ensemble(teachers, "both", ["tiny", "grey"], {None: (0.5, 0.5), 0: (0.25, 0.75), 1: (0.0, 1.0)})
    for folder in Path("runs/tiny").glob("fold1*"):
        poison(folder)  # counts for nothing in fold 1
    assert main(student(SOFT, DISTIL, runs="both")) == 0
    for fold, weight in ((0, 0.25), (1, 0.0)):
        ids, targets = rows(heard[f"fold{fold}"], PSEUDO)
        expected = stored(teachers, f"grey/fold{fold}", ids=ids)
        own, _ = rows(heard[f"fold{fold}"], LABELLED)
        trained_on = said(Path(f"runs/grey/fold{fold}"), own)
        if weight:
            tiny = stored(teachers, "tiny/fold0", "tiny/fold0-seed7", ids=ids)
            expected = weight * tiny + (1 - weight) * expected
            seeds = (said(Path("runs/tiny/fold0"), own) + said(Path("runs/tiny/fold0-seed7"), own)) / 2
            trained_on = weight * seeds + (1 - weight) * trained_on
        assert np.allclose(targets, expected, atol=1e-5)
        assert np.allclose(heard[f"fold{fold}"].examples.teacher[: len(own), 0], trained_on, atol=1e-5)
        record = json.loads(Path(f"runs/student/fold{fold}/labels.json").read_text())
        assert record["teachers"] == ["both"]


def test_online_teachers_are_the_fold_s_bundles(
    teachers: Path, heard: Heard, capsys: pytest.CaptureFixture[str]
) -> None:
    online = [DISTIL, "teacher.distill.how=online"]
    assert main(student(*online)) == 0
    for fold in (0, 1):
        found = heard[f"fold{fold}"].teacher
        assert found is not None
        assert found.excluded_fold == fold
        assert {(str(path), weight) for path, weight in found.bundles} == {
            (f"runs/tiny/fold{fold}", 0.5),
            (f"runs/tiny/fold{fold}-seed7", 0.5),
        }
        assert heard[f"fold{fold}"].examples.teacher.shape[1] == 0
    half = (0.5, 0.5)
    write_ensemble(teachers, "both", ["tiny", "grey"], {None: half, 0: half, 1: half}, method="gmean")
    capsys.readouterr()
    assert main(student(*online, runs="both")) == 2
    assert "blended by gmean" in capsys.readouterr().err


def test_an_online_teacher_that_gives_nan_is_blamed_itself(teachers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a network does in float16 whose activations are too large for it. Of two seeds the first is whole."""
    folder = teachers / "runs" / "tiny" / "fold0-seed7"
    bundle, model = load_bundle(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e30)
    save_weights(folder / "model.safetensors", model)
    digest = files.sha256_file(folder / "model.safetensors")
    write_bundle(folder / "bundle.json", replace(bundle, weights_sha256=digest))
    assert main([*student(DISTIL, "teacher.distill.how=online"), *FIRST]) == 1
    (line,) = (text for text in capsys.readouterr().err.splitlines() if text.startswith("goldfold: "))
    assert (
        "the online teacher tiny fold 0 gives NaN in fp32; set train.precision=fp32 or teacher.distill.how=stored"
        in line
    )
    assert "optim.lr" not in line


def test_a_cached_trunk_learns_each_stored_view(teachers: Path, heard: Heard) -> None:
    cached = ["model.freeze.cache=true", "model.freeze.stages=2", "model.freeze.cache_views=flip"]
    assert main([*student(DISTIL, "teacher.distill.how=online", *cached, runs="grey"), *FIRST]) == 0
    job = heard["fold0"]
    assert job.teacher is None
    assert job.examples.teacher.shape == (24, 2, 3)
    assert not np.allclose(job.examples.teacher[:, 0], job.examples.teacher[:, 1])


# --- the convenient, leaky forms --------------------------------------------------------------------------------------


def test_leaky_labels_are_those_of_all_folds_and_say_so(teachers: Path, heard: Heard) -> None:
    assert main(student(SOFT, DISTIL, "teacher.leaky=true", runs="tiny,grey")) == 0
    for fold in (0, 1):
        job = heard[f"fold{fold}"]
        ids, targets = rows(job, PSEUDO)
        every = [Predictions.read(Path(f"runs/{run}/test.parquet"), run).take(ids).values for run in ("tiny", "grey")]
        assert np.allclose(targets, np.mean(every, axis=0), atol=1e-6)
        own, _ = rows(job, LABELLED)
        oof = [Predictions.read(Path(f"runs/{run}/oof.parquet"), run).take(own).values for run in ("tiny", "grey")]
        assert np.allclose(job.examples.teacher[: len(own), 0], np.mean(oof, axis=0), atol=1e-6)
        assert json.loads(Path(f"runs/student/fold{fold}/labels.json").read_text())["excluded_fold"] is None
        assert SoftLabels.read(Path(f"runs/student/fold{fold}/labels.parquet")).excluded_fold is None
    assert json.loads(Path("runs/student/run.json").read_text())["leaky"]


def test_leaky_online_teachers_are_all_bundles(teachers: Path, heard: Heard) -> None:
    assert main(student(DISTIL, "teacher.distill.how=online", "teacher.leaky=true")) == 0
    found = heard["fold1"].teacher
    assert found is not None
    assert (len(found.bundles), found.excluded_fold) == (4, None)


def test_a_student_of_a_leaky_teacher_is_leaky(teachers: Path, heard: Heard) -> None:
    record = json.loads(Path("runs/tiny/run.json").read_text())
    Path("runs/tiny/run.json").write_text(json.dumps({**record, "leaky": True}))
    assert main(student(SOFT, DISTIL)) == 0
    ids, targets = rows(heard["fold0"], PSEUDO)
    # Its fold's bundles are asked still, but no fold is unknown to them.
    assert np.allclose(targets, stored(teachers, "tiny/fold0", "tiny/fold0-seed7", ids=ids), atol=1e-6)
    assert json.loads(Path("runs/student/fold0/labels.json").read_text())["excluded_fold"] is None
    assert heard["fold0"].recipe.teacher.leaky


def test_a_teacher_that_saw_the_fold_is_refused_by_the_data_room(
    teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the wrong fold's labels ever handed over, training would not begin."""
    monkeypatch.setattr(teaching, "excluded_fold", lambda teachers, fold: 1 - fold)
    for settings in ([SOFT], [DISTIL]):
        with pytest.raises(LeakError, match="may not teach the student of fold 0"):
            main(["--debug", *student(*settings), *FIRST])


def test_a_rate_test_leaves_nothing_in_the_run_s_folder(teachers: Path) -> None:
    command = ["lr-find", CONFIG, "--steps", "20", "--from", "1e-4", "name=student", "teacher.runs=[tiny]"]
    assert main([*command, SOFT, DISTIL, "teacher.distill.how=cross_fitted"]) == 0
    assert not Path("runs/student").exists()
