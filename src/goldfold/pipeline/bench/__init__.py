"""Measurements: how near the loops come to the networks' own speed, and candidate backbones side by side."""
