"""From a description to a network and back: every trick survives JSON and a bundle's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from goldfold.config.schema import Input, Model
from goldfold.errors import BadInput
from goldfold.models import Classifier, MetadataShape, ModelSpec, build_model, make_spec, try_sizes
from tests.models.networks import MULTI, build

SHAPE = MetadataShape(numeric=2, categories=(3, 4))
COLUMNS = {"numeric": ["a", "b"], "categorical": ["c", "d"], "hidden": [6, 5], "embedding": 2, "drop_rate": 0.2}
EVERYTHING: dict[str, Any] = {
    "drop_rate": 0.3,
    "drop_path_rate": 0.1,
    "pool": "gem",
    "reduce": 24,
    "head": {"kind": "arcface", "hidden": [12], "activation": "prelu", "dropouts": 3, "scale": 16.0},
    "activation": "gelu",
    "output_stride": 8,
    "stem_kernel": 5,
    "metadata": COLUMNS,
}


def everything(**more: Any) -> Classifier:
    sight = {"colour": "hsv", "local_mean": "subtract", "normalise": "image"}
    return build("test_resnet", 64, input=sight, shape=SHAPE, auxiliary=[2], **EVERYTHING, **more)


def through_json(spec: ModelSpec) -> ModelSpec:
    return ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))


def test_a_spec_survives_json_with_every_trick_on() -> None:
    spec = everything().spec
    assert through_json(spec) == spec
    plain = build().spec
    assert through_json(plain) == plain
    differing = {key for key, value in spec.to_dict().items() if value != plain.to_dict()[key]}
    ours = {"mean", "std", "n_logits", "activation", "channels", "target_mean", "target_std"}
    assert differing >= spec.to_dict().keys() - ours


def test_a_spec_of_an_older_bundle_has_todays_defaults() -> None:
    spec = build().spec
    old = {"backbone", "size", "channels", "mean", "std", "n_logits", "activation", "target_mean", "target_std"}
    old |= {"drop_rate", "drop_path_rate"}
    values = {key: value for key, value in json.loads(json.dumps(spec.to_dict())).items() if key in old}
    assert ModelSpec.from_dict(values) == spec
    with pytest.raises(TypeError, match="unknown"):
        ModelSpec.from_dict(values | {"unknown": 1})


def test_a_rebuilt_network_gives_the_same_logits() -> None:
    trained = everything()
    optimizer = torch.optim.SGD(trained.parameters(), 0.01)
    images, metadata = torch.randn(4, 3, 64, 64), torch.rand(4, SHAPE.width)
    trained.train()(images, metadata).square().sum().backward()
    optimizer.step()
    torch.manual_seed(99)
    rebuilt = build_model(through_json(trained.spec))
    assert len(rebuilt.auxiliary) == 0
    rebuilt.load_inference_state(trained.inference_state())
    assert torch.equal(rebuilt.eval()(images, metadata), trained.eval()(images, metadata))


def test_tricks_of_the_backbone_are_really_there() -> None:
    model = everything()
    backbone = model.backbone
    kinds = {type(module) for module in backbone.modules()}
    assert nn.GELU in kinds
    assert nn.ReLU not in kinds
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    assert first.kernel_size == (5, 5)
    assert backbone(torch.zeros(1, 3, 64, 64)).shape[2:] == (8, 8)
    assert isinstance(model.hidden[1], nn.PReLU)


@pytest.mark.parametrize(("backbone", "stride"), [("test_resnet", 16), ("test_efficientnet", 8), ("test_convnext", 16)])
def test_dilated_stages_give_a_finer_map(backbone: str, stride: int) -> None:
    for chosen in (None, stride):
        model = build(backbone, 64, output_stride=chosen)
        features = model.backbone.forward_features(torch.zeros(1, 3, 64, 64))  # type: ignore[operator]
        assert features.shape[2] == 64 // (chosen or 32)


@pytest.mark.parametrize("backbone", ["test_vit", "test_mambaout", "torchvision/alexnet"])
def test_a_family_without_dilation_refuses_it(backbone: str) -> None:
    with pytest.raises(BadInput, match=r"model\.output_stride: "):
        build(backbone, 64, output_stride=16)


class _Deaf(nn.Module):
    num_features = 4

    def reset_classifier(self, num_classes: int) -> None:
        pass

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, ::32, ::32]


def test_a_family_that_leaves_the_stride_as_it_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: _Deaf())
    with pytest.raises(BadInput, match=r"model\.output_stride: test_resnet .*its last map is 2x2"):
        build("test_resnet", 64, output_stride=8)


def test_an_option_that_a_family_does_not_take_is_refused_in_one_line() -> None:
    with pytest.raises(BadInput, match=r"model: vgg11 cannot be built .*drop_path_rate"):
        build("vgg11", drop_path_rate=0.1)


@pytest.mark.parametrize("weights", [False, True])
def test_a_network_that_is_not_made_for_classes_is_refused(
    weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As timm's encoders for language models say of themselves; and whole weights are not blamed for it."""
    spec, whole = build("test_resnet", 64).spec, timm.create_model("test_resnet", num_classes=10)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")

    def refuse(*_: object) -> None:
        raise RuntimeError("does not support classification use cases")

    monkeypatch.setattr(type(whole), "reset_classifier", refuse)
    with pytest.raises(BadInput, match=r"model\.backbone: test_resnet is not made for classes \(does not support"):
        build_model(spec, weights=tmp_path / "whole.safetensors" if weights else None)


def test_published_weights_come_before_surgery(tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet", num_classes=10)
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    spec = build("test_resnet", 64, pool="gem", stem_kernel=5, activation="prelu", output_stride=8).spec
    model = build_model(spec, weights=tmp_path / "w.safetensors", zero_init_last=False)
    ours = model.backbone.state_dict()
    stem = ours["conv1.0.weight"]
    assert torch.equal(stem[:, :, 1:-1, 1:-1], whole.state_dict()["conv1.0.weight"])
    assert not stem[:, :, 0].any()
    assert torch.equal(ours["layer4.0.conv1.weight"], whole.state_dict()["layer4.0.conv1.weight"])


def test_zero_gamma_is_there_at_the_start() -> None:
    spec = build("mobilenetv3_small_050").spec

    def zeroed(model: Classifier) -> list[str]:
        return [name for name, value in model.named_parameters() if name.endswith("weight") and not value.any()]

    assert not zeroed(build_model(spec))
    assert zeroed(build_model(spec, zero_init_last=True))


def test_torchvision_backbones_are_built_with_weights_from_a_file(tmp_path: Path) -> None:
    import torchvision

    network = torchvision.models.squeezenet1_1()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    spec = make_spec(Model(backbone="torchvision/squeezenet1_1"), Input(size=64), MULTI)
    assert spec.mean == pytest.approx((0.485, 0.456, 0.406))
    model = build_model(spec, weights=tmp_path / "w.safetensors").eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.backbone(images), network.eval().features(images).mean(dim=(2, 3)))
    with pytest.raises(BadInput, match=r"model\.pretrained.*name a file in model\.weights"):
        build_model(spec, hub=True)
    with pytest.raises(BadInput, match="the weights file does not exist"):
        build_model(spec, weights=tmp_path / "none.safetensors")
    with pytest.raises(BadInput, match=r"model\.drop_path_rate"):
        build("torchvision/squeezenet1_1", drop_path_rate=0.1)


def test_pixel_statistics_stand_where_the_configuration_has_none() -> None:
    stats = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    sight = Input(size=32, colour="lab")
    spec = make_spec(Model(backbone="test_resnet"), sight, MULTI, pixel_stats=stats)
    assert (spec.mean, spec.std) == stats
    spec = make_spec(Model(backbone="test_resnet", mean=(0.5,) * 3), sight, MULTI, pixel_stats=stats)
    assert (spec.mean, spec.std) == ((0.5,) * 3, stats[1])


def test_a_mean_that_no_image_would_see_is_refused() -> None:
    with pytest.raises(BadInput, match=r"model\.mean: input\.normalise 'image'.*null"):
        build(input={"normalise": "image"}, mean=[0.5, 0.5, 0.5])


def test_metadata_of_another_layout_are_refused() -> None:
    for shape in (None, MetadataShape(1, (3, 4)), MetadataShape(2, (3,))):
        with pytest.raises(ValueError, match="encoded metadata"):
            build(metadata=COLUMNS, shape=shape)


def test_a_full_gpu_is_no_size_that_a_network_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller tells of the memory; input.size may be right for a smaller batch or another GPU."""
    model = build()

    def failing(error: Exception) -> None:
        def forward(*arguments: object) -> None:
            raise error

        monkeypatch.setattr(model, "forward", forward)

    failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
        try_sizes(model, [32, 48])
    failing(RuntimeError("size mismatch"))
    with pytest.raises(BadInput, match=r"input\.size: test_efficientnet fails on images of side 32 \(size mismatch\)"):
        try_sizes(model, [32, 48])
