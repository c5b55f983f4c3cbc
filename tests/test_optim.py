"""Which parameters decay, at which rate, by which optimizer."""

from __future__ import annotations

import pytest
import torch

from goldfold.config.schema import Input, Model, Optim
from goldfold.errors import BadInput
from goldfold.models import Classifier, build_model, freeze_stages, make_spec
from goldfold.optim import make_optimizer, set_rate
from goldfold.tasks import Task


@pytest.fixture(scope="module")
def model() -> Classifier:
    spec = make_spec(Model(backbone="test_efficientnet"), Input(size=32), Task("multiclass", ("a", "b")))
    return build_model(spec)


def by_parameter(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, float]]:
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lookahead_adamw", "AdamW"])
def test_biases_and_norms_have_no_decay(name: str, model: Classifier) -> None:
    groups = by_parameter(make_optimizer(Optim(name=name, lr=0.1, weight_decay=0.3), model))
    assert set(groups) == {id(parameter) for parameter in model.parameters()}
    for key, parameter in model.named_parameters():
        expected = 0.0 if parameter.ndim <= 1 else 0.3
        assert groups[id(parameter)]["weight_decay"] == expected, key


def test_the_heads_rate_is_scaled(model: Classifier) -> None:
    optimizer = make_optimizer(Optim(lr=0.1, head_lr_scale=10), model)
    set_rate(optimizer, 0.02)
    groups = by_parameter(optimizer)
    assert {groups[id(parameter)]["lr"] for parameter in model.head.parameters()} == {0.2}
    assert {groups[id(parameter)]["lr"] for parameter in model.backbone.parameters()} == {0.02}


def test_frozen_parameters_are_left_out() -> None:
    spec = make_spec(Model(backbone="test_efficientnet"), Input(size=32), Task("multiclass", ("a", "b")))
    model = build_model(spec)
    freeze_stages(model, 1)
    groups = by_parameter(make_optimizer(Optim(), model))
    assert set(groups) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(groups) < len(list(model.parameters()))


def test_lookahead_pulls_the_weights_back() -> None:
    """Its slow weights begin at the sixth step; at the twelfth they come half of the way after the fast ones."""
    ends = []
    for name in ("momentum", "lookahead_momentum"):
        spec = make_spec(Model(backbone="test_efficientnet"), Input(size=32), Task("multiclass", ("a", "b")))
        torch.manual_seed(0)
        walker = build_model(spec)
        optimizer = make_optimizer(Optim(name=name, lr=0.01, momentum=0, weight_decay=0), walker)
        set_rate(optimizer, 0.01)
        start = walker.head.weight.detach().clone()
        for _ in range(12):
            walker.head.weight.grad = torch.ones_like(start)
            optimizer.step()
        ends.append((walker.head.weight.detach() - start).mean().item())
    assert ends[0] == pytest.approx(-0.12, rel=1e-3)
    assert ends[1] == pytest.approx(-0.09, rel=1e-3)


@pytest.mark.parametrize(("name", "near"), [("adamm", "adam"), ("lookahead_adamm", "adam"), ("sgdd", "sgd")])
def test_an_unknown_optimizer_names_near_ones(name: str, near: str, model: Classifier) -> None:
    with pytest.raises(BadInput, match=rf"optim\.name: timm has no optimizer '{name}'; did you mean .*{near}"):
        make_optimizer(Optim(name=name), model)


def test_an_optimizer_that_does_not_take_a_value_says_so(model: Classifier) -> None:
    with pytest.raises(BadInput, match=r"optim: sgd cannot be made.*momentum"):
        make_optimizer(Optim(name="sgd", momentum=0), model)
