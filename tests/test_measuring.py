"""What is measured of a network, and what follows from it. Clocks are pretended: no test depends on this machine's speed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from goldfold import measuring
from goldfold.config.schema import Freeze, Train
from goldfold.machine import Choice, Mode
from goldfold.measuring import (
    CannotCompile,
    Compiled,
    Measured,
    Network,
    Timing,
    TooSlow,
    cautious_ratio,
    compile_steps,
    compiling_pays,
    fastest,
    measure_compiled,
    measure_memory,
    measure_prediction,
    measure_training,
    take_turns,
    timings_of,
    ways,
)
from goldfold.models import ModelSpec, build_model

CPU = torch.device("cpu")
FP32, BF16, PLAIN = Mode("fp32"), Mode("bf16"), Mode("fp32", channels_last=False)
SPEC = ModelSpec("test_resnet", 32, 3, (0.5,) * 3, (0.5,) * 3, 4, "softmax")
TINY = Network(SPEC, Freeze(), 4)


class Clock:
    """Seconds that pass only where a pass says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: Callable[[int], float]) -> Callable[[], None]:
        calls = [0]

        def run() -> None:
            self.now += seconds(calls[0])
            calls[0] += 1

        return run


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((1.0, 1.14, 0.9), FP32),  # no clear margin
        ((1.0, 1.15, 0.9), BF16),
        ((1.0, 1.2, 1.7), PLAIN),
        ((1.0, 0.5, 0.6), FP32),
    ],
)
def test_another_way_wins_by_a_margin_only(ratios: tuple[float, ...], expected: Mode) -> None:
    assert (
        fastest([Timing(mode, 10, ratio) for mode, ratio in zip((FP32, BF16, PLAIN), ratios, strict=True)]) == expected
    )


def test_what_slows_a_whole_round_changes_no_ratio() -> None:
    clock = Clock()
    slow = lambda call: 3.0 if call >= 3 else 1.0  # noqa: E731  # another process takes the machine
    seconds = take_turns([clock.passes(lambda call: 1.5 * slow(call)), clock.passes(slow)], clock)
    usual, other = timings_of([FP32, BF16], seconds, images=3)
    assert (usual.ratio, other.ratio) == (1.0, 1.5)
    assert other.images_per_second == 1.0


def test_a_single_outlier_changes_no_ratio() -> None:
    clock = Clock()
    seconds = take_turns([clock.passes(lambda call: 30.0 if call == 4 else 1.0), clock.passes(lambda _: 1.0)], clock)
    assert [timing.ratio for timing in timings_of([FP32, BF16], seconds, 1)] == [1.0, 1.0]


def test_a_way_that_wins_by_luck_does_not_count() -> None:
    clock = Clock()
    # On a busy machine: twice as fast in the median of rounds, and slower in a third of them.
    seconds = take_turns([clock.passes(lambda _: 0.2), clock.passes(lambda call: 0.4 if call % 3 == 0 else 0.1)], clock)
    assert timings_of([FP32, BF16], seconds, 1)[1].ratio == 0.5
    # Nor one that is faster in the median alone, and not where both were undisturbed.
    assert cautious_ratio([2.0, 2.0, 2.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0]) == 1.0


def test_a_machine_that_is_too_slow_is_given_up_soon() -> None:
    clock = Clock()
    with pytest.raises(TooSlow):
        take_turns([clock.passes(lambda _: 25.0), clock.passes(lambda _: 20.0)], clock)
    assert clock.now < measuring.MOST_SECONDS + 25


def test_a_hopeless_way_is_dropped_and_long_rounds_are_few() -> None:
    clock = Clock()
    seconds = take_turns([clock.passes(lambda _: 2.5), clock.passes(lambda _: 9.0), clock.passes(lambda _: 2.0)], clock)
    assert [len(each) for each in seconds] == [measuring.LEAST_ROUNDS, 0, measuring.LEAST_ROUNDS]
    assert [timing.mode for timing in timings_of([FP32, BF16, PLAIN], seconds, 1)] == [FP32, PLAIN]


def test_rounds_begin_in_turn() -> None:
    clock, order = Clock(), list[int]()

    def noted(place: int) -> Callable[[], None]:
        def run() -> None:
            order.append(place)
            clock.now += 1e-3

        return run

    take_turns([noted(0), noted(1)], clock)
    assert order == [0, 1, 0, 1, *[0, 1, 1, 0] * 4, 0, 1]
    assert len(order) == 2 * (2 + measuring.ROUNDS)


@pytest.mark.parametrize(
    ("settings", "training", "prediction"),
    [
        ({}, 4, 2),
        ({"precision": "bf16"}, 2, 2),
        ({"memory_format": "contiguous"}, 2, 1),
        ({"precision": "fp32", "memory_format": "channels_last"}, 1, 1),
    ],
)
def test_demands_leave_nothing_to_choose(settings: dict[str, str], training: int, prediction: int) -> None:
    found = ways(Train.model_validate(settings), CPU)
    assert [len(part) for part in found] == [training, prediction]
    assert found[1][0].precision == ("bf16" if settings.get("precision") == "bf16" else "fp32")
    assert {mode.precision for mode in found[1]} == {found[1][0].precision}, "predictions never change their precision"
    assert found[0][0] == found[1][0], "the usual way stands first"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_on_a_gpu_only_the_layout_is_open(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    training, prediction = ways(Train(), torch.device("cuda", 0))
    assert training == prediction == (Mode(expected), Mode(expected, channels_last=False))


def test_networks_of_the_tests_are_too_small_to_be_measured() -> None:
    assert 0 < Network(SPEC, Freeze(), 64).step_gflops() < measuring.LEAST_GFLOPS
    # 0.14 billion operations an image at 96 px, as its authors' 0.4 billion multiplications at 224 px say.
    lite = ModelSpec("tf_efficientnet_lite0", 96, 3, (0.5,) * 3, (0.5,) * 3, 4, "softmax")
    assert measuring.forward_gflops(lite) == pytest.approx(2 * 0.4 * (96 / 224) ** 2, rel=0.1)
    assert Network(lite, Freeze(), 32).step_gflops() > measuring.LEAST_GFLOPS


@pytest.mark.parametrize("freeze", [Freeze(), Freeze(stages=2, cache=True), Freeze(stages="all")])
def test_a_real_measurement_leaves_nothing_behind(freeze: Freeze) -> None:
    network, before = Network(SPEC, freeze, 4), torch.get_rng_state()
    training, prediction = ways(Train(), CPU)
    found = Measured(
        tuple(measure_training(network, CPU, training)), tuple(measure_prediction(network, CPU, prediction))
    )
    assert found.training[0] == Timing(FP32, found.training[0].images_per_second, 1.0)
    assert {timing.mode for timing in found.training} <= set(training)
    assert {timing.mode for timing in found.prediction} <= set(prediction)
    assert all(timing.images_per_second > 0 for timing in (*found.training, *found.prediction))
    assert torch.equal(before, torch.get_rng_state())
    assert Measured.from_dict(found.to_dict()) == found


def test_training_and_prediction_are_chosen_apart() -> None:
    found = Measured((Timing(FP32, 1, 1.0), Timing(BF16, 2, 2.0)), (Timing(FP32, 1, 1.0), Timing(PLAIN, 2, 1.3)))
    usual = Choice("cpu", FP32, FP32)
    assert found.choice(usual) == Choice("cpu", BF16, PLAIN)
    assert Measured().choice(usual) == usual


def test_compiling_pays_in_long_folds_only() -> None:
    compiled = Compiled(70.0, Timing(Mode("bf16", compiled=True), 120.0, 1.2))
    # 100 images a second without it: 60,000 images take 600 s, and 100 s less compiled.
    assert compiling_pays(compiled, 60_000)
    assert not compiling_pays(compiled, 40_000)
    assert not compiling_pays(Compiled(1.0, Timing(Mode("bf16", compiled=True), 120.0, 1.05)), 10**9)


def test_a_compiled_step_shares_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "COMPILER", "eager")
    torch.manual_seed(0)
    model = build_model(SPEC)
    names = list(model.state_dict())
    compiled = compile_steps(model)
    assert list(model.state_dict()) == names
    compiled.train()
    assert model.training
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    first = compiled(images)
    torch.manual_seed(1)
    assert torch.equal(first, model(images))
    found = measure_compiled(TINY, CPU, FP32)
    assert found.timing.mode == Mode("fp32", compiled=True)
    assert found.seconds > 0
    assert math.isfinite(found.timing.ratio)


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no C++ compiler\nhere")

    monkeypatch.setattr(measuring, "COMPILER", broken)
    with pytest.raises(CannotCompile, match=r"no C\+\+ compiler here"):
        measure_compiled(TINY, CPU, FP32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_and_given_back() -> None:
    device = torch.device("cuda", 0)
    network = Network(ModelSpec("resnet18", 96, 3, (0.5,) * 3, (0.5,) * 3, 4, "softmax"), Freeze(), 64)
    before = torch.cuda.memory_allocated(device)
    training, prediction = ways(Train(), device)
    assert len(measure_training(network, device, training)) == 2
    assert len(measure_prediction(network, device, prediction)) == 2
    assert torch.cuda.memory_allocated(device) == before
    assert measure_compiled(network, device, training[0]).timing.ratio > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_memory_of_a_training_grows_with_its_batch() -> None:
    device = torch.device("cuda", 0)
    spec = ModelSpec("resnet18", 96, 3, (0.5,) * 3, (0.5,) * 3, 4, "softmax")
    before = torch.cuda.memory_allocated(device)
    mode = ways(Train(), device)[0][0]
    small, large = (measure_memory(Network(spec, Freeze(), size), device, mode) for size in (16, 256))
    assert 6 * 4 * 11e6 < small < large
    assert torch.cuda.memory_allocated(device) == before
