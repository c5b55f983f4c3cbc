from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder as the working folder; one thread, since two would fight with other test processes."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path
