"""What the network sees: colour spaces as OpenCV has them, Ben Graham's formula."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from goldfold.config.schema import Input
from goldfold.errors import BadInput
from goldfold.images.colour import COLOURS, LOCAL_MEANS, LOCAL_SIGMA, PLAIN, InputColours, local_contrast

Pixels = npt.NDArray[np.uint8]
SPACES = {
    "hls": (cv2.COLOR_RGB2HLS_FULL, cv2.COLOR_HLS2RGB_FULL),
    "hsv": (cv2.COLOR_RGB2HSV_FULL, cv2.COLOR_HSV2RGB_FULL),
    "luv": (cv2.COLOR_RGB2LUV, cv2.COLOR_LUV2RGB),
    "xyz": (cv2.COLOR_RGB2XYZ, cv2.COLOR_XYZ2RGB),
    "ycrcb": (cv2.COLOR_RGB2YCrCb, cv2.COLOR_YCrCb2RGB),
    "lab": (cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB),
    "yuv": (cv2.COLOR_RGB2YUV, cv2.COLOR_YUV2RGB),
}


def photos(n: int = 4, size: int = 48) -> Pixels:
    small = np.random.default_rng(3).integers(30, 226, (n, 6, 6, 3), dtype=np.uint8)
    return np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in small])


def test_every_word_of_the_schema_is_known() -> None:
    for colour in COLOURS:
        for local_mean in LOCAL_MEANS:
            if colour == "rgb" or local_mean != "hsv_blur":
                found = InputColours.from_config(Input(colour=colour, local_mean=local_mean))  # type: ignore[arg-type]
                assert found == InputColours(colour, local_mean)
    assert set(COLOURS) == {"rgb", *SPACES}


def test_plain_is_the_same_array() -> None:
    images = photos()
    assert PLAIN(images) is images
    assert InputColours.from_config(Input())(images) is images
    assert PLAIN.plain
    assert not InputColours("hsv").plain


@pytest.mark.parametrize("space", list(SPACES))
def test_spaces_are_opencvs_and_lead_back(space: str) -> None:
    images = photos()
    before = images.copy()
    found = InputColours(space)(images)
    there, back = SPACES[space]
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.stack([cv2.cvtColor(image, there) for image in images]))
    assert np.array_equal(images, before)
    again = np.stack([cv2.cvtColor(image, back) for image in found]).astype(int)
    assert np.abs(again - images).mean() < 2
    assert np.abs(found.astype(int) - images).mean() > 5


def test_hue_spans_the_whole_range() -> None:
    # 330 degrees: 234 of 255, which plain HSV would give as 165 of 179.
    pink = np.broadcast_to(np.array([200, 0, 100], dtype=np.uint8), (1, 4, 4, 3))
    assert InputColours("hsv")(pink)[0, 0, 0, 0] == pytest.approx(330 / 360 * 256, abs=2)
    assert InputColours("hls")(pink)[0, 0, 0, 0] == pytest.approx(330 / 360 * 256, abs=2)


def test_subtract_is_grahams_formula() -> None:
    images = photos()
    found = InputColours("rgb", "subtract")(images)
    for image, one in zip(images, found, strict=True):
        blurred = cv2.GaussianBlur(image, (0, 0), len(image) / 60).astype(int)
        assert np.array_equal(one, np.clip(4 * image.astype(int) - 4 * blurred + 128, 0, 255))
    flat = np.full((1, 32, 32, 3), 90, dtype=np.uint8)
    assert (InputColours("rgb", "subtract")(flat) == 128).all()


def test_the_blur_grows_with_the_image() -> None:
    step = np.zeros((120, 120, 3), dtype=np.uint8)
    step[:, 60:] = 200
    wide, half = local_contrast(step, "subtract"), local_contrast(step[30:90, 30:90], "subtract")
    assert np.count_nonzero(wide[60, :, 0] != 128) == pytest.approx(2 * np.count_nonzero(half[30, :, 0] != 128), abs=4)
    assert pytest.approx(1 / 60) == LOCAL_SIGMA


def test_the_local_mean_goes_before_the_colour_space() -> None:
    images = photos()
    found = InputColours("lab", "subtract")(images)
    assert np.array_equal(found, InputColours("lab")(InputColours("rgb", "subtract")(images)))
    assert not np.array_equal(found, InputColours("rgb", "subtract")(InputColours("lab")(images)))


class TestHsvBlur:
    def test_smooths_and_keeps_flat_colours(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (1, 90, 90, 3), dtype=np.uint8)
        assert InputColours("rgb", "hsv_blur")(noise).std() < noise.std() * 0.8
        for colour in ([200, 40, 40], [10, 250, 90], [128, 128, 128], [0, 0, 0], [255, 255, 255]):
            flat = np.broadcast_to(np.array(colour, dtype=np.uint8), (1, 60, 60, 3))
            assert np.abs(InputColours("rgb", "hsv_blur")(flat).astype(int) - flat).max() <= 1

    def test_value_is_blurred(self) -> None:
        grey = np.repeat(photos(1, 120)[..., :1], 3, axis=3)
        blurred = cv2.GaussianBlur(grey[0].astype(np.float32), (0, 0), 2)
        assert np.abs(InputColours("rgb", "hsv_blur")(grey)[0] - blurred).max() <= 1

    def test_two_reds_do_not_make_cyan(self) -> None:
        # Hues of 350 and 10 degrees: their mean as numbers is 180, as angles 0.
        stripes = np.zeros((1, 120, 120, 3), dtype=np.uint8)
        stripes[:, :, ::2], stripes[:, :, 1::2] = (200, 0, 33), (200, 33, 0)
        found = InputColours("rgb", "hsv_blur")(stripes)[0, 60, 60].astype(int)
        assert found[0] > 150
        assert found[1] < 60
        assert found[2] < 60


def test_batches_do_not_matter() -> None:
    images = photos(5, 33)
    for colours in (InputColours("luv", "subtract"), InputColours("rgb", "hsv_blur")):
        whole = colours(images)
        assert np.array_equal(whole, np.concatenate([colours(images[k : k + 1]) for k in range(5)]))
        assert colours(images[:0]).shape == (0, 33, 33, 3)
        assert whole.flags.c_contiguous
        assert np.array_equal(colours(images[:, ::-1]), colours(np.ascontiguousarray(images[:, ::-1])))


def test_bad_input() -> None:
    with pytest.raises(BadInput, match=r"^input.colour: 'lsd' is unknown; choose one of rgb, hls,"):
        InputColours("lsd")
    with pytest.raises(BadInput, match=r"^input.local_mean: "):
        InputColours("rgb", "median")
    with pytest.raises(BadInput, match=r"input\.channels to 3"):
        InputColours("lab")(photos()[..., :1])
