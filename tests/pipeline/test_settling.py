"""What a run computes in is chosen once: kept for its folds, resumes and predictions, and written into its record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from goldfold import measuring
from goldfold.cli import main
from goldfold.config import load_config
from goldfold.machine import Machine, Mode, find_machine
from goldfold.measuring import Network, Timing
from goldfold.pipeline import settling
from goldfold.pipeline.competition import load_competition
from goldfold.training import session
from tests.pipeline.competitions import make_competition
from tests.pipeline.test_resume import artefacts

CONFIG = "configs/tiny.yaml"
FP32, BF16, PLAIN = Mode("fp32"), Mode("bf16"), Mode("fp32", channels_last=False)


def train(name: str, *overrides: str, folds: tuple[str, ...] = ("--fold", "0")) -> int:
    return main(["train", CONFIG, "--run", name, *folds, "train.epochs=1", *overrides])


def record(name: str) -> dict[str, Any]:
    return dict(json.loads(Path(f"runs/{name}/run.json").read_text()))


def stored(pattern: str = "*.json") -> list[Path]:
    return sorted(Path(".cache/goldfold/speeds").glob(pattern))


@pytest.fixture(autouse=True)
def competition(project: Path) -> None:
    make_competition(project)


class Speeds:
    """Stands in for the measurement: bf16 trains twice as fast, contiguous predicts twice as fast."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trains, self.predicts, self.asked = BF16, PLAIN, 0
        monkeypatch.setattr(settling, "LEAST_GFLOPS", 0.0)
        monkeypatch.setattr(settling, "LEAST_FOLD", {"cpu": 0.0, "cuda": 0.0})
        monkeypatch.setattr(settling, "measure_training", self.training)
        monkeypatch.setattr(settling, "measure_prediction", self.prediction)

    def training(self, network: Network, device: torch.device, modes: Sequence[Mode]) -> list[Timing]:
        self.asked += 1
        return [Timing(mode, 10.0, 2.0 if mode == self.trains else 1.0) for mode in modes]

    def prediction(self, network: Network, device: torch.device, modes: Sequence[Mode]) -> list[Timing]:
        return [Timing(mode, 10.0, 2.0 if mode == self.predicts else 1.0) for mode in modes]


@pytest.fixture
def speeds(project: Path, monkeypatch: pytest.MonkeyPatch) -> Speeds:
    return Speeds(monkeypatch)


def test_short_trainings_are_not_measured(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "LEAST_GFLOPS", 0.0)
    assert train("x") == 0
    assert "TFLOP is soon trained" in record("x")["choice"]["why"]
    assert not stored()


def test_small_networks_are_not_measured(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("x") == 0
    found = record("x")
    assert found["choice"]["why"] == "not measured: a step of 0.1 GFLOP is too short to tell"
    assert found["choice"]["train"] == found["choice"]["predict"] == FP32.to_dict()
    assert found["choice"]["measured"]["training"] == []
    assert not stored()
    assert "x: trains in fp32 channels_last, predicts in fp32 channels_last (not measured" in capsys.readouterr().err


def test_the_choice_is_measured_once_and_recorded(speeds: Speeds, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("x") == 0
    found = record("x")
    assert (found["machine"]["precision"], found["machine"]["memory_format"]) == ("bf16", "channels_last")
    assert (found["machine"]["predict_precision"], found["machine"]["predict_memory_format"]) == ("fp32", "contiguous")
    assert found["choice"]["why"] == "measured: 2.00 times fp32 channels_last"
    assert len(found["choice"]["measured"]["training"]) == 4
    assert "x: trains in bf16 channels_last, predicts in fp32 contiguous (measured: 2.00" in capsys.readouterr().err
    (kept,) = stored()
    speeds.trains = FP32  # asked again, it would say otherwise
    assert train("y") == 0
    assert speeds.asked == 1
    assert record("y")["choice"] == found["choice"]
    kept.write_text(kept.read_text()[:40])  # cut short
    assert train("z") == 0
    assert speeds.asked == 2
    assert record("z")["machine"]["precision"] == "fp32"
    assert json.loads(kept.read_text())["training"]


def test_another_network_is_measured_anew(speeds: Speeds) -> None:
    for number, setting in enumerate(["train.seed=0", "train.seed=1", "train.batch_size=6", "input.size=32"]):
        assert train(f"x{number}", setting) == 0
    assert speeds.asked == 3
    assert len(stored()) == 3


def test_folds_and_resumes_keep_the_choice_of_the_start(speeds: Speeds) -> None:
    assert train("whole", "train.epochs=2", folds=()) == 0
    assert train("parts", "train.epochs=2") == 0
    shutil.rmtree(".cache/goldfold/speeds")
    speeds.trains, speeds.predicts = FP32, FP32
    assert train("parts", "train.epochs=2", folds=()) == 0
    assert speeds.asked == 1
    assert artefacts(Path("runs/parts")) == artefacts(Path("runs/whole"))
    assert record("parts")["choice"]["train"]["precision"] == "bf16"


def test_every_prediction_of_a_run_is_by_one_rule(speeds: Speeds) -> None:
    """Out-of-fold, test, and ``goldfold predict``: in float32 and the layout of the record, though training is not."""
    assert train("x", "tta.views=flip", folds=()) == 0
    assert main(["predict", "x", "--out", "again.parquet"]) == 0
    run, again = pd.read_parquet("runs/x/test.parquet"), pd.read_parquet("again.parquet")
    assert np.array_equal(run.filter(like="p_").to_numpy(), again.filter(like="p_").to_numpy())
    assert main(["predict", "x", "--csv", "data/tiny/train.csv", "--out", "train.parquet"]) == 0
    # A single fold's bundle says of its own validation rows what oof.parquet holds.
    oof = pd.read_parquet("runs/x/fold0/oof.parquet").set_index("id").filter(like="p_")
    shutil.move("runs/x/fold1/DONE", "DONE")
    assert main(["predict", "x", "--csv", "data/tiny/train.csv", "--out", "fold0.parquet"]) == 0
    own = pd.read_parquet("fold0.parquet").set_index("id").loc[oof.index].filter(like="p_")
    assert np.array_equal(oof.to_numpy(), own.to_numpy())


def test_demands_are_obeyed_without_measuring(speeds: Speeds) -> None:
    assert train("x", "train.precision=fp32", "train.memory_format=contiguous") == 0
    assert speeds.asked == 0
    assert record("x")["choice"]["why"] == "as configured"
    assert record("x")["machine"]["memory_format"] == "contiguous"
    assert train("y", "train.precision=bf16", "train.memory_format=channels_last") == 0
    assert record("y")["machine"]["predict_precision"] == "bf16"


def test_a_measurement_that_fails_stops_no_run(speeds: Speeds, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(settling, "measure_training", broken)
    assert train("x") == 0
    assert record("x")["choice"]["why"] == "not measured: RuntimeError"


def test_a_run_from_another_kind_of_device_says_so(speeds: Speeds, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("x") == 0
    path = Path("runs/x/run.json")
    path.write_text(path.read_text().replace('"device": "cpu",\n    "key"', '"device": "cuda",\n    "key"'))
    capsys.readouterr()
    assert train("x", folds=("--fold", "1")) == 0
    said = capsys.readouterr().err
    assert "warning: x: was started on cuda in bf16 channels_last, and goes on here in fp32 channels_last" in said


def test_compiled_steps_change_nothing_but_their_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the eager backend, which traces the network and runs the same operations."""
    calls = []

    def counted(model: torch.nn.Module) -> torch.nn.Module:
        calls.append(model)
        return measuring.compile_steps(model)

    monkeypatch.setattr(measuring, "COMPILER", "eager")
    monkeypatch.setattr(session, "compile_steps", counted)
    compiled_once = measuring.Compiled(3.0, Timing(Mode("fp32", compiled=True), 10.0, 0.5))
    monkeypatch.setattr(settling, "measure_compiled", lambda network, device, mode: compiled_once)
    settings = [
        "model.backbone=test_resnet",
        "train.epochs=2",
        "train.ema.decay=0.9",
        "train.phases=[{epochs: 1, frozen: 1}, {epochs: 1}]",
    ]
    assert train("plain", *settings) == 0
    assert not calls
    assert train("compiled", *settings, "train.compile=true") == 0
    assert len(calls) == 2, "again where other layers are frozen"
    names = ("oof.parquet", "test.parquet", "model.safetensors", "metrics.jsonl")
    plain, compiled = (
        [Path(f"runs/{run}/fold0/{name}").read_bytes() for name in names] for run in ("plain", "compiled")
    )
    assert plain[2:] == compiled[2:]
    values = [pd.read_parquet(f"runs/{run}/fold0/oof.parquet").filter(like="p_") for run in ("plain", "compiled")]
    assert values[0].equals(values[1])
    found = record("compiled")
    assert found["machine"]["compile"] is True
    assert found["choice"]["measured"]["compiled"]["seconds"] == 3.0
    assert found["choice"]["why"].endswith("compiled in 3 s, 0.50 times as fast")
    assert "warning: train.compile: steps are slower compiled" in capsys.readouterr().err


def test_compiling_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*arguments: object) -> None:
        raise measuring.CannotCompile("no C++ compiler")

    monkeypatch.setattr(settling, "measure_compiled", broken)
    assert train("x", "train.compile=true") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "goldfold: train.compile: torch.compile does not work here (no C++ compiler); set it to false"
    monkeypatch.setattr(settling, "LONG_FOLD", 0.0)
    assert train("y", "train.compile=auto") == 0
    assert record("y")["choice"]["why"].endswith("not compiled: no C++ compiler")


def test_automatic_compiling_leaves_short_folds_alone(speeds: Speeds) -> None:
    assert train("x", "train.compile=auto") == 0
    found = record("x")
    assert found["machine"]["compile"] is False
    assert "not compiled: a fold trains for about 2 s" in found["choice"]["why"]


@pytest.mark.parametrize(("images", "expected"), [(10**6, True), (10**4, False)])
def test_automatic_compiling_is_measured_and_must_pay(
    images: int, expected: bool, speeds: Speeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    from goldfold.config import load_config
    from goldfold.paths import Workspace
    from goldfold.pipeline.competition import load_competition

    monkeypatch.setattr(settling, "LONG_FOLD", 10.0)
    compiled = measuring.Compiled(200.0, Timing(Mode("bf16", compiled=True), 12.0, 1.2))
    monkeypatch.setattr(settling, "measure_compiled", lambda network, device, mode: compiled)
    config = load_config(Path(CONFIG), ["train.compile=auto"])
    task = load_competition(config.competition, Path()).task
    found = settling.settle(config, task, Workspace(Path()), images=images)
    assert found.machine.compiled is expected
    assert found.record["measured"]["compiled"]["seconds"] == 200.0
    assert len(stored("*-bf16-last.json")) == 1


def test_several_processes_compile_nothing(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train("x", "train.compile=true") == 2
    assert "train.compile: several processes train one network" in capsys.readouterr().err


def test_the_key_of_older_versions_names_the_new_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("x", "train.channels_last=true") == 2
    said = capsys.readouterr().err
    assert "the key 'train.channels_last' is now 'train.memory_format'; write channels_last or contiguous there" in said


def test_predicting_is_another_machine_where_it_differs() -> None:
    machine = Machine(torch.device("cpu"), "bf16", True, 0, predicts=PLAIN, compiled=True)
    assert machine.predicting == Machine(torch.device("cpu"), "fp32", False, 0)
    plain = Machine(torch.device("cpu"), "bf16", True, 0)
    assert plain.predicting is plain


def test_a_fold_takes_as_much_as_its_largest_phase(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def memory(network: Network, device: torch.device, mode: Mode) -> int:
        seen.append((network.spec.size, network.batch_size, network.freeze.stages))
        return network.spec.size * network.batch_size

    monkeypatch.setattr(settling, "measure_memory", memory)
    phases = "train.phases=[{epochs: 1, frozen: 1, size: 16}, {epochs: 1, size: 48, batch_size: 4}, {epochs: 1}]"
    config = load_config(Path(CONFIG), [phases, "train.epochs=3", "train.batch_size=8", "input.cache_size=48"])
    data = load_competition(config.competition, project)
    size = config.input.size
    assert settling.fold_memory(config, data.task, find_machine(config.train)) == max(48 * 4, size * 8)
    assert seen == [(16, 8, 1), (48, 4, 0), (size, 8, 0)]


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.OutOfMemoryError("full"), MemoryError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), MemoryError),
        (RuntimeError("another"), None),
    ],
)
def test_a_fold_that_fits_nowhere_is_not_one_that_cannot_be_measured(
    error: Exception, found: type[Exception] | None, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    def broken(*_: Any) -> int:
        raise error

    monkeypatch.setattr(settling, "measure_memory", broken)
    config = load_config(Path(CONFIG), [])
    data = load_competition(config.competition, project)
    arguments = config, data.task, find_machine(config.train)
    if found is None:
        assert settling.fold_memory(*arguments) is None
    else:
        with pytest.raises(found):
            settling.fold_memory(*arguments)


def test_the_views_of_a_consistency_loss_take_their_memory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "measure_memory", lambda network, *_: network.batch_size)
    config = load_config(Path(CONFIG), ["augment.add=[{AugMix: {}}]", "loss.jsd=12.0", "train.batch_size=8"])
    data = load_competition(config.competition, project)
    assert settling.fold_memory(config, data.task, find_machine(config.train)) == 24
