"""Training of one fold."""

from goldfold.teaching import OnlineTeacher
from goldfold.training.finish import drop_resume_state, is_done
from goldfold.training.job import FoldJob, FoldResult, Recipe
from goldfold.training.loop import train_fold
from goldfold.training.lr_finder import LrRange, find_lr_range
from goldfold.training.profiler import StepTimes, profile_steps

__all__ = [
    "FoldJob",
    "FoldResult",
    "LrRange",
    "OnlineTeacher",
    "Recipe",
    "StepTimes",
    "drop_resume_state",
    "find_lr_range",
    "is_done",
    "profile_steps",
    "train_fold",
]
