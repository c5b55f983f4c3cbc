"""`goldfold bench models`: candidates side by side, failures as rows, and what is finished is not measured again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from goldfold.cli import main
from goldfold.config import Config, load_config
from goldfold.errors import BadInput
from goldfold.paths import Workspace
from goldfold.pipeline.bench import models as models_module
from goldfold.pipeline.bench.candidates import Candidate, candidate_config, count_macs, pareto
from goldfold.pipeline.bench.models import bench_models
from goldfold.pipeline.bench.models_plot import draw_candidates, front_of
from goldfold.tasks import Task
from tests.models.networks import build
from tests.pipeline.competitions import make_competition

BAD = "test_vit"  # its patches do not fit into images of 24 pixels


@pytest.fixture
def config(project: Path) -> Config:
    return load_config(make_competition(project, rows=24))


def point(name: str, mean: float | None, rate: float | None = 1.0, why: str | None = None) -> Candidate:
    return Candidate(name, mean=mean, rate=rate, why=why, memory_mb=100.0, parameters=1.0)


def test_candidates_side_by_side(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Workspace(Path())
    table = bench_models(config, here, ["test_resnet", BAD], 1, [0], "small", ["goldfold", "bench"], apart=False)
    folder = Path("bench/small")
    record = json.loads((folder / "models.json").read_text())
    good, bad = record["candidates"]
    assert good["backbone"] == "test_resnet"
    assert all(good[key] > 0 for key in ("rate", "train_rate", "memory_mb", "parameters", "macs"))
    assert good["scores"] == [good["mean"]]
    assert (bad["mean"], bad["rate"]) == (None, None)
    assert "fails on images of side 24" in bad["why"]
    frame = pd.read_csv(folder / "table.csv").set_index("backbone")
    assert bool(frame.loc["test_resnet", "pareto"])
    text = table.read_text()
    assert f"- {BAD} failed: " in text
    assert "1 epochs at 24 px, folds 0" in text
    assert (folder / "pareto.png").stat().st_size > 10_000
    assert (folder / "runs/test_resnet/fold0/DONE").exists()
    assert not Path("runs").exists()

    # What is finished stays; what failed is tried again; others may be added.
    asked = []

    def measure(config: Config, workspace: Workspace, folds: list[int]) -> Candidate:
        asked.append(config.model.backbone)
        return point(config.model.backbone, 0.5)

    monkeypatch.setattr(models_module, "measure_candidate", measure)
    bench_models(config, here, ["test_resnet", BAD, "test_efficientnet"], 1, [0], "small", apart=False)
    assert asked == [BAD, "test_efficientnet"]
    record = json.loads((folder / "models.json").read_text())
    assert [each["backbone"] for each in record["candidates"]] == ["test_resnet", BAD, "test_efficientnet"]
    assert record["candidates"][0] == good

    for epochs, folds, what in ((2, [0], "train.epochs"), (1, [1], "--folds")):
        with pytest.raises(BadInput, match=f"compared here with other settings: .*{what}"):
            bench_models(config, here, ["test_resnet"], epochs, folds, "small", apart=False)


@pytest.mark.slow
def test_the_command_measures_each_in_a_process_of_its_own(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["bench", "models", "configs/tiny.yaml", "--backbones", "test_resnet", "--folds", "0", "--epochs", "1"])
        == 0
    )
    assert "| test_resnet " in capsys.readouterr().out
    (found,) = json.loads(Path("bench/tiny-models/models.json").read_text())["candidates"]
    assert found["why"] is None
    assert found["rate"] > 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--backbones", "test_resnet,resnet_of_nobody"], "--backbones: timm has no model 'resnet_of_nobody'"),
        (["--backbones", "torchvision/resnet_of_nobody"], "--backbones: "),
        (["--backbones", " , "], "--backbones: names no backbone"),
        (["--backbones", "resnet18,resnet18"], "--backbones: names one twice"),
        (["--backbones", "test_resnet", "--folds", "7"], "--folds: there is no fold 7"),
        (["--backbones", "test_resnet", "--folds", "x"], "--folds: expected numbers"),
        (["--backbones", "test_resnet", "--epochs", "0"], "--epochs: 0 epochs train nothing"),
        (["--backbones", "test_resnet", "--name", "a/b"], "--name: 'a/b' is not a folder name"),
        (["teacher.runs=[x]", "--backbones", "test_resnet"], "teacher"),
    ],
)
def test_bad_input_comes_before_any_training(
    arguments: list[str], line: str, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "models", "configs/tiny.yaml", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert len(error.splitlines()) == 1
    assert not Path("bench").exists()


def test_weights_are_each_backbones_own(config: Config) -> None:
    own = config.model_copy(
        update={
            "model": config.model.model_copy(update={"pretrained": True, "weights": "w/test_efficientnet.safetensors"})
        }
    )
    assert candidate_config(own, "test_efficientnet", None).model.weights == "w/test_efficientnet.safetensors"
    assert candidate_config(own, "test_resnet", None).model.weights == "w/test_resnet.safetensors"
    other = own.model_copy(update={"model": own.model.model_copy(update={"weights": "w/best.safetensors"})})
    assert candidate_config(other, "test_resnet", None).model.weights is None
    found = candidate_config(own, "torchvision/resnet18", 3)
    assert (found.name, found.train.epochs, found.competition.test_csv) == ("torchvision-resnet18", 3, None)


def test_multiply_additions_are_counted_once() -> None:
    three, five = (build(task=Task("multiclass", tuple(names))) for names in ("abc", "abcde"))
    # Two logits more cost two rows of the last layer.
    assert count_macs(five) - count_macs(three) == 2 * three.pooled_width


def test_the_front_holds_what_nothing_beats() -> None:
    points = [point("slow", 0.9, 10), point("fast", 0.8, 100), point("beaten", 0.8, 50), point("failed", None, None)]
    assert pareto(points, greater_is_better=True) == {"slow", "fast"}
    assert pareto(points, greater_is_better=False) == {"fast"}
    assert front_of([1.0, 2.0, 3.0], [0.5, 0.6, 0.6], more_is_better=False, greater=True) == {0, 1}


def test_without_matplotlib_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not draw_candidates([point("a", 0.5)], "auc", True, tmp_path / "pareto.png")
    assert 'pip install "goldfold[plot]"' in capsys.readouterr().err


def test_with_nothing_to_draw_a_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not draw_candidates([point("a", None, why="full")], "auc", True, tmp_path / "pareto.png")
    assert "no backbone has a score" in capsys.readouterr().err
