"""Whether W&B is there, whether it can be online, and whether this process is a trial of a sweep."""

from __future__ import annotations

import importlib
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from goldfold.config.schema import Tracking
from goldfold.errors import BadInput

SERVER = "https://api.wandb.ai"
SWEEP_ID, RUN_ID, PARAMETERS = "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"
"""What `wandb agent` tells the command that it starts."""


def import_wandb() -> Any:
    """The package wandb. Raises BadInput when it is not installed, or broken."""
    mend = 'pip install "goldfold[wandb]" or set tracking.wandb=false'
    try:
        wandb: Any = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise BadInput("tracking.wandb", f"the package wandb cannot be imported ({error})", mend) from error
        wandb = None
    except Exception as error:
        raise BadInput("tracking.wandb", f"the package wandb cannot be imported ({error})", mend) from error
    # Without the package, Python takes W&B's output folder ./wandb for one.
    if not hasattr(wandb, "init"):
        raise BadInput("tracking.wandb", "the package wandb is not installed", mend)
    return wandb


def wandb_mode(settings: Tracking) -> Literal["online", "offline", "disabled"]:
    """``auto``: as WANDB_MODE says; else online with a key (environment or netrc), offline without one."""
    if settings.mode != "auto":
        return settings.mode
    asked = os.environ.get("WANDB_MODE")
    if asked == "disabled":
        return "disabled"
    if asked:
        return "online" if asked in ("online", "run", "shared") else "offline"
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether W&B finds credentials for its server without asking for them."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or SERVER).hostname
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return host is not None and host in netrc.netrc(path).hosts
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False


@dataclass(frozen=True)
class Sweep:
    """A trial of a W&B sweep: ``run`` is the id that the agent gave it, ``parameters`` are what it tries."""

    id: str
    run: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


def find_sweep(settings: Tracking) -> Sweep | None:
    """The sweep whose agent started this process, or None.

    Raises BadInput when the trial could not report to it: with W&B off or offline.
    """
    sweep, run = os.environ.get(SWEEP_ID), os.environ.get(RUN_ID)
    if not sweep or not run:
        return None
    if not settings.wandb:
        raise BadInput("tracking.wandb", f"this is a trial of the W&B sweep {sweep}, and W&B is off", "set it to true")
    if wandb_mode(settings) != "online":
        raise BadInput(
            "tracking.mode",
            f"this is a trial of the W&B sweep {sweep}, and W&B is not online",
            "log in with `wandb login` and set it to online",
        )
    return Sweep(sweep, run, _parameters(os.environ.get(PARAMETERS)))


def _parameters(path: str | None) -> dict[str, Any]:
    """What the agent chose, by W&B's file of ``key: {value: ...}``; nothing where there is no such file."""
    if not path or not Path(path).is_file():
        return {}
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    return {str(key): item["value"] for key, item in values.items() if isinstance(item, dict) and "value" in item}
