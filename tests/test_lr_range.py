"""The range test's rates, its smoothing, what it reads from a curve and how it draws it."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goldfold.errors import BadInput, GoldfoldError
from goldfold.lr_range import Suggestion, centred, diverged, plot, ramp, smooth, suggest


def losses_at(rates: list[float], noise: float = 0.0, seed: int = 0) -> list[float]:
    """A fall that is steepest at 1e-3, least at about 3e-2, and an explosion from 1e-1 on."""
    x = np.log10(np.asarray(rates))
    curve = 0.3 + 2 / (1 + np.exp((x + 3) * 4)) + np.exp((x + 1) * 6)
    return list(curve + np.random.default_rng(seed).normal(0, noise, len(rates)))


def test_the_ramp_is_geometric() -> None:
    rates = ramp(1e-6, 1.0, 7)
    assert rates == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert len(ramp(1e-7, 10, 100)) == 100


@pytest.mark.parametrize(("start", "end", "steps"), [(0, 1, 10), (1, 1, 10), (1, 0.1, 10), (-1, 1, 10), (0.1, 1, 1)])
def test_a_ramp_that_does_not_rise_is_refused(start: float, end: float, steps: int) -> None:
    with pytest.raises(BadInput, match=r"^lr-find: "):
        ramp(start, end, steps)


def test_smoothing_equals_a_hand_calculation() -> None:
    """Weights beta ** age, divided by their sum."""
    losses = [3.0, 1.0, 4.0, 1.0, 5.0]
    for count, value in enumerate(smooth(losses, 0.7), 1):
        weights = [0.7 ** (count - 1 - place) for place in range(count)]
        assert value == pytest.approx(sum(w * loss for w, loss in zip(weights, losses, strict=False)) / sum(weights))
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    assert smooth([]) == []


def test_the_centred_average_does_not_lag() -> None:
    rates = ramp(1e-7, 1e-1, 200)
    falling = [float(-math.log(rate)) for rate in rates]  # a straight line stays where it is, but for the ends
    assert centred(falling)[50:150] == pytest.approx(falling[50:150], abs=0.05)
    assert smooth(falling)[100] > falling[100] + 2
    assert centred([1.0, 2.0, math.nan, 1.0]) == centred([1.0, 2.0])
    assert centred([math.inf]) == []


@pytest.mark.parametrize("steps", [60, 100, 300])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_readings_of_a_known_curve(steps: int, noise: float) -> None:
    rates = ramp(1e-7, 10, steps)
    losses = losses_at(rates, noise)
    end = next((count for count in range(1, steps) if diverged(losses[:count])), steps)
    found = suggest(rates[:end], losses[:end])
    assert 4e-4 < found.steepest < 3e-3
    assert 5e-4 < found.minimum_tenth < 6e-3  # the floor of the valley is flat


def test_the_climb_after_the_minimum_is_not_read() -> None:
    """A second, steeper fall after the explosion says nothing."""
    rates = ramp(1e-6, 1, 100)
    losses = [2.0 - 0.02 * max(step - 40, 0) for step in range(70)] + [9.0] * 15 + [2.0] * 15
    found = suggest(rates, losses)
    assert rates[40] < found.steepest < rates[70]
    assert found.minimum_tenth < rates[70] / 10


def test_losses_after_the_last_finite_one_do_not_count() -> None:
    rates = ramp(1e-7, 10, 100)
    losses = losses_at(rates)
    assert suggest(rates, [*losses[:80], math.inf, math.nan]) == suggest(rates[:80], losses[:80])


def test_an_explosion_does_not_reach_back() -> None:
    rates = ramp(1e-7, 10, 100)
    losses = losses_at(rates)[:74]
    calm, wild = suggest(rates, losses), suggest(rates, [*losses, 1e6])
    assert wild.steepest == pytest.approx(calm.steepest, rel=0.3)
    assert wild.minimum_tenth > 0.4 * calm.minimum_tenth


@pytest.mark.parametrize("slope", [0.0, 0.001, 0.3])
def test_a_curve_that_never_falls_is_an_error(slope: float) -> None:
    with pytest.raises(GoldfoldError, match=r"lr-find: the loss never falls between rates 4\.1e-06 and 5\.0e-01"):
        suggest(ramp(1e-6, 1, 60), [2.0 + slope * step for step in range(60)])


def test_too_few_losses_are_an_error() -> None:
    with pytest.raises(GoldfoldError, match="2 losses before the end are too few"):
        suggest(ramp(1e-6, 1, 60), [2.0, 1.0, math.nan])


def test_divergence() -> None:
    assert not diverged([])
    assert not diverged([2.0] * 20)
    assert not diverged([2.0, 1.0, 3.9])  # four times the least single loss, not of the smoothed
    assert diverged([2.0, 1.0, 50.0])
    assert diverged([2.0, math.nan])
    assert diverged([2.0, math.inf])
    assert not diverged([0.0, 0.0, 1.0])  # no multiple of nothing


def test_the_plot_shows_curve_and_marks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rates = ramp(1e-7, 10, 100)
    losses = [*losses_at(rates, 0.05)[:90], math.nan]
    assert plot(tmp_path / "lr.png", rates, losses, suggest(rates, losses), "elpv, fold 0")
    assert plot(tmp_path / "bare.png", rates, losses, None, "elpv, fold 0")
    assert plot(tmp_path / "nothing.png", rates, [math.nan], None, "elpv, fold 0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.png", "lr.png", "nothing.png"]

    def has(name: str, colour: tuple[int, int, int]) -> bool:
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        assert pixels.shape == (540, 900, 3)
        return bool((np.abs(pixels - colour).max(axis=2) < 12).sum() > 40)

    blue, orange, purple = (0, 114, 178), (230, 159, 0), (204, 121, 167)
    assert [has("lr.png", colour) for colour in (blue, orange, purple)] == [True, True, True]
    assert [has("bare.png", colour) for colour in (blue, orange, purple)] == [True, False, False]


def test_without_matplotlib_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not plot(tmp_path / "lr.png", [0.1, 0.2], [1.0, 0.5], Suggestion(0.1, 0.02), "elpv")
    (line,) = capsys.readouterr().err.splitlines()
    assert "matplotlib is not installed" in line
    assert not list(tmp_path.iterdir())
