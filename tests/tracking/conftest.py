from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def no_account(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings and no session of whoever runs the tests; W&B reads the environment once a session."""
    wandb = pytest.importorskip("wandb")
    for name in ("API_KEY", "MODE", "BASE_URL", "SWEEP_ID", "RUN_ID", "SWEEP_PARAM_PATH", "PROJECT", "ENTITY", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    empty = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("NETRC", str(empty / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(empty))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder as the working folder; one thread, since two would fight with other test processes."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path
