"""Views of an image at prediction: which there are, how their probabilities meet, and which of them pay."""

from goldfold.tta.choice import Choice, Step, choose_views, combine
from goldfold.tta.table import ViewTable
from goldfold.tta.views import IDENTITY, View, make_views, merge, pick_views, pixel_share, single_view

__all__ = [
    "IDENTITY",
    "Choice",
    "Step",
    "View",
    "ViewTable",
    "choose_views",
    "combine",
    "make_views",
    "merge",
    "pick_views",
    "pixel_share",
    "single_view",
]
