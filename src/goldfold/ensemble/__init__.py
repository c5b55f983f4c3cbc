"""Ensembles: members blended with weights that are fitted on out-of-fold predictions, and an honest score for them."""

from __future__ import annotations

from goldfold.ensemble.blend import CrossFit, apply, check_method, cross_fit, fit
from goldfold.ensemble.stage import Member, align, load_member, make_ensemble

__all__ = ["CrossFit", "Member", "align", "apply", "check_method", "cross_fit", "fit", "load_member", "make_ensemble"]
