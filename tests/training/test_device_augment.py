"""``augment.on: device`` in the loop: loaders send what is stored, a seed decides the draws, phases change the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from goldfold.cli import main

RUN = ["train", "configs/tiny.yaml", "--fold", "0", "train.epochs=2", "augment.preset=heavy"]


def test_a_run_ends_bit_identical_whatever_interrupts_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from goldfold.training import loop

    settings = ["augment.on=device", "mix.cutmix=1.0", "augment.erase.prob=0.5", "train.swa.epochs=1"]
    assert main([*RUN, "--run", "whole", *settings]) == 0
    real = loop.save_progress

    def interrupted(job: Any, session: Any, path: Path) -> None:
        real(job, session, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_progress", interrupted)
    assert main([*RUN, "--run", "killed", *settings]) == 130
    monkeypatch.setattr(loop, "save_progress", real)
    assert main([*RUN, "--run", "killed", *settings]) == 0
    for name in ("model.safetensors", "oof.parquet", "metrics.jsonl"):
        whole, killed = (project / f"runs/{run}/fold0/{name}" for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), name


def test_a_phase_chooses_the_place(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from goldfold.training import loop, session

    seen: list[tuple[int, bool, bool]] = []
    real = session.prepared

    def watched(machine: Any, state: Any, pixels: Any, *seed: int) -> Any:
        found = real(machine, state, pixels, *seed)
        plain = state.model.prepare(pixels, machine.memory_format)
        stored = all(one.numpy().tobytes() in known for one in pixels)
        seen.append((state.progress.epoch, stored, plain.shape == found.shape and bool((plain == found).all())))
        return found

    made = session.make_loader
    known: set[bytes] = set()

    def noted(job: Any, *rest: Any) -> Any:
        known.update(row.tobytes() for row in job.examples.images.read(job.examples.rows))
        return made(job, *rest)

    monkeypatch.setattr(loop, "prepared", watched)
    monkeypatch.setattr(loop, "make_loader", noted)
    phases = "train.phases=[{epochs: 1, size: 16, augment: {on: device}}, {epochs: 1}]"
    assert main([*RUN, "--run", "x", phases]) == 0
    assert {(stored, plain) for epoch, stored, plain in seen if epoch == 0} == {(True, False)}
    assert {(stored, plain) for epoch, stored, plain in seen if epoch == 1} == {(False, True)}


def test_a_transform_without_a_form_is_refused_before_anything_is_trained(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["augment.on=device", "augment.add=[{RandomGamma: {}}]"]
    for command in ("check", "train"):
        assert main([command, "configs/tiny.yaml", *settings]) in (1, 2)
        assert "augment.add[0].RandomGamma: has no form on the device" in capsys.readouterr().err
    assert not list(project.glob("runs/*/fold0/metrics.jsonl"))
