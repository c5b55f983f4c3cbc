"""Several folds at a time: as one after another, but for the time; none harms another, and none is left behind."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from goldfold import progress as progress_room
from goldfold.cli import main
from goldfold.errors import BadInput, GoldfoldError
from goldfold.pipeline import parallel, settling, stages
from goldfold.pipeline.parallel import CONTEXT, how_many, on_ray, processes, run_all, share_gpus, visible_gpus
from tests.pipeline.competitions import make_competition
from tests.pipeline.test_resume import artefacts


def threads(slot: int) -> Executor:
    return ThreadPoolExecutor(1)


def lost(task: int) -> int:
    return -task


def test_results_come_in_order_from_no_more_slots_than_there_are() -> None:
    busy, most, lock = 0, 0, threading.Lock()

    def work(task: int) -> int:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02 * (3 - task % 3))
        with lock:
            busy -= 1
        return 10 * task

    assert run_all(work, range(1, 7), 2, threads, lost) == [10, 20, 30, 40, 50, 60]
    assert most == 2


def test_an_error_begins_nothing_more_and_loses_nothing_that_runs() -> None:
    done = []

    def work(task: int) -> int:
        if task == 1:
            raise BadInput("x", "wrong for all")
        time.sleep(0.1)
        done.append(task)
        return task

    with pytest.raises(BadInput, match="wrong for all"):
        run_all(work, range(5), 2, threads, lost)
    assert done == [0]


def test_a_process_that_dies_costs_its_own_task_alone() -> None:
    started = []

    class Dying(Executor):
        """Its second task kills it; the pool then refuses everything."""

        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            if args[0] == 2:
                future.set_exception(BrokenProcessPool("a child process terminated abruptly"))
            else:
                future.set_result(function(*args))
            return future

    def start(slot: int) -> Executor:
        started.append(slot)
        return Dying()

    assert run_all(lambda task: 10 * task, [1, 2, 3], 1, start, lost) == [10, -2, 30]
    assert started == [0, 0]


def test_slots_take_turns_at_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(
        parallel, "ProcessPoolExecutor", lambda n, context, initializer, initargs: given.append((n, *initargs))
    )
    for gpus in (["4", "7"], []):
        start = processes(gpus)
        for slot in range(3):
            start(slot)
    assert given == [(1, "4"), (1, "7"), (1, "4"), (1, None), (1, None), (1, None)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    assert visible_gpus(2) == ["4", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus(2) == ["0", "1"]
    assert [how_many("auto", gpus) for gpus in ([], ["0"], ["0", "1"])] == [1, 1, 2]


GB = 10**9


@pytest.mark.parametrize(
    ("free", "slots", "each", "places"),
    [
        ([16 * GB], 4, 3 * GB, ["a"] * 4),
        ([16 * GB], 4, 5 * GB, ["a"] * 2),
        ([16 * GB], 4, 40 * GB, ["a"]),  # trains in smaller pieces, alone
        ([16 * GB, 16 * GB], 4, 5 * GB, ["a", "b", "a", "b"]),
        ([16 * GB, 16 * GB], 3, 5 * GB, ["a", "b", "a"]),
        ([2 * GB, 24 * GB], 5, 5 * GB, ["a", "b", "b", "b"]),  # something else runs on the first
        ([16 * GB, 16 * GB], 8, 9 * GB, ["a", "b"]),
    ],
)
def test_a_gpu_is_shared_by_what_fits(free: list[int], slots: int, each: int, places: list[str]) -> None:
    found = share_gpus(["a", "b"][: len(free)], slots, free, each)
    assert found == places
    for gpu, room in zip("ab", free, strict=False):
        assert found.count(gpu) == 1 or found.count(gpu) * (each + CONTEXT) < room


@pytest.mark.parametrize(
    ("each", "places", "words"),
    [
        (2 * GB, ["4", "7", "4", "7", "4"], "a fold takes about 2.0 GB of a GPU, 16.0 GB are free"),
        (8 * GB, ["4", "7"], "a fold takes about 8.0 GB of a GPU, 16.0 GB are free: not 5 but 2 folds at a time"),
        (MemoryError("full"), ["4", "7"], "a fold takes about 16.0 GB"),
        (None, ["4", "7", "4", "7", "4"], ""),
    ],
)
def test_more_folds_than_gpus_are_measured_first(
    each: Any, places: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fold_memory(*_: Any) -> Any:
        if isinstance(each, Exception):
            raise each
        return each

    monkeypatch.setattr(stages, "fold_memory", fold_memory)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (16 * GB, 24 * GB))
    run: Any = SimpleNamespace(config=SimpleNamespace(name="x"), data=SimpleNamespace(task=None), machine=None)
    assert stages._shared(run, ["4", "7"], 5) == places
    assert words in capsys.readouterr().err


def test_a_process_knows_its_own_gpu_alone_and_draws_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all of them")
    monkeypatch.setattr(progress_room, "_plain", False)
    before = signal.getsignal(signal.SIGINT)
    try:
        parallel._begin("7")
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress_room.progress(range(3), "work", 3)) == [0, 1, 2]
    assert terminal.getvalue() == ""


def test_a_line_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another process's line could come between the text and its end."""
    written = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=written.append, flush=lambda: None))
    progress_room.say("a line")
    assert [text for text in written if text] == ["a line\n"]


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[stages.FoldTask]]:
    """What would be handed over to the processes."""
    found: list[Sequence[stages.FoldTask]] = []

    def run_none(function: Any, tasks: Sequence[stages.FoldTask], *rest: Any) -> list[GoldfoldError]:
        found.append(tasks)
        return [GoldfoldError("not today") for _ in tasks]

    monkeypatch.setattr(stages, "run_all", run_none)
    return found


def test_processes_share_threads_and_loaders(
    project: Path, tasks: list[Sequence[stages.FoldTask]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_competition(project, folds={"n": 3})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    find = settling.find_machine
    monkeypatch.setattr(
        settling,
        "find_machine",
        lambda train, *choice: stages.replace(
            find(train, *choice), workers=6 if train.workers is None else train.workers
        ),
    )
    for settings in ([], ["train.workers=5", "--run", "other"]):
        assert main(["train", str(config), "--jobs", "3", *settings]) == 1
    (divided, asked) = tasks
    assert [(task.fold, task.threads, task.machine.workers) for task in divided] == [(0, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert [task.machine.workers for task in asked] == [5, 5, 5]
    assert main(["train", str(config), "--jobs", "8", "--run", "third", "--fold", "0", "--fold", "1"]) == 1
    assert [task.threads for task in tasks[-1]] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "world", "words"),
    [
        (["--jobs", "2"], "2", "a launcher has started several processes"),
        (["--on", "ray"], "1", "Ray is not installed"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], world: str, words: str, project: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = make_competition(project)
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["train", str(config), *arguments]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("goldfold: "))
    assert words in line


@pytest.mark.parametrize("jobs", ["0", "-1", "many", "1.5"])
def test_jobs_are_a_number_or_auto(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "x.yaml", f"--jobs={jobs}"])
    assert end.value.code == 2
    assert "a whole number from 1, or auto" in capsys.readouterr().err


def test_a_cluster_gets_the_same_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Fake:
        def init(self, **options: Any) -> None:
            asked.append("init")

        def remote(self, **options: Any) -> Callable[[Any], Any]:
            asked.append(options)

            def call(function: Any, *args: Any) -> Any:
                future: Future[Any] = Future()
                future.set_result(function(*args))
                return SimpleNamespace(future=lambda: future)

            return lambda function: SimpleNamespace(remote=lambda *args: call(function, *args))

        def shutdown(self) -> None:
            asked.append("shutdown")

    monkeypatch.setitem(sys.modules, "ray", Fake())  # type: ignore[arg-type]
    assert run_all(lambda task: 10 * task, [1, 2, 3], 2, on_ray(0.5, 3), lost) == [10, 20, 30]
    assert asked[:2] == ["init", {"num_gpus": 0.5, "num_cpus": 3, "max_retries": 0}]
    assert asked[-1] == "shutdown"


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited for a minute")


def test_an_interruption_ends_all_processes() -> None:
    found = []

    def interrupt() -> None:
        until(lambda: len(multiprocessing.active_children()) == 2)
        found.extend(child.pid for child in multiprocessing.active_children())
        os.kill(os.getpid(), signal.SIGINT)  # to this process alone; a terminal's reaches the others too

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_all(time.sleep, [600, 600], 2, processes([]), lost)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert len(found) == 2
    until(lambda: not multiprocessing.active_children())


PARENT = """
import time
from goldfold.pipeline.parallel import processes, run_all
if __name__ == "__main__":
    run_all(time.sleep, [600, 600], 2, processes([]), abs)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_no_process_outlives_a_first_one_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT, encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")])
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def workers() -> list[int]:
        every = [int(child) for child in listed.read_text(encoding="utf-8").split()]
        # Two processes and the helper of multiprocessing that counts shared things. Each has begun when it has threads.
        return [child for child in every if len(list(Path(f"/proc/{child}/task").glob("*"))) > 1]

    until(lambda: len(workers()) >= 2)
    children = workers()
    process.kill()
    process.wait()
    until(lambda: not any(is_alive(child) for child in children))


def test_folds_at_a_time_are_folds_one_by_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One fails and does not lose the other; in the end all files are those of one process, to the bit.

    Every process has one thread, since sums over several are added in another order.
    """
    config = make_competition(project, train={"epochs": 3, "ema": {"decay": 0.9}}, augment={"preset": "light"})
    assert main(["train", str(config), "--run", "whole"]) == 0
    state = project / "runs/parts/fold1/last/state.safetensors"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"cut short")
    arguments = ["train", str(config), "--run", "parts", "--jobs", "2"]
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "parts: 2 of 2 folds at a time, each in a process of its own (1 thread)" in err
    assert "fold1 failed: runs/parts/fold1/last/state.safetensors: the resume state cannot be read" in err
    assert (project / "runs/parts/fold0/DONE").exists()
    assert not multiprocessing.active_children()
    state.unlink()
    assert main(arguments) == 0  # a single fold is left, and needs no process of its own
    assert "at a time" not in capsys.readouterr().err
    assert artefacts(project / "runs/parts") == artefacts(project / "runs/whole")
    record = json.loads((project / "runs/parts/run.json").read_text(encoding="utf-8"))
    assert {name: fold["threads"] for name, fold in record["folds"].items()} == {"fold0": 1, "fold1": 1}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_folds_share_the_gpus(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_competition(project)
    assert main(["train", str(config), "train.device=cuda", "--jobs", "2"]) == 0
    assert torch.cuda.device_count() > 1 or "a fold takes about" in capsys.readouterr().err
    record = json.loads((project / "runs/tiny/run.json").read_text(encoding="utf-8"))
    assert all(fold["peak_memory_mb"] > 0 for fold in record["folds"].values())
    assert main(["train", str(config), "train.device=cuda", "--jobs", "auto", "--run", "auto"]) == 0
