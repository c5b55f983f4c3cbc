"""Random erasing: how much, of which images, with what; from the seed alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from goldfold.augment import erase_batch
from goldfold.config.schema import Erase


def images(n: int = 200, size: int = 40) -> Tensor:
    return torch.full((n, 3, size, size), 7.0)


def erased(found: Tensor) -> Tensor:
    """(B, H, W): what was filled."""
    return (found != 7).any(dim=1)


def test_off_is_the_same_tensor() -> None:
    batch = images(4)
    assert erase_batch(Erase(prob=0), batch, 1) is batch


def test_prob_is_the_share_of_images() -> None:
    share = erased(erase_batch(Erase(prob=0.3), images(), 1)).flatten(1).any(dim=1).float().mean()
    assert 0.2 < share < 0.4
    assert erased(erase_batch(Erase(prob=1), images(), 1)).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("area", [(0.1, 0.2), (0.3, 0.4)])
def test_area(area: tuple[float, float]) -> None:
    found = erased(erase_batch(Erase(prob=1, area=area), images(), 1)).float().mean(dim=(1, 2))
    assert found.min() > area[0] - 0.02
    assert found.max() < area[1] + 0.02
    assert found.max() - found.min() > (area[1] - area[0]) / 2


def test_boxes_are_boxes_and_count_is_the_most() -> None:
    one = erased(erase_batch(Erase(prob=1), images(), 1))
    spans = one.any(dim=1).sum(dim=1) * one.any(dim=2).sum(dim=1)
    assert torch.equal(spans, one.sum(dim=(1, 2)))  # one box fills its own rows and columns
    several = erased(erase_batch(Erase(prob=1, count=4, area=(0.05, 0.1)), images(), 1))
    scattered = several.any(dim=1).sum(dim=1) * several.any(dim=2).sum(dim=1) > several.sum(dim=(1, 2))
    assert 0.5 < scattered.float().mean() < 1  # and sometimes it is one box


def test_modes() -> None:
    assert erase_batch(Erase(prob=1, mode="const"), images(), 1).unique().tolist() == [0, 7]
    for mode, distinct in (("rand", True), ("pixel", False)):
        found = erase_batch(Erase(prob=1, mode=mode), images(50), 1)  # type: ignore[arg-type]
        one_value = [len(one[:, mask].unique(dim=1).T) == 1 for one, mask in zip(found, erased(found), strict=True)]
        assert all(one_value) is distinct
        values = torch.cat([one[:, mask].flatten() for one, mask in zip(found, erased(found), strict=True)])
        assert abs(float(values.mean())) < 0.2  # a draw of the normal distribution, the pixels' own after normalising
        assert 0.8 < float(values.std()) < 1.2


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_the_seed_alone_decides(mode: str) -> None:
    settings = Erase(prob=0.5, mode=mode)  # type: ignore[arg-type]
    batch = images(20)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002
    first = erase_batch(settings, batch, 3, 1)
    assert torch.equal(batch, images(20))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states  # type: ignore[index]  # noqa: NPY002
    random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(erase_batch(settings, batch, 3, 1), first)
    assert not torch.equal(erase_batch(settings, batch, 3, 2), first)


def test_layout_and_type_stay() -> None:
    batch = images(4).to(torch.bfloat16, memory_format=torch.channels_last)
    found = erase_batch(Erase(prob=1), batch, 0)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    batch = images(20).cuda()
    torch.cuda.manual_seed(1)
    state = torch.cuda.get_rng_state()
    first = erase_batch(Erase(prob=1), batch, 3)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.cuda.manual_seed(2)
    assert torch.equal(erase_batch(Erase(prob=1), batch, 3), first)
    assert not torch.equal(erase_batch(Erase(prob=1), batch, 4), first)
    on_cpu = erase_batch(Erase(prob=1), images(20), 3)
    assert torch.equal(erased(first).cpu(), erased(on_cpu))  # the boxes are the same; the noise is the device's own
