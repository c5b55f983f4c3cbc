"""Distillation inside a fold's training: whose answers a student learns, on which pixels, and what is left of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from goldfold import files
from goldfold.cli import main
from goldfold.config import load_config
from goldfold.config.schema import Distill, Teacher, Tracking
from goldfold.data import LeakError, add_teacher
from goldfold.errors import BadInput
from goldfold.losses import feature_distance
from goldfold.machine import find_machine
from goldfold.paths import Workspace
from goldfold.pipeline.competition import load_competition
from goldfold.pipeline.jobs import open_sources, plain_job
from goldfold.pipeline.stages import load_folds
from goldfold.records import SoftLabels
from goldfold.teaching import OnlineTeacher
from goldfold.tracking import WandbRun
from goldfold.training import FoldJob, loop, train_fold
from goldfold.training.session import Session, make_loader, start
from tests.commands import run_pair
from tests.pipeline.competitions import make_competition

CONFIG = "configs/tiny.yaml"
STUDENT = ["model.backbone=test_resnet", "train.epochs=2"]


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A competition with a trained teacher of each fold, larger than its students, and another mean and deviation."""
    root = tmp_path_factory.mktemp("school")
    torch.set_num_threads(1)
    make_competition(root)
    settings = ["train.epochs=10", "input.size=32", "model.mean=[0.2,0.2,0.2]", "model.std=[0.3,0.3,0.3]"]
    for fold in (0, 1):
        train(make(root, "teacher", *settings, fold=fold))
    return root


@pytest.fixture
def project(school: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(school)
    torch.set_num_threads(1)
    yield school
    for folder in (school / "runs").iterdir():
        if folder.name != "teacher":
            shutil.rmtree(folder)


def make(project: Path, name: str, *settings: str, fold: int = 0) -> FoldJob:
    config = load_config(project / CONFIG, settings).model_copy(update={"name": name})
    workspace = Workspace(project)
    data = load_competition(config.competition, project)
    table = load_folds(config, data, workspace)[0]
    paths = workspace.run(name).fold(fold)
    paths.folder.mkdir(parents=True, exist_ok=True)
    return plain_job(config, data, workspace, table, fold, 0, paths, open_sources(config, data, workspace), "")


def student(
    project: Path,
    name: str,
    *settings: str,
    teacher: OnlineTeacher | None = None,
    leaky: bool = False,
    **distill: Any,
) -> FoldJob:
    """Fold 0's job, with ``distill`` in its recipe."""
    job = make(project, name, *STUDENT, *settings)
    taught = Teacher(runs=("teacher",), leaky=leaky, distill=Distill.model_validate(distill)) if distill else Teacher()
    return replace(job, recipe=replace(job.recipe, teacher=taught), teacher=teacher)


def online(project: Path, *folders: Path, excluded: int | None = 0) -> OnlineTeacher:
    chosen = folders or (project / "runs/teacher/fold0",)
    return OnlineTeacher(tuple((folder, 1 / len(chosen)) for folder in chosen), excluded)


def train(job: FoldJob) -> None:
    tracker = WandbRun(
        Tracking(), project="p", run=job.run, fold="fold", job_type="train", config={}, folder=job.paths.folder
    )
    train_fold(job, find_machine(job.recipe.train), tracker)


def turned_labels(project: Path, run: str) -> Path:
    """The teacher with its classes in a circle: what it takes for a cat, this one calls a dog."""
    folder = project / f"runs/{run}/fold0"
    shutil.copytree(project / "runs/teacher/fold0", folder)
    state = load_file(folder / "model.safetensors")
    for name in ("head.weight", "head.bias"):
        state[name] = state[name].roll(1, 0).contiguous()
    save_file(state, folder / "model.safetensors")
    described = files.read_json(folder / "bundle.json")
    described["weights_sha256"] = files.sha256_file(folder / "model.safetensors")
    files.write_json(folder / "bundle.json", described)
    return folder


def answers(project: Path, run: str) -> pd.DataFrame:
    return pd.read_parquet(project / f"runs/{run}/fold0/oof.parquet").set_index("id").sort_index().filter(like="p_")


def test_a_student_of_weight_1_learns_its_teachers_answers_and_not_the_labels(project: Path) -> None:
    teacher = online(project, turned_labels(project, "turned"))
    train(student(project, "x", "train.epochs=12", teacher=teacher, how="online", weight=1.0))
    said = answers(project, "x").to_numpy().argmax(axis=1)
    right = answers(project, "teacher").to_numpy().argmax(axis=1)
    assert (said == (right + 1) % 3).mean() > 0.8


@pytest.mark.parametrize("how", ["mixing", "jsd"])
def test_the_teacher_answers_on_the_very_images_that_the_student_sees(how: str, project: Path) -> None:
    """Augmented, mixed and erased: a teacher whose answer is the mean pixel says so of the student's input."""
    settings = {
        "mixing": ["augment.preset=medium", "mix.mixup=0.4", "mix.cutmix=1.0", "augment.erase.prob=0.8"],
        "jsd": ["augment.preset=flips", "augment.add=[{AugMix: {}}]", "loss.jsd=12.0", "augment.erase.prob=0.5"],
    }[how]
    job = student(project, "x", *settings, teacher=online(project), how="online", weight=0.5)
    machine = find_machine(job.recipe.train)
    session = start(job, machine)
    assert session.teachers is not None
    (member,) = session.teachers.members
    answered: list[Tensor] = []

    def mean_pixel(images: Tensor) -> Tensor:
        answered.append(images)
        return member.model.restore(images).mean(dim=(2, 3)) / 255

    member.model.pooled = mean_pixel  # type: ignore[method-assign]
    member.model.classify = lambda pooled, metadata=None: 5 * pooled  # type: ignore[method-assign]
    seen, losses = [], []
    session.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    real = session.loss

    def spy(*arguments: Any) -> Tensor:
        losses.append(arguments)
        return real(*arguments)

    session.loss = spy  # type: ignore[assignment]
    _, loader = make_loader(job, machine, session, session.stretch)
    for number, batch in enumerate(loader):
        loop.backward(job, machine, session, batch, number, 1, sync=True)
        images, rows = seen[number], len(batch.targets)
        assert len(images) == (3 * rows if how == "jsd" else rows)
        pixels = session.model.restore(images[:rows])
        said, weights = losses[number][5], losses[number][6]
        assert torch.allclose(said, (5 * pixels.mean(dim=(2, 3)) / 255).softmax(dim=1), atol=5e-3)
        assert weights.tolist() == [1] * rows
        assert tuple(answered[number].shape) == (rows, 3, 32, 32)
        sized = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
        assert torch.allclose(member.model.restore(answered[number]), sized, atol=1e-2)
    assert len(losses) == len(loader)


def test_a_student_is_taught_by_the_fold_it_is_validated_on_never(project: Path) -> None:
    other = project / "runs/teacher/fold1"
    for teacher, leaky in (
        (online(project, other), False),
        (online(project, other, excluded=1), False),
        (online(project, other, excluded=1), True),
        (online(project, excluded=None), False),
    ):
        with pytest.raises(LeakError):
            train(student(project, "x", teacher=teacher, leaky=leaky, how="online", weight=0.5))
    assert not (project / "runs/x/fold0/metrics.jsonl").exists()
    train(student(project, "x", teacher=online(project, other, excluded=None), leaky=True, how="online", weight=0.5))


def test_what_a_teacher_cannot_be_shown_is_refused_before_training(project: Path) -> None:
    job = student(project, "x", "input.resize=crop", teacher=online(project), how="online", weight=0.5)
    with pytest.raises(BadInput, match=r"input.resize squash, the student of crop"):
        train(job)
    assert not (project / "runs/x/fold0/metrics.jsonl").exists()


NOISY = [
    "augment.preset=medium",
    "mix.mixup=0.4",
    "augment.erase.prob=0.5",
    "model.drop_rate=0.3",
    "train.ema.decay=0.9",
]


def test_an_interrupted_distillation_goes_on_bit_identically(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(name: str) -> FoldJob:
        settings = {"how": "online", "weight": 0.6, "temperature": 2.0, "features": 0.5}
        return student(project, name, *NOISY, teacher=online(project), **settings)

    train(job("whole"))
    real = loop.save_progress

    def interrupted(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(job("again"))
    monkeypatch.setattr(loop, "save_progress", real)
    train(job("again"))
    for file in ("model.safetensors", "metrics.jsonl"):
        whole, again = (project / f"runs/{run}/fold0/{file}" for run in ("whole", "again"))
        assert whole.read_bytes() == again.read_bytes(), file
    assert answers(project, "whole").equals(answers(project, "again"))


def test_a_bundle_holds_no_projection_and_its_network_starts_as_without_one(project: Path) -> None:
    train(student(project, "plain", teacher=online(project), how="online", weight=0.5))
    job = student(project, "matched", teacher=online(project), how="online", weight=0.5, features=1.0)
    session, plain = (start(item, find_machine(job.recipe.train)) for item in (job, replace(job, teacher=None, recipe=replace(job.recipe, teacher=Teacher()))))  # fmt: skip
    assert any(name.startswith("projections.") for name in session.model.state_dict())
    before, without = session.model.inference_state(), plain.model.inference_state()
    assert before.keys() == without.keys()
    assert all(torch.equal(before[name], without[name]) for name in before)
    train(job)
    weights = [load_file(project / f"runs/{run}/fold0/model.safetensors") for run in ("plain", "matched")]
    assert weights[0].keys() == weights[1].keys()
    assert not any("projection" in name for name in weights[1])
    sizes = [(project / f"runs/{run}/fold0/model.safetensors").stat().st_size for run in ("plain", "matched")]
    assert sizes[0] == sizes[1]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def distance(session: Session, images: Tensor) -> float:
    """From the teacher's features, in eval mode."""
    assert session.teachers is not None
    model = session.model.eval()
    with torch.no_grad():
        projected = torch.cat([layer(model.pooled(images)) for layer in model.projections], dim=1)
    return float(feature_distance(projected, session.teachers.features(images, model)).mean())


def test_matching_features_brings_them_to_the_teachers(project: Path) -> None:
    """With the labels' loss alone they stay apart; two teachers of other widths and sizes have a projection each."""
    train(make(project, "wide", "model.backbone=test_vit", "input.size=32", "train.epochs=1"))
    teacher = online(project, project / "runs/teacher/fold0", project / "runs/wide/fold0")
    found = {}
    for features in (1e-9, 3.0):
        job = student(project, "x", "train.epochs=6", teacher=teacher, how="online", weight=0.0, features=features)
        machine = find_machine(job.recipe.train)
        session = start(job, machine)
        images = session.model.prepare(torch.from_numpy(job.images.read(range(24))), machine.memory_format)
        first = distance(session, images)
        order, loader = make_loader(job, machine, session, session.stretch)
        for epoch in range(6):
            order.epoch = epoch
            session.wrapped.train()
            for number, batch in enumerate(loader):
                loop.backward(job, machine, session, batch, number, 1, sync=True)
                loop.update(session, 0.01)
        found[features] = (first, distance(session, images))
    assert found[3.0][1] < 0.7 * found[3.0][0]
    assert found[3.0][1] < 0.7 * found[1e-9][1]


def gradients(job: FoldJob) -> dict[str, Tensor]:
    """Of an epoch's batches together, without a step between."""
    machine = find_machine(job.recipe.train)
    session = start(job, machine)
    session.wrapped.train()
    _, loader = make_loader(job, machine, session, session.stretch)
    for number, batch in enumerate(loader):
        loop.backward(job, machine, session, batch, number, 1, sync=True)
    return {name: value.grad for name, value in session.model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("weight", [0.7, 1.0])
def test_stored_probabilities_are_mixed_as_labels_are(weight: float, project: Path) -> None:
    """At temperature 1, a teacher of weight w is labels of (1 - w) x label + w x teacher; half of the rows have none.

    Rows have weights of their own, and mixing joins rows that the teacher knows with others.
    """
    settings = ["mix.mixup=0.4", "mix.cutmix=1.0"]
    job = student(project, "x", *settings, weight=weight)
    examples, ids = job.examples, job.examples.ids
    own = np.random.default_rng(0).uniform(0.2, 2, len(ids)).astype(np.float32)
    half = tuple(sorted(ids)[::2])
    turned = {name: np.roll(examples.targets[row], 1) for row, name in enumerate(ids)}
    soft = SoftLabels(half, np.stack([turned[name] for name in half]), np.ones(len(half), dtype=np.float32), 0)
    taught = replace(job, examples=add_teacher(replace(examples, weights=own), [soft], 0))
    share = np.array([weight * (name in half) for name in ids], dtype=np.float32)[:, None]
    blended = (1 - share) * examples.targets + share * np.stack([turned[name] for name in ids])
    plain = student(project, "x", *settings)
    plain = replace(plain, examples=replace(examples, weights=own, targets=blended.astype(np.float32)))
    found, expected = gradients(taught), gradients(plain)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-3, atol=1e-5), name
    labels = gradients(replace(plain, examples=replace(examples, weights=own)))
    assert max(float((found[name] - labels[name]).abs().max()) for name in found) > 1e-2


ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bf16"),
        *(pytest.param("cuda", precision, marks=ON_A_GPU) for precision in ("fp16", "bf16", "fp32")),
    ],
)
def test_mixed_precision(device: str, precision: str, project: Path) -> None:
    settings = [*NOISY, f"train.device={device}", f"train.precision={precision}", "train.epochs=10"]
    job = student(project, "x", *settings, teacher=online(project), how="online", weight=0.8, features=1.0)
    train(job)
    lines = (project / "runs/x/fold0/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert all(np.isfinite(losses))
    assert min(losses[-2:]) < losses[0]
    state = load_file(project / "runs/x/fold0/model.safetensors")
    assert all(value.dtype in (torch.float32, torch.int64) for value in state.values())


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Each has teachers of its own; the projections' gradients are shared as all others are."""
    torch.set_num_threads(1)
    make_competition(tmp_path)
    assert main(["-C", str(tmp_path), "train", CONFIG, "--run", "teacher", "input.size=32", "train.epochs=1"]) == 0
    taught = ["teacher.runs=[teacher]", "teacher.distill={how: online, weight: 0.5, features: 0.5}"]
    plain = ["model.backbone=test_vit", "input.size=32", "train.epochs=1", "optim.name=sgd", "optim.lr=0.05"]
    pair = ["train", CONFIG, "train.batch_size=6", "name=pair", *taught, *plain, "--fold", "0"]
    log = tmp_path / "log"
    assert run_pair(pair, tmp_path, log) == (0, 0), log.read_text()
    alone = ["train", CONFIG, "train.batch_size=12", "name=alone", *taught, *plain, "--fold", "0"]
    assert main(["-C", str(tmp_path), *alone]) == 0
    first, second = (load_file(tmp_path / f"runs/{run}/fold0/model.safetensors") for run in ("pair", "alone"))
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / f"runs/{run}/fold0/metrics.jsonl").read_text().splitlines()]
        for run in ("pair", "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
