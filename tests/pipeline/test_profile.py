"""`goldfold profile`: the real loop's parts, their table, and the knob that the sentence names."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from goldfold.cli import main
from goldfold.config import config_from_dict, load_config
from goldfold.data import PixelBatches
from goldfold.machine import find_machine
from goldfold.paths import Workspace
from goldfold.pipeline.one_fold import open_fold
from goldfold.pipeline.profiling import NAMES, advise, profile
from goldfold.training import StepTimes, profile_steps, profiler
from goldfold.training.profiler import PARTS
from tests.pipeline.competitions import make_competition

COMPETITION = {
    "name": "page",
    "task": "multiclass",
    "metric": "accuracy",
    "train_csv": "t.csv",
    "image_path": "{id}.png",
}
EVEN = {"wait": 0.02, "copy": 0.01, "prepare": 0.02, "forward": 0.4, "backward": 0.45, "optimizer": 0.09, "rest": 0.01}


def test_the_command_prints_a_table_and_writes_a_trace(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_competition(project, rows=40, train={"accumulate": 2}, augment={"erase": {"prob": 0.5}})
    assert main(["profile", str(config), "mix.mixup=0.2", "--steps", "4", "--trace", "trace.json"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES.values())
    assert "img/s over 4 steps of 8 images" in printed
    assert "Bottleneck: " in printed
    events = {event.get("name") for event in json.loads(Path("trace.json").read_text())["traceEvents"]}
    assert set(PARTS) <= events
    assert not Path("runs").exists()


def test_parts_add_up_and_belong_to_their_step(project: Path) -> None:
    job, machine = open_fold(
        load_config(make_competition(project, rows=32, train={"accumulate": 2})), Workspace(Path())
    )
    times = profile_steps(job, machine, 5)
    assert tuple(times.seconds) == PARTS
    assert {len(values) for values in times.seconds.values()} == {5}
    assert sum(times.shares.values()) == pytest.approx(1)
    assert times.total == pytest.approx(sum(map(sum, times.seconds.values())))
    assert min(times.seconds["forward"]) > 0
    assert min(times.seconds["backward"]) > 0
    # An optimizer step every second micro-batch.
    assert sum(value > 0 for value in times.seconds["optimizer"]) in (2, 3)


def test_slow_data_show_as_a_wait_for_data(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PixelBatches.__getitems__

    def slow(self: PixelBatches, request: Any) -> Any:
        time.sleep(0.5)
        return whole(self, request)

    monkeypatch.setattr(PixelBatches, "__getitems__", slow)
    found = profile(load_config(make_competition(project, rows=32)), Workspace(Path()), steps=2)
    assert max(found.times.shares, key=lambda part: found.times.shares[part]) == "wait"
    assert found.advice.startswith("Bottleneck: wait for data")


def test_means_and_rate() -> None:
    times = StepTimes({part: (0.1, 0.3) if part == "forward" else (0.0, 0.0) for part in PARTS}, images=8)
    assert (times.total, times.images_per_second) == (pytest.approx(0.4), pytest.approx(40))


def shares(**parts: float) -> dict[str, float]:
    return {**EVEN, **parts}


@pytest.mark.parametrize(
    ("found", "sections", "part", "knob"),
    [
        (shares(wait=0.3), {"input": {"cache": False}}, "wait for data", "input.cache=true"),
        (shares(wait=0.3), {}, "wait for data", "augment.preset"),
        (shares(wait=0.3), {"model": {"freeze": {"stages": 2, "cache": True}}, "augment": {"preset": "none"}},
         "wait for data", "input.cache_dir"),
        (shares(copy=0.3), {}, "copy to the device", "input.channels=1"),
        (shares(wait=0.3), {"augment": {"preset": "none"}}, "wait for data", "input.cache_dir"),
        (shares(prepare=0.3), {"mix": {"mixup": 0.2}}, "normalise, mix, erase", "mix.prob"),
        (shares(prepare=0.3), {"augment": {"erase": {"prob": 0.5}}}, "normalise, mix, erase", "augment.erase.prob"),
        (shares(prepare=0.3), {"augment": {"on": "device"}}, "normalise, mix, erase", "augment.on=host"),
        (shares(prepare=0.3), {}, "normalise, mix, erase", "input.size"),
        (shares(optimizer=0.4), {}, "optimizer", "train.accumulate"),
        (shares(rest=0.3), {}, "rest", "train.batch_size"),
        (shares(), {}, "the network itself", "model.freeze.cache"),
        (shares(wait=0.1, optimizer=0.5), {}, "optimizer", "optim.name"),
    ],
)  # fmt: skip
def test_the_sentence_names_part_and_knob(
    found: dict[str, float], sections: dict[str, Any], part: str, knob: str
) -> None:
    config = config_from_dict(
        {"name": "page", "competition": COMPETITION, "train": {"device": "cpu"}, **sections}, "test"
    )
    sentence = advise(found, config, find_machine(config.train))
    assert sentence.startswith(f"Bottleneck: {part} (")
    assert knob in sentence
    for key, setting in (("mix.prob", config.mix.mixup), ("erase.prob", config.augment.erase.prob)):
        assert key not in sentence or setting, "a knob that turns nothing"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [(["--steps", "0"], "--steps: 0 steps measure nothing"), (["--fold", "9"], "--fold: there is no fold 9")],
)
def test_bad_input_is_one_line(
    arguments: list[str], line: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(make_competition(project, rows=24)), *arguments]) == 2
    assert line in capsys.readouterr().err


def test_a_full_memory_is_halved_as_in_training(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = profiler.backward

    def short(job: Any, machine: Any, session: Any, batch: Any, *rest: Any, **options: Any) -> Any:
        if session.progress.pieces < 2:
            raise torch.OutOfMemoryError("full")
        return real(job, machine, session, batch, *rest, **options)

    monkeypatch.setattr(profiler, "backward", short)
    found = profile(load_config(make_competition(project, rows=32)), Workspace(Path()), steps=2)
    assert found.times.steps == 2
    assert "goes on with 4, 2 times accumulated" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_parts_are_measured_on_its_own_time_line(project: Path) -> None:
    config = load_config(make_competition(project, rows=32, train={"device": "cuda"}))
    found = profile(config, Workspace(Path()), steps=4, trace=Path("trace.json"))
    assert sum(found.times.shares.values()) == pytest.approx(1)
    assert min(found.times.seconds["forward"]) > 0
    assert Path("trace.json").stat().st_size > 0
