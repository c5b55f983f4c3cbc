"""metrics.jsonl always, Weights & Biases when asked for. A tracker's failure never ends a training."""

from goldfold.tracking.metrics_file import MetricsFile, read_metrics
from goldfold.tracking.mistakes import Mistake, worst_mistakes
from goldfold.tracking.modes import Sweep, find_sweep, import_wandb, wandb_mode
from goldfold.tracking.wandb_run import WandbRun

__all__ = [
    "MetricsFile",
    "Mistake",
    "Sweep",
    "WandbRun",
    "find_sweep",
    "import_wandb",
    "read_metrics",
    "wandb_mode",
    "worst_mistakes",
]
