"""Pixels in, probabilities out: preparation, heads, frozen layers, backbones of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from goldfold.config.schema import Input, Model, Optim
from goldfold.errors import BadInput
from goldfold.models import Classifier, backbone_defaults, build_model, grades, make_spec, set_frozen
from goldfold.optim import make_optimizer, set_rate
from goldfold.tasks import Task, TaskName

MULTI = Task("multiclass", ("a", "b", "c"))


def build(
    backbone: str = "test_efficientnet", size: int = 32, channels: int = 3, task: Task = MULTI, **model: object
) -> Classifier:
    settings = Model(backbone=backbone, pretrained=False, **model)  # type: ignore[arg-type]
    torch.manual_seed(0)
    return build_model(make_spec(settings, Input(size=size, channels=channels), task))  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_preparation_is_x_over_255_minus_mean_over_std(channels: int, layout: torch.memory_format) -> None:
    model = build(channels=channels)
    in_chans = max(channels, 3)
    pixels = torch.randint(0, 256, (2, 5, 6, channels), dtype=torch.uint8)
    mean, std = (np.array(value, dtype=np.float64) for value in (model.spec.mean, model.spec.std))
    assert len(mean) == in_chans
    expected = (pixels.expand(-1, -1, -1, in_chans).numpy() / 255 - mean) / std
    prepared = model.prepare(pixels, layout)
    assert prepared.dtype == torch.float32
    assert prepared.shape == (2, in_chans, 5, 6)
    assert prepared.is_contiguous(memory_format=layout)
    assert np.abs(prepared.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-5
    assert model(prepared).shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_preparation_in_pieces_is_normalisation_to_the_bit(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(channels=channels)
    pixels = torch.randint(0, 256, (5, 7, 9, channels), dtype=torch.uint8)
    images = pixels.permute(0, 3, 1, 2).float().expand(-1, model.spec.in_chans, -1, -1)
    for cached in (1, 2 * 7 * 9 * channels, 1 << 18):
        monkeypatch.setattr("goldfold.models.classifier.CACHED", cached)
        assert torch.equal(model.prepare(pixels), model.normalise(images))
        assert torch.equal(model.prepare(pixels[:, :, 1:6]), model.normalise(images[..., 1:6]))
    assert model.prepare(pixels[:0]).shape == (0, model.spec.in_chans, 7, 9)


def test_means_come_from_the_configuration_first() -> None:
    assert build(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)).spec.mean == (0.1, 0.2, 0.3)
    assert build().spec.mean == pytest.approx(backbone_defaults("test_efficientnet")["mean"])
    with pytest.raises(BadInput, match=r"model\.std.*above 0"):
        build(std=(0.5, 0.0, 0.5))


def test_grades_are_probabilities_in_order() -> None:
    above = torch.tensor([[0.9, 0.6, 0.1], [0.2, 0.8, 0.5], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    found = grades(above)
    assert found.shape == (4, 4)
    assert (found >= 0).all()
    assert torch.allclose(found.sum(dim=1), torch.ones(4))
    assert torch.allclose(found[0], torch.tensor([0.1, 0.3, 0.5, 0.1]))
    # P(grade > k) never rises with k, even where the network says so.
    exceeded = 1 - found.cumsum(dim=1)
    assert (exceeded.diff(dim=1) <= 1e-6).all()
    # A surer "above" moves the mean grade up.
    positions = torch.arange(4, dtype=torch.float32)
    assert (grades(above.clamp(0.1, 0.9) + 0.05) @ positions > grades(above.clamp(0.1, 0.9)) @ positions).all()


@pytest.mark.parametrize(
    ("name", "classes"),
    [("binary", ("1",)), ("multiclass", ("a", "b", "c")), ("multilabel", ("a", "b")), ("ordinal", ("0", "1", "2"))],
)
def test_every_task_gets_probabilities_of_its_classes(name: TaskName, classes: tuple[str, ...]) -> None:
    task = Task(name, classes, "0" if name == "binary" else None)
    model = build(task=task).eval()
    found = model.probabilities(model(torch.randn(4, 3, 32, 32)) * 5)
    assert found.shape == (4, len(classes))
    assert found.min() >= 0
    assert found.max() <= 1
    if name in ("multiclass", "ordinal"):
        assert torch.allclose(found.sum(dim=1), torch.ones(4))


def test_regression_answers_in_the_targets_units() -> None:
    task = Task("regression", ("x", "y"))
    spec = make_spec(Model(backbone="test_efficientnet"), Input(size=32), task, (10.0, -1.0), (2.0, 0.5))
    found = build_model(spec).probabilities(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    assert found.tolist() == [[10.0, 0.0], [12.0, -1.0]]


def test_frozen_stages_stay_as_they_are_while_the_rest_learns() -> None:
    model = build()
    set_frozen(model, 2, False)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert any("conv_stem" in name for name in frozen)
    assert not any(name.startswith("head") for name in frozen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(Optim(name="adamw", lr=0.1, weight_decay=0.5), model)
    set_rate(optimizer, 0.1)
    model.train()
    for _ in range(2):
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    frozen_statistics = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d) and not module.training
        for kind in ("running_mean", "running_var")
    }
    assert frozen_statistics
    after = model.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert frozen | frozen_statistics <= still
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not learnt & still
    others = {name for name in before if name.endswith("running_mean")} - frozen_statistics
    assert others
    assert not others & still


def test_more_stages_than_there_are_cannot_be_frozen() -> None:
    model = build()
    with pytest.raises(BadInput, match=r"model\.freeze\.stages.*use at most \d+"):
        set_frozen(model, 50, False)
    set_frozen(model, 0, False)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_backbone_of_fixed_size_is_built_at_another_size() -> None:
    assert backbone_defaults("test_vit")["fixed_input_size"]
    for size in (32, 48):
        model = build("test_vit", size=size).eval()
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 3)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "test_byobnet", "test_mambaout"])
def test_families_of_backbones_get_a_head_that_fits(backbone: str) -> None:
    size = int(backbone_defaults(backbone)["input_size"][-1]) if backbone == "test_vit" else 64
    assert build(backbone, size=size).eval()(torch.zeros(2, 3, size, size)).shape == (2, 3)


def test_weights_of_a_file_reach_the_backbone(tmp_path: Path) -> None:
    source = build()
    with torch.no_grad():
        for parameter in source.backbone.parameters():
            parameter.fill_(0.125)
    save_file(source.backbone.state_dict(), tmp_path / "w.safetensors")
    model = build_model(source.spec, weights=tmp_path / "w.safetensors")
    assert all((parameter == 0.125).all() for parameter in model.backbone.parameters())
    assert not (model.head.weight == 0.125).all()


@pytest.mark.parametrize("fault", ["Missing", "Unexpected"])
def test_a_file_that_lacks_tensors_or_has_more_is_refused(fault: str, tmp_path: Path) -> None:
    """timm itself would load it, and leave the rest at random."""
    source = build()
    state = source.backbone.state_dict()
    if fault == "Missing":
        state.pop("blocks.0.0.bn1.bias")
    else:
        state["blocks.0.7.bn1.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        BadInput, match=rf"w\.safetensors: the weights do not fit test_efficientnet.*{fault} key.*blocks"
    ):
        build_model(source.spec, weights=tmp_path / "w.safetensors")


def test_a_file_with_a_classifier_and_other_channels_fits(tmp_path: Path) -> None:
    whole = timm.create_model("test_efficientnet", num_classes=1000)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    spec = make_spec(Model(backbone="test_efficientnet"), Input(size=32, channels=4), MULTI)
    model = build_model(spec, weights=tmp_path / "w.safetensors")
    assert torch.equal(dict(model.backbone.named_parameters())["conv_head.weight"], whole.conv_head.weight)
    assert dict(model.backbone.named_parameters())["conv_stem.weight"].shape[1] == 4


def test_an_unknown_pretraining_tag_names_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"model\.backbone.*known: test_efficientnet\.r160_in1k"):
        make_spec(Model(backbone="test_efficientnet.nothing"), Input(size=32), MULTI)


@pytest.mark.parametrize(("normalise", "axes"), [("image", (1, 2, 3)), ("image_per_channel", (1, 2))])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_may_be_normalised_by_themselves(normalise: str, axes: tuple[int, ...], channels: int) -> None:
    settings = Input(size=32, channels=channels, normalise=normalise)  # type: ignore[arg-type]
    model = build_model(make_spec(Model(backbone="test_efficientnet"), settings, MULTI))
    rng = np.random.default_rng(0)
    pixels = (rng.integers(0, 256, (3, 7, 5, channels)) * np.array([1, 0.1, 0.5])[:, None, None, None]).astype(np.uint8)
    pixels[..., -1] //= 2
    seen = np.repeat(pixels, 3, axis=3) if channels == 1 else pixels
    values = seen.astype(np.float64)
    expected = (values - values.mean(axes, keepdims=True)) / values.std(axes, keepdims=True)
    prepared = model.prepare(torch.from_numpy(pixels))
    assert prepared.dtype == torch.float32
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(prepared.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("normalise", ["image", "image_per_channel"])
def test_a_flat_image_is_zero_and_a_nearly_flat_one_is_not_dampened(normalise: str) -> None:
    settings = Input(size=32, normalise=normalise)  # type: ignore[arg-type]
    model = build_model(make_spec(Model(backbone="test_efficientnet"), settings, MULTI))
    pixels = torch.full((2, 64, 64, 3), 201, dtype=torch.uint8)
    pixels[1, 0, 0] += 1
    prepared = model.prepare(pixels)
    assert prepared[0].abs().max() < 0.05
    assert prepared[1].std(correction=0).item() == pytest.approx(1, abs=0.01)
