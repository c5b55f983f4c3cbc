"""Goldfold: a K-fold image-classification workflow for Kaggle competitions."""

__version__ = "0.1.0"
