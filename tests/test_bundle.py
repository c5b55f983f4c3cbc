"""A bundle holds everything that inference needs, and nothing else is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from goldfold import files
from goldfold.bundle import FORMAT, Bundle, load_bundle, load_weights, read_bundle, save_weights, write_bundle
from goldfold.config.schema import Input, Model
from goldfold.errors import BadInput
from goldfold.images import ImageSpec
from goldfold.models import Classifier, build_model, make_spec
from goldfold.tasks import Task

TASK = Task("ordinal", ("0", "1", "2"))


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Bundle, Classifier]:
    input = Input(size=32, channels=1)
    model = build_model(make_spec(Model(backbone="test_vit", drop_rate=0.1), input, TASK)).eval()
    save_weights(tmp_path / "model.safetensors", model)
    bundle = Bundle(
        run="r",
        fold=1,
        seed=3,
        task=TASK,
        model=model.spec,
        images=ImageSpec.from_config(input),
        views=[{"Rotate90": {"angles": [0, 90]}}],
        merge="gmean",
        id_column="id",
        weights_sha256=files.sha256_file(tmp_path / "model.safetensors"),
    )
    write_bundle(tmp_path / "bundle.json", bundle)
    return tmp_path, bundle, model


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "bundle.json").read_text())
    change(values)
    (folder / "bundle.json").write_text(json.dumps(values))


def test_a_bundle_comes_back_equal_and_predicts_the_same(written: tuple[Path, Bundle, Classifier]) -> None:
    folder, bundle, model = written
    torch.manual_seed(1)  # a network built at random would differ
    back, again = load_bundle(folder)
    assert back == bundle
    assert not again.training
    pixels = torch.randint(0, 256, (3, 32, 32, 1), dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = (m.probabilities(m(m.prepare(pixels))) for m in (model, again))
    assert torch.equal(expected, found)


def test_equal_weights_are_equal_bytes(written: tuple[Path, Bundle, Classifier]) -> None:
    folder, _, model = written
    save_weights(folder / "again.safetensors", model)
    assert (folder / "again.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(format=FORMAT + 1), f"not a bundle of format {FORMAT}"),
        (lambda values: values.pop("format"), f"not a bundle of format {FORMAT}"),
        (lambda values: values.pop("task"), "task"),
        (lambda values: values.pop("merge"), "merge"),
        (lambda values: values.update(command="rm"), "command"),
        (lambda values: values["model"].pop("backbone"), "backbone"),
        (lambda values: values["model"].update(hub="x"), "hub"),
        (lambda values: values["images"].update(colour="bgr"), "colour"),
        (lambda values: values["task"].update(odd=1), "odd"),
        (lambda values: values.update(model=["resnet18"]), "list"),
        (lambda values: values.update(task="binary"), "str"),
    ],
)
def test_a_description_with_a_missing_or_unknown_key_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, written: tuple[Path, Bundle, Classifier]
) -> None:
    folder = written[0]
    edit(folder, change)
    with pytest.raises(BadInput, match=rf"bundle\.json: .*{message}"):
        read_bundle(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '"bundle"'])
def test_a_description_that_is_no_description_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(BadInput, match=r"bundle\.json"):
        read_bundle(tmp_path)


def test_tampered_or_missing_weights_are_refused(written: tuple[Path, Bundle, Classifier]) -> None:
    folder, bundle, model = written
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BadInput, match=r"differs from the one that bundle\.json records"):
        load_bundle(folder)
    weights.write_bytes(content[:-8])
    write_bundle(folder / "bundle.json", replace(bundle, weights_sha256=files.sha256_file(weights)))
    with pytest.raises(BadInput, match="not a whole safetensors file"):
        load_bundle(folder)
    weights.unlink()
    with pytest.raises(BadInput, match="does not exist"):
        load_bundle(folder)
    with pytest.raises(BadInput, match="does not exist"):
        load_weights(weights, model)


def test_weights_of_another_network_are_refused(written: tuple[Path, Bundle, Classifier]) -> None:
    folder, bundle, _ = written
    other = build_model(make_spec(Model(backbone="test_efficientnet"), Input(size=32), TASK))
    save_weights(folder / "model.safetensors", other)
    write_bundle(
        folder / "bundle.json", replace(bundle, weights_sha256=files.sha256_file(folder / "model.safetensors"))
    )
    with pytest.raises(BadInput, match=r"the weights do not fit bundle\.json"):
        load_bundle(folder)
