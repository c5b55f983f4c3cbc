"""The resume state survives the disk to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from goldfold.errors import BadInput
from goldfold.training.checkpoint import load_state, save_state


def test_nested_states_come_back_equal(tmp_path: Path) -> None:
    shared = torch.randn(3, 2)
    state = {
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": shared}, 1: {"view": shared.t()}},
            "groups": [{"lr": 0.1, "betas": (0.9, 0.999)}],
        },
        "none": None,
        "number": 1e-17 + 0.1,
        "empty": {},
        "bf16": torch.randn(4).bfloat16(),
        "precision": torch.bfloat16,
        "generator": (3, (1, 2), None),
    }
    save_state(tmp_path / "state.safetensors", state)
    back = load_state(tmp_path / "state.safetensors")
    assert torch.equal(back["optimizer"]["state"][0]["exp_avg"], shared)
    assert torch.equal(back["optimizer"]["state"][1]["view"], shared.t())
    assert back["optimizer"]["groups"] == [{"lr": 0.1, "betas": (0.9, 0.999)}]
    assert (back["none"], back["number"], back["empty"]) == (None, 1e-17 + 0.1, {})
    assert torch.equal(back["bf16"], state["bf16"])
    assert back["bf16"].dtype == back["precision"] == torch.bfloat16
    assert back["generator"] == (3, (1, 2), None)


def test_an_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 1)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        layer(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    through, through_optimizer = make()
    first, first_optimizer = make()
    for seed in (1, 2):
        step(through, through_optimizer, seed)
    step(first, first_optimizer, 1)
    save_state(tmp_path / "s", {"model": first.state_dict(), "optimizer": first_optimizer.state_dict()})
    second, second_optimizer = make()
    state = load_state(tmp_path / "s")
    second.load_state_dict(state["model"])
    second_optimizer.load_state_dict(state["optimizer"])
    step(second, second_optimizer, 2)
    assert torch.equal(through.weight, second.weight)  # type: ignore[arg-type]


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"not safetensors at all")
    with pytest.raises(BadInput, match="resume state cannot be read"):
        load_state(tmp_path / "s")
