"""The loss of a task, on logits and soft targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from goldfold.config.schema import Loss
from goldfold.errors import BadInput
from goldfold.tasks import Task

SampleLoss = Callable[[Tensor, Tensor], Tensor]
SUITABLE = {
    "binary": ("bce", "focal"),
    "multiclass": ("cross_entropy", "bce", "focal"),
    "multilabel": ("bce", "focal"),
    "ordinal": ("bce",),
    "regression": ("mse", "l1", "smooth_l1"),
}


@dataclass(frozen=True)
class WeightedLoss:
    """``loss(logits (B, L), targets (B, C), weights (B,))`` → scalar: the mean over the batch of weight x loss.

    The sum is divided by B, not by the weights' sum, so that a pseudo-labelled image of weight 0.3 counts 0.3.
    """

    of_samples: SampleLoss

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        # Losses are computed in float32 whatever the network's precision.
        return (self.of_samples(logits.float(), targets) * weights).mean()


def make_loss(
    settings: Loss,
    task: Task,
    class_weights: Tensor | None = None,
    target_mean: Tensor | None = None,
    target_std: Tensor | None = None,
    scale: float = 30.0,
) -> WeightedLoss:
    """The loss of a task. ``class_weights`` (C,); ``target_mean`` and ``target_std`` (C,) standardise regression.

    ``bce`` on a multiclass task asks "is it this class?" of each class by itself (Wightman et al. 2021, "ResNet strikes
    back"). Its terms are summed over the classes, so that the right class pulls as hard as in cross-entropy; timm takes
    their mean. Inference still takes the softmax of the logits, which ranks the classes of an image just the same.

    ``focal`` (Lin et al. 2017) multiplies each term by (1 - p)^gamma. With gamma 0 it is ``bce`` on yes-or-no targets
    and ``cross_entropy`` on classes.

    ``settings.margin`` is ArcFace's (Deng et al. 2019), on logits that are ``scale`` times a cosine.

    Raises BadInput when the loss or one of its settings does not suit the task.
    """
    name = task.default_loss if settings.name == "auto" else settings.name
    _refuse(settings, name, task)
    smoothing, gamma = settings.smoothing, settings.gamma if name == "focal" else 0.0
    n_classes = len(task.classes)

    if task.name == "regression":
        plain = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[name]

        def sample_loss(logits: Tensor, targets: Tensor) -> Tensor:
            if target_mean is not None and target_std is not None:
                targets = (targets - target_mean.to(targets.device)) / target_std.to(targets.device)
            return plain(logits, targets, reduction="none").mean(dim=1)

    elif task.name == "ordinal":

        def sample_loss(logits: Tensor, targets: Tensor) -> Tensor:
            losses = yes_or_no(logits, smooth(exceedance(targets), smoothing, 2)).sum(dim=1)
            return losses if class_weights is None else losses * _row_weights(targets, class_weights)

    elif task.name in ("binary", "multilabel"):
        alpha = settings.alpha

        def sample_loss(logits: Tensor, targets: Tensor) -> Tensor:
            losses = yes_or_no(logits, smooth(targets, smoothing, 2), gamma, alpha)
            if class_weights is not None:
                # A column's weight is for its positives; negatives weigh 1.
                losses = losses * (1 + targets * (class_weights.to(targets.device) - 1))
            return losses.mean(dim=1)

    elif name == "bce":

        def sample_loss(logits: Tensor, targets: Tensor) -> Tensor:
            losses = yes_or_no(logits, smooth(targets, smoothing, n_classes)).sum(dim=1)
            return losses if class_weights is None else losses * _row_weights(targets, class_weights)

    else:
        margin = settings.margin

        def sample_loss(logits: Tensor, targets: Tensor) -> Tensor:
            if margin:
                logits = angular_margin(logits, targets, margin, scale)
            targets = smooth(targets, smoothing, n_classes)
            if class_weights is not None:
                # As torch's cross_entropy does: what smoothing gives to another class has that class's weight.
                targets = targets * class_weights.to(targets.device)
            return one_of_many(logits, targets, gamma)

    return WeightedLoss(sample_loss)


def _refuse(settings: Loss, name: str, task: Task) -> None:
    """Raises BadInput on a setting that this loss cannot honour."""
    if name not in SUITABLE[task.name]:
        raise BadInput(
            "loss.name", f"'{name}' does not suit a {task.name} task", f"use {' or '.join(SUITABLE[task.name])}"
        )
    if settings.smoothing and task.name == "regression":
        raise BadInput("loss.smoothing", "labels of a regression task cannot be smoothed", "set it to 0")
    if settings.alpha is not None and (name != "focal" or task.name == "multiclass"):
        raise BadInput(
            "loss.alpha",
            f"it weighs yes against no in a focal loss, and this is {name} on a {task.name} task",
            "leave it null; balance.loss_weights weighs classes",
        )
    if settings.margin and name != "cross_entropy":
        raise BadInput("loss.margin", f"the margin is for cross_entropy, and the loss is '{name}'", "set it to 0")
    if settings.margin >= math.pi:
        raise BadInput("loss.margin", f"{settings.margin:g} is not an angle in radians below pi", "0.5 is usual")


def yes_or_no(logits: Tensor, targets: Tensor, gamma: float = 0.0, alpha: float | None = None) -> Tensor:
    """Binary cross-entropy of each logit (B, L) with its soft target (B, L), focused by ``gamma``.

    -t a (1 - p)^gamma log p - (1 - t) (1 - a) p^gamma log(1 - p); without ``alpha`` both a and 1 - a are left out.
    """
    if gamma == 0 and alpha is None:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
    # Powers by their logarithm: (1 - p)^gamma itself has no gradient where p rounds to 1.
    yes = -targets * torch.exp(gamma * log_no) * log_yes
    no = -(1 - targets) * torch.exp(gamma * log_yes) * log_no
    return yes + no if alpha is None else alpha * yes + (1 - alpha) * no


def one_of_many(logits: Tensor, targets: Tensor, gamma: float = 0.0) -> Tensor:
    """Cross-entropy (B,) of soft targets (B, C), focused by ``gamma``: the sum of -t (1 - p)^gamma log p."""
    log_p = F.log_softmax(logits, dim=1)
    if gamma == 0:
        return -(targets * log_p).sum(dim=1)
    others = (-torch.expm1(log_p)).clamp(min=1e-12)  # 1 - p; a power has no gradient at 0
    return -(targets * others.pow(gamma) * log_p).sum(dim=1)


def angular_margin(logits: Tensor, targets: Tensor, margin: float, scale: float) -> Tensor:
    """ArcFace (Deng et al. 2019): ``scale`` x cos(angle) → ``scale`` x cos(angle + margin x target), (B, C).

    With hard targets this is the paper's formula; a soft target widens its class's angle by its share of the margin.
    Where the angle would pass pi, the cosine is lowered by m sin(m) instead, so that it goes on falling.
    """
    cosine, added = logits / scale, margin * targets
    # The sine's slope is infinite where the angle is 0 or pi.
    sine = (1 - cosine.square()).clamp(min=1e-6).sqrt()
    turned = cosine * added.cos() - sine * added.sin()
    return scale * torch.where(cosine > -added.cos(), turned, cosine - added * added.sin())


def smooth(targets: Tensor, smoothing: float, ways: int) -> Tensor:
    """Label smoothing, t(1 - s) + s/ways (Szegedy et al. 2016); ``ways`` is 2 for yes-or-no targets."""
    return targets * (1 - smoothing) + smoothing / ways if smoothing else targets


def exceedance(targets: Tensor) -> Tensor:
    """Class probabilities (B, C) of an ordinal task → P(grade > k) for k = 0 .. C-2, (B, C-1).

    The cumulative form of Frank and Hall (2001): each logit answers "is the grade above k?".
    """
    return targets.flip(1).cumsum(1).flip(1)[:, 1:]


def _row_weights(targets: Tensor, class_weights: Tensor) -> Tensor:
    # Not a matrix product: under autocast that would round to half precision.
    return (targets * class_weights.to(targets.device)).sum(dim=1)
