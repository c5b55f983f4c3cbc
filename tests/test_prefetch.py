"""The batch that is on its way while another is computed; on a GPU by streams, which a CPU can only imitate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from goldfold.data import TrainBatch, prefetched


class FakeTensor:
    def __init__(self, log: list[str], number: int) -> None:
        self.log, self.number = log, number

    def to(self, device: Any, non_blocking: bool = False) -> FakeTensor:
        assert non_blocking
        self.log.append(f"copy {self.number}")
        return self

    def record_stream(self, stream: Any) -> None:
        self.log.append(f"keep {self.number} for {stream.name}")


class FakeStream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_event(self, event: Any) -> None:
        self.log.append(f"wait for copy {event.at}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would happen on a GPU, in order."""
    found: list[str] = []
    computing = FakeStream(found, "computing")

    class Event:
        at = ""

        def record(self, stream: Any) -> None:
            self.at = found[-1].split()[1]

    @contextmanager
    def within(stream: Any) -> Iterator[None]:
        assert stream.name == "copying"
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(found, "copying"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    return found


def batches(log: list[str], n: int) -> Iterator[TrainBatch]:
    for number in range(n):
        yield TrainBatch(*([FakeTensor(log, number)] * len(TrainBatch._fields)))  # type: ignore[list-item]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_one_batch_is_ahead_and_the_computation_waits_for_its_copy(log: list[str], n: int) -> None:
    for number, batch in enumerate(prefetched(batches(log, n), torch.device("cuda"))):
        assert batch.pixels.number == number  # type: ignore[attr-defined]
        log.append(f"compute {number}")
    fields = len(TrainBatch._fields)
    steps = [step for place, step in enumerate(log) if place == 0 or log[place - 1] != step]
    assert len(log) - len(steps) == 2 * n * (fields - 1)  # each tensor of a batch is copied, and kept
    assert [step for step in steps if step.startswith("compute")] == [f"compute {number}" for number in range(n)]
    for number in range(n):
        place = {word: steps.index(step) for word, step in (
            ("copy", f"copy {number}"), ("wait", f"wait for copy {number}"),
            ("keep", f"keep {number} for computing"), ("compute", f"compute {number}"),
        )}  # fmt: skip
        assert place["copy"] < place["wait"] < place["keep"] < place["compute"]
        if number + 1 < n:
            assert steps.index(f"copy {number + 1}") < place["compute"]
        if number + 2 < n:
            assert steps.index(f"copy {number + 2}") > place["compute"]


def test_on_the_cpu_batches_come_as_the_loader_makes_them() -> None:
    made = []

    def loader() -> Iterator[TrainBatch]:
        for number in range(3):
            made.append(number)
            yield TrainBatch(*([torch.full((2,), number)] * len(TrainBatch._fields)))

    for number, batch in enumerate(prefetched(loader(), torch.device("cpu"))):
        assert made[-1] == number  # none ahead: another would only take the processor's time
        assert batch.pixels.tolist() == [number, number]
    assert made == [0, 1, 2]
