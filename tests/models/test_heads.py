"""Heads: multi-sample dropout, hidden layers, cosines, metadata, auxiliary heads, initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from goldfold.errors import BadInput
from goldfold.models import Classifier, MetadataShape
from tests.models.networks import build

SHAPE = MetadataShape(numeric=1, categories=(4, 3))
COLUMNS = {"numeric": ["age"], "categorical": ["site", "sex"]}
IMAGES = torch.linspace(-1, 1, 4 * 3 * 32 * 32).view(4, 3, 32, 32)


def encoded(*rows: tuple[float, int | None, int | None]) -> Tensor:
    """(age, site, sex) → (B, 9); None: a category that the encoder does not know."""
    out = torch.zeros(len(rows), SHAPE.width)
    for row, (age, site, sex) in enumerate(rows):
        out[row, 0] = age
        if site is not None:
            out[row, 2 + site] = 1
        if sex is not None:
            out[row, 6 + sex] = 1
    return out


class Recorder(nn.Module):
    """A dropout that keeps what it gave."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.given: list[Tensor] = []

    def forward(self, features: Tensor) -> Tensor:
        self.given.append(nn.functional.dropout(features, self.rate, self.training))
        return self.given[-1]


def test_logits_are_the_mean_over_dropout_masks() -> None:
    model = build("test_convnext", drop_rate=0.5, head={"dropouts": 5, "hidden": [8]}).train()
    model.backbone.eval()
    recorder = model.head_drop = Recorder(0.5)  # type: ignore[assignment]
    logits = model(IMAGES)
    assert len(recorder.given) == 5
    assert not torch.equal(recorder.given[0], recorder.given[1])
    model.hidden.eval()
    torch.manual_seed(0)
    # The hidden layers have a dropout of their own, so compare without it.
    recorder.given.clear()
    logits = model(IMAGES)
    each = [model.head(model.hidden(features)) for features in recorder.given]
    assert torch.allclose(logits, torch.stack(each).mean(dim=0), atol=1e-6)
    recorder.given.clear()
    model.eval()
    assert torch.equal(model(IMAGES), model(IMAGES))
    assert not recorder.given


def test_several_masks_without_dropout_are_refused() -> None:
    with pytest.raises(BadInput, match=r"model\.head\.dropouts.*model\.drop_rate"):
        build(head={"dropouts": 5})


def test_hidden_layers_are_a_linear_layer_an_activation_and_dropout() -> None:
    model = build(drop_rate=0.25, head={"hidden": [16, 8], "activation": "gelu"}).eval()
    kinds = [type(layer) for layer in model.hidden]
    assert kinds == [nn.Linear, nn.GELU, nn.Dropout] * 2
    assert all(layer.p == 0.25 for layer in model.hidden if isinstance(layer, nn.Dropout))
    features = model.backbone(IMAGES)
    first, second = model.hidden[0], model.hidden[3]
    by_hand = model.head(nn.functional.gelu(second(nn.functional.gelu(first(features)))))
    assert torch.allclose(model(IMAGES), by_hand)


def test_arcface_logits_are_scaled_cosines() -> None:
    model = build(head={"kind": "arcface", "scale": 20.0}).eval()
    assert model.head.bias is None
    features, weight = model.backbone(IMAGES).double(), model.head.weight.double()
    cosines = (features @ weight.T) / (features.norm(dim=1)[:, None] * weight.norm(dim=1))
    assert torch.allclose(model(IMAGES).double(), 20 * cosines, atol=1e-4)
    with torch.no_grad():
        model.head.weight.mul_(7)
        assert torch.allclose(model(IMAGES).double(), 20 * cosines, atol=1e-4)


def test_cosines_stay_exact_in_mixed_precision() -> None:
    model = build(head={"kind": "arcface"}).eval()
    features = torch.randn(8, model.head.in_features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.head(features), model.head(features).float())
        rounded = model.head(features)
    assert torch.allclose(rounded, model.head(features), atol=1e-5)


def test_kaiming_starts_every_new_layer_with_his_variance() -> None:
    settings = {
        "head": {"hidden": [400]},
        "metadata": COLUMNS | {"hidden": [300]},
        "pool": "avg",
        "reduce": 200,
        "seed": 3,
    }
    model = build(**settings, shape=SHAPE, auxiliary=[200], kaiming=True)
    plain = build(**settings, shape=SHAPE, auxiliary=[200])
    assert model.pooling is not None
    assert model.metadata is not None
    new = {"reduce": model.pooling.reduce, "hidden": model.hidden[0], "auxiliary": model.auxiliary[0]}
    new |= {"metadata": model.metadata.layers[0]}
    for name, layer in new.items():
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.weight[0].numel()), rel=0.1), name
        assert layer.bias is not None
        assert not layer.bias.any()
    assert not model.head.bias.any()
    assert plain.head.bias.any()
    for name, value in plain.state_dict().items():
        if name.startswith(("backbone.", "metadata.embeddings")):
            assert torch.equal(value, model.state_dict()[name])


def with_metadata(**model: object) -> Classifier:
    return build(metadata=COLUMNS | model, shape=SHAPE)


def test_metadata_change_the_logits_and_images_still_do() -> None:
    model = with_metadata().eval()
    one = model(IMAGES, encoded(*[(0.5, 1, 0)] * 4))
    assert not torch.allclose(one[0], one[3])
    for changed in ((0.9, 1, 0), (0.5, 2, 0), (0.5, 1, 1), (0.5, None, 0)):
        other = model(IMAGES, encoded(*[changed] * 4))
        assert other.isfinite().all()
        assert (other - one).abs().max() > 1e-4, changed


def test_an_embedding_is_a_row_of_weights_and_mixes_with_its_one_hot_group() -> None:
    model = with_metadata(hidden=[], embedding=5).eval()
    assert model.metadata is not None
    assert model.metadata.width == 2 + 5 + 5
    site, sex = (embedding.weight for embedding in model.metadata.embeddings)
    out = model.metadata(encoded((0.5, 1, 2), (0.0, None, None)))
    assert torch.allclose(out[0], torch.cat([torch.tensor([0.5, 0.0]), site[:, 1], sex[:, 2]]))
    assert not out[1].any()
    mixed = 0.3 * encoded((0.5, 1, 2)) + 0.7 * encoded((1.5, 3, 0))
    expected = 0.3 * model.metadata(encoded((0.5, 1, 2))) + 0.7 * model.metadata(encoded((1.5, 3, 0)))
    assert torch.allclose(model.metadata(mixed), expected, atol=1e-6)


def test_an_embeddings_width_follows_the_number_of_categories() -> None:
    shape = MetadataShape(0, (2, 9, 300))
    columns = {"categorical": ["a", "b", "c"]}
    spec = build(metadata=columns, shape=shape).spec.metadata
    assert spec is not None
    assert spec.embeddings == (1, 5, 50)


def test_metadata_have_dropout_of_their_own() -> None:
    model = with_metadata(drop_rate=0.5).train()
    assert model.metadata is not None
    rows = encoded(*[(0.5, 1, 0)] * 4)
    assert not torch.equal(model.metadata(rows), model.metadata(rows))
    model.eval()
    assert torch.equal(model.metadata(rows), model.metadata(rows))


def test_wrong_metadata_are_refused() -> None:
    model = with_metadata().eval()
    for given in (None, torch.zeros(4, 0), torch.zeros(4, 8)):
        with pytest.raises(BadInput, match=r"model\.metadata.*takes 9 encoded columns and got"):
            model(IMAGES, given)
    plain = build().eval()
    assert torch.equal(plain(IMAGES, torch.zeros(4, 0)), plain(IMAGES))
    with pytest.raises(BadInput, match=r"takes 0 encoded columns and got 9"):
        plain(IMAGES, torch.zeros(4, 9))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_metadata_and_images_meet_in_mixed_precision(precision: torch.dtype) -> None:
    model = build(metadata=COLUMNS, shape=SHAPE, auxiliary=[2], pool="gem", head={"kind": "arcface"}).train()
    with torch.autocast("cpu", precision):
        assert model(IMAGES, encoded(*[(0.5, 1, 0)] * 4)).shape == (4, 5)


def test_auxiliary_logits_follow_in_training_only() -> None:
    model, plain = build(auxiliary=[2, 5]), build()
    images = IMAGES
    model.backbone.eval()
    logits = model(images)
    assert logits.shape == (4, 3 + 2 + 5)
    features = model.backbone(images)
    assert torch.allclose(logits[:, 3:5], model.auxiliary[0](features))
    assert torch.allclose(logits[:, 5:], model.auxiliary[1](features))
    assert model.eval()(images).shape == (4, 3)
    assert torch.equal(model(images), plain.eval()(images))


def test_inference_forgets_the_auxiliary_heads() -> None:
    model, plain = build(auxiliary=[2], seed=5), build()
    state = model.inference_state()
    assert state.keys() == plain.state_dict().keys()
    plain.load_inference_state(state)
    assert torch.equal(plain.eval()(IMAGES), model.eval()(IMAGES))
    other = build(auxiliary=[2])
    kept = other.auxiliary[0].weight.clone()  # type: ignore[operator]
    other.load_inference_state(state)
    assert torch.equal(other.head.weight, model.head.weight)
    assert torch.equal(other.auxiliary[0].weight, kept)  # type: ignore[arg-type]


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    model = build(auxiliary=[2])
    state = build(seed=1).state_dict()
    for wrong in (
        {name: value for name, value in state.items() if name != "head.bias"},
        state | {"head.more": torch.zeros(1)},
        state | {"head.weight": torch.zeros(7, 7)},
    ):
        with pytest.raises(RuntimeError, match=r"head\.(bias|more|weight)"):
            model.load_inference_state(wrong)
