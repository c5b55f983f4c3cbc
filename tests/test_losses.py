"""Losses on soft targets, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from goldfold.config.schema import Loss
from goldfold.errors import BadInput
from goldfold.losses import exceedance, make_loss, smooth
from goldfold.tasks import Task

ONES = torch.ones(2)


def test_cross_entropy_agrees_with_torch_on_hard_and_soft_targets() -> None:
    logits = torch.randn(2, 3)
    loss = make_loss(Loss(), Task("multiclass", ("a", "b", "c")))
    hard = torch.eye(3)[[2, 0]]
    assert loss(logits, hard, ONES) == pytest.approx(F.cross_entropy(logits, torch.tensor([2, 0])).item(), abs=1e-6)
    soft = torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.9, 0.1]])
    assert loss(logits, soft, ONES) == pytest.approx(F.cross_entropy(logits, soft).item(), abs=1e-6)


def test_smoothing_is_that_of_torch_and_binary_is_half() -> None:
    logits = torch.randn(2, 3)
    loss = make_loss(Loss(smoothing=0.1), Task("multiclass", ("a", "b", "c")))
    expected = F.cross_entropy(logits, torch.tensor([2, 0]), label_smoothing=0.1).item()
    assert loss(logits, torch.eye(3)[[2, 0]], ONES) == pytest.approx(expected, abs=1e-6)
    assert smooth(torch.tensor([0.0, 1.0]), 0.2, 2).tolist() == pytest.approx([0.1, 0.9])


def test_binary_loss_by_hand() -> None:
    loss = make_loss(Loss(), Task("binary", ("1",), "0"))
    value = loss(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [0.0]]), ONES)
    assert value == pytest.approx((math.log(2) + 2 + math.log1p(math.exp(-2))) / 2, abs=1e-6)


def test_weights_scale_each_sample_and_not_the_batch() -> None:
    loss = make_loss(Loss(), Task("binary", ("1",), "0"))
    logits, targets = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [1.0]])
    first, second = (loss(logits[[i]], targets[[i]], torch.ones(1)).item() for i in (0, 1))
    assert loss(logits, targets, torch.tensor([1.0, 0.25])) == pytest.approx((first + 0.25 * second) / 2)


def test_class_weights_reach_the_loss() -> None:
    task = Task("multiclass", ("a", "b"))
    logits = torch.zeros(2, 2)
    weighted = make_loss(Loss(), task, class_weights=torch.tensor([1.0, 3.0]))
    assert weighted(logits, torch.eye(2), ONES) == pytest.approx(2 * math.log(2))


def test_ordinal_targets_are_cumulative() -> None:
    assert exceedance(torch.eye(4)).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    loss = make_loss(Loss(), Task("ordinal", ("0", "1", "2")))
    right = loss(torch.tensor([[9.0, -9.0]]), torch.tensor([[0.0, 1.0, 0.0]]), torch.ones(1))
    near = loss(torch.tensor([[9.0, 9.0]]), torch.tensor([[0.0, 1.0, 0.0]]), torch.ones(1))
    far = loss(torch.tensor([[9.0, 9.0]]), torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(1))
    assert right < near < far


def test_regression_standardises_its_targets() -> None:
    loss = make_loss(
        Loss(), Task("regression", ("y",)), target_mean=torch.tensor([10.0]), target_std=torch.tensor([2.0])
    )
    assert loss(torch.tensor([[1.0]]), torch.tensor([[12.0]]), torch.ones(1)) == 0
    assert loss(torch.tensor([[0.0]]), torch.tensor([[14.0]]), torch.ones(1)) == 4


def test_a_loss_that_does_not_suit_the_task_is_refused() -> None:
    with pytest.raises(BadInput, match=r"loss.name: 'mse' does not suit a binary task; use bce"):
        make_loss(Loss(name="mse"), Task("binary", ("1",), "0"))
    with pytest.raises(BadInput, match="smoothing"):
        make_loss(Loss(smoothing=0.1), Task("regression", ("y",)))
