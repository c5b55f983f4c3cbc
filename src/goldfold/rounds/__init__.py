"""Labels from teachers, a fold at a time: fold k's student hears only bundles that left fold k out."""

from __future__ import annotations

from goldfold.rounds.distil import clear_inner, gather_inner, inner_parts
from goldfold.rounds.labels import copy_labels, has_labels, read_labels, store_labels
from goldfold.rounds.pseudo import Selection, class_counts, imbalance, refuse_single_voice, select, thresholds
from goldfold.rounds.teachers import (
    Run,
    Teacher,
    combine,
    excluded_fold,
    members,
    online_bundles,
    open_teachers,
    refuse_on_batch,
    refuse_ranks,
)
from goldfold.rounds.voices import Pool, Stores, join, mean_of, predicted_voices, stored_voices

__all__ = [
    "Pool",
    "Run",
    "Selection",
    "Stores",
    "Teacher",
    "class_counts",
    "clear_inner",
    "combine",
    "copy_labels",
    "excluded_fold",
    "gather_inner",
    "has_labels",
    "imbalance",
    "inner_parts",
    "join",
    "mean_of",
    "members",
    "online_bundles",
    "open_teachers",
    "predicted_voices",
    "read_labels",
    "refuse_on_batch",
    "refuse_ranks",
    "refuse_single_voice",
    "select",
    "store_labels",
    "stored_voices",
    "thresholds",
]
