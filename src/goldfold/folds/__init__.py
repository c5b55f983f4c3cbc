"""Folds: which row validates which model. Dealt once, stored by id, then only read and checked."""

from goldfold.folds.deal import class_counts, make_folds
from goldfold.folds.store import StoredFolds, accept_source, open_folds, read_folds, write_folds

__all__ = [
    "StoredFolds",
    "accept_source",
    "class_counts",
    "make_folds",
    "open_folds",
    "read_folds",
    "write_folds",
]
