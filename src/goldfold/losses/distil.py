"""Distillation: the loss of a student's answers against its teachers' probabilities, and of its pooled features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from goldfold.errors import BadInput
from goldfold.losses.task import SampleLoss, WeightedLoss, exceedance
from goldfold.tasks import Task


def make_distil(
    task: Task,
    temperature: float = 1.0,
    target_mean: Tensor | None = None,
    target_std: Tensor | None = None,
) -> WeightedLoss:
    """``loss(logits (B, L), teacher (B, C), weights (B,))`` → scalar, the mean over the batch of weight x loss.

    ``T^2 KL(teacher || student)``, both softened by the temperature T (Hinton, Vinyals and Dean 2015), in nats. The
    teacher's logits are not needed: softmax(z / T) is softmax(z)^(1/T) with rows summing to 1 again. Yes-or-no logits
    are two classes each, their mean over the labels; ordinal ones ask P(grade > k), their sum over the thresholds, as
    in the task's own loss. Class weights, smoothing and margins are for labels, and leave this loss alone.

    A regression has the squared error in units of the target's deviation (``target_mean``, ``target_std`` (C,)).
    Raises BadInput for a temperature other than 1 there.
    """
    if temperature <= 0:
        raise ValueError(f"a temperature of {temperature:g}")
    of_samples: SampleLoss
    if task.activation == "identity":
        if temperature != 1:
            what = f"{temperature:g} softens probabilities, and a regression has none"
            raise BadInput("teacher.distill.temperature", what, "set it to 1")

        def of_samples(logits: Tensor, teacher: Tensor) -> Tensor:
            if target_mean is not None and target_std is not None:
                teacher = (teacher - target_mean.to(teacher.device)) / target_std.to(teacher.device)
            return (logits - teacher).square().mean(dim=1)

    elif task.activation == "softmax":

        def of_samples(logits: Tensor, teacher: Tensor) -> Tensor:
            soft = softened(teacher, temperature)
            return temperature**2 * F.kl_div(F.log_softmax(logits / temperature, dim=1), soft, reduction="none").sum(1)

    elif task.activation == "cumulative":

        def of_samples(logits: Tensor, teacher: Tensor) -> Tensor:
            return _yes_or_no(logits, exceedance(teacher).clamp(0, 1), temperature).sum(dim=1)

    else:

        def of_samples(logits: Tensor, teacher: Tensor) -> Tensor:
            return _yes_or_no(logits, teacher, temperature).mean(dim=1)

    return WeightedLoss(of_samples)


def softened(probabilities: Tensor, temperature: float) -> Tensor:
    """p^(1/T) with rows (the last dimension) summing to 1: what a softmax gives at the temperature. 0 stays 0."""
    probabilities = probabilities.clamp_min(0)
    # Divided by the largest first, so that no power makes a whole row 0.
    largest = probabilities.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(probabilities.dtype).tiny)
    powers = (probabilities / largest).pow(1 / temperature)
    return powers / powers.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(powers.dtype).tiny)


def _yes_or_no(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL of each logit's yes and no, (B, L)."""
    soft = softened(torch.stack([teacher, 1 - teacher], dim=-1), temperature)
    logits = logits / temperature
    log_q = torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)
    return temperature**2 * F.kl_div(log_q, soft, reduction="none").sum(dim=-1)


def feature_distance(projected: Tensor, teachers: Sequence[Tensor]) -> Tensor:
    """1 - cosine between projected features (B, W1 + W2 + ...) and each teacher's (B, Wi), the mean over teachers, (B,).

    A learnt linear map between the widths, as the regressor of FitNets (Romero et al. 2015); the cosine leaves out the
    scale of the teacher's features, which differs between backbones.
    """
    parts = torch.split(projected.float(), [part.shape[1] for part in teachers], dim=1)
    near = [F.cosine_similarity(part, teacher, dim=1) for part, teacher in zip(parts, teachers, strict=True)]
    return 1 - torch.stack(near).mean(dim=0)
