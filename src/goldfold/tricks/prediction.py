"""Section F: prediction and ensemble."""

from __future__ import annotations

from typing import Any

from goldfold.tricks.trick import Trick

VIEWS = (
    "TTA: flips, D4, scales, five-crop, ten-crop, multiply; merge by mean, geometric mean, max, on probabilities; the "
    "views chosen on OOF"
)
LARGER = "larger test resolution"
BLENDS = (
    "blends: mean, geometric, rank mean, weights by simplex optimisation, greedy selection with replacement (Caruana), "
    "stacking; correlation matrix of members; diversity report"
)
DECISIONS = "thresholds and QWK cut points fitted on OOF, cross-fitted"


def _views(name: str, title: str, source: str, value: Any, default: str = "off (flip)") -> Trick:
    off = {"tta.views": "none" if value == "flip" else "flip"}
    keys = ("tta.views",)
    return Trick(name, "F", title, VIEWS, keys, "tta", default, source, {"tta.views": value}, off)


def _merge(name: str, title: str, value: str) -> Trick:
    source = "ttach (Iakubovskii 2019); no controlled study known to us"
    on, off = {"tta.merge": value}, {"tta.merge": "mean"}
    return Trick(name, "F", title, VIEWS, ("tta.merge",), "tta", "off (mean)", source, on, off)


def _blend(name: str, title: str, source: str, default: str = "off (simplex)", *keys: str) -> Trick:
    note = "a key of an ensemble round, or goldfold ensemble --method"
    return Trick(name, "F", title, BLENDS, ("rounds.method", *keys), "blends", default, source, note=note)


PREDICTION = (
    _views("tta_flip", "as it is, and mirrored", "Krizhevsky et al. 2012", "flip", "on (flip)"),
    _views("tta_flips", "mirrored, upside down, both", "common practice since Krizhevsky et al. 2012", "flips"),
    _views("tta_d4", "the eight ways in which a square lies on itself", "Dieleman et al. 2015 (Galaxy Zoo, first place)", "d4"),
    _views("tta_five_crop", "centre and four corners", "Krizhevsky et al. 2012", "five-crop"),
    _views("tta_ten_crop", "those and their mirror images", "Krizhevsky et al. 2012", "ten-crop"),
    _views("tta_scales", "the picture at three sizes", "Simonyan and Zisserman 2015", "scales"),
    _views(
        "tta_multiply",
        "brighter and darker, in the normalised image",
        "ttach's Multiply (Iakubovskii 2019); no controlled study known to us",
        [{"Multiply": {"factors": [0.9, 1.0, 1.1]}}],
    ),
    _merge("tta_gmean", "geometric mean of the views' probabilities", "gmean"),
    _merge("tta_max", "largest of the views' probabilities", "max"),
    Trick(
        name="tta_auto",
        section="F",
        title="views chosen greedily on out-of-fold rows, cross-fitted",
        row=VIEWS,
        keys=("tta.views", "tta.candidates", "tta.max_views", "tta.min_gain"),
        card="tta",
        default="off (flip)",
        source="Molchanov et al. 2020 (greedy policy search)",
        on={"tta.views": "auto"},
        off={"tta.views": "flip"},
    ),
    Trick(
        name="test_size",
        section="F",
        title="larger images at prediction",
        row=LARGER,
        keys=("tta.size",),
        card="test_size",
        default="off (null)",
        source="Touvron et al. 2019 (FixRes)",
        on={"tta.size": 288},
        off={"tta.size": None},
    ),
    _blend("blend_mean", "arithmetic mean", "practice; Breiman 1996 (bagging averages)"),
    _blend("blend_gmean", "geometric mean", "Hinton 2002 (products of experts)"),
    _blend("blend_rank_mean", "mean of ranks", "Ha, Liu and Liu 2020 (SIIM-ISIC, first place)"),
    _blend("blend_simplex", "weights that sum to 1, fitted", "Breiman 1996 (stacked regressions)", "on (simplex)"),
    _blend("blend_greedy", "selection with replacement, bagged", "Caruana et al. 2004", "off (simplex)", "rounds.bags"),
    _blend("blend_stacking", "logistic or ridge regression on the members", "Wolpert 1992; Ting and Witten 1999"),
    Trick(
        name="calibration",
        section="F",
        title="temperature of the blend, fitted on OOF",
        row=DECISIONS,
        keys=("rounds.calibration",),
        card="decisions",
        default="off (none)",
        source="Guo et al. 2017",
        note="a key of an ensemble round, or goldfold ensemble --calibration",
    ),
    Trick(
        name="fitted_decisions",
        section="F",
        title="thresholds and QWK cut points, fitted on OOF",
        row=DECISIONS,
        keys=("rounds.decisions",),
        card="decisions",
        default="off (fixed)",
        source="practice since the Crowdflower search-relevance winners of 2015; Lipton et al. 2014 on F1",
        note="a key of an ensemble round, or goldfold ensemble --decisions",
    ),
)  # fmt: skip
