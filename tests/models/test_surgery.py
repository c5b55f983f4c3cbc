"""Operations on a finished backbone do what they say and leave the rest."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import timm
import torch
from torch import Tensor, nn

from goldfold.errors import BadInput
from goldfold.models.surgery import ACTIVATIONS, make_activation, resize_stem, swap_activation, zero_last_norms


def backbone(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model(name, num_classes=0, **options)
    return made.eval()


def images(size: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def kinds(module: nn.Module) -> Counter[str]:
    return Counter(type(part).__name__ for part in module.modules())


CALLS = {
    "relu": torch.relu,
    "leaky_relu": nn.functional.leaky_relu,
    "prelu": lambda x: nn.functional.prelu(x, torch.tensor([0.25])),
    "elu": nn.functional.elu,
    "silu": lambda x: x * x.sigmoid(),
    "gelu": nn.functional.gelu,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_the_function_of_its_name(name: str) -> None:
    x = torch.linspace(-3, 3, 21)
    for inplace in (False, True):
        assert torch.allclose(make_activation(name, inplace)(x.clone()), CALLS[name](x), atol=1e-6)


@pytest.mark.parametrize("name", ["leaky_relu", "prelu", "elu", "silu", "gelu"])
def test_a_swapped_activation_is_there_and_nothing_of_the_old_is_left(name: str) -> None:
    model, x = backbone("test_resnet"), images()
    before, old = model(x), kinds(model)
    count = swap_activation(model, name)
    assert count == old["ReLU"] > 5
    assert kinds(model)["ReLU"] == 0
    assert sum(type(part) is ACTIVATIONS[name] for part in model.modules()) == count
    assert not torch.allclose(model(x), before, atol=1e-4)


def test_the_same_activation_again_changes_nothing() -> None:
    model, x = backbone("test_resnet"), images()
    before = model(x)
    assert swap_activation(model, "relu") > 5
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "test_byobnet", "test_convnext", "test_vit", "mobilenetv3_small_050", "regnety_002"]
)
def test_every_family_computes_only_the_new_activation(name: str) -> None:
    """Also the activation inside norms (BatchNormAct2d), and timm's own classes; gates stay."""
    model = backbone(name)
    gates = kinds(model)
    count = swap_activation(model, "prelu")
    seen: list[str] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(getattr(func, "__name__", str(func)))
            return func(*args, **(kwargs or {}))

    with Watch(), torch.no_grad():
        model(images(160))
    assert seen.count("prelu") >= count > 3
    assert not {"relu", "relu_", "relu6", "hardswish", "hardswish_", "silu", "silu_", "gelu", "gelu_"} & set(seen)
    for gate in ("Sigmoid", "Hardsigmoid"):
        assert kinds(model)[gate] == gates[gate]


def test_learnt_activations_have_the_same_names_every_time() -> None:
    first, second = backbone("test_efficientnet"), backbone("test_efficientnet")
    names = [list(model.state_dict()) for model in (first, second) if swap_activation(model, "prelu")]
    assert names[0] == names[1]
    assert "bn1.act.weight" in names[0]
    second.load_state_dict(first.state_dict())


def test_a_swapped_backbone_trains() -> None:
    model = backbone("test_resnet").train()
    swap_activation(model, "elu")
    model(images()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_shared_activation_stays_shared() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared)
    assert swap_activation(model, "prelu") == 1
    assert model[1] is model[3]


@pytest.mark.parametrize("name", ["test_efficientnet_evos", "mobilevitv2_050"])
def test_activations_inside_functions_are_refused(name: str) -> None:
    model = backbone(name)
    before = kinds(model)
    with pytest.raises(BadInput, match=r"model\.activation: .*inside (EvoNorm2dS0|LinearSelfAttention)"):
        swap_activation(model, "relu")
    assert kinds(model) == before
    with pytest.raises(BadInput, match=r"model\.activation: the backbone has no activation"):
        swap_activation(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()), "relu")


# A ResNet (7x7), a deep stem (3x3), Conv2dSame of TensorFlow's networks, and a stem without padding.
@pytest.mark.parametrize("name", ["resnet10t", "resnet18", "tf_efficientnet_lite0", "inception_v3", "test_byobnet"])
@pytest.mark.parametrize("size", [96, 97])
def test_a_larger_kernel_computes_the_same_at_first(name: str, size: int) -> None:
    model = backbone(name)
    x = images(size)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    before, old = model(x), first.kernel_size[0]
    resize_stem(model, old + 4)
    assert first.weight.shape[2:] == (old + 4, old + 4)
    assert first.weight[:, :, 0].abs().max() == 0
    assert torch.allclose(model(x), before, rtol=1e-4, atol=1e-5)
    # And the border learns.
    model.train()(x).square().sum().backward()
    assert first.weight.grad is not None
    assert first.weight.grad[:, :, 0].abs().max() > 0


def test_a_smaller_kernel_is_the_centre_and_the_map_keeps_its_size() -> None:
    model = backbone("resnet18")
    shape = model.forward_features(images()).shape  # type: ignore[operator]
    weight = model.conv1.weight.clone()  # type: ignore[union-attr,operator]
    resize_stem(model, 3)
    assert torch.equal(model.conv1.weight, weight[:, :, 2:5, 2:5])  # type: ignore[union-attr]
    assert model.forward_features(images()).shape == shape  # type: ignore[operator]
    assert "conv1.weight" in dict(model.named_parameters())


@pytest.mark.parametrize(
    ("name", "kernel", "what"),
    [
        ("test_convnext", 3, "kernel of 4x4 and a stride of 4"),
        ("test_vit", 7, "kernel of 16x16"),
        ("test_nfnet", 7, "ScaledStdConv2d"),
        ("inception_v3", 1, "use 3 or more"),
        ("resnet18", 4, "4 is not odd"),
    ],
)
def test_stems_that_cannot_be_resized_are_refused(name: str, kernel: int, what: str) -> None:
    model = backbone(name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BadInput, match=rf"model\.stem_kernel: .*{what}"):
        resize_stem(model, kernel)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


RESIDUAL = [
    "test_resnet",
    "resnet26d",
    "tf_efficientnet_lite0",
    "mobilenetv4_conv_small",
    "regnety_002",
    "test_byobnet",
]


@pytest.mark.parametrize("name", [*RESIDUAL, "resnetv2_50"])
def test_residual_blocks_are_their_shortcut_at_first(name: str) -> None:
    model = backbone(name, zero_init_last=False) if "resnet" in name else backbone(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(0.7)  # whatever timm itself has zeroed
    count = zero_last_norms(model)
    checked = 0

    def check(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal checked
        wanted = inputs[0]
        for way in ("downsample", "shortcut"):
            if isinstance(getattr(block, way, None), nn.Module):
                wanted = getattr(block, way)(wanted)
        for after in ("act", "act2", "act3"):
            if isinstance(getattr(block, after, None), nn.Module) and "Inverted" not in type(block).__name__:
                last = getattr(block, after)
        if not name.startswith(("tf_eff", "mobile", "resnetv2")):
            wanted = last(wanted.clone())
        checked += 1
        assert torch.allclose(output, wanted, atol=1e-6)

    kinds = ("BasicBlock", "Bottleneck", "BottleneckBlock", "DarkBlock", "EdgeBlock")
    kinds += ("InvertedResidual", "UniversalInvertedResidual")
    for block in model.modules():
        kind = type(block).__name__
        preact = kind == "PreActBottleneck" and block.downsample is None  # the others' shortcut follows their norm
        if (kind in kinds and getattr(block, "has_skip", True)) or preact:
            block.register_forward_hook(check)
    with torch.no_grad():
        model(images())
    assert checked > 1
    assert count == checked or name == "resnetv2_50"


def test_zeroed_scales_still_learn() -> None:
    model = backbone("tf_efficientnet_lite0").train()
    assert zero_last_norms(model) == 9
    norm = model.get_submodule("blocks.1.1.bn3")
    assert isinstance(norm.weight, nn.Parameter)
    assert not norm.weight.any()
    model(images()).square().sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.any()


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_networks_without_such_scales_are_refused(name: str) -> None:
    model = backbone(name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BadInput, match=r"model\.zero_init_last: no residual branch"):
        zero_last_norms(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "resnet18d", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_stages_are_really_there(name: str, stride: int) -> None:
    for model, step, widest in ((backbone(name), 32, 1), (backbone(name, output_stride=stride), stride, 32 // stride)):
        shape = model.forward_features(images()).shape  # type: ignore[operator]
        assert shape[2:] == (64 // step, 64 // step)
        assert max(m.dilation[0] for m in model.modules() if isinstance(m, nn.Conv2d)) == widest
