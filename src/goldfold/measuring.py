"""In which precision and memory layout a network trains and predicts fastest on this machine: measured.

The usual way is the default, and another one replaces it only when it is faster by a clear margin, in the median of rounds in
which all ways take turns: what else the machine does slows all of them alike.
"""

from __future__ import annotations

import copy
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from goldfold.config.schema import Freeze, Train
from goldfold.errors import GoldfoldError
from goldfold.machine import Choice, Machine, Mode, usual_choice
from goldfold.models import Classifier, ModelSpec, build_model, set_frozen
from goldfold.models.trunk import split_trunk

MARGIN = 1.15
"""How many times as fast as the usual way another one must be to be taken."""
LEAST_GFLOPS = 5.0
"""Billions of operations of a training step below which nothing is measured: such a step takes milliseconds, most of them
outside of the network, and timings of it are noise."""
LEAST_FOLD = {"cpu": 2e4, "cuda": 2e6}
"""Billions of operations of a fold's whole training below which nothing is measured: some three minutes' work of two cores
or of a T4, and measuring takes most of one."""
PASS_GFLOPS = 30.0
"""What a measured pass on a CPU is cut to: about a second on a slow one."""
ROUNDS, LEAST_ROUNDS = 9, 5
SECONDS, MOST_SECONDS = 20.0, 60.0
"""Time for the rounds after which no new one begins, and after which all is given up."""
HOPELESS = 2.0
"""A way that is so many times slower than the usual one at first is not measured further."""

Pass = Callable[[], None]


@dataclass(frozen=True)
class Network:
    """What is measured: a network as it trains, in batches of ``batch_size`` images."""

    spec: ModelSpec
    freeze: Freeze
    batch_size: int

    def describe(self) -> dict[str, Any]:
        """All that a speed depends on."""
        # What the network knows of its pixels and targets changes no speed.
        left_out = ("mean", "std", "target_mean", "target_std", "metadata")
        spec = {key: value for key, value in self.spec.to_dict().items() if key not in left_out}
        return {"spec": spec, "freeze": self.freeze.model_dump(mode="json"), "batch_size": self.batch_size}

    def step_gflops(self) -> float:
        """Billions of operations of a training step, taking backward for twice the forward pass."""
        return 3 * forward_gflops(self.spec) * self.batch_size


@dataclass(frozen=True)
class Timing:
    """``images_per_second``: the median over rounds; ``ratio``: how many times as fast as the usual way, cautiously."""

    mode: Mode
    images_per_second: float
    ratio: float

    def to_dict(self) -> dict[str, Any]:
        return {**self.mode.to_dict(), "images_per_second": self.images_per_second, "ratio": self.ratio}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Timing:
        """Raises KeyError, TypeError or ValueError for what is no timing."""
        return cls(Mode.from_dict(values), float(values["images_per_second"]), float(values["ratio"]))


@dataclass(frozen=True)
class Compiled:
    """``seconds`` until the first compiled step was done; ``timing`` against the same step as it is."""

    seconds: float
    timing: Timing


@dataclass(frozen=True)
class Measured:
    """All that was measured of a network on a machine; empty where there was nothing to choose from."""

    training: tuple[Timing, ...] = ()
    prediction: tuple[Timing, ...] = ()
    compiled: Compiled | None = None
    seconds: float = 0.0

    def choice(self, usual: Choice) -> Choice:
        """The fastest ways; the usual one where there is no timing."""
        train = fastest(self.training) if self.training else usual.train
        predict = fastest(self.prediction) if self.prediction else usual.predict
        return Choice(usual.device, train, predict)

    def to_dict(self) -> dict[str, Any]:
        compiled = self.compiled
        return {
            "training": [timing.to_dict() for timing in self.training],
            "prediction": [timing.to_dict() for timing in self.prediction],
            "compiled": None if compiled is None else {**compiled.timing.to_dict(), "seconds": compiled.seconds},
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, values: Any) -> Measured:
        """Raises KeyError, TypeError or ValueError for what is no measurement."""
        compiled = values["compiled"]
        return cls(
            training=tuple(Timing.from_dict(timing) for timing in values["training"]),
            prediction=tuple(Timing.from_dict(timing) for timing in values["prediction"]),
            compiled=None if compiled is None else Compiled(float(compiled["seconds"]), Timing.from_dict(compiled)),
            seconds=float(values["seconds"]),
        )


class TooSlow(GoldfoldError):
    """The machine is too slow or too busy for enough rounds."""


class CannotCompile(GoldfoldError):
    """torch.compile failed, for this reason."""


def ways(train: Train, device: torch.device) -> tuple[tuple[Mode, ...], tuple[Mode, ...]]:
    """What may be chosen from, for training and for predictions, the usual way first; a single one needs no measurement.

    Predictions keep the usual precision. On a GPU training does, too: bf16 from compute capability 8 on, fp16 below.
    """
    usual = usual_choice(train, device)
    precisions = ["fp32", "bf16"] if train.precision == "auto" and device.type == "cpu" else [usual.train.precision]
    layouts = [True, False] if train.memory_format == "auto" else [usual.train.channels_last]
    training = tuple(Mode(precision, layout) for layout in layouts for precision in precisions)
    return training, tuple(Mode(usual.predict.precision, layout) for layout in layouts)


def fastest(timings: Sequence[Timing]) -> Mode:
    """The first way, unless another is ``MARGIN`` times as fast; of several such ones the fastest."""
    best = max(timings, key=lambda timing: timing.ratio)
    return best.mode if best.ratio >= MARGIN else timings[0].mode


def compiling_pays(compiled: Compiled, fold_images: int) -> bool:
    """Whether compiled steps save a fold more time than their compilation takes, which each fold does anew.

    ``fold_images``: images that a fold trains on, over all epochs.
    """
    timing = compiled.timing
    saved = fold_images / timing.images_per_second * (timing.ratio - 1)
    return timing.ratio >= MARGIN and saved > compiled.seconds


def take_turns(
    passes: Sequence[Pass], clock: Callable[[], float] = time.perf_counter, hopeless: float = HOPELESS
) -> list[list[float]]:
    """Seconds of each pass, a value a round; an empty list for one that is hopeless.

    Every pass runs once before it counts. Rounds end at ``ROUNDS``, or after ``SECONDS`` and no fewer than
    ``LEAST_ROUNDS``; each begins with another pass. ``hopeless``: so many times slower than the first at first. Raises
    TooSlow where so many rounds take longer than ``MOST_SECONDS``.
    """
    found: list[list[float]] = [[] for _ in passes]

    started = clock()

    def timed(place: int) -> float:
        begun = clock()
        if begun - started > MOST_SECONDS and len(found[0]) < LEAST_ROUNDS:
            raise TooSlow("the machine is too slow or too busy")
        passes[place]()
        return clock() - begun

    for place in range(len(passes)):
        timed(place)
    first = [timed(place) for place in range(len(passes))]
    running = [place for place in range(len(passes)) if place == 0 or first[place] <= hopeless * first[0]]
    begun = clock()
    for number in range(ROUNDS if len(running) > 1 else 1):
        if number >= LEAST_ROUNDS and clock() - begun > SECONDS:
            break
        turn = number % len(running)
        for place in (*running[turn:], *running[:turn]):
            found[place].append(timed(place))
    return found


def timings_of(modes: Sequence[Mode], seconds: Sequence[Sequence[float]], images: int) -> list[Timing]:
    """What ``take_turns`` found; hopeless ways are left out."""
    return [
        Timing(mode, round(images / statistics.median(own), 2), round(cautious_ratio(seconds[0], own), 3))
        for mode, own in zip(modes, seconds, strict=True)
        if own
    ]


def cautious_ratio(usual: Sequence[float], other: Sequence[float]) -> float:
    """How many times as fast as the usual way another one surely is, by the seconds of both in each round.

    The median of the rounds' ratios, and no more than the ratio of the best rounds, which other work slows least. A way
    that loses more than one round in eight is not faster.
    """
    ratios = sorted(first / second for first, second in zip(usual, other, strict=True))
    steady, median = ratios[(len(ratios) + 4) // 8], statistics.median(ratios)
    return steady if steady < 1 else min(median, min(usual) / min(other))


def measure_training(network: Network, device: torch.device, modes: Sequence[Mode]) -> list[Timing]:
    """Forward and backward passes of a step in each of ``modes``."""

    def measure(batch: int) -> list[Timing]:
        steps = _Steps(network, device, batch)
        return timings_of(modes, take_turns([steps.training(mode) for mode in modes]), batch * steps.repeats)

    return _in_memory(measure, network, device, 3)


def measure_prediction(network: Network, device: torch.device, modes: Sequence[Mode]) -> list[Timing]:
    """Forward passes in inference mode in each of ``modes``."""

    def measure(batch: int) -> list[Timing]:
        steps = _Steps(network, device, batch)
        return timings_of(modes, take_turns([steps.prediction(mode) for mode in modes]), batch * steps.repeats)

    return _in_memory(measure, network, device, 1)


def measure_compiled(network: Network, device: torch.device, mode: Mode) -> Compiled:
    """A step by torch.compile against the same step as it is. Raises CannotCompile."""
    compiled = Mode(mode.precision, mode.channels_last, compiled=True)

    def measure(batch: int) -> Compiled:
        steps = _Steps(network, device, batch)
        plain, other = steps.training(mode), steps.training(compiled)
        begun = time.perf_counter()
        try:
            other()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compiler, its parts and those of the system raise
            raise CannotCompile(" ".join(str(error).split())[:200] or type(error).__name__) from error
        seconds = round(time.perf_counter() - begun, 2)
        timings = timings_of([mode, compiled], take_turns([plain, other], hopeless=math.inf), batch * steps.repeats)
        return Compiled(seconds, timings[1])

    return _in_memory(measure, network, device, 3)


def measure_memory(network: Network, device: torch.device, mode: Mode) -> int:
    """Bytes of a GPU that a training takes: the peak of a step, and what comes to the gradients later.

    That is the optimizer's state, the weight average and what their updates hold: five times the parameters. Raises
    torch.OutOfMemoryError where a step of a whole batch does not fit.
    """
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.random.fork_rng(devices=[device]):
        steps = _Steps(network, device, network.batch_size)
        steps.training(mode)()
    peak = torch.cuda.max_memory_reserved(device) - before
    parameters = sum(value.nbytes for value in steps.model(mode.channels_last).parameters())
    del steps
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return peak + 5 * parameters


def compile_steps(model: nn.Module) -> nn.Module:
    """The module whose calls are compiled; the model itself, its state and its other calls stay as they are.

    Compiled anew for each fold: torch keeps a few versions of a function, and then silently goes on without compiling.
    """
    torch.compiler.reset()
    compiled: nn.Module = torch.compile(model, dynamic=False, backend=COMPILER)  # type: ignore[assignment]
    return compiled


COMPILER = "inductor"


@functools.lru_cache(maxsize=64)
def forward_gflops(spec: ModelSpec) -> float:
    """Billions of operations (a multiplication and an addition are two) of one image's way through a network."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(spec).eval()
    metadata = None if spec.metadata is None else torch.zeros(1, spec.metadata.width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, spec.in_chans, spec.size, spec.size), metadata)
    return counter.get_total_flops() / 1e9


def _in_memory(measure: Callable[[int], Any], network: Network, device: torch.device, passes: Literal[1, 3]) -> Any:
    """Measure with as many images as make a fair pass, fewer where a GPU's memory is full; leaves nothing behind."""
    batch = network.batch_size
    if device.type == "cpu":
        batch = max(min(batch, int(PASS_GFLOPS / max(passes * forward_gflops(network.spec), 1e-9))), min(batch, 4))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        while True:
            try:
                found = measure(batch)
                break
            except torch.OutOfMemoryError:
                if batch < 2:
                    raise
            batch //= 2
            torch.cuda.empty_cache()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return found


class _Steps:
    """Passes of one network with random weights and images, in any mode."""

    def __init__(self, network: Network, device: torch.device, batch: int) -> None:
        self.network, self.device = network, device
        spec = network.spec
        torch.manual_seed(0)
        self.pixels = torch.randint(0, 256, (batch, spec.size, spec.size, spec.channels), dtype=torch.uint8).to(device)
        self.metadata = None if spec.metadata is None else torch.zeros(batch, spec.metadata.width, device=device)
        self.models: dict[bool, Classifier] = {}
        # A GPU works on one step while the next is handed to it.
        self.repeats = 3 if device.type == "cuda" else 1

    def model(self, channels_last: bool) -> Classifier:
        if channels_last not in self.models:
            if self.models:
                model = copy.deepcopy(next(iter(self.models.values())))
            else:
                model = build_model(self.network.spec)
                set_frozen(model, self.network.freeze.stages, self.network.freeze.batch_norm)
            layout = torch.channels_last if channels_last else torch.contiguous_format
            self.models[channels_last] = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        return self.models[channels_last]

    def training(self, mode: Mode) -> Pass:
        machine = Machine(self.device, mode.precision, mode.channels_last, 0)
        model = self.model(mode.channels_last)
        images, tail = model.prepare(self.pixels, machine.memory_format), model
        if self.network.freeze.cache:
            split = split_trunk(model, images[:2])
            images, tail = split.trunk(images).float(), split.tail
            if images.ndim == 4:
                images = images.contiguous(memory_format=machine.memory_format)
        called: nn.Module = compile_steps(tail) if mode.compiled else tail

        def step() -> None:
            called.train()
            for _ in range(self.repeats):
                with machine.autocast():
                    logits: Tensor = called(images, self.metadata)
                # The size of the gradients is no matter: half precision needs no scaling here.
                logits.float().square().mean().backward()  # type: ignore[no-untyped-call]
                tail.zero_grad()
            self._wait()

        return step

    def prediction(self, mode: Mode) -> Pass:
        machine = Machine(self.device, mode.precision, mode.channels_last, 0)
        model = self.model(mode.channels_last).eval()
        images = model.prepare(self.pixels, machine.memory_format)

        @torch.inference_mode()
        def predict() -> None:
            for _ in range(self.repeats):
                with machine.autocast():
                    model(images, self.metadata)
            self._wait()

        return predict

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
