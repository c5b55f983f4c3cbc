"""Every training trick by name: its row of the catalogue, its configuration keys, its card, its source."""

from goldfold.tricks.page import page, table
from goldfold.tricks.registry import NOT_TRICKS, RECIPES, SECTIONS, TRICKS, describe, find_trick, listing
from goldfold.tricks.trick import Trick

__all__ = [
    "NOT_TRICKS",
    "RECIPES",
    "SECTIONS",
    "TRICKS",
    "Trick",
    "describe",
    "find_trick",
    "listing",
    "page",
    "table",
]
