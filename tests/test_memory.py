"""Work in parts that fit: what failed for want of memory is done again in halves, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from goldfold.memory import AtOnce

CPU = torch.device("cpu")


class Short:
    """Doubles its images; runs out of memory beyond ``room`` of them."""

    def __init__(self, room: int, message: str = "CUDA out of memory") -> None:
        self.room, self.message = room, message
        self.tried: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.tried.append(len(images))
        if len(images) > self.room:
            raise RuntimeError(self.message)
        return images * 2


def test_parts_are_joined_in_order_and_none_is_done_twice(capsys: pytest.CaptureFixture[str]) -> None:
    images, at_once, work = torch.arange(23.0), AtOnce(16, CPU, "fp16", "labelling"), Short(room=5)
    assert torch.equal(at_once.in_parts(work, images), images * 2)
    assert work.tried == [16, 8, 4, 4, 4, 4, 4, 3]
    assert at_once.most == 4
    assert "labelling: memory is full; 8 images at once from now on" in capsys.readouterr().err
    work.tried.clear()
    at_once.in_parts(work, images)
    assert max(work.tried) == 4


def test_an_image_that_does_not_fit_and_another_error_are_not_swallowed() -> None:
    for work in (Short(0), Short(2, "size mismatch")):
        with pytest.raises(RuntimeError, match=work.message):
            AtOnce(4, CPU, "fp16", "labelling").in_parts(work, torch.arange(3.0))
    assert work.tried == [3]
