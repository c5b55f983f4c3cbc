"""Training of one fold."""

from goldfold.training.loop import FoldJob, FoldResult, Recipe, drop_resume_state, is_done, train_fold

__all__ = ["FoldJob", "FoldResult", "Recipe", "drop_resume_state", "is_done", "train_fold"]
