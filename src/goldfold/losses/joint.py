"""All that is minimised at once: the task's loss, the teachers', AugMix's consistency, auxiliary tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from goldfold.config.schema import Distill, Loss
from goldfold.errors import BadInput
from goldfold.losses.auxiliary import AuxiliaryTask
from goldfold.losses.distil import feature_distance, make_distil
from goldfold.losses.task import WeightedLoss, make_loss
from goldfold.tasks import Activation, Task


@dataclass(frozen=True)
class JointLoss:
    """The main loss + ``jsd`` x consistency + the sum over auxiliary tasks of their weight x loss, a scalar.

    Logits are (B, L + A + P): ``n_logits`` of the task, then those of the auxiliary tasks, then features projected to
    the teachers' widths ``projections``. With ``jsd`` they are (3B, L + A + P): the clean views, on which alone labels
    and teachers are learnt, then two views of AugMix.

    With teachers, the main loss of a row is (1 - ``distil_weight`` x t) x labels' loss + ``distil_weight`` x t x
    teachers' loss, t being the row's teacher weight: where the teachers say nothing, labels count whole. Added to it is
    ``features`` x the distance from the teachers' features.
    """

    main: WeightedLoss
    activation: Activation
    n_logits: int
    jsd: float = 0.0
    auxiliary: tuple[tuple[AuxiliaryTask, WeightedLoss], ...] = ()
    distil: WeightedLoss | None = None
    distil_weight: float = 0.0
    features: float = 0.0
    projections: tuple[int, ...] = ()

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        weights: Tensor,
        auxiliary_targets: Tensor,
        auxiliary_weights: Tensor,
        teacher: Tensor | None = None,
        teacher_weights: Tensor | None = None,
        teacher_features: Sequence[Tensor] = (),
    ) -> Tensor:
        """``targets`` (B, C), ``weights`` (B,), ``auxiliary_targets`` (B, T), ``auxiliary_weights`` (B, K).

        ``teacher`` (B, C) with ``teacher_weights`` (B,) in 0..1, and ``teacher_features``, (B, W) of each teacher, are
        asked for where they count.

        An auxiliary task's mean is over the batch, not over the rows with its label, as with sample weights: a label
        counts the same whatever else is in its batch, and a batch without any label has a loss of 0.
        """
        views = 3 if self.jsd else 1
        labels = self.n_logits + sum(task.n_logits for task, _ in self.auxiliary)
        expected = (views * len(targets), labels + sum(self.projections))
        if tuple(logits.shape) != expected:
            # Slices of a wrong shape would be empty, and their loss silently 0.
            raise ValueError(f"logits of shape {tuple(logits.shape)} where {expected} is expected")
        clean, further = logits[: len(targets), : self.n_logits], logits[: len(targets), self.n_logits : labels]
        if self.distil is None:
            loss = self.main(clean, targets, weights)
        else:
            if teacher is None or teacher_weights is None or teacher.shape != targets.shape:
                raise ValueError("distillation without a teacher's probabilities")
            share = self.distil_weight * teacher_weights
            loss = self.main(clean, targets, weights * (1 - share)) + self.distil(clean, teacher, weights * share)
        if self.projections:
            if tuple(part.shape[1] for part in teacher_features) != self.projections:
                raise ValueError("teachers' features of other widths than the projections")
            apart = feature_distance(logits[: len(targets), labels:], teacher_features)
            loss = loss + self.features * (apart * weights).mean()
        if self.jsd:
            views_apart = jsd_consistency(logits[:, : self.n_logits], self.activation)
            loss = loss + self.jsd * (views_apart * weights).mean()
        for number, (task, of_task) in enumerate(self.auxiliary):
            part = of_task(
                further[:, slice(*task.logits)],
                auxiliary_targets[:, slice(*task.columns)],
                auxiliary_weights[:, number],
            )
            loss = loss + task.weight * part
        return loss


def make_joint(
    settings: Loss,
    task: Task,
    *,
    class_weights: Tensor | None = None,
    target_mean: Tensor | None = None,
    target_std: Tensor | None = None,
    scale: float = 30.0,
    auxiliary: Sequence[AuxiliaryTask] = (),
    distill: Distill | None = None,
    projections: Sequence[int] = (),
) -> JointLoss:
    """The whole loss of a training; the arguments are those of ``make_loss``.

    Each auxiliary task has its own default loss; its targets arrive standardised. ``projections``: the widths of the
    teachers' features, where ``distill.features`` matches them. Raises BadInput as ``make_loss`` and ``make_distil`` do,
    and when the consistency loss does not suit the task.
    """
    distill = distill or Distill()
    if settings.jsd and task.name not in ("binary", "multiclass"):
        raise BadInput("loss.jsd", f"it does not suit a {task.name} task", "set it to 0")
    return JointLoss(
        main=make_loss(settings, task, class_weights, target_mean, target_std, scale),
        activation=task.activation,
        n_logits=task.n_logits,
        jsd=settings.jsd,
        auxiliary=tuple((item, make_loss(Loss(), item.task)) for item in auxiliary),
        distil=make_distil(task, distill.temperature, target_mean, target_std) if distill.weight else None,
        distil_weight=distill.weight,
        features=distill.features,
        projections=tuple(projections),
    )


def jsd_consistency(logits: Tensor, activation: Activation) -> Tensor:
    """Jensen-Shannon divergence (B,) among three predictions of each image, in nats (AugMix, Hendrycks et al. 2020).

    ``logits`` (3B, L): B clean views, then twice B others. ``softmax``: one distribution over L classes; ``sigmoid``:
    yes and no of each logit, the mean over logits.
    """
    logits = logits.float().reshape(3, len(logits) // 3, -1)
    if activation == "softmax":
        log_p = F.log_softmax(logits, dim=-1)
    elif activation == "sigmoid":
        log_p = torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)
    else:
        raise ValueError(f"no consistency loss for predictions by '{activation}'")
    mixture = log_p.logsumexp(dim=0) - math.log(3)
    divergence = (log_p.exp() * (log_p - mixture)).sum(dim=-1).mean(dim=0)
    return divergence if activation == "softmax" else divergence.mean(dim=-1)
