"""Online teachers: what they see, what they say, and who may not teach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from goldfold import files
from goldfold.augment import centre
from goldfold.bundle import Bundle, save_weights, write_bundle
from goldfold.config.schema import Train
from goldfold.data import LeakError
from goldfold.errors import BadInput
from goldfold.features import turned
from goldfold.images import Images, ImageSpec
from goldfold.machine import Machine, find_machine
from goldfold.metadata import MetadataEncoder
from goldfold.models import Classifier, MetadataShape
from goldfold.tasks import Task
from goldfold.teaching import OnlineTeacher, Teachers, as_seen, check_teachers, label_views, load_teachers
from tests.models.networks import MULTI, build

SPEC = ImageSpec(size=32, channels=3, resize="squash", interpolation="area", range="full")


@pytest.fixture(scope="module")
def machine() -> Machine:
    torch.set_num_threads(1)
    return find_machine(Train(device="cpu", workers=0))


def write(
    folder: Path,
    model: Classifier,
    fold: int = 0,
    images: ImageSpec = SPEC,
    metadata: MetadataEncoder | None = None,
) -> Path:
    """A bundle of the three classes."""
    folder.mkdir()
    save_weights(folder / "model.safetensors", model)
    digest = files.sha256_file(folder / "model.safetensors")
    bundle = Bundle("run", fold, 0, MULTI, model.spec, images, "none", "mean", "id", digest, metadata)
    write_bundle(folder / "bundle.json", bundle)
    return folder


def online(*folders: Path, excluded: int | None = 0) -> OnlineTeacher:
    return OnlineTeacher(tuple((folder, 1 / len(folders)) for folder in folders), excluded)


def pictures(n: int = 4, size: int = 32, channels: int = 3) -> Tensor:
    rng = np.random.default_rng(0)
    # Smooth, so that resizing loses little.
    small = torch.from_numpy(rng.uniform(0, 255, (n, channels, 4, 4)).astype(np.float32))
    large = torch.nn.functional.interpolate(small, (size, size), mode="bilinear").round()
    return large.permute(0, 2, 3, 1).to(torch.uint8)


def alone(model: Classifier, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.probabilities(model.eval()(model.prepare(pixels)))


def test_a_teacher_says_of_the_students_images_what_it_says_of_the_pixels(tmp_path: Path, machine: Machine) -> None:
    """Through another mean and deviation, and through a normalisation by each image."""
    student = build(mean=[0.1, 0.2, 0.3], std=[0.5, 0.4, 0.3])
    pixels = pictures()
    for number, settings in enumerate(
        ({}, {"mean": [0.5] * 3, "std": [0.1, 0.2, 0.3]}, {"input": {"normalise": "image"}})
    ):
        model = build("test_resnet", seed=number + 1, **settings)
        teachers = load_teachers(online(write(tmp_path / f"{number}", model)), machine, 0)
        said = teachers.probabilities(student.prepare(pixels), student)
        assert torch.allclose(said, alone(model, pixels), atol=1e-5)
        assert not torch.allclose(said, alone(build("test_resnet", seed=9, **settings), pixels), atol=1e-3)
        (features,) = teachers.features(student.prepare(pixels), student)
        assert tuple(features.shape) == (4, *teachers.widths)


def test_the_answer_is_the_weighted_mean_of_the_members(tmp_path: Path, machine: Machine) -> None:
    student, pixels = build(), pictures()
    models = [build("test_resnet", seed=1), build("test_vit", seed=2), build("test_vit", seed=3)]
    folders = [write(tmp_path / str(number), model) for number, model in enumerate(models)]
    weights = (0.75, 0.25, 0.0)
    teachers = load_teachers(OnlineTeacher(tuple(zip(folders, weights, strict=True)), 0), machine, 0)
    said = [alone(model, pixels) for model in models]
    expected = 0.75 * said[0] + 0.25 * said[1]
    assert torch.allclose(teachers.probabilities(student.prepare(pixels), student), expected, atol=1e-5)
    assert len(teachers.widths) == 2  # a member without weight is not run
    with pytest.raises(ValueError, match="do not sum to 1"):
        OnlineTeacher(((folders[0], 0.5),), 0)


def test_a_teacher_of_another_size_sees_the_same_picture(tmp_path: Path, machine: Machine) -> None:
    student, pixels = build(size=32), pictures(size=32)
    model = build("test_resnet", size=64, seed=1)
    teachers = load_teachers(online(write(tmp_path / "a", model)), machine, 0)
    seen = as_seen(student.restore(student.prepare(pixels)), model.spec, student.spec)
    assert tuple(seen.shape) == (4, 3, 64, 64)
    back = torch.nn.functional.interpolate(seen, (32, 32), mode="area")
    assert (back - pixels.permute(0, 3, 1, 2)).abs().mean() < 3
    said = teachers.probabilities(student.prepare(pixels), student)
    with torch.no_grad():
        assert torch.allclose(said, model.probabilities(model.eval()(model.normalise(seen))), atol=1e-5)


@pytest.mark.parametrize(("of_student", "of_teacher"), [(1, 3), (3, 1), (4, 3), (4, 1), (1, 1), (4, 4)])
def test_channels_become_the_teachers(of_student: int, of_teacher: int) -> None:
    student, teacher = build(channels=of_student), build("test_resnet", channels=of_teacher, seed=1)
    pixels = pictures(channels=of_student)
    seen = as_seen(student.restore(student.prepare(pixels)), teacher.spec, student.spec)
    planes = pixels.permute(0, 3, 1, 2).float()
    if of_teacher == 1 and of_student > 1:
        expected = (0.299 * planes[:, :1] + 0.587 * planes[:, 1:2] + 0.114 * planes[:, 2:3]).expand(-1, 3, -1, -1)
    else:
        expected = planes[:, :of_teacher].expand(-1, teacher.spec.in_chans, -1, -1)
    assert torch.allclose(seen, expected, atol=1e-2)
    with torch.no_grad():
        teacher.eval()(teacher.normalise(seen))


def test_only_teachers_that_left_the_fold_out_may_teach_it(tmp_path: Path, machine: Machine) -> None:
    first, second = write(tmp_path / "a", build(), fold=0), write(tmp_path / "b", build(seed=1), fold=1)
    assert isinstance(load_teachers(online(first), machine, 0), Teachers)
    for fold, excluded, folders, leaky, what in (
        (1, 0, (first,), False, "left out fold 0 may not teach the student of fold 1"),
        (1, 0, (first,), True, "left out fold 0"),  # no leak that was asked for, but the wrong fold
        (0, None, (first,), False, "left out no fold"),
        (0, 0, (first, second), False, "b: a network of fold 1 may not teach the student of fold 0"),
    ):
        with pytest.raises(LeakError, match=what):
            load_teachers(online(*folders, excluded=excluded), machine, fold, leaky)
    assert len(load_teachers(online(first, second, excluded=None), machine, 0, leaky=True).members) == 2


def test_loading_draws_nothing_and_leaves_the_teacher_to_itself(tmp_path: Path, machine: Machine) -> None:
    model, student = build("test_resnet", drop_rate=0.5, seed=1), build()
    folder = write(tmp_path / "a", model)
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    teachers = load_teachers(online(folder), machine, 0)
    before = {name: value.clone() for name, value in teachers.members[0].model.state_dict().items()}
    images = student.prepare(pictures()).requires_grad_()
    answers = teachers.answer(images, student)
    assert torch.equal(torch.get_rng_state(), expected)
    assert not answers.probabilities.requires_grad
    assert teachers.broken_names() == []
    teachers.answer(images * torch.inf, student)
    teachers.answer(images, student)
    assert teachers.broken_names() == ["run fold 0"]  # once is enough
    assert not any(part.requires_grad for part in answers.features)
    after = teachers.members[0].model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


IMAGE_WISE: dict[str, Any] = {"input": {"normalise": "image"}}


def test_what_cannot_be_honoured_is_refused_before_training(tmp_path: Path) -> None:
    student = build().spec
    plain = write(tmp_path / "plain", build("test_resnet"))
    check_teachers(online(plain), MULTI, student, SPEC)
    cases: list[tuple[Path, Task, Any, ImageSpec, str]] = [
        (plain, MULTI, build(**IMAGE_WISE).spec, SPEC, "input.normalise: .* 'image' cannot be undone"),
        (plain, Task("multiclass", ("a", "c", "b")), student, SPEC, "other classes"),
        (plain, Task("ordinal", ("a", "b", "c")), student, SPEC, "another task"),
        (plain, MULTI, build(input={"colour": "lab"}).spec, SPEC, "input.colour rgb, the student of lab"),
        (plain, MULTI, student, replace(SPEC, resize="crop"), "input.resize squash, the student of crop"),
        (plain, MULTI, student, replace(SPEC, range="image"), "input.range full"),
    ]
    local = write(tmp_path / "local", build(input={"local_mean": "subtract"}))
    cases.append((local, MULTI, student, SPEC, "input.local_mean subtract, the student of none"))
    alpha = write(tmp_path / "alpha", build(channels=4), images=replace(SPEC, channels=4))
    cases.append((alpha, MULTI, student, SPEC, "alpha"))
    for folder, task, spec, images, what in cases:
        with pytest.raises(BadInput, match=what):
            check_teachers(online(folder), task, spec, images)
    # Of stored images of their own, teachers need the task alone.
    check_teachers(online(local), MULTI)
    with pytest.raises(BadInput, match="other classes"):
        check_teachers(online(local), Task("multiclass", ("x", "y", "z")))


def test_a_teacher_that_knows_metadata_is_refused(tmp_path: Path) -> None:
    model = build(shape=MetadataShape(1, ()), metadata={"numeric": ["age"]})
    folder = write(tmp_path / "a", model, metadata=MetadataEncoder(("age",), (0.0,), (1.0,)))
    with pytest.raises(BadInput, match="needs metadata columns"):
        check_teachers(online(folder), MULTI, build().spec, SPEC)


class Drawn:
    """A store of pictures, each known by its id."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels.numpy()
        self.ids = tuple(f"n{number}" for number in range(len(pixels)))
        self.shape: tuple[int, int, int] = tuple(self.pixels.shape[1:])
        self.digest = "drawn"

    def read(self, rows: Any) -> Any:
        return self.pixels[np.asarray(rows)].copy()


def test_stored_views_are_labelled_one_by_one_at_the_teachers_own_size(tmp_path: Path, machine: Machine) -> None:
    small, large = build("test_resnet", size=24, seed=1), build("test_vit", size=32, **IMAGE_WISE, seed=2)
    specs = [replace(SPEC, size=40), SPEC]  # the first stores larger images than it sees
    folders = [write(tmp_path / str(n), model, images=spec) for n, (model, spec) in enumerate(zip((small, large), specs, strict=True))]  # fmt: skip
    stores = {spec.size: Drawn(pictures(5, spec.size)) for spec in specs}
    opened: list[ImageSpec] = []

    def open_images(spec: ImageSpec) -> Images:
        opened.append(spec)
        return stores[spec.size]

    ids = ["n3", "n0", "n4"]
    weighted = OnlineTeacher(((folders[0], 0.25), (folders[1], 0.75)), 0)
    views = label_views(weighted, machine, open_images, ids, "flips", fold=0, task=MULTI, batch_size=2)
    assert opened == specs
    assert len(views) == 4
    for number, soft in enumerate(views):
        assert soft.ids == tuple(ids)
        assert soft.excluded_fold == 0
        assert soft.weights.tolist() == [1, 1, 1]
        expected = torch.zeros(3, 3)
        for share, model, spec in ((0.25, small, specs[0]), (0.75, large, specs[1])):
            pixels = centre(stores[spec.size].read([3, 0, 4]), model.spec.size)
            expected += share * alone(model, torch.from_numpy(np.ascontiguousarray(turned(pixels, number))))
        assert np.allclose(soft.targets, expected, atol=1e-5)
    assert not np.allclose(views[0].targets, views[1].targets, atol=1e-4)
    with pytest.raises(LeakError, match="fold 1"):
        label_views(weighted, machine, open_images, ids, "none", fold=1, task=MULTI)
    leaky = OnlineTeacher(weighted.bundles, None)
    assert (
        label_views(leaky, machine, open_images, ids, "none", fold=1, task=MULTI, leaky=True)[0].excluded_fold is None
    )
