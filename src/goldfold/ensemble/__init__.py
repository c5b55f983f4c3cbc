"""Ensembles: members blended with weights that are fitted on out-of-fold predictions, and an honest score for them."""

from __future__ import annotations

from goldfold.ensemble.blend import LINEAR, Blend, check_method, fit
from goldfold.ensemble.calibration import Calibration, check_calibration
from goldfold.ensemble.crossfit import CrossFit, cross_fit
from goldfold.ensemble.decisions import check_decisions
from goldfold.ensemble.load import Member, align, load_blend, load_calibration, load_decisions, load_member
from goldfold.ensemble.stage import make_ensemble

__all__ = [
    "LINEAR", "Blend", "Calibration", "CrossFit", "Member", "align", "check_calibration", "check_decisions", "check_method",
    "cross_fit", "fit", "load_blend", "load_calibration", "load_decisions", "load_member", "make_ensemble",
]  # fmt: skip
