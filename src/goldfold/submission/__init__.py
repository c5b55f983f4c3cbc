"""Submissions: from predictions to the file that a competition wants, checked against its sample, and back to a score."""

from __future__ import annotations

from goldfold.submission.shape import SubmissionFormat, decide_format
from goldfold.submission.table import (
    check_submission,
    format_submission,
    read_answers,
    score_submission,
    write_submission,
)

__all__ = [
    "SubmissionFormat",
    "check_submission",
    "decide_format",
    "format_submission",
    "read_answers",
    "score_submission",
    "write_submission",
]
