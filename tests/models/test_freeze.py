"""Frozen layers: untouched by training, batch-norm statistics included, until they are set free."""

from __future__ import annotations

import pytest
import torch

from goldfold.errors import BadInput
from goldfold.models import Classifier, set_frozen, trainable_names
from tests.models.networks import build


def changed_by_training(model: Classifier) -> set[str]:
    """Names in the state that two steps change."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5)
    torch.manual_seed(0)
    model.train()
    for _ in range(2):
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def part(state: set[str], *stages: str) -> set[str]:
    return {name for name in state if name.startswith(tuple(f"backbone.{stage}" for stage in stages))}


def test_stages_thaw_one_after_another() -> None:
    model = build("test_resnet")
    state = set(model.state_dict())
    stages = ("layer1", "layer2", "layer3", "layer4")
    assert all(part(state, stage) for stage in stages)
    for frozen in ("all", 3, 1, 0):
        set_frozen(model, frozen, False)  # type: ignore[arg-type]
        still = {"all": stages, 3: stages[:2], 1: (), 0: ()}[frozen]  # group 0 is the stem
        expected = state - part(state, *still)
        if frozen:
            expected -= part(state, "conv1", "bn1")
        assert changed_by_training(model) == expected, frozen


@pytest.mark.parametrize(("last", "same"), [(-1, 4), (-2, 3), (-4, 1)])
def test_negative_stages_leave_the_last_ones(last: int, same: int) -> None:
    model = build("test_resnet")
    assert trainable_names(model, last, False) == trainable_names(model, same, False)
    set_frozen(model, last, False)
    changed = changed_by_training(model)
    assert part(changed, "layer4")
    assert not part(changed, "conv1", "bn1")


def test_freezing_again_changes_nothing_and_depends_on_nothing_before() -> None:
    model, other = build(), build()
    for stages in (3, 1, "all", 2, 2):
        set_frozen(model, stages, stages == 1)  # type: ignore[arg-type]
    set_frozen(other, 2, False)
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert one.requires_grad == two.requires_grad, name
    trained = [[name for name, module in net.train().named_modules() if module.training] for net in (model, other)]
    assert trained[0] == trained[1]


def test_batch_norm_stays_in_every_layer() -> None:
    model = build("test_resnet")
    norms = {
        f"{name}.{value}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for value in module.state_dict()
        if "." not in value
    }
    set_frozen(model, 0, True)
    assert changed_by_training(model) == set(model.state_dict()) - norms
    # So an image's logits do not depend on the others of its batch.
    images = torch.randn(4, 3, 32, 32)
    assert torch.allclose(model.train()(images)[:2], model(images[:2]), atol=1e-4)
    set_frozen(model, 0, False)
    assert changed_by_training(model) == set(model.state_dict())


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_vit", "torchvision/shufflenet_v2_x0_5"])
@pytest.mark.parametrize(("stages", "batch_norm"), [(0, False), (2, False), (-1, True), ("all", False), (0, True)])
def test_trainable_names_say_what_freezing_leaves(backbone: str, stages: int, batch_norm: bool) -> None:
    model = build(backbone, pool="gem", auxiliary=[2])
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    names = trainable_names(model, stages, batch_norm)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert model.frozen == []
    set_frozen(model, stages, batch_norm)
    assert names == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"head.weight", "pooling.p", "auxiliary.0.weight"} <= names


def test_frozen_blocks_have_no_stochastic_depth() -> None:
    model = build("test_convnext", drop_path_rate=0.9).train()
    images = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model.backbone(images), model.backbone(images))
    set_frozen(model, "all", False)  # takes effect at once, and so does thawing
    assert torch.equal(model.backbone(images), model.backbone(images))
    model.train()
    assert torch.equal(model.backbone(images), model.backbone(images))
    set_frozen(model, 0, False)
    assert not torch.equal(model.backbone(images), model.backbone(images))


def test_what_the_backbone_fixes_itself_stays_fixed() -> None:
    model = build("test_resnet")
    model.backbone.get_parameter("conv1.0.weight").requires_grad_(False)
    again = Classifier(model.spec, model.backbone)
    set_frozen(again, 2, False)
    set_frozen(again, 0, False)
    assert not again.backbone.get_parameter("conv1.0.weight").requires_grad
    assert "backbone.conv1.0.weight" not in trainable_names(again, 0, False)


def test_a_frozen_layers_last_gradient_is_forgotten() -> None:
    model = build("test_resnet")
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    set_frozen(model, 1, False)
    assert model.backbone.get_parameter("conv1.0.weight").grad is None
    assert model.head.weight.grad is not None


def test_a_learnt_activation_freezes_with_its_stage() -> None:
    model = build("test_resnet", activation="prelu")
    names = [name for name, _ in model.named_parameters() if name.startswith("backbone.act1")]
    assert names
    assert not set(names) & trainable_names(model, 1, False)
    assert set(names) <= trainable_names(model, 0, False)


@pytest.mark.parametrize("stages", [50, -50])
def test_more_stages_than_there_are_cannot_be_frozen(stages: int) -> None:
    model = build()
    with pytest.raises(BadInput, match=r"model\.freeze\.stages.*groups of layers; use"):
        set_frozen(model, stages, False)
    with pytest.raises(BadInput, match=r"model\.freeze\.stages"):
        trainable_names(model, stages, False)
    assert all(parameter.requires_grad for parameter in model.parameters())
