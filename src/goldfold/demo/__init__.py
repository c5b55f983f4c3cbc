"""The embedded competitions: public data laid out as Kaggle would, and pretrained weights that need no download."""

from goldfold.demo.digits import prepare_digits
from goldfold.demo.elpv import prepare_elpv
from goldfold.demo.weights import convert_lite

__all__ = ["convert_lite", "prepare_digits", "prepare_elpv"]
