"""The canary: a pipeline's rounds on shuffled labels, where every score above chance is a leak."""

from goldfold.canary.run import run_canary

__all__ = ["run_canary"]
