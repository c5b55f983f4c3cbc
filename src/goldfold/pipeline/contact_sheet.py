"""A contact sheet on one page (PNG): sections of lines of small pictures with captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from goldfold import files
from goldfold.errors import BadInput

Pixels = npt.NDArray[np.uint8]

CELL, GAP, LEFT, MARGIN = 150, 8, 150, 16
"""Pixels: a picture's side, between pictures, the captions' column, around the page."""
TEXT = 18
"""Pixels: a line of text."""
DPI = 100
DARK, GREY = "#222222", "#666666"
MOST = 30_000
"""Pixels: the longest side of a page that viewers still open."""


@dataclass(frozen=True, eq=False)
class Cell:
    """A square picture (S, S, 3) uint8 and the words under it."""

    pixels: Pixels
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Line:
    """A row of pictures, None for an empty place; ``caption`` stands at its left, a text line each."""

    caption: tuple[str, ...]
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, eq=False)
class Section:
    """``heads`` stand above the columns."""

    title: str
    notes: tuple[str, ...]
    heads: tuple[str, ...]
    lines: tuple[Line, ...]


class _Page:
    """Where things stand, counted in pixels from the top left corner."""

    def __init__(self, width: int, top: int) -> None:
        self.width, self.y = width, top
        self.words: list[tuple[int, int, str, dict[str, Any]]] = []
        self.pictures: list[tuple[int, int, Pixels]] = []

    def write(self, x: int, y: int, text: str, **style: Any) -> None:
        self.words.append((x, y, text, style))

    def paragraph(self, text: str, **style: Any) -> None:
        for line in textwrap.wrap(text, max((self.width - 2 * MARGIN) // 7, 20)):
            self.write(MARGIN, self.y, line, **style)
            self.y += TEXT


def cell_corner(column: int) -> int:
    """The x of a column's pictures."""
    return MARGIN + LEFT + column * (CELL + GAP)


def draw_sheet(title: str, sections: Sequence[Section], path: Path) -> None:
    """Write the page to ``path``, whole or not at all. Raises BadInput without matplotlib and for a page too long."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput(path.name, "the package matplotlib is not installed", 'pip install "goldfold[plot]"') from None
    columns = max(len(line.cells) for section in sections for line in section.lines)
    page = _Page(cell_corner(columns) - GAP + MARGIN, MARGIN)
    page.write(MARGIN, page.y, title, fontsize=14, fontweight="bold")
    page.y += 2 * TEXT
    for section in sections:
        _lay_out(page, section)
    height = page.y + MARGIN
    if max(height, page.width) > MOST:
        raise BadInput(path.name, f"the sheet would be {page.width} x {height} pixels", "ask for fewer photos or draws")
    canvas = np.full((height, page.width, 3), 255, dtype=np.uint8)
    for x, y, pixels in page.pictures:
        canvas[y : y + CELL, x : x + CELL] = pixels
    figure = Figure(figsize=(page.width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.figimage(canvas)
    for x, y, text, style in page.words:
        # Labels and ids are anybody's text: a dollar sign in them is no formula.
        figure.text(
            x / page.width,
            1 - y / height,
            text,
            **{"va": "top", "fontsize": 9, "parse_math": False, "color": DARK, **style},
        )
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))


def _lay_out(page: _Page, section: Section) -> None:
    page.paragraph(section.title, fontsize=11, fontweight="bold")
    for note in section.notes:
        page.paragraph(note, color=GREY)
    page.y += GAP
    for column, head in enumerate(section.heads):
        page.write(cell_corner(column) + CELL // 2, page.y, head, ha="center", color=GREY)
    page.y += TEXT
    captions = any(cell.caption for line in section.lines for cell in line.cells if cell is not None)
    for line in section.lines:
        for number, text in enumerate(line.caption):
            page.write(MARGIN, page.y + number * TEXT, _cut(text, 21), color=DARK if number == 0 else GREY)
        for column, cell in enumerate(line.cells):
            if cell is None:
                continue
            page.pictures.append((cell_corner(column), page.y, _scaled(cell.pixels)))
            page.write(cell_corner(column) + CELL // 2, page.y + CELL + 2, cell.caption, ha="center", fontsize=8)
        page.y += CELL + (TEXT if captions else 0) + GAP
    page.y += TEXT


def _scaled(pixels: Pixels) -> Pixels:
    """(CELL, CELL, 3); small pictures keep their pixels' edges."""
    method = cv2.INTER_AREA if len(pixels) >= CELL else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(pixels, (CELL, CELL), interpolation=method), dtype=np.uint8)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
