"""Losses on logits and soft targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from goldfold.config.schema import Loss
from goldfold.errors import BadInput
from goldfold.tasks import Task

SampleLoss = Callable[[Tensor, Tensor], Tensor]
SUITABLE = {
    "binary": ("bce",),
    "multiclass": ("cross_entropy",),
    "multilabel": ("bce",),
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
) -> WeightedLoss:
    """The loss of a task. ``class_weights`` (C,); ``target_mean`` and ``target_std`` (C,) standardise regression targets.

    Raises BadInput when the loss does not suit the task.
    """
    name = task.default_loss if settings.name == "auto" else settings.name
    if name not in SUITABLE[task.name]:
        raise BadInput(
            "loss.name", f"'{name}' does not suit a {task.name} task", f"use {' or '.join(SUITABLE[task.name])}"
        )
    smoothing = settings.smoothing
    if smoothing and task.name == "regression":
        raise BadInput("loss.smoothing", "labels of a regression task cannot be smoothed", "set it to 0")

    if name == "cross_entropy":

        def sample_loss(logits: Tensor, targets: Tensor) -> Tensor:
            targets = smooth(targets, smoothing, targets.shape[1])
            if class_weights is not None:
                targets = targets * class_weights.to(targets.device)
            return -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)

    elif task.name == "ordinal":

        def sample_loss(logits: Tensor, targets: Tensor) -> Tensor:
            above = smooth(exceedance(targets), smoothing, 2)
            losses = F.binary_cross_entropy_with_logits(logits, above, reduction="none").sum(dim=1)
            return losses if class_weights is None else losses * (targets @ class_weights.to(targets.device))

    elif name == "bce":

        def sample_loss(logits: Tensor, targets: Tensor) -> Tensor:
            losses = F.binary_cross_entropy_with_logits(logits, smooth(targets, smoothing, 2), reduction="none")
            if class_weights is not None:
                # A column's weight is for its positives; negatives weigh 1.
                losses = losses * (1 + targets * (class_weights.to(targets.device) - 1))
            return losses.mean(dim=1)

    else:
        plain = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[name]

        def sample_loss(logits: Tensor, targets: Tensor) -> Tensor:
            if target_mean is not None and target_std is not None:
                targets = (targets - target_mean.to(targets.device)) / target_std.to(targets.device)
            return plain(logits, targets, reduction="none").mean(dim=1)

    return WeightedLoss(sample_loss)


def smooth(targets: Tensor, smoothing: float, ways: int) -> Tensor:
    """Label smoothing, t(1 - s) + s/ways (Szegedy et al. 2016); ``ways`` is 2 for yes-or-no targets."""
    return targets * (1 - smoothing) + smoothing / ways if smoothing else targets


def exceedance(targets: Tensor) -> Tensor:
    """Class probabilities (B, C) of an ordinal task → P(grade > k) for k = 0 .. C-2, (B, C-1).

    The cumulative form of Frank and Hall (2001): each logit answers "is the grade above k?".
    """
    return targets.flip(1).cumsum(1).flip(1)[:, 1:]
