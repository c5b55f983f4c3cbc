"""Views, their merging, and the choice among them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from goldfold.config import config_from_dict
from goldfold.config.schema import Tta
from goldfold.errors import BadInput
from goldfold.metrics import get_metric, score
from goldfold.predict import try_views
from goldfold.records import Floats
from goldfold.tasks import Task
from goldfold.tta import (
    IDENTITY,
    ViewTable,
    choose_views,
    combine,
    make_views,
    merge,
    pick_views,
    pixel_share,
    single_view,
)
from tests.models.networks import build

TASK = Task("multiclass", ("a", "b"))


def shown(settings: Tta, image: torch.Tensor, size: int | None = None) -> dict[str, torch.Tensor]:
    return {view.name: view(image)[0, 0] for view in make_views(settings, size)}


class TestPresets:
    @pytest.mark.parametrize(("name", "count"), [("none", 1), ("flip", 2), ("flips", 4), ("d4", 8), ("scales", 3)])
    def test_hold_each_view_once_and_the_identity_first(self, name: str, count: int) -> None:
        image = torch.arange(64.0).view(1, 1, 8, 8)
        seen = [view(image) for view in make_views(Tta(views=name))]  # type: ignore[arg-type]
        assert len(seen) == count
        assert torch.equal(seen[0], image)
        assert len({tuple(view.flatten().tolist()) for view in seen}) == count

    def test_flips_and_d4_of_an_asymmetric_picture(self) -> None:
        image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
        flips = shown(Tta(views="flips"), image)
        assert {name: view.tolist() for name, view in flips.items()} == {
            "identity": [[1, 2], [3, 4]],
            "HorizontalFlip": [[2, 1], [4, 3]],
            "VerticalFlip": [[3, 4], [1, 2]],
            "HorizontalFlip+VerticalFlip": [[4, 3], [2, 1]],
        }
        d4 = shown(Tta(views="d4"), image)
        assert d4["Rotate90(90)"].tolist() == [[2, 4], [1, 3]]
        assert d4["HorizontalFlip+Rotate90(180)"].tolist() == [[3, 4], [1, 2]]

    def test_five_crops_are_the_centre_and_the_corners(self) -> None:
        image = torch.arange(256.0).view(1, 1, 16, 16)
        whole = image[0, 0]
        expected = {
            "crop(centre)": whole[1:15, 1:15],
            "crop(top left)": whole[:14, :14],
            "crop(top right)": whole[:14, 2:],
            "crop(bottom left)": whole[2:, :14],
            "crop(bottom right)": whole[2:, 2:],
        }
        five = shown(Tta(views="five-crop"), image, size=14)
        assert list(five) == list(expected)
        assert all(torch.equal(five[name], part) for name, part in expected.items())  # 16 = 8/7 of 14: nothing resized
        ten = shown(Tta(views="ten-crop"), image, size=14)
        assert len(ten) == 10
        for name, part in expected.items():
            assert torch.equal(ten[name], part)
            assert torch.equal(ten[f"{name}+HorizontalFlip"], part.flip(1))

    def test_crops_come_at_the_networks_size(self) -> None:
        ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
        crops = shown(Tta(views="five-crop"), ramp, size=16)
        assert {tuple(crop.shape) for crop in crops.values()} == {(16, 16)}
        assert crops["crop(top left)"][0, -1] == pytest.approx(13 / 15)  # a corner of 14, bilinear up to 16
        assert crops["crop(top right)"][0, 0] == pytest.approx(2 / 15)

    def test_scales_are_bilinear(self) -> None:
        ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
        seen = shown(Tta(views="scales"), ramp)
        assert [tuple(view.shape) for view in seen.values()] == [(32, 32), (28, 28), (36, 36)]
        for view in seen.values():
            assert torch.unique(view[0]).numel() == view.shape[1]  # the nearest pixel would repeat or skip some

    def test_the_epochs_single_view(self) -> None:
        assert single_view(Tta(views="d4")).name == IDENTITY
        assert single_view(Tta(views="ten-crop")).name == "crop(centre)"
        assert single_view(Tta(views="auto", candidates="five-crop")).name == IDENTITY


class TestOwnViews:
    def test_by_name(self) -> None:
        views = make_views(Tta(views=({"FiveCrops": {"crop_height": 2, "crop_width": 3}},)))
        assert [tuple(view(torch.zeros(1, 3, 4, 4)).shape) for view in views] == [(1, 3, 2, 3)] * 5
        assert [view.name for view in views][:2] == ["FiveCrops(top left)", "FiveCrops(bottom left)"]

    def test_the_identity_comes_first_wherever_it_stands(self) -> None:
        names = [view.name for view in make_views(Tta(views=({"Multiply": {"factors": [0.9, 1, 1.1]}},)))]
        assert names == ["identity", "Multiply(0.9)", "Multiply(1.1)"]
        resized = make_views(Tta(views=({"Resize": {"sizes": [[8, 6], [4, 4]]}},)))
        assert [view.name for view in resized] == ["Resize(8x6)", "Resize(4x4)"]

    def test_wrong_names_arguments_and_doubles_are_refused(self) -> None:
        with pytest.raises(BadInput, match=r"no transform 'HorizontalFlipp'; use HorizontalFlip"):
            make_views(Tta(views=({"HorizontalFlipp": {}},)))
        with pytest.raises(BadInput, match=r"Rotate90 has no argument angle; it takes angles"):
            make_views(Tta(views=({"Rotate90": {"angle": 90}},)))
        with pytest.raises(BadInput, match=r"the same view twice: Rotate90\(90\)"):
            make_views(Tta(views=({"Rotate90": {"angles": [90, 90]}},)))

    def test_crops_larger_than_the_picture_are_refused(self) -> None:
        """ttach would give the whole picture, or what a negative index names."""
        view, *_ = make_views(Tta(views=({"FiveCrops": {"crop_height": 5, "crop_width": 2}},)))
        with pytest.raises(BadInput, match="5x2 pixels do not fit into images of 4x4"):
            view(torch.zeros(1, 3, 4, 4))


def test_auto_puts_the_identity_before_its_candidates() -> None:
    assert [view.name for view in make_views(Tta(views="auto", candidates="five-crop"))][:2] == [
        "identity",
        "crop(centre)",
    ]
    d4 = [view.name for view in make_views(Tta(views="auto"))]
    assert d4 == [view.name for view in make_views(Tta(views="d4"))]


def test_picked_views_come_in_the_order_of_all() -> None:
    picked = pick_views(Tta(views="five-crop"), 8, ["crop(top right)", "identity"])
    assert [view.name for view in picked] == ["identity", "crop(top right)"]
    with pytest.raises(BadInput, match="no view VerticalFlip"):
        pick_views(Tta(views="flip"), 8, ["VerticalFlip"])


def test_keys_of_auto_are_refused_without_it() -> None:
    competition = {"name": "c", "task": "binary", "metric": "auc", "train_csv": "t.csv", "image_path": "{id}.png"}
    for key, value in (("candidates", "flips"), ("max_views", 3), ("min_gain", 0.01)):
        with pytest.raises(BadInput, match=rf"tta\.{key} does nothing without tta\.views auto"):
            config_from_dict({"competition": competition, "tta": {key: value}}, "here")
        config_from_dict({"competition": competition, "tta": {"views": "auto", key: value}}, "here")


def test_merging_by_hand() -> None:
    views = [torch.tensor([[0.1, 0.9]]), torch.tensor([[0.4, 0.6]])]
    assert merge(views, "mean").tolist()[0] == pytest.approx([0.25, 0.75])
    assert merge(views, "gmean").tolist()[0] == pytest.approx([0.2, 0.54**0.5])
    assert merge(views, "max").tolist()[0] == pytest.approx([0.4, 0.9])
    yes, no = (0.1 * 0.4) ** 0.5, (0.9 * 0.6) ** 0.5
    both = merge(views, "gmean", yes_or_no=True).tolist()[0]
    assert both == pytest.approx([yes / (yes + no), no / (yes + no)])


def test_pixels_of_a_view() -> None:
    shares = [pixel_share(view, 32) for view in make_views(Tta(views="scales"))]
    assert shares == [1, (28 / 32) ** 2, (36 / 32) ** 2]


class TestNetworksOfAFixedSize:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"views": "scales"}, r"tta\.views: test_vit3 cannot take the view 'Scale\(0.875\)' of images of side 32"),
            ({"size": 48}, r"tta\.size: test_vit3 cannot take the view 'identity' of images of side 48"),
            ({"views": "auto", "candidates": "scales"}, r"tta\.views: test_vit3"),
        ],
    )
    def test_are_refused_other_sizes(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(BadInput, match=message) as found:
            try_views(build("test_vit3"), Tta.model_validate(settings))
        assert "\n" not in str(found.value)

    @pytest.mark.parametrize("settings", [{"views": "d4"}, {"views": "five-crop"}, {"views": "ten-crop", "size": 48}])
    def test_take_what_comes_at_their_own(self, settings: dict[str, object]) -> None:
        try_views(build("test_vit3"), Tta.model_validate(settings))

    def test_networks_of_any_size_take_all(self) -> None:
        try_views(build(), Tta(views="scales", size=48))


@pytest.mark.parametrize("training", [True, False])
def test_a_full_gpu_is_no_view_that_a_network_cannot_take(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller tells of the memory; tta.views would be the wrong thing to change."""
    model = build().train(training)

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", full)
        with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
            try_views(model, Tta(views="d4"))
    assert model.training is training

    def wrong(*arguments: object) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(model, "forward", wrong)
    with pytest.raises(BadInput, match=r"tta\.views: test_efficientnet cannot take .* \(size mismatch\)"):
        try_views(model, Tta(views="d4"))
    assert model.training is training


def probabilities(first: list[float]) -> Floats:
    return np.array([[value, 1 - value] for value in first], dtype=np.float32)


TARGETS = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
GOOD, BAD = [0.7, 0.4, 0.2, 0.3], [0.1, 0.2, 0.9, 0.8]
HELP = [0.8, 0.8, 0.4, 0.3]


def choose(
    views: dict[str, list[float]], metric: str = "log_loss", **settings: object
) -> tuple[tuple[str, ...], list[float]]:
    options = {"how": "mean", "max_views": 8, "min_gain": 1e-6} | settings
    member = np.stack([probabilities(values) for values in views.values()])
    found = choose_views(list(views), [member], TARGETS, task=TASK, metric=get_metric(metric), **options)  # type: ignore[arg-type]
    return found.chosen, [step.gain for step in found.steps if step.gain is not None]


class TestChoice:
    def test_what_helps_is_taken_and_what_harms_is_not(self) -> None:
        chosen, gains = choose({"identity": GOOD, "bad": BAD, "help": HELP})
        assert chosen == ("identity", "help")
        metric = get_metric("log_loss")
        before = score(metric, TASK, TARGETS, probabilities(GOOD))
        after = score(metric, TASK, TARGETS, probabilities([(a + b) / 2 for a, b in zip(GOOD, HELP, strict=True)]))
        assert gains == [pytest.approx(before - after, abs=1e-6)]
        assert gains[0] > 0

    def test_the_best_is_taken_first_and_the_number_is_kept(self) -> None:
        better = [0.9, 0.95, 0.1, 0.1]
        views = {"identity": GOOD, "help": HELP, "better": better}
        member = np.stack([probabilities(values) for values in views.values()])
        metric = get_metric("log_loss")
        options = {"task": TASK, "metric": metric, "how": "mean", "min_gain": 0.0}
        found = choose_views(list(views), [member], TARGETS, max_views=2, **options)  # type: ignore[arg-type]
        assert [step.view for step in found.steps] == ["identity", "better"]
        found = choose_views(list(views), [member], TARGETS, max_views=1, **options)  # type: ignore[arg-type]
        assert found.chosen == ("identity",)

    def test_a_gain_below_the_least_is_none(self) -> None:
        gain = choose({"identity": GOOD, "help": HELP})[1][0]
        assert choose({"identity": GOOD, "help": HELP}, min_gain=gain * 1.01)[0] == ("identity",)
        assert choose({"identity": GOOD, "help": HELP}, min_gain=gain * 0.99)[0] == ("identity", "help")

    def test_a_view_that_changes_nothing_is_not_paid_for(self) -> None:
        assert choose({"identity": GOOD, "same": GOOD})[0] == ("identity",)

    def test_either_direction_of_the_metric(self) -> None:
        assert choose({"identity": GOOD, "bad": BAD, "help": HELP}, "accuracy")[0] == ("identity", "help")

    def test_without_a_score_nothing_is_added(self) -> None:
        one_class = np.array([[1, 0]] * 4, dtype=np.float32)
        member = np.stack([probabilities(GOOD), probabilities(HELP)])
        metric = get_metric("macro_auc")
        options = {"task": TASK, "metric": metric, "how": "mean", "max_views": 2, "min_gain": 0.0}
        found = choose_views(["identity", "help"], [member], one_class, **options)  # type: ignore[arg-type]
        assert found.chosen == ("identity",)
        assert math.isnan(found.steps[0].score)

    def test_seeds_are_averaged(self) -> None:
        seeds = [np.stack([probabilities(GOOD)]), np.stack([probabilities(BAD)])]
        expected = probabilities([(a + b) / 2 for a, b in zip(GOOD, BAD, strict=True)])
        assert combine(seeds, [0], "mean", TASK) == pytest.approx(expected, abs=1e-6)


class TestTable:
    def test_comes_back_in_the_asked_order(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).random((2, 3, 2), dtype=np.float32)
        ViewTable(("x", "y", "z"), ("identity", "flip"), values, TASK.classes).write(tmp_path / "v.parquet", "id")
        frame = pd.read_parquet(tmp_path / "v.parquet").sample(frac=1, random_state=0)
        frame.to_parquet(tmp_path / "v.parquet", index=False)
        back = ViewTable.read(tmp_path / "v.parquet", ("z", "x", "y"), ("flip", "identity"), TASK.classes)
        assert np.array_equal(back.values, values[::-1][:, [2, 0, 1]])

    def test_other_images_views_or_classes_are_refused(self, tmp_path: Path) -> None:
        values = np.full((1, 2, 2), 0.5, dtype=np.float32)
        path = tmp_path / "v.parquet"
        ViewTable(("x", "y"), ("identity",), values, TASK.classes).write(path, "id")
        for ids, views in ((("x",), ("identity",)), (("x", "q"), ("identity",)), (("x", "y"), ("flip",))):
            with pytest.raises(BadInput, match="other images or views"):
                ViewTable.read(path, ids, views, TASK.classes)
        with pytest.raises(BadInput, match="columns"):
            ViewTable.read(path, ("x", "y"), ("identity",), ("a", "c"))
        with pytest.raises(BadInput, match="clashes"):
            ViewTable(("x", "y"), ("identity",), values, TASK.classes).write(path, "view")
