"""The exact files of a run, and how runs are skipped, refused and predicted again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from goldfold.cli import main
from goldfold.images import LazyImages
from goldfold.images.cache import Rows
from goldfold.images.decode import Pixels
from tests.pipeline.competitions import make_competition

FOLD = {
    "metrics.jsonl",
    "last/model.safetensors",
    "model.safetensors",
    "bundle.json",
    "oof.parquet",
    "test.parquet",
    "DONE",
}


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_exact_tree_of_a_run(project: Path) -> None:
    config = make_competition(project)
    assert main(["train", str(config), "train.seeds=[7]", "train.epochs=1"]) == 0
    expected = {"config.yaml", "run.json", "cv.json", "oof.parquet", "test.parquet"}
    for fold in ("fold0", "fold1", "fold0-seed7", "fold1-seed7"):
        expected |= {f"{fold}/{name}" for name in FOLD}
    assert tree(project / "runs") == {f"tiny/{name}" for name in expected}
    assert tree(project / "folds") == {"tiny.csv", "tiny.json"}
    oof = pd.read_parquet(project / "runs/tiny/oof.parquet")
    assert list(oof.columns) == ["id", "fold", "p_cat", "p_dog", "p_fox"]
    assert list(pd.read_parquet(project / "runs/tiny/test.parquet").columns) == ["id", "p_cat", "p_dog", "p_fox"]
    bundle = json.loads((project / "runs/tiny/fold0/bundle.json").read_text())
    assert bundle["task"]["classes"] == ["cat", "dog", "fox"]
    assert {"backbone", "size", "mean", "std"} <= bundle["model"].keys()
    lines = (project / "runs/tiny/fold0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1]


def test_the_exact_tree_of_a_student(project: Path) -> None:
    config = str(make_competition(project))
    assert main(["train", config, "train.epochs=1"]) == 0
    taught = ["teacher.runs=[tiny]", "teacher.pseudo.labels=soft"]
    crossed = ["teacher.distill.weight=0.5", "teacher.distill.how=cross_fitted", "teacher.distill.inner=2"]
    assert main(["train", config, "train.epochs=1", "--run", "student", "train.seeds=[7]", *taught, *crossed]) == 0
    expected = {"config.yaml", "run.json", "cv.json", "oof.parquet", "test.parquet"}
    for fold in ("fold0", "fold1", "fold0-seed7", "fold1-seed7"):
        expected |= {f"{fold}/{name}" for name in FOLD | {"labels.parquet", "labels.json"}}
    for fold in ("fold0", "fold1"):  # the inner networks serve all seeds
        expected |= {f"{fold}/inner/tiny-{part}/{name}" for part in (0, 1) for name in ("oof.parquet", "DONE")}
    assert tree(project / "runs/student") == expected
    labels = pd.read_parquet(project / "runs/student/fold1/labels.parquet")
    assert list(labels.columns) == ["id", "excluded_fold", "weight", "p_cat", "p_dog", "p_fox"]
    assert labels["excluded_fold"].unique().tolist() == [1]


def test_validation_predictions_come_from_the_fold_that_left_them_out(project: Path) -> None:
    config = make_competition(project)
    main(["train", str(config), "train.epochs=1"])
    folds = pd.read_csv(project / "folds/tiny.csv", dtype={"id": str}).set_index("id")["fold"]
    oof = pd.read_parquet(project / "runs/tiny/oof.parquet").set_index("id")
    assert (oof["fold"] == folds.loc[oof.index]).all()
    for fold in (0, 1):
        part = pd.read_parquet(project / f"runs/tiny/fold{fold}/oof.parquet").set_index("id")
        assert set(part.index) == set(folds[folds == fold].index)
        assert np.array_equal(part.filter(like="p_"), oof.loc[part.index].filter(like="p_"))


def test_a_finished_run_is_skipped_and_a_changed_one_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_competition(project)
    assert main(["train", str(config), "train.epochs=1"]) == 0
    before = {name: (project / "runs" / name).stat().st_mtime_ns for name in tree(project / "runs") if "fold" in name}
    assert main(["train", str(config), "train.epochs=1", "train.workers=0", "tracking.tags=[x]"]) == 0
    assert before == {name: (project / "runs" / name).stat().st_mtime_ns for name in before}
    capsys.readouterr()
    assert main(["train", str(config), "train.epochs=1", "optim.lr=0.5", "train.batch_size=4"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "optim.lr" in line
    assert "train.batch_size" in line
    assert "--run" in line
    assert main(["train", str(config), "train.epochs=1", "optim.lr=0.5", "--run", "other", "train.batch_size=4"]) == 0


def test_a_run_that_never_began_may_start_with_mended_settings(project: Path) -> None:
    config = make_competition(project)
    save_file({"other": torch.zeros(1)}, project / "other.safetensors")
    wrong = ["train.epochs=1", "model.pretrained=true", "model.weights=other.safetensors"]
    assert main(["train", str(config), *wrong]) == 2
    assert (project / "runs/tiny/config.yaml").exists()  # it failed after the run's folder was made
    assert main(["train", str(config), "train.epochs=1"]) == 0
    assert "other.safetensors" not in (project / "runs/tiny/config.yaml").read_text()


def test_changed_images_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_competition(project)
    assert main(["train", str(config), "train.epochs=1"]) == 0
    name = pd.read_csv(project / "data/tiny/train.csv", dtype=str)["id"][0]
    Image.new("RGB", (24, 24), "white").save(project / f"data/tiny/images/{name}.png")
    capsys.readouterr()
    assert main(["train", str(config), "train.epochs=1"]) == 2
    assert "train images (their bytes)" in capsys.readouterr().err


def test_one_fold_at_a_time(project: Path) -> None:
    config = make_competition(project)
    assert main(["train", str(config), "train.epochs=1", "--fold", "1"]) == 0
    assert not (project / "runs/tiny/cv.json").exists()
    assert not (project / "runs/tiny/fold0").exists()
    assert main(["train", str(config), "--fold", "0", "train.epochs=1"]) == 0
    assert (project / "runs/tiny/cv.json").exists()
    assert main(["train", str(config), "--fold", "5", "train.epochs=1"]) == 2


def test_predict_agrees_with_the_training_run(project: Path) -> None:
    config = make_competition(project)
    main(["train", str(config), "train.epochs=1", "tta.views=flips"])
    assert main(["predict", "tiny", "--csv", "data/tiny/test.csv"]) == 0
    trained = pd.read_parquet(project / "runs/tiny/test.parquet").set_index("id").sort_index()
    again = pd.read_parquet(project / "runs/tiny/predict-test.parquet").set_index("id").sort_index()
    assert list(trained.index) == list(again.index)
    assert np.abs(trained.to_numpy() - again.to_numpy()).max() < 1e-6


def test_predict_reads_each_image_once_for_all_folds(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_competition(project)
    main(["train", str(config), "train.epochs=1", "tta.views=flips", "input.cache=false", "train.workers=0"])
    read: Counter[int] = Counter()
    whole = LazyImages.read

    def counted(images: LazyImages, rows: Rows) -> Pixels:
        read.update(np.asarray(rows).tolist())
        return whole(images, rows)

    monkeypatch.setattr(LazyImages, "read", counted)
    assert main(["predict", "tiny", "--out", "together.parquet"]) == 0
    assert read == Counter(dict.fromkeys(range(12), 1))
    monkeypatch.setattr("goldfold.predict.free_memory", lambda device: 0)
    assert main(["predict", "tiny", "--out", "apart.parquet"]) == 0
    assert set(read.values()) == {3}  # where memory is short, once a fold
    pd.testing.assert_frame_equal(pd.read_parquet("together.parquet"), pd.read_parquet("apart.parquet"))


def test_a_changed_weight_file_is_noticed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_competition(project)
    main(["train", str(config), "train.epochs=1"])
    weights = project / "runs/tiny/fold1/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert main(["predict", "tiny"]) == 2
    assert "differs from the one that bundle.json records" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["train.workers=2", "input.cache=false"])
def test_workers_and_cache_never_change_a_result(project: Path, change: str) -> None:
    config = make_competition(project, mix={"mixup": 0.2}, augment={"preset": "light"})
    main(["train", str(config), "train.workers=0", "--fold", "0"])
    main(["train", str(config), change, "--run", "other", "--fold", "0"])
    one, other = (pd.read_parquet(project / f"runs/{name}/fold0/oof.parquet") for name in ("tiny", "other"))
    assert one.equals(other)


def test_best_epoch_and_early_stopping(project: Path) -> None:
    config = make_competition(project)
    settings = ["train.epochs=6", "train.keep=best", "train.early_stopping.patience=2", "optim.lr=0.02", "--fold", "0"]
    assert main(["train", str(config), *settings]) == 0
    lines = [json.loads(line) for line in (project / "runs/tiny/fold0/metrics.jsonl").read_text().splitlines()]
    done = json.loads((project / "runs/tiny/fold0/DONE").read_text())
    best = max(lines, key=lambda line: line["macro_f1"])
    assert done["best_epoch"] == best["epoch"]
    assert len(lines) == min(6, best["epoch"] + 2)
    from goldfold.metrics import get_metric, score
    from goldfold.records import Predictions
    from goldfold.tasks import Task

    oof = Predictions.read(project / "runs/tiny/fold0/oof.parquet", "tiny")
    labels = pd.read_csv(project / "data/tiny/train.csv", dtype=str).set_index("id")["label"].loc[list(oof.ids)]
    truth = (labels.to_numpy()[:, None] == np.array(oof.classes)).astype(np.float32)
    assert score(get_metric("macro_f1"), Task("multiclass", oof.classes), truth, oof.values) == pytest.approx(
        best["macro_f1"]
    )
