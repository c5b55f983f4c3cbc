"""Online only with a key or when asked; a sweep's trial only where it can report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from goldfold.config.schema import Tracking
from goldfold.errors import BadInput
from goldfold.tracking import Sweep, find_sweep, import_wandb, wandb_mode

ON = Tracking(wandb=True)


@pytest.mark.parametrize(
    ("mode", "environment", "netrc", "expected"),
    [
        ("auto", {}, None, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, None, "online"),
        ("auto", {}, "machine api.wandb.ai\n login user\n password k\n", "online"),
        ("auto", {}, "machine github.com\n login wandb\n password k\n", "offline"),
        ("auto", {"WANDB_BASE_URL": "https://wb.lab:8080"}, "machine wb.lab\n login u\n password k\n", "online"),
        ("auto", {"WANDB_BASE_URL": "https://wb.lab"}, "machine api.wandb.ai\n login u\n password k\n", "offline"),
        ("auto", {}, "not a netrc file", "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, None, "offline"),
        ("auto", {"WANDB_MODE": "online"}, None, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "dryrun"}, None, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, None, "disabled"),
        ("offline", {"WANDB_API_KEY": "k"}, None, "offline"),
        ("online", {}, None, "online"),
    ],
)
def test_runs_are_online_only_with_a_key_or_when_asked(
    mode: Any,
    environment: dict[str, str],
    netrc: str | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
    assert wandb_mode(Tracking(wandb=True, mode=mode)) == expected


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BadInput, match=r'tracking\.wandb: .* not installed; pip install "goldfold\[wandb\]"'):
        import_wandb()


def test_a_broken_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text("raise TypeError('Descriptors cannot be created directly')")
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match=r"cannot be imported \(Descriptors cannot"):
        import_wandb()


def test_the_folder_of_offline_runs_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python imports any folder ./wandb as an empty package where the real one is missing."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(BadInput, match="not installed"):
        import_wandb()


def test_no_agent_no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_sweep(ON) is None
    monkeypatch.setenv("WANDB_RUN_ID", "trial")  # a user may set it
    assert find_sweep(ON) is None


def test_a_trial_knows_its_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tmp_path / "config-trial.yaml"
    chosen.write_text("wandb_version: 1\n\noptim.lr:\n  value: 1.0e-05\naugment.preset:\n  value: light\n")
    for name, value in {"SWEEP_ID": "sweep", "RUN_ID": "trial", "SWEEP_PARAM_PATH": str(chosen)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert find_sweep(ON) == Sweep("sweep", "trial", {"optim.lr": 1e-5, "augment.preset": "light"})
    chosen.unlink()
    assert find_sweep(ON) == Sweep("sweep", "trial", {})


@pytest.mark.parametrize("settings", [Tracking(), Tracking(wandb=True, mode="offline")])
def test_a_trial_that_cannot_report_is_refused(settings: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_RUN_ID", "trial")
    with pytest.raises(BadInput, match=r"^tracking\.(wandb|mode): this is a trial of the W&B sweep abc"):
        find_sweep(settings)
