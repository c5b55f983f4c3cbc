"""Views and test size through whole runs: what is chosen, by whose labels, and what it reports."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from goldfold import files
from goldfold.bundle import read_bundle
from goldfold.cli import main
from goldfold.config import load_config
from goldfold.metrics import score
from goldfold.paths import Workspace
from goldfold.pipeline import views as room
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.stages import load_folds
from goldfold.records import Predictions
from goldfold.training import finish
from tests.pipeline.competitions import make_competition
from tests.pipeline.test_resume import artefacts

AUTO = {"views": "auto", "candidates": "flips", "batch_size": 7}
AGAIN = ("fold1/test.parquet", "views.json")
FLIP, UPSIDE, BOTH = "HorizontalFlip", "VerticalFlip", "HorizontalFlip+VerticalFlip"
NAMES = ("identity", UPSIDE, FLIP, BOTH)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def oof(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path).set_index("id").sort_index()


def open_run(config: Path, name: str = "tiny") -> room._Run:
    settings = load_config(config)
    data = load_competition(settings.competition, Path())
    return room._Run(settings, data, Workspace(Path()).run(name), tuple(load_folds(settings, data, Workspace(Path()))))


def plant(config: Path, change: Any) -> None:
    """Put made-up probabilities in the place of every fold's views.parquet, and let the choice be made again.

    ``change``: (view's name, fold, rows' true class) → the probability of the true class (N,).
    """
    run = open_run(config)
    for fold, folders in run.folders.items():
        ids = run.ids(fold)
        truth = run.data.targets_of(ids)
        for folder in folders:
            parts = []
            for name in run.names:
                sure = change(name, fold, truth.argmax(axis=1))[:, None]
                parts.append(truth * sure + (1 - truth) * (1 - sure) / (truth.shape[1] - 1))
            table = room.ViewTable(ids, run.names, np.stack(parts).astype(np.float32), run.data.task.classes)
            table.write(folder.views, "id")


def helps(kind: str, strength: float = 0.6) -> Any:
    """View ``kind`` mends what the identity gets wrong; the others make it worse."""

    def change(name: str, fold: int, truth: np.ndarray) -> np.ndarray:
        if name == "identity":
            return np.where(np.arange(len(truth)) % 3 == 0, 0.3, 0.5)
        return np.full(len(truth), strength if name == kind else 0.05)

    return change


class TestSize:
    def test_predictions_are_made_at_it_and_the_bundles_repeat_them(self, project: Path) -> None:
        config = make_competition(project, tta={"views": "flip"}, train={"epochs": 2})
        assert main(["train", str(config), "--run", "plain"]) == 0
        assert main(["train", str(config), "--run", "large", "tta.size=36"]) == 0
        plain, large = (oof(Path(f"runs/{name}/oof.parquet")).filter(like="p_") for name in ("plain", "large"))
        assert not np.allclose(plain, large, atol=1e-4)
        weights = [files.sha256_file(Path(f"runs/{name}/fold0/model.safetensors")) for name in ("plain", "large")]
        assert weights[0] == weights[1]  # training never sees it
        bundle = read_bundle(Path("runs/large/fold0"))
        assert (bundle.size, bundle.images.size, bundle.model.size) == (36, 36, 24)
        losses = [read_lines(f"runs/{name}/fold0/metrics.jsonl") for name in ("plain", "large")]
        assert [line["loss"] for line in losses[0]] == [line["loss"] for line in losses[1]]
        # Fold by fold, from bundles alone: each fold's own rows come out as they were, to the bit.
        frame = pd.read_csv("data/tiny/train.csv", dtype=str)
        for fold in (0, 1):
            kept = Predictions.read(Path(f"runs/large/fold{fold}/oof.parquet"), "large")
            frame[frame["id"].isin(kept.ids)].to_csv("part.csv", index=False)
            other = Path(f"runs/large/fold{1 - fold}/DONE")
            other.rename("DONE")
            assert main(["predict", "large", "--csv", "part.csv", "--out", "part.parquet"]) == 0
            Path("DONE").rename(other)
            again = Predictions.read(Path("part.parquet"), "large").take(kept.ids)
            assert np.array_equal(again.values, kept.values)
        assert main(["predict", "large"]) == 0
        expected, found = (pd.read_parquet(f"runs/large/{name}.parquet") for name in ("test", "predict-test"))
        pd.testing.assert_frame_equal(found, expected)

    def test_stored_pictures_that_are_large_enough_are_used(self, project: Path) -> None:
        config = make_competition(project, train={"epochs": 1}, input={"size": 24, "cache_size": 40})
        assert main(["train", str(config), "tta.size=36", "--fold", "0"]) == 0
        bundle = read_bundle(Path("runs/tiny/fold0"))
        assert (bundle.size, bundle.images.size) == (36, 40)
        assert len(list(Path(".cache/goldfold").glob("*/index.json"))) == 2  # train and test, once

    @pytest.mark.parametrize("setting", ["tta.size=48", "tta.views=scales"])
    def test_a_network_of_a_fixed_size_is_refused(
        self, setting: str, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = make_competition(project, model={"backbone": "test_vit3"}, input={"size": 32})
        arguments = [str(config), "tta.batch_size=8", setting]
        for command in (["train"], ["check", "--no-decode"]):
            assert main([*command, *arguments]) in (1, 2)
            shown = capsys.readouterr()
            line = next(line for line in (shown.out + shown.err).splitlines() if "test_vit3 cannot take" in line)
            assert setting.split("=")[0] in line
        assert not list(Path("runs").rglob("metrics.jsonl"))


def read_lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_last_validation_is_not_repeated(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_competition(project, train={"epochs": 2}, tta={"views": "flip"}, competition={"test_csv": None})
    assert main(["train", str(config), "--run", "saved", "--fold", "0"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(finish, "_seen_before", lambda *_: None)
        assert main(["train", str(config), "--run", "repeated", "--fold", "0"]) == 0
    kept, again = (oof(Path(f"runs/{name}/fold0/oof.parquet")) for name in ("saved", "repeated"))
    pd.testing.assert_frame_equal(kept, again)
    seen: list[list[str]] = []
    real = finish.predict_images
    monkeypatch.setattr(finish, "predict_images", lambda *a, **k: seen.append(sorted(k["known"])) or real(*a, **k))
    assert main(["train", str(config), "--run", "third", "--fold", "0"]) == 0
    assert main(["train", str(config), "--run", "best", "train.keep=best", "--fold", "0"]) == 0
    assert main(["train", str(config), "--run", "soup", "train.soup.epochs=2", "--fold", "0"]) == 0
    assert seen == [["identity"], [], []]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds, two seeds, trained once; each test works on a copy."""
    root = tmp_path_factory.mktemp("auto")
    torch.set_num_threads(1)
    with contextlib.chdir(root):
        config = make_competition(
            root, tta=AUTO, train={"epochs": 1, "seeds": [7]}, folds={"n": 3}, competition={"metric": "log_loss"}
        )
        assert main(["train", str(config)]) == 0
    return root


@pytest.fixture
def copy(trained: Path, project: Path) -> Path:
    shutil.copytree(trained, project, dirs_exist_ok=True)
    return Path("configs/tiny.yaml")


class TestAuto:
    def test_the_view_that_helps_is_chosen_and_used(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        plant(copy, helps(UPSIDE))
        assert main(["train", str(copy)]) == 0
        record = read(Path("runs/tiny/views.json"))
        for fold in ("0", "1", "2"):
            assert record["folds"][fold]["chosen"] == ["identity", UPSIDE]
            for folder in (f"fold{fold}", f"fold{fold}-seed7"):
                assert read_bundle(Path("runs/tiny") / folder).chosen == ("identity", UPSIDE)
        assert record["all"]["passes"] == 2
        shown = capsys.readouterr()
        line = next(line for line in (shown.out + shown.err).splitlines() if line.startswith(f"{UPSIDE} "))
        assert line.endswith("3 of 3")
        # The bundles show the test images those views.
        assert main(["predict", "tiny"]) == 0
        expected, found = (pd.read_parquet(f"runs/tiny/{name}.parquet") for name in ("test", "predict-test"))
        pd.testing.assert_frame_equal(found, expected)

    def test_the_test_images_are_predicted_with_the_chosen_views(self, copy: Path) -> None:
        before = oof(Path("runs/tiny/fold0/test.parquet"))
        plant(copy, helps(UPSIDE))
        assert main(["train", str(copy)]) == 0
        upside = oof(Path("runs/tiny/fold0/test.parquet"))
        plant(copy, helps(FLIP))
        assert main(["train", str(copy)]) == 0
        flipped = oof(Path("runs/tiny/fold0/test.parquet"))
        assert not np.allclose(upside, flipped, atol=1e-6)
        assert not (np.allclose(before, upside, atol=1e-7) and np.allclose(before, flipped, atol=1e-7))

    def test_a_folds_own_labels_choose_nothing_for_it(self, copy: Path) -> None:
        """Fold 0 would gladly take one view and the others another: each gets what the *others* would take."""

        def change(name: str, fold: int, truth: np.ndarray) -> np.ndarray:
            return helps(UPSIDE if fold == 0 else FLIP, 0.9)(name, fold, truth)

        plant(copy, change)
        assert main(["train", str(copy)]) == 0
        record = read(Path("runs/tiny/views.json"))
        assert record["folds"]["0"]["chosen"] == ["identity", FLIP]
        run = open_run(copy)
        choices = {fold: room.choose_fold(run, run.tables[0], fold) for fold in (0, 1, 2)}
        # Other labels for fold 0 change the choice for the other folds, and never its own.
        rows = run.data.rows_of(run.ids(0))
        run.data.targets[rows] = np.roll(run.data.targets[rows], 1, axis=1)
        other = {fold: room.choose_fold(run, run.tables[0], fold) for fold in (0, 1, 2)}
        assert other[0] == choices[0]
        assert other[1] != choices[1]

    def test_the_report_by_hand(self, copy: Path) -> None:
        def change(name: str, fold: int, truth: np.ndarray) -> np.ndarray:
            return helps(UPSIDE if fold == 0 else FLIP, 0.9)(name, fold, truth)

        plant(copy, change)
        assert main(["train", str(copy)]) == 0
        record, cv = read(Path("runs/tiny/views.json")), read(Path("runs/tiny/cv.json"))
        assert record["cross_fitted"] == cv["oof"]["log_loss"]  # the run's own score is the honest one
        run = open_run(copy)

        def by_hand(chosen: dict[int, list[str]]) -> float:
            values, ids = [], []
            for fold, names in chosen.items():
                seeds = []
                for folder in run.folders[fold]:
                    frame = pd.read_parquet(folder.views)
                    part = frame[frame["view"].isin(names)].groupby("id").mean(numeric_only=True)
                    seeds.append(part.loc[list(run.ids(fold))].to_numpy())
                values.append(np.mean(seeds, axis=0))
                ids += run.ids(fold)
            probabilities = np.concatenate(values).astype(np.float32)
            return score(run.data.metrics[0], run.data.task, run.data.targets_of(tuple(ids)), probabilities)

        folds = {fold: record["folds"][str(fold)]["chosen"] for fold in (0, 1, 2)}
        everywhere = [(name, by_hand({fold: [name] for fold in (0, 1, 2)})) for name in NAMES]
        assert {view["view"]: pytest.approx(view["score"], abs=1e-6) for view in record["views"]} == dict(everywhere)
        assert record["cross_fitted"] == pytest.approx(by_hand(folds), abs=1e-6)
        assert record["plain"] == pytest.approx(by_hand(dict.fromkeys(folds, record["all"]["chosen"])), abs=1e-6)
        assert record["identity"] == pytest.approx(everywhere[0][1], abs=1e-6)
        assert record["optimism"] == pytest.approx(record["cross_fitted"] - record["plain"])
        assert record["optimism"] > 0  # here the choice on all rows flatters itself
        steps = record["all"]["steps"]
        assert steps[0] == {"view": "identity", "score": record["identity"], "gain": None, "passes": 1, "pixels": 1.0}
        assert steps[1]["gain"] == pytest.approx(steps[0]["score"] - steps[1]["score"])
        assert steps[-1]["score"] == pytest.approx(record["plain"])
        assert record["folds"]["0"]["pixels"] == len(folds[0])

    def test_a_fold_waits_for_the_others(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = make_competition(project, tta=AUTO, train={"epochs": 1})
        assert main(["train", str(config), "--fold", "0"]) == 0
        assert not Path("runs/tiny/views.json").exists()
        assert not Path("runs/tiny/fold0/test.parquet").exists()
        assert read_bundle(Path("runs/tiny/fold0")).chosen == ("identity",)
        assert main(["predict", "tiny"]) == 2
        assert "the views are not chosen yet" in capsys.readouterr().err
        assert main(["train", str(config), "--fold", "1"]) == 0
        assert Path("runs/tiny/views.json").exists()
        assert Path("runs/tiny/cv.json").exists()

    def test_repeats_choose_within_themselves(self, project: Path) -> None:
        config = make_competition(project, tta=AUTO, train={"epochs": 1}, folds={"n": 2, "repeats": 2})
        assert main(["train", str(config)]) == 0

        def change(name: str, fold: int, truth: np.ndarray) -> np.ndarray:
            return helps(UPSIDE if fold < 2 else FLIP, 0.9)(name, fold, truth)

        plant(config, change)
        assert main(["train", str(config)]) == 0
        record = read(Path("runs/tiny/views.json"))
        assert [record["folds"][fold]["chosen"][1] for fold in "0123"] == [UPSIDE, UPSIDE, FLIP, FLIP]
        assert record["cross_fitted"] == read(Path("runs/tiny/cv.json"))["oof"]["macro_f1"]

    @pytest.mark.parametrize("command", ["train", "check"])
    def test_one_fold_is_refused(self, command: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = make_competition(project, tta=AUTO)
        frame = pd.read_csv("data/tiny/train.csv", dtype=str)
        frame["held"] = [str(int(row % 4 == 0)) for row in range(len(frame))]
        frame.to_csv("data/tiny/train.csv", index=False)
        held = ["folds.scheme=holdout", "folds.column=held"]
        assert main([command, str(config), *held]) in (1, 2)
        shown = capsys.readouterr()
        assert "auto chooses a fold's views on the other folds, and there is one fold" in shown.out + shown.err
        assert not Path("runs").exists()

    def test_nothing_is_done_twice(self, copy: Path) -> None:
        def times() -> dict[Path, int]:
            kept = [path for path in Path("runs/tiny").rglob("fold*/*") if path.is_file()]
            return {path: path.stat().st_mtime_ns for path in [*kept, Path("runs/tiny/views.json")]}

        before = times()
        assert main(["train", str(copy)]) == 0
        assert times() == before
        Path("runs/tiny/fold1/test.parquet").unlink()
        assert main(["train", str(copy)]) == 0
        changed = {path for path, when in times().items() if before[path] != when}
        assert changed == {*Path("runs/tiny").glob("fold*/oof.parquet"), *[Path("runs/tiny") / name for name in AGAIN]}


def test_a_full_gpu_while_views_are_settled_is_told_as_that(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network took every view in training; the test images in one batch are too many."""
    plant(copy, helps(UPSIDE))
    run = Path("runs/tiny")
    for name in ("views.json", "cv.json"):
        (run / name).unlink()

    def full(*arguments: object, **settings: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(room, "predict_bundle", full)
        assert main(["train", str(copy)]) == 1
    (line,) = (text for text in capsys.readouterr().err.splitlines() if text.startswith("goldfold: "))
    assert line == f"goldfold: {run}: the GPU's memory is full; lower tta.batch_size"
    assert not (run / "views.json").exists()
    assert not (run / "cv.json").exists()
    # The same command goes on, with smaller batches too.
    assert main(["train", str(copy), "tta.batch_size=3"]) == 0
    assert read(run / "views.json")["folds"]["0"]["chosen"] == ["identity", UPSIDE]
    assert (run / "cv.json").exists()


class Killed(BaseException):
    pass


def test_a_choice_killed_at_any_write_ends_bit_identical(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(copy, helps(UPSIDE))
    run = Path("runs/tiny")
    shutil.copytree(run, "planted")
    real, count = files.write_atomic, [0]

    def attempt(kill_at: int | None) -> None:
        def counted(path: Path, write: Any) -> None:
            count[0] += 1
            real(path, write)
            if count[0] == kill_at:
                raise Killed

        shutil.rmtree(run)
        shutil.copytree("planted", run)
        count[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_atomic", counted)
            if kill_at is None:
                assert main(["train", str(copy)]) == 0
                return
            with pytest.raises(Killed):
                main(["train", str(copy)])
        assert main(["train", str(copy)]) == 0

    attempt(None)  # the copied images are read once
    attempt(None)
    whole, writes = artefacts(run), count[0]
    assert {"views.json", "fold0/views.parquet", "fold1-seed7/test.parquet"} <= whole.keys()
    assert read_bundle(run / "fold0").chosen == ("identity", UPSIDE)
    assert writes > 6 * 3
    for point in range(1, writes, 3):
        attempt(point)
        assert artefacts(run) == whole, point
