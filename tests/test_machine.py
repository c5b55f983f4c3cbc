"""What device, precision and workers mean on a machine; CUDA is pretended where a test needs it."""

from __future__ import annotations

import pytest
import torch

from goldfold.config.schema import Train
from goldfold.errors import BadInput
from goldfold.machine import Machine, find_machine

CPU = Train(device="cpu")


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, None)
    with pytest.raises(BadInput, match=r"train\.device: no CUDA device is available; set train\.device=cpu or auto"):
        find_machine(Train(device="cuda"))
    assert find_machine(Train(device="auto")).device.type == "cpu"


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(BadInput, match=r"train\.precision: fp16 needs a GPU"):
        find_machine(CPU.model_copy(update={"precision": "fp16"}))


@pytest.mark.parametrize(
    ("capability", "asked", "expected"),
    [
        ((7, 5), "auto", "fp16"),  # T4
        ((8, 6), "auto", "bf16"),  # 3090
        ((9, 0), "auto", "bf16"),
        ((7, 5), "bf16", "bf16"),
        ((8, 0), "fp16", "fp16"),
        ((8, 0), "fp32", "fp32"),
        (None, "auto", "fp32"),
        (None, "bf16", "bf16"),
    ],
)
def test_precision_follows_the_device(
    capability: tuple[int, int] | None, asked: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, capability)
    machine = find_machine(Train(precision=asked))  # type: ignore[arg-type]
    assert machine.precision == expected
    assert machine.device.type == ("cpu" if capability is None else "cuda")


def test_each_process_of_a_launcher_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (8, 0))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    machine = find_machine(Train())
    assert machine.device == torch.device("cuda", 1)
    assert not machine.is_main
    monkeypatch.setenv("RANK", "0")
    assert machine.is_main


def test_few_cores_without_a_gpu_get_no_loader_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((2, 0), (4, 0), (8, 7), (64, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert find_machine(CPU).workers == expected
    assert find_machine(CPU.model_copy(update={"workers": 3})).workers == 3


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_precision(precision: str, kind: torch.dtype) -> None:
    machine = Machine(torch.device("cpu"), precision, True, 0)
    with machine.autocast():
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype is kind
    assert machine.memory_format is torch.channels_last
    assert machine.peak_memory_mb() > 10
    assert machine.describe()["precision"] == precision
