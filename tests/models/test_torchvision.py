"""torchvision's backbones in timm's form: the same features, weights by file, strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models import group_parameters
from torch import Tensor, nn

from goldfold.config.schema import Input, Model
from goldfold.errors import BadInput
from goldfold.models import build_model, make_spec, set_frozen
from goldfold.models.surgery import resize_stem, swap_activation
from goldfold.models.torchvision import TorchvisionBackbone, make_torchvision, torchvision_defaults, torchvision_names
from goldfold.tasks import Task

SMALL = ["torchvision/shufflenet_v2_x0_5", "torchvision/squeezenet1_1"]
BOTH = [*SMALL, "torchvision/alexnet"]
CLASSIFIER = {"shufflenet_v2_x0_5": "fc", "squeezenet1_1": "classifier.1", "alexnet": "classifier.6"}


def published(name: str, folder: Path, **changes: Tensor | None) -> tuple[nn.Module, Path]:
    """A network of torchvision itself with random weights, and the file of its state."""
    torch.manual_seed(0)
    network: nn.Module = getattr(torchvision.models, name.removeprefix("torchvision/"))(weights=None, num_classes=7)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
    state = {key: value for key, value in (network.state_dict() | changes).items() if value is not None}
    save_file(state, folder / "w.safetensors")
    return network.eval(), folder / "w.safetensors"


def images(channels: int = 3, size: int = 64) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_timm_has_none_of_them() -> None:
    names = torchvision_names()
    assert "torchvision/alexnet" in names
    assert {f"torchvision/shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")} <= set(names)
    for name in names:
        assert not timm.is_model(name.removeprefix("torchvision/"))
        assert torchvision_defaults(name)["input_size"] == (3, 224, 224)
        assert torchvision_defaults(name)["mean"] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", BOTH)
def test_features_and_classifier_give_the_published_logits(name: str, tmp_path: Path) -> None:
    network, path = published(name, tmp_path)
    backbone, x = make_torchvision(name, path).eval(), images()
    assert not [key for key in backbone.state_dict() if key.startswith(CLASSIFIER[name.removeprefix("torchvision/")])]
    with torch.no_grad():
        features = backbone(x)
        assert features.shape == (2, backbone.head_hidden_size)
        last = network.get_submodule(CLASSIFIER[name.removeprefix("torchvision/")])
        if "squeezenet" in name:
            # Its classifier is a convolution with a ReLU before pooling, so features are the pooled map below it.
            assert torch.allclose(features, network.features(x).mean(dim=(2, 3)))  # type: ignore[operator]
        else:
            assert torch.allclose(last(features), network(x), atol=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_without_pooling_the_map_comes(name: str, tmp_path: Path) -> None:
    _, path = published(name, tmp_path)
    mapped = make_torchvision(name, path, pool="").eval()
    with torch.no_grad():
        features = mapped(images(size=128))
        assert features.shape[:2] == (2, mapped.num_features)
        assert min(features.shape[2:]) > 1
        assert mapped.head_hidden_size == mapped.num_features
        assert torch.equal(features, mapped.forward_features(images(size=128)))


def test_four_channels_start_from_the_three(tmp_path: Path) -> None:
    network, path = published(SMALL[0], tmp_path)
    backbone = make_torchvision(SMALL[0], path, in_chans=4).eval()
    old, new = network.conv1[0].weight, backbone.get_submodule("conv1.0").weight  # type: ignore[index,union-attr]
    assert new.shape[1] == 4
    assert torch.allclose(new, torch.cat([old, old[:, :1]], dim=1) * 0.75)
    assert backbone(images(4)).shape == (2, 1024)


@pytest.mark.parametrize("name", SMALL)
def test_a_file_that_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    network, _ = published(name, tmp_path)
    key = next(iter(network.state_dict()))
    for changes, what in (
        ({key: None}, f"missing key {key}"),
        ({"strange": torch.zeros(2)}, "unexpected key strange"),
        ({key: torch.zeros(2, 3, 3, 3)}, rf"{key} is \(2, 3, 3, 3\), not"),
    ):
        _, path = published(name, tmp_path, **changes)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match=rf"w\.safetensors: the weights do not fit {name} \({what}"):
            make_torchvision(name, path)
    path.write_bytes(b"junk")
    with pytest.raises(BadInput, match="not a safetensors file"):
        make_torchvision(name, path)


def test_a_file_without_classifier_fits(tmp_path: Path) -> None:
    network, path = published(SMALL[0], tmp_path, **{"fc.weight": None, "fc.bias": None})
    backbone = make_torchvision(SMALL[0], path)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", torchvision_names())
def test_the_groups_of_layers_go_from_input_to_output(name: str) -> None:
    backbone = make_torchvision(name, None)
    order = [key for key, _ in backbone.named_parameters()]
    for coarse in (True, False):
        groups = group_parameters(backbone, backbone.group_matcher(coarse=coarse))
        flat = [key for group in sorted(groups) for key in groups[group]]
        assert sorted(flat) == sorted(order)
        assert [order.index(key) for key in flat] == sorted(order.index(key) for key in flat)
        assert len(groups) >= 5


def test_an_unknown_name_tells_the_near_ones() -> None:
    with pytest.raises(BadInput, match=r"model\.backbone: .*'alexnett'.*use torchvision/alexnet"):
        make_torchvision("torchvision/alexnett", None)
    with pytest.raises(BadInput, match="without 'torchvision/'"):
        torchvision_defaults("torchvision/resnet18")


@pytest.mark.parametrize("name", SMALL)
def test_a_classifier_is_built_frozen_and_changed_like_any(name: str, tmp_path: Path) -> None:
    _, path = published(name, tmp_path)
    task = Task("multiclass", ("a", "b", "c"))
    spec = make_spec(Model(backbone=name, pretrained=False), Input(size=64), task)
    model = build_model(spec, weights=path)
    assert isinstance(model.backbone, TorchvisionBackbone)
    assert model.eval()(images()).shape == (2, 3)
    set_frozen(model, 2, False)
    fixed = [key for key, value in model.named_parameters() if not value.requires_grad]
    assert fixed
    assert all(key.startswith(("backbone.conv1", "backbone.stage2", "backbone.features")) for key in fixed)
    before = model(images())
    resize_stem(model.backbone, 5)
    assert torch.allclose(model(images()), before, rtol=1e-4, atol=1e-5)
    assert swap_activation(model.backbone, "gelu") > 10
    assert not torch.allclose(model(images()), before, atol=1e-4)
