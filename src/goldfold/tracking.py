"""metrics.jsonl always, Weights & Biases when asked for. A tracker's failure never ends a training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from goldfold import files
from goldfold.config.schema import Tracking
from goldfold.errors import BadInput
from goldfold.progress import warn


class MetricsFile:
    """One JSON line an epoch. It holds no times, so that a resumed run's file equals an uninterrupted one's."""

    def __init__(self, path: Path, first_epoch: int) -> None:
        """Keeps the lines before ``first_epoch``: those of a killed epoch that is run again are dropped."""
        self.path = path
        kept = [line for line in read_metrics(path) if line["epoch"] < first_epoch] if path.exists() else []
        files.write_text(path, "".join(f"{_line(values)}\n" for values in kept))

    def log(self, values: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{_line(values)}\n")
            file.flush()
            os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a kill cut short is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class WandbRun:
    """One W&B run a fold: ``group`` is the run's name, ``job_type`` the stage. Every call may fail without harm."""

    def __init__(
        self,
        settings: Tracking,
        *,
        project: str,
        run: str,
        fold: str,
        job_type: str,
        config: dict[str, Any],
        folder: Path,
    ) -> None:
        self._run: Any = None
        if not settings.wandb:
            return
        try:
            import wandb
        except ImportError:
            raise BadInput(
                "tracking.wandb",
                "the package wandb is not installed",
                'pip install "goldfold[wandb]" or set tracking.wandb=false',
            ) from None
        try:
            self._run = wandb.init(
                project=settings.project or project,
                entity=settings.entity,
                group=run,
                name=f"{run}-{fold}",
                job_type=job_type,
                tags=[*settings.tags, fold],
                mode=wandb_mode(settings),
                config=config,
                dir=folder,
                reinit="create_new",  # several runs in one process
                settings=wandb.Settings(silent=True, init_timeout=60),
            )
        except Exception as error:
            self._failed("start", error)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        if self._run is not None:
            try:
                self._run.log(dict(values), step=step)
            except Exception as error:
                self._failed("log", error)

    def finish(self) -> None:
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:
                self._failed("finish", error)

    def _failed(self, what: str, error: Exception) -> None:
        warn(f"W&B could not {what} ({type(error).__name__}: {error}); training goes on, metrics.jsonl has everything")
        self._run = None


def wandb_mode(settings: Tracking) -> Literal["online", "offline"]:
    """``auto``: online when a key is at hand (environment or netrc), else offline (`wandb sync` uploads later)."""
    if settings.mode != "auto":
        return settings.mode
    asked = os.environ.get("WANDB_MODE")
    if asked == "online" or asked == "offline":
        return "online" if asked == "online" else "offline"
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return "online" if "wandb" in netrc.read_text(encoding="utf-8") else "offline"
    except OSError:
        return "offline"


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), allow_nan=False)
