"""Views and their merging."""

from __future__ import annotations

import pytest
import torch

from goldfold.config.schema import Tta
from goldfold.errors import BadInput
from goldfold.tta import make_views, merge


@pytest.mark.parametrize(("name", "count"), [("none", 1), ("hflip", 2), ("flips", 4), ("d4", 8)])
def test_presets_hold_each_view_once_and_the_identity_first(name: str, count: int) -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    seen = [view(image) for view in make_views(Tta(views=name))]  # type: ignore[arg-type]
    assert len(seen) == count
    assert torch.equal(seen[0], image)
    assert len({tuple(view.flatten().tolist()) for view in seen}) == count


def test_own_views_by_name() -> None:
    views = make_views(Tta(views=({"FiveCrops": {"crop_height": 2, "crop_width": 2}},)))
    assert [tuple(view(torch.zeros(1, 3, 4, 4)).shape) for view in views] == [(1, 3, 2, 2)] * 5


def test_wrong_names_and_arguments_are_refused() -> None:
    with pytest.raises(BadInput, match=r"no transform 'HorizontalFlipp'; use HorizontalFlip"):
        make_views(Tta(views=({"HorizontalFlipp": {}},)))
    with pytest.raises(BadInput, match=r"Rotate90 has no argument angle; it takes angles"):
        make_views(Tta(views=({"Rotate90": {"angle": 90}},)))


def test_merging_by_hand() -> None:
    views = [torch.tensor([[0.1, 0.9]]), torch.tensor([[0.4, 0.6]])]
    assert merge(views, "mean").tolist()[0] == pytest.approx([0.25, 0.75])
    assert merge(views, "gmean").tolist()[0] == pytest.approx([0.2, 0.54**0.5])
    assert merge(views, "max").tolist()[0] == pytest.approx([0.4, 0.9])
