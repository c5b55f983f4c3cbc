"""Several folds at a time: the one seam through which a run's folds go to other processes, GPUs or machines.

Nothing here knows what a fold is. A slot is a ``concurrent.futures.Executor`` that works on one task at a time:
a process of its own on this machine, or a place in a Ray cluster. Which task runs when is left to whoever is free first.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Literal, TypeVar

from goldfold.errors import BadInput
from goldfold.progress import plain_lines

T = TypeVar("T")
R = TypeVar("R")

CONTEXT = 600 * 2**20
"""Bytes of a GPU that a process takes before it computes anything: CUDA's kernels and the libraries' workspaces."""
HEADROOM = 0.92
"""The part of a GPU's free memory that is shared out; the rest is for what the allocator cannot use of its blocks."""

Jobs = int | Literal["auto"]
Place = Literal["here", "ray"]
Start = Callable[[int], Executor]
"""From a slot's number to what runs its tasks."""


def run_all(
    function: Callable[[T], R], tasks: Sequence[T], slots: int, start: Start, broken: Callable[[T], R]
) -> list[R]:
    """``function`` of every task, at most ``slots`` at a time; results in the order of the tasks.

    A task whose process dies gets ``broken``'s result, and its slot a new process. When a task raises, no further one is
    begun; those that run are waited for, then the first error is raised. Interrupted, all processes are ended.
    """
    before = set(multiprocessing.active_children())
    executors: dict[int, Executor] = {}
    results: dict[int, R] = {}
    running: dict[Future[R], tuple[int, int]] = {}
    waiting, idle = deque(range(len(tasks))), list(range(slots))
    failure: BaseException | None = None
    try:
        while running or (waiting and failure is None):
            while waiting and idle and failure is None:
                slot, number = idle.pop(0), waiting.popleft()
                if slot not in executors:
                    executors[slot] = start(slot)
                running[executors[slot].submit(function, tasks[number])] = slot, number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot, number = running.pop(future)
                idle.append(slot)
                error = future.exception()
                if error is None:
                    results[number] = future.result()
                elif isinstance(error, BrokenProcessPool):
                    executors.pop(slot).shutdown(wait=False)
                    results[number] = broken(tasks[number])
                else:
                    failure = failure or error
    finally:
        # What is finished lies on disk, and what was interrupted goes on from there: none needs time to leave.
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        for executor in executors.values():
            executor.shutdown(wait=True, cancel_futures=True)
    if failure is not None:
        raise failure
    return [results[number] for number in range(len(tasks))]


def processes(gpus: Sequence[str]) -> Start:
    """A process a slot on this machine, which knows one of ``gpus``: the slots take turns at them.

    They are named as in CUDA_VISIBLE_DEVICES; one that is named twice is shared.
    """

    def start(slot: int) -> Executor:
        # Not forked: CUDA and torch's threads do not survive that.
        context = multiprocessing.get_context("spawn")
        gpu = gpus[slot % len(gpus)] if gpus else None
        return ProcessPoolExecutor(1, context, initializer=_begin, initargs=(gpu,))

    return start


def _begin(gpu: str | None) -> None:
    """What a process does before its first task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is asked for anything: the process knows no other
    plain_lines()


def _end_with_parent() -> None:
    """However the first process ends, none trains on behind its back."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def on_ray(gpus_each: float, threads: int) -> Start:
    """A place in a Ray cluster a slot (RAY_ADDRESS, else one on this machine); each task asks for a share of the GPUs.

    The project folder must lie where every node sees it under the same path. Raises BadInput without Ray.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise BadInput("--on ray", "Ray is not installed", "pip install ray, or leave --on out") from None
    ray.init(ignore_reinit_error=True)

    class Cluster(Executor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            remote = ray.remote(num_gpus=gpus_each, num_cpus=threads, max_retries=0)(function)
            return remote.remote(*args, **kwargs).future()

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            ray.shutdown()  # ends what still runs; what is finished stays finished

    return lambda slot: Cluster()


def how_many(jobs: Jobs, gpus: Sequence[str]) -> int:
    """``auto``: one a GPU; one without a GPU."""
    return max(len(gpus), 1) if jobs == "auto" else jobs


def share_gpus(gpus: Sequence[str], slots: int, free: Sequence[int], each: int) -> list[str]:
    """The GPU of each slot: they take turns, and a GPU is shared by no more than fit into its memory, but by one at least.

    ``free``: bytes by GPU; ``each``: bytes that a task takes. There may be fewer places than ``slots``.
    """
    room = [max(int(HEADROOM * bytes_free) // (each + CONTEXT), 1) for bytes_free in free]
    turns = [gpu for turn in range(max(room)) for gpu, fit in zip(gpus, room, strict=True) if turn < fit]
    return turns[:slots]


def visible_gpus(count: int) -> list[str]:
    """The names of this process's ``count`` GPUs, for CUDA_VISIBLE_DEVICES of another process."""
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return given[:count] if given else [str(number) for number in range(count)]
