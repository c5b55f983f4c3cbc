"""Prediction inside a Kaggle kernel: a pack and the hidden test images in, ``submission.csv`` out, within a time budget.

Nothing here, and nothing that is imported from here, knows how networks are trained.
"""
