"""A kernel run on this machine as Kaggle runs it, and its submission checked: ``goldfold kernel-test``."""

from __future__ import annotations

from goldfold.kaggle.simulate.environment import Environment
from goldfold.kaggle.simulate.isolation import Isolation
from goldfold.kaggle.simulate.simulation import LAYOUTS, Layout, Report, Simulation, find_kernel, simulate

__all__ = ["LAYOUTS", "Environment", "Isolation", "Layout", "Report", "Simulation", "find_kernel", "simulate"]
