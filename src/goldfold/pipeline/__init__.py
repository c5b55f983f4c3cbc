"""Whole experiments and pipelines: the only place that receives a whole configuration."""
