"""Wide depthwise convolutions learn as PyTorch's own do; only the way to their weights' gradient differs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from goldfold.cli import main
from goldfold.models import depthwise
from goldfold.models.depthwise import quicken_depthwise

LAST = torch.channels_last


def gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    (y * noise).sum().backward()
    assert x.grad is not None
    found = {"y": y.detach().clone(), "x": x.grad}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad.clone()
        parameter.grad = None
    return found


@pytest.mark.parametrize("kernel", [4, 5, (3, 7), (7, 11)])
@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
@pytest.mark.parametrize(("side", "same"), [(4, False), (9, False), (12, True), (3, True)])
def test_gradients_are_those_of_pytorch(kernel: int, stride: int, side: int, same: bool) -> None:
    torch.manual_seed(0)
    sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    settings = {"stride": stride, "groups": 6}
    if same:
        plain: nn.Module = Conv2dSame(6, 6, kernel, **settings)
    else:
        plain = nn.Conv2d(6, 6, kernel, padding=(sides[0] // 2, sides[1] // 2), **settings)
    plain.to(memory_format=LAST)
    quick = copy.deepcopy(plain)
    assert quicken_depthwise(quick) == 1
    x = torch.randn(3, 6, side, side + 2).contiguous(memory_format=LAST)
    expected, found = gradients(plain, x), gradients(quick, x)
    assert torch.equal(expected["y"], found["y"])
    for name, value in expected.items():
        assert torch.allclose(value, found[name], rtol=1e-4, atol=1e-4), name


def test_a_whole_network_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("tf_efficientnet_lite0", num_classes=3).to(memory_format=LAST)
    quick = copy.deepcopy(plain)
    assert quicken_depthwise(quick) == 9
    assert quicken_depthwise(copy.deepcopy(quick)) == 0  # a copy stays quick
    assert quick.state_dict().keys() == plain.state_dict().keys()
    calls: list[torch.Size] = []
    real = depthwise.weight_gradient

    def watched(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        calls.append(weight.shape)
        return real(grad, x, weight, stride, padding)

    monkeypatch.setattr(depthwise, "weight_gradient", watched)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=LAST)
    expected, found = gradients(plain, x), gradients(quick, x)
    assert len(calls) == 9
    assert torch.equal(expected["y"], found["y"])
    for name, value in expected.items():
        scale = float(value.abs().max())
        assert torch.allclose(value, found[name], rtol=1e-3, atol=1e-4 * scale), name
    calls.clear()
    with torch.no_grad():
        quick(x)
    for parameter in quick.parameters():
        parameter.requires_grad_(False)
    quick(x.requires_grad_()).sum().backward()
    assert not calls


def test_half_precision_has_float32_weights_and_gradients_to_match() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 5, padding=2, groups=8).to(memory_format=LAST)
    quick = copy.deepcopy(plain)
    quicken_depthwise(quick)
    x = torch.randn(4, 8, 9, 9).contiguous(memory_format=LAST)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = gradients(plain, x), gradients(quick, x)
    assert found["y"].dtype == torch.bfloat16
    assert found["weight"].dtype == torch.float32
    for name, value in expected.items():
        assert torch.allclose(value, found[name], rtol=0.02, atol=0.2), name


def test_other_convolutions_are_left_alone() -> None:
    class Own(nn.Conv2d):
        pass

    others = [
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 5),
        nn.Conv2d(8, 16, 5, groups=8),
        nn.Conv2d(8, 8, 5, groups=8, dilation=2),
        nn.Conv2d(8, 8, 5, groups=8, padding="same"),
        nn.Conv2d(8, 8, 5, groups=8, padding=2, padding_mode="circular"),
        Own(8, 8, 5, groups=8),
        nn.Conv1d(8, 8, 5, groups=8),
    ]
    assert quicken_depthwise(nn.ModuleList(others)) == 0


def test_training_takes_them(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []
    real = depthwise.weight_gradient

    def watched(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        calls.append(weight.shape)
        return real(grad, x, weight, stride, padding)

    monkeypatch.setattr(depthwise, "weight_gradient", watched)
    settings = ["model.backbone=mobilenetv3_small_050", "input.size=32", "train.epochs=1"]
    assert main(["train", "configs/tiny.yaml", "--fold", "0", *settings]) == 0
    assert len(calls) == 8 * 3  # layers x batches
