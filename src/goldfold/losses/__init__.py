"""What is minimised: the task's loss on soft targets, margin, consistency, auxiliary tasks, distillation."""

from goldfold.losses.auxiliary import AuxiliaryTask, make_auxiliary
from goldfold.losses.distil import feature_distance, make_distil, softened
from goldfold.losses.joint import JointLoss, jsd_consistency, make_joint
from goldfold.losses.task import WeightedLoss, angular_margin, exceedance, make_loss, smooth

__all__ = [
    "AuxiliaryTask",
    "JointLoss",
    "WeightedLoss",
    "angular_margin",
    "exceedance",
    "feature_distance",
    "jsd_consistency",
    "make_auxiliary",
    "make_distil",
    "make_joint",
    "make_loss",
    "smooth",
    "softened",
]
