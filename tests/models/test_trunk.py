"""Trunk and tail together are the model: in its answers, and in what a training step does to it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from goldfold.config.schema import Input, Model
from goldfold.config.training import Head
from goldfold.errors import BadInput
from goldfold.models import Classifier, build_model, make_spec, set_frozen
from goldfold.models.spec import MetadataSpec
from goldfold.models.trunk import Split, split_trunk
from goldfold.tasks import Task

TASK = Task("multiclass", ("a", "b", "c"))


def build(backbone: str, size: int, stages: Any, *, batch_norm: bool = False, **model: Any) -> Classifier:
    torch.manual_seed(0)
    settings = Model(backbone=backbone, pretrained=False, **model)
    made = build_model(make_spec(settings, Input(size=size), TASK))
    for part in made.modules():  # so that batch norms in training differ from those in eval
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
            part.running_mean.uniform_(-0.2, 0.2)
    set_frozen(made, stages, batch_norm)
    return made


def images(size: int, n: int = 4) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, inputs: Tensor) -> None:
    """One step of plain SGD on some loss."""
    model.train()
    logits = model(inputs)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter -= 0.05 * parameter.grad


CASES = [
    ("tf_efficientnet_lite0", 64, 4),
    ("tf_efficientnet_lite0", 64, -1),
    ("test_efficientnet", 64, 2),
    ("mobilenetv3_small_050", 64, -2),
    ("test_resnet", 64, 3),
    ("resnet18d", 64, 1),
    ("test_convnext", 64, 3),
    ("regnety_002", 64, 3),
    ("test_byobnet", 64, 2),
    ("test_nfnet", 64, 2),
    ("test_vit", 160, 4),
    ("test_vit", 160, -1),
    ("test_mambaout", 96, 2),
    ("torchvision/shufflenet_v2_x0_5", 64, 3),
    ("torchvision/squeezenet1_1", 64, 4),
    ("test_resnet", 64, "all"),
    ("test_vit", 160, "all"),
]


@pytest.mark.parametrize(("backbone", "size", "stages"), CASES)
def test_trunk_and_tail_are_the_model(backbone: str, size: int, stages: Any) -> None:
    whole = build(backbone, size, stages)
    twin = copy.deepcopy(whole)
    split, x = split_trunk(twin, images(size, 2)), images(size)
    features = split.trunk(x)
    assert not features.requires_grad
    with torch.no_grad():
        assert torch.allclose(split.tail.eval()(features), whole.eval()(x), rtol=1e-4, atol=1e-5)
    # A step on the tail does to the model what a step on the whole does: weights, batch statistics, and nothing else.
    start = copy.deepcopy(whole.state_dict())
    step(whole, x)
    step(split.tail, features)
    expected, found = whole.state_dict(), twin.state_dict()
    changed = {name for name, value in expected.items() if not torch.equal(value, start[name])}
    assert changed == {name for name, value in found.items() if not torch.equal(value, start[name])}
    assert any(name.startswith("head") for name in changed)
    assert any(name.startswith("backbone") for name in changed) == (stages != "all")
    for name in changed:
        assert torch.allclose(expected[name].float(), found[name].float(), rtol=1e-3, atol=1e-5), name
    # The whole model sees what the tail has learnt.
    with torch.no_grad():
        assert torch.allclose(twin.eval()(x), whole.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "stages", "place", "shape"),
    [
        ("tf_efficientnet_lite0", 4, "backbone.blocks.2", (40, 8, 8)),
        ("resnet18d", 3, "backbone.layer2", (128, 8, 8)),
        ("resnet18d", "all", "backbone", (512,)),
        ("convnext_atto", 3, "backbone.stages.1", (80, 8, 8)),
    ],
)
def test_the_trunk_reaches_as_far_as_the_frozen_layers(backbone: str, stages: Any, place: str, shape: Any) -> None:
    split = split_trunk(build(backbone, 64, stages), images(64, 2))
    assert split.trunk.place == place
    assert split.trunk(images(64)).shape == (4, *shape)


def test_pooling_without_weights_belongs_to_the_trunk_and_with_weights_to_the_tail() -> None:
    x = images(64)
    for pool, more, shape in (("concat", {}, (192,)), ("gem", {}, (96, 2, 2)), ("avg", {"reduce": 8}, (96, 2, 2))):
        model = build("test_resnet", 64, "all", pool=pool, **more)
        split = split_trunk(model, x)
        assert split.trunk(x).shape == (4, *shape)
        assert torch.allclose(split.tail.eval()(split.trunk(x)), model.eval()(x), atol=1e-5)


def test_the_tail_runs_nothing_of_the_trunk() -> None:
    model = build("test_resnet", 64, 3)
    split = split_trunk(model, images(64))
    features = split.trunk(images(64))
    frozen = {id(part) for part in model.frozen for part in part.modules()}
    called: list[str] = []
    for name, part in model.backbone.named_modules():
        part.register_forward_hook(lambda *_, name=name: called.append(name))
    split.tail.train()(features)
    assert "layer3" in called
    assert not [name for name in called if name.startswith(("conv1", "bn1", "layer1", "layer2"))]
    assert not frozen & {id(part) for part in split.tail.modules()}
    assert set(split.tail.state_dict()) < set(model.state_dict())


def test_modes_stay_as_they_were_and_each_part_keeps_its_own() -> None:
    model = build("test_resnet", 64, 2, batch_norm=True)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    for training in (True, False):
        model.train(training)
        split = split_trunk(model, images(64))
        split.trunk(images(64))
        assert model.training == model.head.training == split.tail.training == training
    tail = split.tail.train()
    assert not [part for part in tail.modules() if isinstance(part, nn.BatchNorm2d) and part.training]
    assert len([part for part in tail.modules() if isinstance(part, nn.BatchNorm2d)]) < len(norms)
    assert tail.backbone.get_submodule("layer3").training


def test_a_norm_whose_statistics_move_is_no_trunk() -> None:
    """Its scale is fixed, but in training it changes."""
    model = build("test_resnet", 64, 0)
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(not name.startswith(("conv1", "bn1", "layer1")))
    assert [part for part in model.modules() if isinstance(part, nn.BatchNorm2d) and part.training]
    split = split_trunk(model, images(64))
    assert split.trunk.place in ("backbone.conv1", "backbone.conv1.0")


def test_dropout_after_the_frozen_layers_stays_at_work() -> None:
    model = build("torchvision/alexnet", 64, -1)
    split = split_trunk(model, images(64))
    assert split.trunk.place in ("backbone.features", "backbone.avgpool")
    tail, features = split.tail.train(), split.trunk(images(64))
    assert not torch.equal(tail(features), tail(features))


@pytest.mark.parametrize("stages", [2, "all"])
@pytest.mark.parametrize("hidden", [(), (8,)])
def test_multi_sample_dropout_and_auxiliary_heads_are_in_the_tail(stages: Any, hidden: tuple[int, ...]) -> None:
    head = Head(hidden=hidden, dropouts=2)
    settings = Model(backbone="test_resnet", pretrained=False, drop_rate=0.5, head=head)
    model = build_model(make_spec(settings, Input(size=64), TASK), auxiliary=[2])
    set_frozen(model, stages, False)
    split, x = split_trunk(model, images(64, 2)), images(64)
    features = split.trunk(x)
    torch.manual_seed(5)
    whole = model.train()(x)
    torch.manual_seed(5)
    parts = split.tail.train()(features)
    assert whole.shape == (4, 5)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert not torch.allclose(split.tail(features), parts, atol=1e-3)


def test_metadata_goes_beside_the_features() -> None:
    branch = MetadataSpec(numeric=1, categories=(3,), embeddings=(2,), hidden=(4,), drop_rate=0.0)
    spec = make_spec(Model(backbone="test_resnet", pretrained=False), Input(size=64), TASK)
    model = build_model(replace(spec, metadata=branch))
    set_frozen(model, "all", False)
    split, x, columns = split_trunk(model, images(64, 2)), images(64), torch.randn(4, branch.width)
    found = split.tail.eval()(split.trunk(x), columns)
    assert torch.allclose(found, model.eval()(x, columns), atol=1e-5)
    assert not torch.allclose(found, split.tail(split.trunk(x), columns * 0), atol=1e-4)


def test_features_in_half_precision_and_any_layout_are_taken_and_left() -> None:
    model = build("test_resnet", 64, 2)
    split = split_trunk(model, images(64).contiguous(memory_format=torch.channels_last))
    features = split.trunk(images(64)).half()
    before = features.clone()
    with torch.no_grad():
        first = split.tail.eval()(features)
        assert torch.equal(first, split.tail(features.contiguous(memory_format=torch.channels_last)))
        assert torch.equal(features, before)
        assert torch.allclose(first, model.eval()(images(64)), rtol=0.02, atol=0.02)


def test_layers_that_work_in_place_leave_the_features() -> None:
    class InPlace(nn.Module):
        num_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu_()).mean(dim=(2, 3))

    model = Classifier(make_spec(Model(backbone="test_resnet", pretrained=False), Input(size=8), TASK), InPlace())
    model.backbone.get_submodule("first").requires_grad_(False)
    split = split_trunk(model, images(8))
    features = split.trunk(images(8))
    before = features.clone()
    split.tail(features)
    assert before.min() < 0
    assert torch.equal(features, before)


def test_a_copy_of_the_tail_is_a_tail_of_its_own() -> None:
    model = build("test_resnet", 64, 2)
    split: Split = split_trunk(model, images(64))
    features = split.trunk(images(64))
    twin = copy.deepcopy(split.tail).eval()
    with torch.no_grad():
        expected = split.tail.eval()(features)
        twin.head.weight.zero_()
        assert torch.equal(split.tail(features), expected)
        split.tail(features * 0)
        assert torch.equal(twin(features), twin.head.bias.expand(4, 3))


def test_networks_that_cannot_be_split_are_refused() -> None:
    model = build("xcit_nano_12_p16_224", 64, 3)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(BadInput, match=r"model\.freeze\.cache: xcit_nano_12_p16_224 cannot be split.*cache to false"):
        split_trunk(model, images(64))
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(BadInput, match="cannot be split"):
        split_trunk(build("test_resnet", 64, 0), images(64))


def test_a_trunk_that_is_used_behind_the_cut_too_is_refused_or_cut_earlier() -> None:
    """A shortcut around the trunk would carry what the tail no longer has."""

    class Around(nn.Module):
        num_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            one = self.first(x)
            # The weight is 0, so no comparison of numbers could tell.
            return self.third(self.second(one) + 0 * one).mean(dim=(2, 3))

    spec = make_spec(Model(backbone="test_resnet", pretrained=False), Input(size=8), TASK)
    model = Classifier(spec, Around())
    for part in ("first", "second"):
        model.backbone.get_submodule(part).requires_grad_(False)
    split = split_trunk(model, images(8))
    assert split.trunk.place == "backbone.first"


def test_the_tail_of_an_average_has_the_average_s_weights() -> None:
    model = build("tf_efficientnet_lite0", 64, 4)
    split, x = split_trunk(model, images(64, 2)), images(64)
    other = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.1)
        tail = split.tail_of(other).eval()
        features = split.trunk(x)
        assert torch.allclose(tail(features), other(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(tail(features), split.tail.eval()(features), rtol=1e-2, atol=1e-3)
    assert tail.head.weight is other.head.weight
