"""scikit-learn's handwritten digits as a competition of ten classes: small, and on every machine.

1,797 pictures from the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998, CC BY 4.0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

from goldfold.demo.layout import lay_out, shuffled_ids, write_tables
from goldfold.progress import progress, say

LAYOUT = 1
"""Raised when the files that this room writes change."""
SIDE = 32
BRIGHTEST = 16  # the set counts ink from 0 to 16


def prepare_digits(root: Path, seed: int) -> Path:
    """Lay the digits out under ``root/data/digits``; returns that folder.

    train.csv (id, label), test.csv (id), sample_submission.csv and solution.csv (id, label), images/<id>.png, 8 x 8
    pixels enlarged to 32 x 32; 75/25, stratified by label. The ids are dealt by the seed, since the set's own order
    repeats 0 to 9.

    Does nothing when the folder is whole and of the same seed. Raises BadInput when the folder holds something else.
    """

    def build(folder: Path) -> None:
        digits = load_digits()
        say(f"digits: writing {len(digits.target):,} pictures of ten handwritten digits")
        ids = shuffled_ids("digit", len(digits.target), seed)
        for name, values in progress(zip(ids, digits.images, strict=True), "digits images", len(ids), "images"):
            pixels = np.round(values * (255 / BRIGHTEST)).astype(np.uint8)
            picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            picture.save(folder / "images" / f"{name}.png")
        rows = pd.DataFrame({"id": ids, "label": digits.target})
        write_tables(folder, rows, "label", guess=0, hidden=["label"], strata=["label"], seed=seed)

    return lay_out(root / "data" / "digits", {"layout": LAYOUT, "seed": seed}, build)
