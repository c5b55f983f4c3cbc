"""Losses on soft targets, by hand and against independent formulas."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy
from torch import Tensor

from goldfold.config.schema import Auxiliary, Distill, Loss
from goldfold.errors import BadInput
from goldfold.losses import (
    angular_margin,
    exceedance,
    feature_distance,
    jsd_consistency,
    make_auxiliary,
    make_distil,
    make_joint,
    make_loss,
    smooth,
    softened,
)
from goldfold.tasks import Task

ONES = torch.ones(2)
BINARY = Task("binary", ("1",), "0")
ABC = Task("multiclass", ("a", "b", "c"))
TAGS = Task("multilabel", ("a", "b", "c"))
NOTHING = torch.zeros(2, 0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def hard(*classes: int, of: int = 3) -> Tensor:
    return torch.eye(of)[list(classes)]


def soft(rows: int, of: int = 3) -> Tensor:
    return torch.rand(rows, of).softmax(dim=1)


def test_cross_entropy_agrees_with_torch_on_hard_and_soft_targets() -> None:
    logits = torch.randn(2, 3)
    loss = make_loss(Loss(), ABC)
    assert loss(logits, hard(2, 0), ONES) == pytest.approx(
        F.cross_entropy(logits, torch.tensor([2, 0])).item(), abs=1e-6
    )
    targets = torch.tensor([[0.2, 0.3, 0.5], [0.0, 0.9, 0.1]])
    assert loss(logits, targets, ONES) == pytest.approx(F.cross_entropy(logits, targets).item(), abs=1e-6)


def test_smoothing_is_that_of_torch_and_binary_is_half() -> None:
    logits = torch.randn(2, 3)
    loss = make_loss(Loss(smoothing=0.1), ABC)
    expected = F.cross_entropy(logits, torch.tensor([2, 0]), label_smoothing=0.1).item()
    assert loss(logits, hard(2, 0), ONES) == pytest.approx(expected, abs=1e-6)
    assert smooth(torch.tensor([0.0, 1.0]), 0.2, 2).tolist() == pytest.approx([0.1, 0.9])
    binary = make_loss(Loss(smoothing=0.2), BINARY)
    expected = F.binary_cross_entropy_with_logits(torch.tensor([[1.5]]), torch.tensor([[0.9]])).item()
    assert binary(torch.tensor([[1.5]]), torch.ones(1, 1), torch.ones(1)) == pytest.approx(expected)


def test_binary_loss_by_hand() -> None:
    loss = make_loss(Loss(), BINARY)
    value = loss(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [0.0]]), ONES)
    assert value == pytest.approx((math.log(2) + 2 + math.log1p(math.exp(-2))) / 2, abs=1e-6)


def test_weights_scale_each_sample_and_not_the_batch() -> None:
    loss = make_loss(Loss(), BINARY)
    logits, targets = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [1.0]])
    first, second = (loss(logits[[i]], targets[[i]], torch.ones(1)).item() for i in (0, 1))
    assert loss(logits, targets, torch.tensor([1.0, 0.25])) == pytest.approx((first + 0.25 * second) / 2)


def test_class_weights_reach_the_loss() -> None:
    task = Task("multiclass", ("a", "b"))
    logits = torch.zeros(2, 2)
    weighted = make_loss(Loss(), task, class_weights=torch.tensor([1.0, 3.0]))
    assert weighted(logits, torch.eye(2), ONES) == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("name", ["cross_entropy", "bce", "focal"])
def test_a_class_weight_scales_the_rows_of_its_class(name: str) -> None:
    logits, weights = torch.randn(2, 3), torch.tensor([0.5, 2.0, 1.0])
    plain, weighted = make_loss(Loss(name=name), ABC), make_loss(Loss(name=name), ABC, class_weights=weights)
    for kind in range(3):
        targets = hard(kind, kind)
        assert weighted(logits, targets, ONES) == pytest.approx(weights[kind] * plain(logits, targets, ONES))


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
        make_loss(Loss(name="mse"), BINARY)
    with pytest.raises(BadInput, match="smoothing"):
        make_loss(Loss(smoothing=0.1), Task("regression", ("y",)))
    with pytest.raises(BadInput, match="focal"):
        make_loss(Loss(name="focal"), Task("ordinal", ("a", "b")))
    with pytest.raises(BadInput, match=r"loss.alpha.*multiclass"):
        make_loss(Loss(name="focal", alpha=0.25), ABC)
    with pytest.raises(BadInput, match=r"loss.alpha.*bce"):
        make_loss(Loss(alpha=0.25), BINARY)
    with pytest.raises(BadInput, match=r"loss.margin.*'focal'"):
        make_loss(Loss(name="focal", margin=0.5), ABC)
    with pytest.raises(BadInput, match=r"loss.margin: 28.6 is not an angle in radians"):
        make_loss(Loss(margin=28.6), ABC)
    with pytest.raises(BadInput, match=r"loss.jsd.*multilabel"):
        make_joint(Loss(jsd=12), TAGS)


def test_bce_on_classes_is_timms_summed_over_them() -> None:
    """timm smooths by s/C as we do; its mean over classes and ours over the batch differ by the number of classes."""
    logits, rows = 4 * torch.randn(2, 3), torch.tensor([2, 0])
    for smoothing in (0.0, 0.1):
        ours = make_loss(Loss(name="bce", smoothing=smoothing), ABC)(logits, hard(2, 0), ONES)
        assert ours == pytest.approx(3 * BinaryCrossEntropy(smoothing=smoothing)(logits, rows).item(), rel=1e-5)
    targets = soft(2)
    ours = make_loss(Loss(name="bce"), ABC)(logits, targets, ONES)
    assert ours == pytest.approx(3 * BinaryCrossEntropy(smoothing=0)(logits, targets).item(), rel=1e-5)


def test_bce_on_classes_leaves_the_right_class_its_gradient() -> None:
    """At even odds the right class is pulled as hard among 100 classes as among 2."""
    pulls = []
    for count in (2, 100):
        logits = torch.zeros(1, count, requires_grad=True)
        task = Task("multiclass", tuple(map(str, range(count))))
        make_loss(Loss(name="bce"), task)(logits, hard(0, of=count), torch.ones(1)).backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        pulls.append(logits.grad[0, 0].item())
    assert pulls == pytest.approx([-0.5, -0.5])


@pytest.mark.parametrize("task", [BINARY, TAGS, ABC], ids=lambda task: task.name)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_with_gamma_0_is_the_plain_loss(task: Task, smoothing: float, weighted: bool) -> None:
    columns = len(task.classes)
    logits = 3 * torch.randn(2, columns)
    targets = soft(2) if task is ABC else torch.rand(2, columns)
    weights = torch.linspace(0.5, 2, columns) if weighted else None
    focal = make_loss(Loss(name="focal", gamma=0, smoothing=smoothing), task, class_weights=weights)
    plain = make_loss(Loss(smoothing=smoothing), task, class_weights=weights)
    assert focal(logits, targets, ONES) == pytest.approx(plain(logits, targets, ONES).item(), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_on_yes_or_no_is_the_papers_formula(gamma: float, alpha: float | None) -> None:
    logits = 3 * torch.randn(6, 1)
    targets = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])[:, None]
    loss = make_loss(Loss(name="focal", gamma=gamma, alpha=alpha), BINARY)
    expected = 0.0
    for logit, target in zip(logits[:, 0].tolist(), targets[:, 0].tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        right = p if target else 1 - p
        side = 1.0 if alpha is None else alpha if target else 1 - alpha
        expected -= side * (1 - right) ** gamma * math.log(right) / 6
    assert loss(logits, targets, torch.ones(6)) == pytest.approx(expected, rel=1e-5)


def test_focal_on_a_soft_yes_is_both_sides_by_their_share() -> None:
    loss = make_loss(Loss(name="focal", gamma=2), BINARY)
    one = torch.ones(1)
    logit = torch.tensor([[0.7]])
    yes, no = (loss(logit, torch.tensor([[value]]), one).item() for value in (1.0, 0.0))
    assert loss(logit, torch.tensor([[0.3]]), one) == pytest.approx(0.3 * yes + 0.7 * no)


def test_focal_on_classes_is_the_papers_formula_and_linear_in_soft_targets() -> None:
    logits = 2 * torch.randn(2, 3)
    loss = make_loss(Loss(name="focal", gamma=1.5), ABC)
    p = logits.softmax(dim=1)
    terms = -((1 - p) ** 1.5) * p.log()
    assert loss(logits, hard(2, 0), ONES) == pytest.approx(((terms[0, 2] + terms[1, 0]) / 2).item(), rel=1e-5)
    targets = soft(2)
    assert loss(logits, targets, ONES) == pytest.approx((targets * terms).sum(dim=1).mean().item(), rel=1e-5)


def test_focal_turns_from_easy_images_to_hard_ones() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], requires_grad=True)
    shares = []
    for settings in (Loss(), Loss(name="focal", gamma=2)):
        (gradient,) = torch.autograd.grad(make_loss(settings, ABC)(logits, hard(0, 0), ONES), logits)
        shares.append((gradient[0].norm() / gradient[1].norm()).item())
    assert shares[1] < shares[0] / 20


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("task", [BINARY, ABC], ids=lambda task: task.name)
def test_focal_is_finite_where_a_probability_rounds_to_0_or_1(gamma: float, task: Task) -> None:
    extreme = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 0.0, 17.0], [17.3, 0.0, 0.0], [0.0, 0.0, 0.0]])
    logits = extreme[:, : len(task.classes)].clone().requires_grad_()
    for targets in (hard(0, 0, 0, 0), hard(1, 1, 1, 1), soft(4)):
        loss = make_loss(Loss(name="focal", gamma=gamma), task)
        value = loss(logits, targets[:, : len(task.classes)], torch.ones(4))
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_arcface_adds_the_margin_to_the_right_angle_alone() -> None:
    angles = torch.tensor([[0.2, 1.0, 2.0], [2.4, 1.5, 0.1]])
    turned = angular_margin(30 * angles.cos(), hard(1, 0), 0.5, 30.0)
    expected = angles + 0.5 * hard(1, 0)
    assert torch.allclose(turned, 30 * expected.cos(), atol=1e-3)
    loss = make_loss(Loss(margin=0.5), ABC, scale=30.0)
    paper = F.cross_entropy(30 * expected.cos(), torch.tensor([1, 0]))
    assert loss(30 * angles.cos(), hard(1, 0), ONES) == pytest.approx(paper.item(), rel=1e-4)
    assert loss(30 * angles.cos(), hard(1, 0), ONES) > make_loss(Loss(), ABC)(30 * angles.cos(), hard(1, 0), ONES)


def test_arcface_gives_a_soft_target_its_share_of_the_margin() -> None:
    angles = torch.tensor([[0.3, 1.1, 2.0]])
    targets = torch.tensor([[0.25, 0.75, 0.0]])
    turned = angular_margin(10 * angles.cos(), targets, 0.4, 10.0)
    assert torch.allclose(turned, 10 * torch.tensor([[0.4, 1.4, 2.0]]).cos(), atol=1e-3)


@pytest.mark.parametrize("margin", [0.3, 0.5, 1.0])
def test_arcface_goes_on_falling_beyond_pi(margin: float) -> None:
    angles = torch.linspace(0.01, math.pi - 0.01, 500)[:, None]
    turned = angular_margin(angles.cos(), torch.ones(500, 1), margin, 1.0)[:, 0]
    assert (turned.diff() < 0).all()
    beyond = angles[:, 0] + margin > math.pi
    assert torch.allclose(turned[beyond], angles[beyond, 0].cos() - margin * math.sin(margin), atol=1e-6)
    assert (turned < angles[:, 0].cos()).all()


def test_arcface_has_gradients_at_the_ends_of_the_cosine() -> None:
    logits = (30 * torch.tensor([[1.0, -1.0, 1.000001], [1 - 6e-8, 1.0, -1.000001]])).requires_grad_()
    for targets in (hard(0, 0), hard(2, 2), soft(2)):
        value = make_loss(Loss(margin=0.5), ABC, scale=30.0)(logits, targets, ONES)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 500


def test_losses_are_in_float32_whatever_the_networks_precision() -> None:
    logits = torch.randn(2, 3).half()
    for settings in (Loss(), Loss(name="focal"), Loss(name="bce"), Loss(margin=0.5)):
        loss = make_loss(settings, ABC)
        value = loss(logits, hard(0, 1), ONES)
        assert value.dtype == torch.float32
        assert value == loss(logits.float(), hard(0, 1), ONES)
    views = torch.randn(6, 3).half()
    assert torch.equal(jsd_consistency(views, "softmax"), jsd_consistency(views.float(), "softmax"))


def test_consistency_is_timms_divergence() -> None:
    logits, targets = 3 * torch.randn(12, 5), torch.tensor([0, 1, 2, 3])
    timms = JsdCrossEntropy(num_splits=3, alpha=12, smoothing=0)(logits, targets)
    ours = F.cross_entropy(logits[:4], targets) + 12 * jsd_consistency(logits, "softmax").mean()
    assert ours.item() == pytest.approx(timms.item(), rel=1e-5)
    assert jsd_consistency(logits, "softmax").shape == (4,)


def test_binary_consistency_is_that_of_two_classes() -> None:
    logits = 3 * torch.randn(12, 1)
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    assert torch.allclose(jsd_consistency(logits, "sigmoid"), jsd_consistency(two, "softmax"), atol=1e-6)


def test_consistency_is_0_for_equal_views_and_grows_to_its_bound() -> None:
    same = torch.randn(2, 3).repeat(3, 1)
    assert torch.allclose(jsd_consistency(same, "softmax"), torch.zeros(2), atol=1e-6)
    apart = (200 * torch.eye(3)).requires_grad_()
    value = jsd_consistency(apart, "softmax")
    assert value.item() == pytest.approx(math.log(3))
    (gradient,) = torch.autograd.grad(value.sum(), apart)
    assert gradient.isfinite().all()
    with pytest.raises(ValueError, match="cumulative"):
        jsd_consistency(same, "cumulative")


def test_the_joint_loss_alone_is_the_main_one() -> None:
    logits, targets, weights = torch.randn(2, 3), soft(2), torch.tensor([1.0, 0.3])
    settings = Loss(smoothing=0.1)
    joint = make_joint(settings, ABC)(logits, targets, weights, NOTHING, NOTHING)
    assert joint == make_loss(settings, ABC)(logits, targets, weights)


def test_consistency_learns_labels_on_the_clean_views_alone() -> None:
    logits, weights, targets = torch.randn(6, 3), torch.tensor([1.0, 0.5]), soft(2)
    joint = make_joint(Loss(jsd=12), ABC)(logits, targets, weights, NOTHING, NOTHING)
    apart = jsd_consistency(logits, "softmax")
    expected = make_loss(Loss(), ABC)(logits[:2], targets, weights) + 12 * (apart[0] + 0.5 * apart[1]) / 2
    assert joint.item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"\(6, 3\)"):
        make_joint(Loss(jsd=12), ABC)(logits[:2], targets, weights, NOTHING, NOTHING)


TABLE = pd.DataFrame(
    {
        "label": ["a", "b", "c", "a"],
        "site": ["x", "", "y", "z"],
        "sex": ["m", "f", "", "m"],
        "age": ["20", "40", "NA", "60"],
        "grade": ["2", "10", "1", ""],
        "signs": ["p q", "q", "", "p"],
        "same": ["1", "1", "", "1"],
        "empty": ["", "", "", ""],
    }
)


def columns(*names: tuple[str, str]) -> list[Auxiliary]:
    return [Auxiliary(column=name, task=task, weight=0.5) for name, task in names]


def test_auxiliary_columns_become_targets_side_by_side() -> None:
    chosen = columns(("site", "multiclass"), ("sex", "binary"), ("grade", "ordinal"), ("signs", "multilabel"))
    tasks, targets, weights = make_auxiliary(chosen, TABLE, "train.csv", target="label")
    assert [task.columns for task in tasks] == [(0, 3), (3, 4), (4, 7), (7, 9)]
    assert [task.logits for task in tasks] == [(0, 3), (3, 4), (4, 6), (6, 8)]
    assert [task.n_logits for task in tasks] == [3, 1, 2, 2]
    assert tasks[2].task.classes == ("1", "2", "10")
    assert weights.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 1]]
    assert targets.dtype == weights.dtype == np.float32
    assert targets.tolist() == [
        [1, 0, 0, 1, 0, 1, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 1, 0, 1],
        [0, 1, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 1, 0],
    ]
    none, targets, weights = make_auxiliary([], TABLE, "train.csv")
    assert (none, targets.shape, weights.shape) == ((), (4, 0), (4, 0))


def test_auxiliary_numbers_are_standardised_on_the_training_rows_alone() -> None:
    fit = np.array([True, True, True, False])
    _, targets, weights = make_auxiliary(columns(("age", "regression")), TABLE, "train.csv", fit=fit)
    assert targets[:, 0].tolist() == [-1, 1, 0, 3]
    assert weights[:, 0].tolist() == [1, 1, 0, 1]


def test_auxiliary_columns_with_nothing_to_learn_are_refused() -> None:
    for column, task, what in (
        ("label", "multiclass", "loss.auxiliary: 'label' is the target itself"),
        ("sites", "multiclass", "'sites' of loss.auxiliary is missing; did you mean 'site'"),
        ("same", "multiclass", r"'same' .*one value alone \(1\)"),
        ("same", "regression", "one value alone"),
        ("empty", "multiclass", "is empty"),
        ("site", "binary", "two labels in 'site', found 3"),
        ("site", "regression", "'x' in the numeric column 'site', row 2"),
    ):
        with pytest.raises(BadInput, match=what):
            make_auxiliary(columns((column, task)), TABLE, "train.csv", target="label")
    with pytest.raises(BadInput, match="named twice"):
        make_auxiliary(columns(("age", "regression"), ("age", "multiclass")), TABLE, "train.csv")
    with pytest.raises(BadInput, match="no training row has a value in the column 'sex'"):
        make_auxiliary(columns(("sex", "binary")), TABLE, "train.csv", fit=np.arange(4) == 2)


def test_auxiliary_losses_are_added_with_their_weights_where_labels_are() -> None:
    chosen = [
        Auxiliary(column="grade", task="ordinal", weight=0.1),  # has fewer logits than target columns
        Auxiliary(column="site", weight=0.3),
        Auxiliary(column="age", task="regression", weight=2),
    ]
    tasks, extra, known = make_auxiliary(chosen, TABLE, "train.csv")
    logits, targets, weights = torch.randn(4, 9, requires_grad=True), soft(4), torch.rand(4)
    joint = make_joint(Loss(), ABC, auxiliary=tasks)
    value = joint(logits, targets, weights, torch.from_numpy(extra), torch.from_numpy(known))
    main = make_loss(Loss(), ABC)(logits[:, :3], targets, weights)
    above = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    grade = F.binary_cross_entropy_with_logits(logits[:3, 3:5], above, reduction="sum") / 4
    site = F.cross_entropy(logits[[0, 2, 3], 5:8], torch.tensor([0, 1, 2]), reduction="sum") / 4
    age = ((logits[[0, 1, 3], 8] - torch.from_numpy(extra[[0, 1, 3], 6])) ** 2).sum() / 4
    assert value.item() == pytest.approx((main + 0.1 * grade + 0.3 * site + 2 * age).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[3, 3:5].abs().max() == 0
    assert gradient[1, 5:8].abs().max() == 0
    assert gradient[2, 8] == 0
    assert gradient[0, 3:].abs().min() > 0


def test_a_batch_without_an_auxiliary_label_loses_nothing() -> None:
    chosen = columns(("site", "multiclass"), ("sex", "binary"), ("age", "regression"), ("signs", "multilabel"))
    tasks, extra, _ = make_auxiliary(chosen, TABLE, "train.csv")
    logits, targets = torch.randn(4, 3 + 7, requires_grad=True), soft(4)
    none = torch.zeros(4, len(tasks))
    value = make_joint(Loss(), ABC, auxiliary=tasks)(logits, targets, torch.ones(4), torch.from_numpy(extra), none)
    assert value.item() == pytest.approx(make_loss(Loss(), ABC)(logits[:, :3], targets, torch.ones(4)).item())
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[:, 3:].abs().max() == 0


def test_auxiliary_labels_are_learnt_on_clean_views_and_are_not_compared() -> None:
    tasks, extra, known = make_auxiliary(columns(("site", "multiclass")), TABLE, "train.csv")
    logits, targets = torch.randn(12, 6, requires_grad=True), soft(4)
    joint = make_joint(Loss(jsd=1), ABC, auxiliary=tasks)
    value = joint(logits, targets, torch.ones(4), torch.from_numpy(extra), torch.from_numpy(known))
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[:4, 3:].abs().max() > 0
    assert gradient[4:, 3:].abs().max() == 0
    assert gradient[4:, :3].abs().min() > 0
    with pytest.raises(ValueError, match="shape"):  # such as those of inference, without auxiliary logits
        joint(logits[:, :3], targets, torch.ones(4), torch.from_numpy(extra), torch.from_numpy(known))


GRADES = Task("ordinal", ("0", "1", "2", "3"))


def test_distillation_by_hand() -> None:
    """T = 2: p^(1/2) of (0.64, 0.36, 0) is (0.8, 0.6, 0); the student is even."""
    teacher = torch.tensor([[0.64, 0.36, 0.0]])
    value = make_distil(ABC, 2.0)(torch.zeros(1, 3), teacher, torch.ones(1))
    p = (0.8 / 1.4, 0.6 / 1.4)
    assert value.item() == pytest.approx(4 * sum(q * math.log(3 * q) for q in p), rel=1e-6)
    plain = make_distil(ABC)(torch.zeros(1, 3), teacher, torch.ones(1))
    assert plain.item() == pytest.approx(0.64 * math.log(3 * 0.64) + 0.36 * math.log(3 * 0.36), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_teachers_logits_are_not_needed_to_soften_it(temperature: float) -> None:
    v, z = 3 * torch.randn(5, 3), 3 * torch.randn(5, 3)
    log_p, log_q = F.log_softmax(v / temperature, dim=1), F.log_softmax(z / temperature, dim=1)
    expected = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
    value = make_distil(ABC, temperature)(z, v.softmax(dim=1), torch.ones(5))
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_distillation_at_temperature_1_has_the_gradient_of_cross_entropy_and_matches_logits_at_a_high_one() -> None:
    v, z = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    value = make_distil(ABC)(z, v.softmax(dim=1), torch.ones(4))
    (gradient,) = torch.autograd.grad(4 * value, z)
    assert torch.allclose(gradient, z.softmax(dim=1) - v.softmax(dim=1), atol=1e-6)
    # Hinton et al. (2015), section 2.1: (z - v) / N for logits of mean 0.
    value = make_distil(ABC, 200.0)(z, v.softmax(dim=1), torch.ones(4))
    (gradient,) = torch.autograd.grad(4 * value, z)
    expected = (z - z.mean(dim=1, keepdim=True)) - (v - v.mean(dim=1, keepdim=True))
    assert torch.allclose(gradient, expected / 3, atol=0.01)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distilling_yes_or_no_is_distilling_two_classes_the_mean_over_labels(temperature: float) -> None:
    teacher, logits = torch.rand(4, 3), 3 * torch.randn(4, 3)
    parts = []
    two = make_distil(Task("multiclass", ("no", "yes")), temperature)
    for label in range(3):
        z, p = logits[:, label], teacher[:, label]
        pair = torch.stack([torch.zeros_like(z), z], dim=1)
        parts.append(two(pair, torch.stack([1 - p, p], dim=1), torch.ones(4)).item())
    assert make_distil(TAGS, temperature)(logits, teacher, torch.ones(4)).item() == pytest.approx(
        np.mean(parts), rel=1e-5
    )
    binary = make_distil(BINARY, temperature)(logits[:, :1], teacher[:, :1], torch.ones(4))
    assert binary.item() == pytest.approx(parts[0], rel=1e-5)


def test_distilling_grades_asks_whether_the_grade_is_above_each() -> None:
    logits, teacher = torch.randn(2, 3), soft(2, of=4)
    above = torch.stack([teacher[:, k + 1 :].sum(dim=1) for k in range(3)], dim=1)
    expected = 3 * make_distil(TAGS, 2.0)(logits, above, ONES)
    assert make_distil(GRADES, 2.0)(logits, teacher, ONES).item() == pytest.approx(expected.item(), rel=1e-5)


def test_distilling_numbers_is_in_units_of_the_targets_deviation_and_has_no_temperature() -> None:
    task = Task("regression", ("y",))
    loss = make_distil(task, 1.0, torch.tensor([10.0]), torch.tensor([2.0]))
    assert loss(torch.tensor([[1.0]]), torch.tensor([[12.0]]), torch.ones(1)) == 0
    assert loss(torch.tensor([[0.0]]), torch.tensor([[14.0]]), torch.ones(1)) == 4
    with pytest.raises(BadInput, match=r"teacher.distill.temperature: 2 softens probabilities"):
        make_distil(task, 2.0)


SHARE = torch.tensor(
    [
        [0.0, 0.0, 1.0],
        [0.5, 0.5, 0.0],
        [0.4, 0.3, 0.3],
        [0.3334, 0.3333, 0.3333],
        [1.0 - 1e-6, 1e-6, 0.0],
        [1.0000001, -1e-7, 0.0],  # as 1 less a float32 gives
        [1.0, 1e-30, 1e-38],
    ]
)


@pytest.mark.parametrize("temperature", [1e-4, 1e-3, 0.02, 0.5, 1.0, 20.0, 1e4])
def test_softened_rows_sum_to_1_at_any_temperature(temperature: float) -> None:
    found = softened(SHARE, temperature)
    assert found.isfinite().all()
    assert torch.allclose(found.sum(dim=1), torch.ones(len(SHARE)), atol=1e-6)
    assert (found[SHARE <= 0] == 0).all()
    expected = (SHARE.double().clamp_min(0).log() / temperature).softmax(dim=1)
    assert torch.allclose(found.double(), expected, atol=2e-3)
    # A row without any probability stays one; nothing is divided by 0.
    assert softened(torch.zeros(2, 3), temperature).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("task", [BINARY, TAGS, ABC, GRADES], ids=lambda task: task.name)
@pytest.mark.parametrize("temperature", [1e-3, 0.5, 1.0, 20.0])
def test_distillation_is_finite_and_never_negative_where_probabilities_are_0_or_1(
    task: Task, temperature: float
) -> None:
    columns = len(task.classes)
    logits = torch.tensor([[200.0, -200.0, 0.0], [-90.0, 17.0, 0.0], [0.0, 0.0, 0.0]])[:, : task.n_logits].clone()
    logits.requires_grad_()
    for teacher in (hard(0, 0, 0, of=4), hard(1, 1, 1, of=4), torch.full((3, 4), 0.25), torch.ones(3, 4) * 1e-38):
        value = make_distil(task, temperature)(logits, teacher[:, :columns], torch.ones(3))
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert value >= -1e-5
        assert gradient.isfinite().all()


@pytest.mark.parametrize("task", [BINARY, TAGS, ABC, GRADES], ids=lambda task: task.name)
def test_a_step_against_the_gradient_brings_a_student_to_its_teacher(task: Task) -> None:
    teacher = soft(3, of=4)[:, : len(task.classes)]
    if task is ABC:
        teacher = teacher / teacher.sum(dim=1, keepdim=True)
    logits = torch.zeros(3, task.n_logits, requires_grad=True)
    loss = make_distil(task, 2.0)
    for _ in range(400):
        value = loss(logits, teacher, torch.ones(3))
        (gradient,) = torch.autograd.grad(value, logits)
        with torch.no_grad():
            logits -= 1.5 * gradient
    with torch.no_grad():
        assert loss(logits, teacher, torch.ones(3)) < 1e-3


def test_the_teachers_share_of_a_rows_loss_and_rows_it_says_nothing_of() -> None:
    logits, targets, teacher = torch.randn(4, 3), soft(4), soft(4)
    weights, known = torch.tensor([1.0, 0.5, 2.0, 0.0]), torch.tensor([1.0, 0.5, 0.0, 1.0])
    joint = make_joint(Loss(smoothing=0.1), ABC, distill=Distill(weight=0.7, temperature=2.0))
    labels, soft_loss = make_loss(Loss(smoothing=0.1), ABC), make_distil(ABC, 2.0)
    rows = []
    for row in range(4):
        one, at = torch.ones(1), slice(row, row + 1)
        share = 0.7 * known[row]
        value = (1 - share) * labels(logits[at], targets[at], one) + share * soft_loss(logits[at], teacher[at], one)
        rows.append((weights[row] * value).item())
    nothing = torch.zeros(4, 0)
    value = joint(logits, targets, weights, nothing, nothing, teacher, known)
    assert value.item() == pytest.approx(np.mean(rows), rel=1e-5)
    # Where a teacher is expected, its absence is no silent 0.
    with pytest.raises(ValueError, match="without a teacher"):
        joint(logits, targets, weights, nothing, nothing, teacher[:, :0], known)


def test_teachers_are_learnt_on_the_clean_views_alone() -> None:
    logits, targets = torch.randn(6, 3 + 4, requires_grad=True), soft(2)
    distill = Distill(weight=1.0, features=1.0, how="online")
    settings = {"distill": distill, "projections": (4,)}
    seen = []
    for teacher in (soft(2), soft(2)):
        joint = make_joint(Loss(jsd=1), ABC, **settings)
        value = joint(logits, targets, ONES, NOTHING, NOTHING, teacher, ONES, [torch.randn(2, 4)])
        seen.append(torch.autograd.grad(value, logits)[0])
    difference = (seen[0] - seen[1]).abs()
    assert difference[:2].max() > 1e-3
    assert difference[2:].max() == 0
    assert seen[0][2:, 3:].abs().max() == 0


def test_feature_distance_is_the_mean_over_teachers_of_1_minus_the_cosine() -> None:
    teachers = [torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])]
    projected = torch.tensor([[5.0, 0.0, 0.0, 0.0, 1.0], [-3.0, -4.0, 9.0, 0.0, 0.0]])
    assert feature_distance(projected, teachers).tolist() == pytest.approx([0.5, 1.0], abs=1e-6)
    joint = make_joint(Loss(), ABC, distill=Distill(features=0.3, how="online"), projections=(2, 3))
    logits, targets, weights = torch.randn(2, 3), soft(2), torch.tensor([1.0, 0.5])
    value = joint(torch.cat([logits, projected], dim=1), targets, weights, NOTHING, NOTHING, teacher_features=teachers)
    expected = make_loss(Loss(), ABC)(logits, targets, weights) + 0.3 * (0.5 + 0.5 * 1.0) / 2
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match="other widths"):
        joint(torch.cat([logits, projected], dim=1), targets, weights, NOTHING, NOTHING)
