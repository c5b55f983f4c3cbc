"""The picture of the members: drawn for few and many, with what is undefined, and leaky members named so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goldfold.ensemble.plot import MemberRow, _label, draw_members


@pytest.mark.parametrize("count", [1, 3, 14])
@pytest.mark.parametrize("known", [True, False])
def test_it_is_drawn(count: int, known: bool, tmp_path: Path) -> None:
    correlation = np.full((count, count), 0.8 if known else np.nan)
    number = 0.5 if known else None
    rows = [MemberRow(f"run{row}", number, 1 / count, number, number, row == 0) for row in range(count)]
    assert draw_members(rows, correlation, "final, mean: auc 0.9 cross-fitted", "auc", True, tmp_path / "members.png")
    with Image.open(tmp_path / "members.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 20
        assert picture.width > picture.height / 2


def test_a_name_is_short_and_says_leaky() -> None:
    row = MemberRow("a" * 40 + "-the-end", 0.5, 1.0, None, None, True)
    assert _label(row).endswith("-the-end (leaky)")
    assert len(_label(row)) <= 36
