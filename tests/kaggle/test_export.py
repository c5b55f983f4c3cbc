"""``goldfold export``: a folder that predicts what the run or ensemble predicts, whole or not there at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from goldfold import files
from goldfold.cli import main
from goldfold.config.schema import Train
from goldfold.ensemble import load_blend, load_calibration, load_decisions
from goldfold.errors import BadInput
from goldfold.images import LazyImages
from goldfold.kaggle.folder import replaced
from goldfold.kaggle.manifest import verify
from goldfold.kaggle.metadata import check_dataset
from goldfold.kaggle.pack import Pack, load_bundle, read_oof, read_pack, read_truth
from goldfold.kaggle.upload import find_owner
from goldfold.machine import find_machine
from goldfold.metrics import get_metric
from goldfold.pipeline.exporting import _modules, inside_input
from goldfold.predict import predict_bundle
from goldfold.records import Predictions, average
from tests.contract.test_formats import documented, written
from tests.kaggle.packs import write_example
from tests.kaggle.test_upload import ANSWERS, answer, calls, client
from tests.pipeline.competitions import make_competition

__all__ = ["client"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs (one of two seeds), their ensemble, and the packs of a run and of the ensemble."""
    root = tmp_path_factory.mktemp("export")
    torch.set_num_threads(1)
    with contextlib.chdir(root):
        config = str(make_competition(root, rows=36, test_rows=8, tta={"views": "flip"}))
        small = ["train.epochs=1", "model.backbone=test_resnet", "train.seeds=[7]", "tta.size=32", "--run", "small"]
        assert main(["train", config, "train.epochs=1"]) == 0
        assert main(["train", config, *small]) == 0
        fitted = ["--method", "greedy", "--bags", "1", "--calibration", "temperature", "--decisions", "fitted"]
        assert main(["ensemble", "tiny", "small", "--name", "both", *fitted]) == 0
        assert main(["export", "both", "--to", "packs/both", "--hours", "4.5"]) == 0
        assert main(["export", "small", "--to", "packs/small"]) == 0
    return root


@pytest.fixture
def project(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The trained project as the working folder; packs that a test writes are taken away, others restored."""
    monkeypatch.chdir(trained)
    yield trained
    for path in trained.glob("packs/*"):
        if path.name not in ("both", "small"):
            shutil.rmtree(path)


def exported(*arguments: str) -> int:
    return main(["export", *arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def member_predictions(pack: Pack, csv: str = "", ids: list[str] | None = None) -> dict[str, Predictions]:
    """What the networks of a pack predict for the competition's test rows, from the pack and its input folder alone."""
    inputs = Path("data") / pack.competition.slug
    frame = files.read_csv(inputs / pack.competition.test_csv)
    names = list(frame[pack.competition.id_column])
    paths = [inputs / pack.competition.test_images.format(id=name) for name in names]
    found = {}
    for member in pack.members:
        images = LazyImages(names, paths, member.images)
        machine = find_machine(
            Train(
                precision=member.precision,
                memory_format="channels_last" if member.channels_last else "contiguous",
                device="cpu",
            )
        )
        parts = []
        for fold in member.folds:
            bundle, model = load_bundle(pack, member, fold)
            parts.append(
                predict_bundle(bundle, model, images, names, batch_size=member.batch_size, machine=machine, what="test")
            )
        found[member.name] = average(parts, member.name)
    return found


def test_an_ensembles_pack_predicts_what_the_ensemble_does(project: Path) -> None:
    pack = read_pack(Path("packs/both"))
    verify(pack.folder)
    assert pack.ensemble is not None
    assert [len(member.folds) for member in pack.members] == [2, 4]
    found = member_predictions(pack)
    for name, values in found.items():
        expected = Predictions.read(project / "runs" / name / "test.parquet", name)
        assert np.abs(values.take(expected.ids).values - expected.values).max() < 1e-6
    expected = Predictions.read(project / "ensembles/both/test.parquet", "both")
    blend = load_blend(pack.ensemble, None)
    values = blend.apply([found[name].take(expected.ids).values for name in blend.members], pack.task)
    calibration = load_calibration(pack.ensemble, pack.task)
    assert calibration is not None
    assert np.abs(calibration.apply(values, pack.task) - expected.values).max() < 1e-6
    assert load_decisions(pack.ensemble, pack.task) is not None


def test_what_the_kernel_needs_of_the_competition(project: Path) -> None:
    pack = read_pack(Path("packs/both"))
    train = pd.read_csv("data/tiny/train.csv")
    assert pack.prior == pytest.approx([(train["label"] == name).mean() for name in pack.task.classes])
    assert (pack.competition.test_csv, pack.competition.sample_csv) == ("test.csv", "sample_submission.csv")
    assert pack.competition.test_images == "images/{id}.png"
    assert (pack.submission.shape, pack.submission.columns) == ("label", ("label",))
    assert (pack.source, pack.kind, pack.hours, pack.leaky) == ("both", "ensemble", 4.5, False)
    record = files.read_json(project / "ensembles/both/ensemble.json")
    told = [
        (member["name"], member["weight"], member["score"], member["marginal_gain"]) for member in record["members"]
    ]
    assert [(member.name, member.weight, member.score, member.marginal_gain) for member in pack.members] == told
    assert [member.side for member in pack.members] == [24, 32]
    assert {fold.seed for fold in pack.member("small").folds} == {0, 7}
    assert all(member.image_bytes > 24 * 24 * 3 and member.weights_bytes > 1e5 for member in pack.members)


def test_tables_for_fitting_weights_anew(project: Path) -> None:
    pack = read_pack(Path("packs/both"))
    truth = read_truth(pack)
    labels = pd.read_csv("data/tiny/train.csv").set_index("id")["label"]
    assert [pack.task.classes[column] for column in truth.targets.argmax(axis=1)] == list(labels[list(truth.ids)])
    for name in ("tiny", "small"):
        oof = read_oof(pack, name)
        assert set(oof.ids) == set(truth.ids)
        assert oof.take(truth.ids).fold.tolist() == truth.fold.tolist()  # type: ignore[union-attr]


def test_the_pack_of_a_run(project: Path) -> None:
    pack = read_pack(Path("packs/small"))
    assert (pack.kind, pack.ensemble, pack.hours) == ("run", None, 9.0)
    (member,) = pack.members
    assert (member.weight, member.marginal_gain) == (1.0, None)
    assert not (pack.folder / "oof").exists()
    expected = Predictions.read(project / "runs/small/test.parquet", "small")
    found = member_predictions(pack)["small"].take(expected.ids)
    assert np.abs(found.values - expected.values).max() < 1e-6


def test_the_same_again_is_the_same_bytes_and_metadata_stay(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(Path("packs/both"))
    check_dataset(json.loads(before["dataset-metadata.json"]), "here")
    assert exported("both", "--to", "packs/again", "--hours", "4.5") == 0
    assert contents(Path("packs/again")) == before
    mine = {**json.loads(before["dataset-metadata.json"]), "title": "My own title", "id": "me/my-own"}
    Path("packs/again/dataset-metadata.json").write_text(json.dumps(mine))
    Path("packs/again/left-over.txt").write_text("of an older pack")
    assert exported("both", "--to", "packs/again", "--hours", "4.5") == 0
    assert json.loads(Path("packs/again/dataset-metadata.json").read_text()) == mine
    assert contents(Path("packs/again")).keys() == before.keys()
    assert sorted(path.name for path in Path("packs").iterdir()) == ["again", "both", "small"]
    printed = capsys.readouterr().out
    assert "ensemble both: 2 members, 6 networks, 4.5 hours" in printed
    total = sum(
        len(content) for name, content in before.items() if name not in ("MANIFEST.json", "dataset-metadata.json")
    )
    assert f"size: {total / 1e6:.3g} MB" in printed
    assert "expected memory: " in printed


def test_float16_is_measured(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported("small", "--to", "packs/half", "--fp16") == 0
    pack = read_pack(Path("packs/half"))
    rounding = pack.rounding
    assert rounding is not None
    # The rows are few enough for all of them to be in the sample: the score before is the run's own.
    cv = files.read_json(project / "runs/small/cv.json")
    assert (rounding.rows, rounding.metric) == (36, cv["metric"])
    assert rounding.before == pytest.approx(cv["oof"][cv["metric"]], abs=1e-9)
    assert f"instead of {rounding.before:.6f}" in capsys.readouterr().out
    # The largest change, by the networks that lie in the pack.
    oof = Predictions.read(project / "runs/small/oof.parquet", "small")
    member = pack.members[0]
    images = LazyImages(oof.ids, [Path(f"data/tiny/images/{name}.png") for name in oof.ids], member.images)
    machine = find_machine(Train(device="cpu"))
    values = np.zeros_like(oof.values)
    assert oof.fold is not None
    for fold in member.folds:
        bundle, model = load_bundle(pack, member, fold)
        rows = np.flatnonzero(oof.fold == fold.fold)
        ids = [oof.ids[row] for row in rows]
        found = predict_bundle(bundle, model, images, ids, batch_size=64, machine=machine, what="valid")
        values[rows] += found.values / 2
    assert rounding.largest == pytest.approx(np.abs(values - oof.values).max(), rel=0.02)
    assert 0 < rounding.largest < 0.01
    whole = sum(path.stat().st_size for path in Path("packs/small/weights").iterdir())
    assert sum(path.stat().st_size for path in Path("packs/half/weights").iterdir()) < 0.65 * whole


def test_float16_of_an_ensemble_goes_through_its_blend(project: Path) -> None:
    assert exported("both", "--to", "packs/half", "--fp16") == 0
    rounding = read_pack(Path("packs/half")).rounding
    record = files.read_json(project / "ensembles/both/ensemble.json")
    assert rounding is not None
    assert rounding.before == pytest.approx(record["cv"]["score"], abs=1e-9)


def test_leaks_are_marked(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project / "runs/small/run.json"
    kept = path.read_bytes(), (path.parent / "cv.json").read_bytes()
    for name in ("run.json", "cv.json"):
        files.write_json(path.parent / name, {**files.read_json(path.parent / name), "leaky": True})
    try:
        assert exported("both", "--to", "packs/leaky") == 0
    finally:
        path.write_bytes(kept[0])
        (path.parent / "cv.json").write_bytes(kept[1])
    pack = read_pack(Path("packs/leaky"))
    assert pack.leaky
    assert [(member.name, member.leaky) for member in pack.members] == [("tiny", False), ("small", True)]
    assert "both (leaky)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nobody", "--to", "packs/new"), "there is no such run or ensemble; there are both, small, tiny"),
        (("tiny", "--to", "packs/new", "--hours", "0"), "--hours: 0 hours are no time"),
        (("tiny", "--to", "packs/new", "--hours", "nan"), "--hours: nan hours"),
        (("tiny", "--to", "data"), "holds other files than a pack"),
        (("tiny", "--to", "data/tiny/train.csv"), "is a file, not a pack"),
    ],
)
def test_bad_requests_write_nothing(
    arguments: tuple[str, ...], message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(project / "data")
    assert exported(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert contents(project / "data") == before
    assert not Path("packs/new").exists()


def test_a_broken_bundle_leaves_the_older_pack(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(Path("packs/both"))
    weights = project / "runs/small/fold1/model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-8])
    try:
        assert exported("both", "--to", "packs/both") == 2
    finally:
        weights.write_bytes(kept)
    assert "small/fold1/model.safetensors: the file differs" in capsys.readouterr().err
    assert contents(Path("packs/both")) == before
    assert sorted(path.name for path in Path("packs").iterdir()) == ["both", "small"]


def test_a_full_disk_leaves_the_older_pack(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(Path("packs/both"))

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("goldfold.kaggle.export.write_wheels", full)
    assert exported("both", "--to", "packs/both") == 1
    assert exported("both", "--to", "packs/new") == 1
    assert contents(Path("packs/both")) == before
    assert sorted(path.name for path in Path("packs").iterdir()) == ["both", "small"]


def test_an_unfinished_run_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv = project / "runs/tiny/cv.json"
    kept = cv.read_bytes()
    cv.unlink()
    try:
        assert exported("tiny", "--to", "packs/new") == 2
        assert exported("both", "--to", "packs/new") == 2
    finally:
        cv.write_bytes(kept)
    assert capsys.readouterr().err.count("runs/tiny: the run is not finished") == 2


def test_a_run_without_test_rows_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = project / "runs/tiny/config.yaml"
    kept = config.read_text()
    config.write_text(kept.replace("test_csv: data/tiny/test.csv", "test_csv: null"))
    try:
        assert exported("tiny", "--to", "packs/new") == 2
    finally:
        config.write_text(kept)
    assert "competition.test_csv: is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/leaf/test.csv", "test.csv"),
        ("data/leaf/images/{id}.png", "images/{id}.png"),
        ("/kaggle/input/leaf/images/{id}.png", "images/{id}.png"),
        ("/kaggle/input/competitions/leaf/test.csv", "test.csv"),
        ("/home/me/leaf-data/images/{site}/{id}.png", "images/{site}/{id}.png"),  # beside the train CSV
        ("images/{id}.png", "images/{id}.png"),
        ("data/images/{id}.png", "images/{id}.png"),
    ],
)
def test_paths_as_they_are_on_kaggle(path: str, expected: str) -> None:
    assert inside_input("competition.image_path", path, "leaf", Path(), "/home/me/leaf-data/train.csv") == expected


@pytest.mark.parametrize("path", ["/elsewhere/{id}.png", "../images/{id}.png"])
def test_images_outside_of_the_competitions_data_are_refused(path: str) -> None:
    with pytest.raises(BadInput, match=r"competition\.image_path: .* lies outside of the competition's data; keep"):
        inside_input("competition.image_path", path, "leaf", Path(), "data/leaf/train.csv")


def test_a_metric_of_ones_own_comes_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "our_metric_of_export.py").write_text("def score(truth, values):\n    return 0.25\n")
    (tmp_path / "our_package/inner").mkdir(parents=True)
    (tmp_path / "our_package/inner/metric.py").write_text("")
    assert list(_modules("our_package.inner.metric:score", tmp_path)) == ["our_package/inner/metric.py"]
    assert _modules("accuracy", tmp_path) == {}
    assert _modules("not_here:score", tmp_path) == {}
    assert "Kaggle's image must have the package not_here" in capsys.readouterr().err
    found = write_example(tmp_path, modules=_modules("our_metric_of_export:score", tmp_path))
    truth = read_truth(found.pack)
    metric = get_metric("our_metric_of_export:score", "max", found.pack.modules)
    assert metric.function(found.pack.task, truth.targets, truth.targets) == 0.25


def test_one_export_at_a_time(tmp_path: Path) -> None:
    with files.locked(tmp_path / ".pack.tmp"), pytest.raises(BadInput, match="another process is writing it"):
        write_example(tmp_path)
    assert not (tmp_path / "pack").exists()


def test_an_export_that_was_killed_between_its_renames_is_mended(tmp_path: Path) -> None:
    (tmp_path / ".new.old").mkdir()
    (tmp_path / ".new.old/older").write_text("x")
    (tmp_path / ".new.tmp/half").mkdir(parents=True)

    def interrupted() -> None:
        with replaced(tmp_path / "new", lambda folder: True, "pack") as folder:
            assert not any(folder.iterdir())
            assert (tmp_path / "new/older").read_text() == "x"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    with replaced(tmp_path / "new", lambda folder: True, "pack") as folder:
        (folder / "newer").write_text("y")
    assert contents(tmp_path) == {"new/newer": b"y"}


# --- push --------------------------------------------------------------------------------------------------------------


def test_push_creates_and_later_makes_a_version(
    project: Path, client: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exported("small", "--to", "packs/pushed", "--push") == 0
    assert json.loads(Path("packs/pushed/dataset-metadata.json").read_text())["id"] == "someone/tiny-small-pack"
    assert capsys.readouterr().out.splitlines()[-1] == "Your private Dataset is being created. See https://k.co/new"
    answer(client, datasets_status=(0, "ready", ""))
    assert exported("small", "--to", "packs/pushed", "--push") == 0
    last = calls(client)[-1]
    assert last[:4] == ["datasets", "version", "-p", "packs/pushed"]
    assert last[5].startswith("small, Goldfold ")
    assert capsys.readouterr().out.splitlines()[-1].endswith("https://k.co/version")
    assert ANSWERS["datasets status"][0] == 1  # what the first push was told


def test_push_without_a_client_says_so_before_any_work(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    assert exported("small", "--to", "packs/pushed", "--push") == 2
    assert capsys.readouterr().err == (
        "goldfold: kaggle: there is no command 'kaggle'; pip install 'goldfold[kaggle]'\n"
    )
    assert not Path("packs/pushed").exists()
    with pytest.raises(BadInput):
        find_owner()


def test_an_owner_may_be_named(project: Path) -> None:
    assert exported("small", "--to", "packs/owned", "--owner", "our-team") == 0
    assert json.loads(Path("packs/owned/dataset-metadata.json").read_text())["id"] == "our-team/tiny-small-pack"


def test_the_time_limit_is_the_competitions_and_no_export_resets_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exported("small", "--to", "packs/hours", "--hours", "6") == 0
    assert exported("small", "--to", "packs/hours") == 0
    assert read_pack(Path("packs/hours")).hours == 6.0
    assert "6 hours for the kernel (as the pack that is replaced)" in capsys.readouterr().err
    config = Path("runs/small/config.yaml")
    before = config.read_text()
    try:
        config.write_text(before.replace("hours: null", "hours: 4.5"))
        assert exported("small", "--to", "packs/hours") == 0
    finally:
        config.write_text(before)
    assert read_pack(Path("packs/hours")).hours == 4.5
    assert "4.5 hours for the kernel (competition.hours)" in capsys.readouterr().err


# --- docs/formats.md ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pack.json", "MANIFEST.json"])
def test_the_page_lists_exactly_the_keys_that_are_written(name: str, project: Path) -> None:
    assert exported("both", "--to", "packs/half", "--fp16") == 0
    known = documented(name)
    record: Any = json.loads(Path("packs/half", name).read_text())
    assert written(record, known) == known


def test_the_page_shows_the_tree(project: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/formats.md").read_text(encoding="utf-8")
    tree = page.partition("## The pack\n")[2].partition("\n## ")[0]
    for path in contents(Path("packs/both")):
        top = path.split("/")[0]
        assert top in tree, f"{path} is not in the tree"
