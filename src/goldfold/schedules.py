"""The learning rate as a pure function of the optimizer step."""

from __future__ import annotations

import math

from goldfold.config.schema import Schedule


def lr_factor(schedule: Schedule, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The rate of optimizer step ``step`` (0 to ``total_steps - 1``) over the peak rate.

    Warm-up is linear and reaches 1 on its last step, where the schedule proper begins (Goyal et al. 2017); cosine as
    in Loshchilov and Hutter (2017), without restarts, ending at ``min_factor`` on the last step.
    """
    warmup = min(round(schedule.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return (step + 1) / warmup
    start = max(warmup - 1, 0)
    span = max(total_steps - 1 - start, 1)
    done = min((step - start) / span, 1.0)
    if schedule.name == "constant":
        return 1.0
    shape = 1 - done if schedule.name == "linear" else (1 + math.cos(math.pi * done)) / 2
    return schedule.min_factor + (1 - schedule.min_factor) * shape
