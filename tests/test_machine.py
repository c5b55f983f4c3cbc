"""What device, precision and workers mean on a machine; CUDA is pretended where a test needs it."""

from __future__ import annotations

import pytest
import torch

from goldfold.config.schema import Train
from goldfold.errors import BadInput
from goldfold.machine import Machine, compute_threads, find_machine

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


def pretend_cores(monkeypatch: pytest.MonkeyPatch, logical: int, physical: int) -> None:
    monkeypatch.setattr("goldfold.machine.logical_cores", lambda: logical)
    monkeypatch.setattr("goldfold.machine.physical_cores", lambda: physical)


def test_on_a_cpu_loader_processes_leave_the_cores_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, workers, threads in ((2, 0, 2), (4, 0, 4), (8, 1, 7), (64, 8, 56)):
        pretend_cores(monkeypatch, cores, cores)
        machine = find_machine(CPU)
        assert machine.workers == workers
        assert compute_threads(machine.device, workers) == threads
    assert find_machine(CPU.model_copy(update={"workers": 3})).workers == 3
    # The second threads of eight cores feed the network, which has the first ones.
    pretend_cores(monkeypatch, 16, 8)
    assert (find_machine(CPU).workers, compute_threads(torch.device("cpu"), 2)) == (2, 8)


def test_a_gpu_is_fed_by_all_cores_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (8, 0))
    for cores, workers in ((4, 3), (16, 8)):
        pretend_cores(monkeypatch, cores, cores)
        assert find_machine(Train()).workers == workers


@pytest.mark.parametrize(
    ("now", "quota", "given", "expected"), [(64, 4, "", [4]), (2, 4, "", []), (64, 4, "16", []), (4, 4, "", [])]
)
def test_threads_are_taken_back_to_the_cores_there_are(
    now: int, quota: int, given: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()
    pretend_cores(monkeypatch, quota, quota)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    find_machine(CPU)
    assert asked == expected


def test_opencvs_own_threads_are_off_where_images_are_read() -> None:
    import cv2

    import goldfold.augment
    import goldfold.images  # noqa: F401

    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_precision(precision: str, kind: torch.dtype) -> None:
    machine = Machine(torch.device("cpu"), precision, True, 0)
    with machine.autocast():
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype is kind
    assert machine.memory_format is torch.channels_last
    assert machine.peak_memory_mb() > 10
    assert machine.describe()["precision"] == precision
