from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.pipeline.competitions import make_competition


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with the tiny competition as the working folder; one thread, as tests run side by side."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    make_competition(tmp_path)
    return tmp_path
