"""Pooling: what each kind computes, and that every family's last map is found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from goldfold.errors import BadInput
from goldfold.models.pooling import MapForm, Pooling, find_form, generalised_mean
from tests.models.networks import build

FORM = MapForm("NCHW", 6)


@pytest.fixture
def maps() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 6, 4, 5) * 3 + 0.01


def test_average_and_maximum(maps: Tensor) -> None:
    assert torch.allclose(Pooling("avg", FORM)(maps), maps.mean(dim=(2, 3)))
    assert torch.allclose(Pooling("max", FORM)(maps), maps.flatten(2).max(dim=2).values)


def test_concat_is_both_side_by_side(maps: Tensor) -> None:
    pooling = Pooling("concat", FORM)
    assert pooling.width == 12
    assert torch.allclose(pooling(maps), torch.cat([Pooling("avg", FORM)(maps), Pooling("max", FORM)(maps)], dim=1))


def test_gem_is_the_mean_at_one_and_nears_the_maximum(maps: Tensor) -> None:
    average, largest = maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))
    assert torch.allclose(generalised_mean(maps, torch.tensor([1.0])), average)
    cubic = (maps.double() ** 3).mean(dim=(2, 3)) ** (1 / 3)
    assert torch.allclose(Pooling("gem", FORM)(maps), cubic.float(), atol=1e-5)
    at_100 = generalised_mean(maps, torch.tensor([100.0]))
    assert torch.allclose(at_100, largest, rtol=0.05)
    assert (at_100 <= largest).all()


def test_gems_exponent_learns_and_its_gradients_are_finite(maps: Tensor) -> None:
    pooling = Pooling("gem", FORM)
    assert pooling.p is not None
    for values in (maps, torch.zeros_like(maps), maps * 1e4):
        seen = values.clone().requires_grad_()
        pooling(seen).sum().backward()
        assert seen.grad is not None
        assert seen.grad.isfinite().all()
        assert pooling.p.grad is not None
        assert pooling.p.grad.isfinite().all()
    assert pooling.p.grad.abs() > 0
    # d/dx of the pooled value, by finite differences in double precision.
    point = maps.double().requires_grad_()
    exponent = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, p: generalised_mean(x, p).double(), (point, exponent), eps=1e-2, atol=2e-2
    )


def test_reduction_maps_channels_at_each_place(maps: Tensor) -> None:
    pooling = Pooling("max", FORM, reduce=4)
    assert pooling.reduce is not None
    weight, bias = pooling.reduce.weight[:, :, 0, 0], pooling.reduce.bias
    by_hand = torch.einsum("bchw,oc->bohw", maps, weight) + bias[:, None, None]  # type: ignore[index]
    assert torch.allclose(pooling(maps), by_hand.amax(dim=(2, 3)), atol=1e-5)


def test_layouts_agree_and_tokens_without_a_place_are_left_out(maps: Tensor) -> None:
    expected = Pooling("max", FORM)(maps)
    channels_last = Pooling("max", MapForm("NHWC", 6))
    assert torch.equal(channels_last(maps.permute(0, 2, 3, 1)), expected)
    tokens = torch.cat([torch.full((2, 3, 6), 100.0), maps.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(Pooling("max", MapForm("NLC", 6, prefix=3))(tokens), expected)


@pytest.mark.parametrize(
    ("backbone", "size", "form"),
    [
        ("test_resnet", 64, MapForm("NCHW", 96)),
        ("test_efficientnet", 64, MapForm("NCHW", 256)),
        ("test_convnext", 64, MapForm("NCHW", 64)),
        ("test_vit", 64, MapForm("NLC", 64, prefix=1)),
        ("test_mambaout", 64, MapForm("NHWC", 256)),
        ("mobilenetv3_small_050", 64, MapForm("NCHW", 1024)),
        ("swin_s3_tiny_224", 224, MapForm("NHWC", 768)),
        ("xcit_nano_12_p16_224", 64, MapForm("NLC", 128, prefix=1)),
        ("torchvision/squeezenet1_1", 64, MapForm("NCHW", 512)),
    ],
)
def test_every_family_shows_its_last_map(backbone: str, size: int, form: MapForm) -> None:
    model = build(backbone, size, pool="concat", reduce=5).eval()
    assert model.pooling is not None
    assert model.pooling.form == form
    assert model.head.in_features == 10
    with torch.no_grad():
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 3)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "torchvision/squeezenet1_1"])
def test_own_average_equals_the_backbones(backbone: str) -> None:
    """Where no layer stands between the map and the features, pooling it ourselves changes nothing."""
    images = torch.randn(2, 3, 64, 64)
    own, ours = build(backbone, 64).eval(), build(backbone, 64, pool="avg").eval()
    assert torch.allclose(own(images), ours(images), atol=1e-5)


def test_layers_after_pooling_stay() -> None:
    own, ours = build("mobilenetv3_small_050", 64), build("mobilenetv3_small_050", 64, pool="gem")
    assert own.backbone.state_dict().keys() == ours.backbone.state_dict().keys()
    assert any(name.startswith("conv_head") for name in ours.backbone.state_dict())
    own, ours = build("test_convnext", 64), build("test_convnext", 64, pool="gem")
    assert "head.norm.weight" in ours.backbone.state_dict()
    assert own.backbone.state_dict().keys() == ours.backbone.state_dict().keys()


@pytest.mark.parametrize("backbone", ["inception_next_atto", "deit_tiny_distilled_patch16_224"])
def test_a_family_that_pools_inside_is_refused(backbone: str) -> None:
    with pytest.raises(BadInput, match=r"model\.pool: .*set it to null"):
        build(backbone, 64, pool="gem")


class LikeVgg(nn.Module):
    """A map that its own head makes one place of, pooled or not."""

    def forward_features(self, images: Tensor) -> Tensor:
        return images[:, :, ::8, ::8]

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images).mean(dim=(2, 3), keepdim=True)


def test_a_map_of_one_place_is_no_map_unless_the_image_is_small() -> None:
    with pytest.raises(BadInput, match=r"model\.pool: vgg pools inside"):
        find_form(LikeVgg(), "vgg", 3, 32)
    assert find_form(LikeVgg(), "vgg", 3, 8) == MapForm("NCHW", 3)


class Tokens(nn.Module):
    """16 tokens after a class token that the family does not count, as in VOLO."""

    cls_token = torch.zeros(1)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, :4, :5].flatten(2)[:, :, :17].transpose(1, 2)


def test_an_uncounted_class_token_is_left_out() -> None:
    assert find_form(Tokens(), "volo", 3, 32) == MapForm("NLC", 3, prefix=1)


def test_a_backbone_that_fails_without_its_pooling_is_refused() -> None:
    strict = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(BadInput, match=r"model\.pool: strict fails .* side 48 "):
        find_form(strict, "strict", 3, 48)


def test_reduction_needs_a_pooling() -> None:
    with pytest.raises(BadInput, match=r"model\.reduce.*set model\.pool"):
        build(reduce=8)
