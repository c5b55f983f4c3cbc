"""Magnitude pruning: how many go, which go, and that they stay away."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from goldfold.averaging import make_ema
from goldfold.config.schema import Input, Model
from goldfold.errors import BadInput
from goldfold.models import Classifier, build_model, make_spec
from goldfold.pruning import apply_masks, magnitude_masks, sparsity
from goldfold.tasks import Task


def build(backbone: str = "test_efficientnet") -> Classifier:
    torch.manual_seed(0)
    settings = Model(backbone=backbone, pretrained=False)
    model = build_model(make_spec(settings, Input(size=32), Task("multiclass", ("a", "b", "c"))))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Tiny(nn.Module):
    """Two layers as a backbone, with weights of our own choice."""

    def __init__(self, first: list[float], second: list[float]) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(len(first), 1, 1), nn.BatchNorm2d(1), nn.Linear(len(second), 1))
        self.head = nn.Linear(2, 2)
        for layer, values in ((self.backbone[0], first), (self.backbone[2], second)):
            layer.weight.data = torch.tensor(values).view(layer.weight.shape)


def tiny(first: list[float], second: list[float]) -> Classifier:
    return Tiny(first, second)  # type: ignore[return-value]


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("amount", [0.0, 0.333, 0.9])
def test_the_share_is_exact_and_is_that_of_the_smallest_weights(backbone: str, amount: float) -> None:
    model = build(backbone)
    masks = magnitude_masks(model, amount)
    weights = dict(model.named_parameters())
    kept = torch.cat([weights[name][mask].abs() for name, mask in masks.items()])
    pruned = torch.cat([weights[name][~mask].abs() for name, mask in masks.items()])
    assert len(pruned) == round(amount * (len(kept) + len(pruned)))
    if amount:
        assert kept.min() >= pruned.max()
    apply_masks(model, masks)
    assert sparsity(model) == pytest.approx(len(pruned) / (len(kept) + len(pruned)))


def test_convolutions_and_linear_layers_of_the_backbone_alone_are_pruned() -> None:
    model = build("test_vit")
    masks = magnitude_masks(model, 0.5)
    assert {"backbone.patch_embed.proj.weight", "backbone.blocks.0.attn.qkv.weight"} <= masks.keys()
    assert not [name for name in masks if name.startswith("head") or not name.endswith("weight")]
    assert not [name for name in masks if "norm" in name or "pos_embed" in name or "bias" in name]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    apply_masks(model, masks)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == (name not in masks or bool(masks[name].all())), name


def test_layers_are_weighed_together_and_ties_go_in_order() -> None:
    model = tiny([0.5, -0.5, 3.0, 0.5], [-0.5, 0.1, 0.5, 0.5])
    masks = magnitude_masks(model, 0.5)  # 4 of 8: the 0.1 and the first three of the six at 0.5
    assert masks["backbone.0.weight"].flatten().tolist() == [False, False, True, False]
    assert masks["backbone.2.weight"].flatten().tolist() == [True, False, True, True]


def test_the_count_is_exact_where_all_are_equal() -> None:
    model = tiny([1.0] * 10, [-1.0] * 7)
    for count in range(17):
        masks = magnitude_masks(model, count / 17)
        assert sum(int((~mask).sum()) for mask in masks.values()) == count
        assert (~masks["backbone.0.weight"]).sum() == min(count, 10)


def test_a_mask_does_not_depend_on_the_memory_layout() -> None:
    model = build()
    for weight in model.parameters():
        weight.data = weight.data.mul(4).round()  # many ties
    strided = build()
    strided.load_state_dict(model.state_dict())
    strided.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert not model.backbone.conv_stem.weight.is_contiguous()  # type: ignore[union-attr, operator]
    first, second = magnitude_masks(model, 0.7), magnitude_masks(strided, 0.7)
    assert all(torch.equal(mask, second[name]) for name, mask in first.items())


def test_frozen_layers_are_not_pruned_and_all_frozen_is_refused() -> None:
    model = build()
    model.backbone.conv_stem.weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    assert "backbone.conv_stem.weight" not in magnitude_masks(model, 0.5)
    model.backbone.requires_grad_(False)
    with pytest.raises(BadInput, match=r"train\.prune\.amount.*no trainable") as caught:
        magnitude_masks(model, 0.5)
    assert "\n" not in str(caught.value)
    assert sparsity(model) == 0


def test_pruned_weights_stay_zero_under_an_optimizer_with_momentum_and_in_the_average() -> None:
    model = build()
    ema = make_ema(model, 0.9, True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    masks = None
    for step in range(1, 5):
        torch.manual_seed(step)
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 2:
            masks = magnitude_masks(model, 0.6)
        if masks is not None:
            apply_masks(model, masks)
        ema.update(model, step=step)
        if masks is not None:
            apply_masks(ema.module, masks)
            pruned = {name: ~mask for name, mask in masks.items()}
            for network in (model, ema.module):
                assert sparsity(network) == pytest.approx(0.6, abs=1e-4)
                weights = dict(network.named_parameters())
                assert all(not weights[name][mask].any() for name, mask in pruned.items())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


def test_masks_of_another_network_are_refused() -> None:
    masks = magnitude_masks(build("test_vit"), 0.5)
    with pytest.raises(ValueError, match="another network's"):
        apply_masks(build(), masks)
    model = tiny([1.0], [1.0])
    with pytest.raises(ValueError, match=r"backbone\.0\.weight"):
        apply_masks(model, {"backbone.0.weight": torch.ones(3, dtype=torch.bool)})


def test_a_weight_that_is_not_a_number_is_not_hidden() -> None:
    masks = magnitude_masks(tiny([float("nan"), 1.0, 2.0], [3.0]), 0.5)
    assert masks["backbone.0.weight"].flatten().tolist() == [True, False, False]
