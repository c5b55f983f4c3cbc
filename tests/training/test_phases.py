"""Phases: what each changes, what becomes of the optimizer's state, and that frozen layers wait for their epoch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from goldfold.cli import main
from goldfold.config.schema import (
    Augment,
    Balance,
    Input,
    Loss,
    Mix,
    Model,
    Optim,
    Pseudo,
    Schedule,
    Teacher,
    Train,
    Tta,
)
from goldfold.errors import BadInput
from goldfold.training.checkpoint import load_state
from goldfold.training.job import Recipe
from goldfold.training.plan import Pace, Stretch, at_epoch, make_plan

CONFIG = "configs/tiny.yaml"
RUN = ["train", CONFIG, "--fold", "0"]


def recipe(train: dict[str, Any], **sections: Any) -> Recipe:
    parts: dict[str, Any] = {
        "input": Input(size=32),
        "augment": Augment(),
        "mix": Mix(mixup=0.2),
        "model": Model(),
        "loss": Loss(),
        "optim": Optim(lr=1e-2),
        "schedule": Schedule(warmup_epochs=0),
        "balance": Balance(),
        "tta": Tta(),
    }
    return Recipe(train=Train(**train), **{**parts, **sections})


def test_without_phases_one_stretch_holds_the_experiments_own_settings() -> None:
    (whole,) = make_plan(recipe({"epochs": 3, "batch_size": 16, "accumulate": 2}))
    assert (whole.first, whole.end, whole.size, whole.batch_size, whole.accumulate) == (0, 3, 32, 16, 2)
    assert whole.mix == Mix(mixup=0.2)


def test_a_phase_changes_what_it_names_and_nothing_else() -> None:
    phases = [
        {"epochs": 2, "size": 16, "batch_size": 32, "frozen": "all"},
        {"epochs": 1, "lr": 1e-3, "mix": {"mixup": 0}, "augment": {"preset": "none"}},
    ]
    first, second = make_plan(recipe({"epochs": 3, "phases": phases}))
    assert (first.size, first.batch_size, first.frozen, first.optim.lr) == (16, 32, "all", 1e-2)
    assert (second.size, second.batch_size, second.frozen, second.optim.lr) == (32, 64, 0, 1e-3)
    assert (first.mix.mixup, second.mix.mixup) == (0.2, 0)
    assert (first.augment.preset, second.augment.preset) == ("medium", "none")
    assert [at_epoch((first, second), epoch).number for epoch in range(4)] == [0, 0, 1, 1]


def test_another_optimizer_begins_without_state_and_may_not_keep_it() -> None:
    phases: list[dict[str, Any]] = [{"epochs": 1}, {"epochs": 1, "optimizer": "sgd", "lr": 0.1}]
    plan = make_plan(recipe({"epochs": 2, "phases": phases}))
    assert [stretch.reset for stretch in plan] == [False, True]
    phases[1]["state"] = "keep"
    with pytest.raises(BadInput, match=r"train\.phases\[1\]\.state: sgd cannot go on with the state of adamw"):
        make_plan(recipe({"epochs": 2, "phases": phases}))


def test_the_schedule_runs_through_phases_and_begins_anew_where_they_say() -> None:
    phases: list[dict[str, Any]] = [{"epochs": 2}, {"epochs": 2, "batch_size": 32}]
    settings = recipe({"epochs": 4, "phases": phases}, schedule=Schedule(name="linear", warmup_epochs=0, min_factor=0))
    plan = make_plan(settings)
    pace = Pace(plan, (5, 10), settings.schedule)  # 30 steps in all
    assert pace.factor(plan[0], 0) == 1
    assert pace.factor(plan[1], 29) == pytest.approx(0)
    assert pace.factor(plan[1], 10) == pytest.approx(1 - 10 / 29)
    phases[1]["schedule"] = "restart"
    plan = make_plan(recipe({"epochs": 4, "phases": phases}))
    pace = Pace(plan, (5, 10), settings.schedule)
    assert pace.factor(plan[0], 9) == pytest.approx(0)
    assert pace.factor(plan[1], 10) == 1
    assert pace.factor(plan[1], 29) == pytest.approx(0)


def test_the_last_epochs_of_weight_averaging_have_a_constant_rate() -> None:
    settings = recipe({"epochs": 4}, schedule=Schedule(name="linear", warmup_epochs=0, min_factor=0))
    plan = make_plan(settings)
    pace = Pace(plan, (5,), settings.schedule, swa_epochs=2, swa_factor=0.5)
    assert pace.factor(plan[0], 9) == pytest.approx(0)  # the schedule ends before them
    assert {pace.factor(plan[0], step) for step in range(10, 20)} == {0.5}


def cooled(train: dict[str, Any], cool_down: int, **sections: Any) -> tuple[Stretch, ...]:
    teacher = Teacher(runs=("t",), pseudo=Pseudo(labels="soft", cool_down=cool_down))
    return make_plan(recipe(train, teacher=teacher, **sections))


PHASES: list[dict[str, Any]] = [
    {"epochs": 2, "size": 16},
    {"epochs": 3, "lr": 1e-3, "schedule": "restart", "state": "reset"},
    {"epochs": 1, "mix": {"mixup": 0}},
]


@pytest.mark.parametrize("train", [{"epochs": 6}, {"epochs": 6, "phases": PHASES}])
def test_without_a_cool_down_the_plan_is_that_of_a_training_without_teachers(train: dict[str, Any]) -> None:
    assert cooled(train, 0) == make_plan(recipe(train))


@pytest.mark.parametrize("cool_down", range(1, 6))
@pytest.mark.parametrize("train", [{"epochs": 6}, {"epochs": 6, "phases": PHASES}])
def test_a_cool_down_changes_no_epoch_but_for_its_pseudo_labels(train: dict[str, Any], cool_down: int) -> None:
    plain, plan = make_plan(recipe(train)), cooled(train, cool_down)
    assert [stretch.first for stretch in plan] == [0, *(stretch.end for stretch in plan[:-1])]
    assert plan[-1].end == 6
    for epoch in range(6):
        now, then = at_epoch(plan, epoch), at_epoch(plain, epoch)
        assert now.pseudo == (epoch < 6 - cool_down)
        same = {"first": 0, "epochs": 0, "restart": False, "reset": False, "pseudo": True}
        assert replace(now, **same) == replace(then, **same)
    for key in ("restart", "reset"):
        begins = [[stretch.first for stretch in part if getattr(stretch, key)] for part in (plan, plain)]
        assert begins[0] == begins[1], key
    assert len(plan) <= len(plain) + 1


@pytest.mark.parametrize("cool_down", [1, 3, 5])
def test_the_rate_does_not_notice_a_cool_down_of_equal_steps(cool_down: int) -> None:
    """The second phase begins the schedule anew; a cool-down of 5 epochs parts the first one."""
    train = {"epochs": 6, "phases": PHASES}
    schedule, steps = Schedule(name="cosine", warmup_epochs=0.5), (4, 5, 3)
    paces = [
        Pace(plan, tuple(steps[stretch.number] for stretch in plan), schedule)
        for plan in (make_plan(recipe(train)), cooled(train, cool_down))
    ]
    for step in range(2 * 4 + 3 * 5 + 3):
        epoch = step // 4 if step < 8 else 2 + (step - 8) // 5 if step < 23 else 5
        rates = [pace.factor(at_epoch(pace.plan, epoch), step) for pace in paces]
        assert rates[0] == rates[1], step


def test_the_rate_goes_by_the_steps_that_a_cool_down_has() -> None:
    schedule = Schedule(name="linear", warmup_epochs=0, min_factor=0)
    plan = cooled({"epochs": 4}, 2, schedule=schedule)
    pace = Pace(plan, (10, 5), schedule)  # 30 steps in all
    assert [pace.factor(plan[0], 10), pace.factor(plan[1], 20)] == pytest.approx([1 - 10 / 29, 1 - 20 / 29])
    assert pace.factor(plan[1], 29) == pytest.approx(0)


def lines(project: Path, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (project / f"runs/{run}/fold0/metrics.jsonl").read_text().splitlines()]


def test_the_record_says_what_became_of_the_optimizers_state(project: Path) -> None:
    phases = (
        "train.phases=[{epochs: 1}, {epochs: 1, lr: 0.002}, {epochs: 1, optimizer: sgd}, {epochs: 1, state: reset}]"
    )
    assert main([*RUN, "--run", "x", "train.epochs=4", phases]) == 0
    assert [line["phase"] for line in lines(project, "x")] == [0, 1, 2, 3]
    assert [line["optimizer_state"] for line in lines(project, "x")] == ["new", "kept", "reset", "reset"]


def test_linear_scaling_counts_accumulation(project: Path) -> None:
    """24 rows: batches of 4 with 3 accumulated are batches of 12."""
    plain = ["schedule.name=constant", "schedule.warmup_epochs=0", "train.epochs=1", "optim.lr=0.01"]
    scaled = [*plain, "optim.lr_scaling=linear", "optim.lr_batch=24", "train.batch_size=4", "train.accumulate=3"]
    assert main([*RUN, "--run", "plain", *plain]) == 0
    assert main([*RUN, "--run", "scaled", *scaled]) == 0
    assert lines(project, "plain")[0]["lr"] == pytest.approx(0.01)
    assert lines(project, "scaled")[0]["lr"] == pytest.approx(0.005)


def backbone_states(project: Path, run: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[dict[str, Any]]:
    """The backbone's state after each epoch."""
    from goldfold.training import loop

    states: list[dict[str, Any]] = []
    real = loop.save_progress

    def kept(job: Any, session: Any, path: Path) -> None:
        real(job, session, path)
        states.append(load_state(path)["model"])

    monkeypatch.setattr(loop, "save_progress", kept)
    assert main([*RUN, "--run", run, *overrides]) == 0
    return states


def test_gradual_unfreezing_leaves_layers_untouched_until_their_epoch(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch-norm statistics included: they are buffers that no optimizer guards."""
    phases = "train.phases=[{epochs: 1, frozen: all}, {epochs: 1, frozen: 1}, {epochs: 1, frozen: 0}]"
    states = backbone_states(project, "x", monkeypatch, "train.epochs=3", phases)
    from goldfold.config import load_config
    from goldfold.models import build_model, make_spec, trainable_names
    from goldfold.tasks import Task

    config = load_config(Path(CONFIG))
    model = build_model(make_spec(config.model, config.input, Task("multiclass", ("cat", "dog", "fox"))))
    free = trainable_names(model, 1, False)
    stem = {name for name, _ in model.named_parameters() if name.startswith("backbone.") and name not in free}
    assert stem

    def moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
        return {name for name in before if not torch.equal(before[name], after[name])}

    first = moved(states[0], states[1])
    assert not first & stem
    assert {name for name in first if name.startswith("backbone.")}
    assert moved(states[1], states[2]) >= stem
    # In the first phase the whole backbone stands still: compare with the same phase of another length.
    longer = "train.phases=[{epochs: 2, frozen: all}, {epochs: 1, frozen: 0}]"
    again = backbone_states(project, "y", monkeypatch, "train.epochs=3", longer)
    still = moved(again[0], again[1])
    assert still
    assert not {name for name in still if name.startswith("backbone.")}


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_training_stopped_in_or_between_phases_ends_bit_identical(
    stop: int, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from goldfold.training import loop

    phases = "train.phases=[{epochs: 1, size: 16, frozen: 1}, {epochs: 2, lr: 0.002}, {epochs: 1, optimizer: sgd}]"
    settings = ["train.epochs=4", phases, "mix.mixup=0.2", "augment.preset=light"]
    assert main([*RUN, "--run", "whole", *settings]) == 0
    real, count = loop.save_progress, [0]

    def interrupted(job: Any, session: Any, path: Path) -> None:
        real(job, session, path)
        count[0] += 1
        if count[0] == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_progress", interrupted)
    assert main([*RUN, "--run", "killed", *settings]) == 130
    monkeypatch.setattr(loop, "save_progress", real)
    assert main([*RUN, "--run", "killed", *settings]) == 0
    for name in ("model.safetensors", "oof.parquet", "metrics.jsonl", "DONE"):
        whole, killed = (project / f"runs/{run}/fold0/{name}" for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), name


@pytest.mark.parametrize("name", ["adamw", "lamb", "lookahead_lamb", "sgd"])
def test_kept_moments_follow_their_parameters_into_other_groups(name: str) -> None:
    """Layer decay, another head rate or decay_all deal the parameters to groups anew."""
    from goldfold.config.schema import Model as ModelSection
    from goldfold.models import build_model, make_spec
    from goldfold.optim import make_optimizer
    from goldfold.tasks import Task
    from goldfold.training.session import carry_state

    spec = make_spec(
        ModelSection(backbone="test_resnet", pretrained=False), Input(size=32), Task("binary", ("1",), "0")
    )
    model = build_model(spec)

    def step(optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(2, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    old = make_optimizer(Optim(name=name), model)
    for _ in range(3):
        step(old)
    new = make_optimizer(Optim(name=name, head_lr_scale=10, decay_all=True), model)
    assert [len(group["params"]) for group in new.param_groups] != [len(group["params"]) for group in old.param_groups]
    carry_state(old, new)
    before, after = (getattr(one, "_base_optimizer", one).state for one in (old, new))
    assert set(before) == set(after)
    for parameter in before:
        for key, value in before[parameter].items():
            same = (
                torch.equal(value, after[parameter][key])
                if isinstance(value, torch.Tensor)
                else value == after[parameter][key]
            )
            assert same, key
    for key in ("step", "lookahead_step"):
        if key in old.param_groups[0]:
            assert {float(group[key]) for group in new.param_groups} == {3.0}
    step(new)


def test_the_number_of_loader_processes_changes_nothing_not_even_dropout(project: Path) -> None:
    settings = ["model.drop_rate=0.5", "train.epochs=2", "augment.preset=light"]
    for workers in (0, 1):
        assert main([*RUN, "--run", f"w{workers}", f"train.workers={workers}", *settings]) == 0
    first, second = (project / f"runs/w{workers}/fold0/model.safetensors" for workers in (0, 1))
    assert first.read_bytes() == second.read_bytes()


def test_clean_last_epochs_see_plain_images(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from goldfold.training import loop

    seen: list[tuple[int, bool]] = []
    real = loop.backward

    def watched(job: Any, machine: Any, session: Any, batch: Any, *rest: Any, **options: Any) -> Any:
        stored = job.examples.images.read(job.examples.rows)
        known = {row.tobytes() for row in stored}
        plain = all(pixels.numpy().tobytes() in known for pixels in batch.pixels)
        seen.append((session.progress.epoch, plain))
        return real(job, machine, session, batch, *rest, **options)

    monkeypatch.setattr(loop, "backward", watched)
    phases = "train.phases=[{epochs: 1}, {epochs: 1, augment: {preset: none}}]"
    assert main([*RUN, "--run", "x", "train.epochs=2", "augment.preset=heavy", phases]) == 0
    assert {plain for epoch, plain in seen if epoch == 0} == {False}
    assert {plain for epoch, plain in seen if epoch == 1} == {True}
