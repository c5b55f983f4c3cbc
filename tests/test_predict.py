"""Prediction leaves a network as it was: in its mode, with gradients, whatever ends it."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from goldfold.config.schema import Train, Tta
from goldfold.errors import BadInput, GoldfoldError
from goldfold.forward import Shown
from goldfold.images import Images
from goldfold.machine import find_machine
from goldfold.models import Classifier
from goldfold.predict import _batches, in_inference, predict_images, predict_views, try_views
from goldfold.records import Ints
from goldfold.tasks import Task
from goldfold.tta import View, make_views
from tests.models.networks import MULTI, build

SIZE, ROWS = 32, 6


class Noise:
    """Images of noise in memory."""

    ids = tuple(f"n{row}" for row in range(ROWS))
    shape = (SIZE, SIZE, 3)
    digest = None

    def read(self, rows: Ints) -> np.ndarray:
        every = np.random.default_rng(0).integers(0, 256, (ROWS, *self.shape), dtype=np.uint8)
        return every[np.asarray(rows)]


IMAGES: Images = Noise()
ALL = np.arange(ROWS)
MACHINE = find_machine(Train(device="cpu", workers=0))
VIEWS = make_views(Tta(views="flip"), SIZE)


@pytest.fixture(params=[True, False], ids=["training", "evaluating"])
def model(request: pytest.FixtureRequest) -> Classifier:
    """In either mode; with dropout, which a prediction in the wrong one would show."""
    return build(size=SIZE, drop_rate=0.5).train(request.param)


def predict(model: Classifier, views: list[View] = VIEWS, how: str = "mean", task: Task = MULTI) -> np.ndarray:
    return predict_images(model, IMAGES, ALL, task=task, views=views, how=how, batch_size=4, machine=MACHINE)


def broken(*arguments: object) -> None:
    raise RuntimeError("a broken part")


def nan_head(model: Classifier) -> None:
    with torch.no_grad():
        next(iter(model.head.parameters())).fill_(float("nan"))


def test_prediction_is_without_dropout_and_leaves_the_mode(model: Classifier) -> None:
    was = model.training
    first = predict(model)
    assert model.training is was
    assert np.array_equal(first, predict(model))
    every = predict_views(model, IMAGES, ALL, views=VIEWS, batch_size=4, machine=MACHINE)
    assert np.allclose(every.mean(axis=0), first, atol=1e-6)
    assert model.training is was
    assert all(module.training is was for module in model.modules())


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (nan_head, GoldfoldError),
        (lambda model: setattr(model, "forward", broken), RuntimeError),
        (lambda model: setattr(model, "prepare", broken), RuntimeError),
    ],
    ids=["NaN", "forward", "prepare"],
)
def test_an_error_leaves_the_mode(
    spoil: Callable[[Classifier], None], error: type[Exception], model: Classifier
) -> None:
    was = model.training
    spoil(model)
    with pytest.raises(error, match=r"gives NaN|a broken part"):
        predict(model)
    assert model.training is was
    assert not torch.is_inference_mode_enabled()


def test_a_view_that_fails_and_a_merge_that_fails_leave_the_mode(
    model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = model.training
    with pytest.raises(RuntimeError, match="a broken part"):
        predict(model, [View("broken", broken)])  # type: ignore[arg-type]
    assert model.training is was
    monkeypatch.setattr("goldfold.predict.merge", lambda *_, **__: broken())
    with pytest.raises(RuntimeError, match="a broken part"):
        predict(model)
    gc.collect()
    assert model.training is was


@pytest.mark.parametrize("end", ["closed", "forgotten", "thrown"])
def test_a_prediction_that_is_abandoned_leaves_the_mode(end: str, model: Classifier) -> None:
    """Nobody asks for the second batch."""
    was = model.training
    batches = _batches([Shown(model, VIEWS)], IMAGES, ALL, 4, MACHINE, SIZE, "")
    assert [tuple(seen.shape) for seen in next(batches)] == [(2, 4, 3)]
    assert not torch.is_inference_mode_enabled()  # between batches the caller's own code runs
    if end == "closed":
        batches.close()  # type: ignore[attr-defined]
    elif end == "thrown":
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    del batches
    gc.collect()
    assert model.training is was
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_trying_views_leaves_the_mode(model: Classifier) -> None:
    was = model.training
    try_views(model, Tta(views="d4"))
    assert model.training is was
    fixed = build("test_vit3", size=SIZE).train(was)
    with pytest.raises(BadInput, match="cannot take the view"):
        try_views(fixed, Tta(views="scales"))
    assert fixed.training is was
    # The choice of a view that there is not fails before any view is tried.
    with pytest.raises(BadInput):
        try_views(model, Tta(views=({"NoSuchView": {}},)))
    assert model.training is was


def test_in_inference_by_itself(model: Classifier) -> None:
    was = model.training
    with in_inference(model):
        assert not any(module.training for module in model.modules())
    assert model.training is was
    with pytest.raises(KeyboardInterrupt), in_inference(model):
        raise KeyboardInterrupt
    assert model.training is was
