"""Files of every kind become the pixels that were put in, or one clear line."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import tifffile
from PIL import Image, ImageOps

from goldfold.config.schema import Input
from goldfold.errors import BadInput
from goldfold.images import ImageSpec, UnreadableImage, decode, find_unreadable, load, locate, resize

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
SMOOTH = cv2.resize(RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)


def spec(size: int = 8, channels: int = 3, resize: str = "squash", interpolation: str = "area") -> ImageSpec:
    return ImageSpec(size=size, channels=channels, resize=resize, interpolation=interpolation, range="full")


def scaled(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    return np.round((values.astype(np.float64) - low) * 255 / (high - low)).clip(0, 255).astype(np.uint8)


def close(found: npt.NDArray[Any], wanted: npt.NDArray[Any], slack: int = 1) -> bool:
    return found.shape == wanted.shape and int(np.abs(found.astype(int) - wanted.astype(int)).max()) <= slack


def png16(pixels: npt.NDArray[np.uint16], exif: bytes = b"") -> bytes:
    """A 16-bit PNG by hand: neither Pillow nor OpenCV writes all kinds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    extra = chunk(b"eXIf", exif) if exif else b""
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("b.tif", {"compression": "tiff_lzw"}),
        ("c.tif", {"compression": "tiff_deflate"}),
        ("a.webp", {"lossless": True}),
    ],
)
def test_lossless_formats_give_back_the_pixels(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    Image.fromarray(RGB).save(tmp_path / name, **options)
    assert np.array_equal(decode(tmp_path / name, 3), RGB)
    grey = np.array(Image.fromarray(RGB).convert("L"))[..., None]
    assert np.array_equal(decode(tmp_path / name, 1), grey)
    rgba = decode(tmp_path / name, 4)
    assert np.array_equal(rgba[..., :3], RGB)
    assert (rgba[..., 3] == 255).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_lossy_formats_come_close(tmp_path: Path, name: str) -> None:
    Image.fromarray(SMOOTH).save(tmp_path / name, quality=95)
    assert np.abs(decode(tmp_path / name, 3).astype(int) - SMOOTH).mean() < 4


def test_an_uppercase_or_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.PNG", "PNG")
    (tmp_path / "a.PNG").rename(tmp_path / "a.jpg")
    assert np.array_equal(decode(tmp_path / "a.jpg", 3), RGB)


def test_gif_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (decode(tmp_path / "a.gif", 3) == [255, 0, 0]).all()


def test_one_bit_and_grey(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    Image.fromarray(grey > 127).save(tmp_path / "bits.png")
    assert np.array_equal(decode(tmp_path / "bits.png", 1)[..., 0], np.where(grey > 127, 255, 0))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(decode(tmp_path / "grey.png", 3), np.repeat(grey[..., None], 3, axis=2))


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "plain.png")
    assert (decode(tmp_path / "plain.png", 3)[1] == [10, 200, 30]).all()
    image.save(tmp_path / "clear.png", transparency=bytes([0, 128]))
    clear = decode(tmp_path / "clear.png", 4)
    assert (clear[1] == [10, 200, 30, 128]).all()
    assert clear[0, 0, 3] == 0
    assert (decode(tmp_path / "clear.png", 3)[1] == [10, 200, 30]).all()


def test_alpha(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, RGB[..., 0]])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert np.array_equal(decode(tmp_path / "rgba.png", 4), rgba)
    assert np.array_equal(decode(tmp_path / "rgba.png", 3), RGB)
    la = RGB[..., :2].copy()
    Image.fromarray(la).save(tmp_path / "la.png")
    assert np.array_equal(decode(tmp_path / "la.png", 4), la[..., [0, 0, 0, 1]])
    assert np.array_equal(decode(tmp_path / "la.png", 1), la[..., :1])


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert close(decode(tmp_path / "a.jpg", 3), np.full((16, 16, 3), [255, 0, 0]), 6)
    assert close(decode(tmp_path / "a.jpg", 1), np.full((16, 16, 1), 76), 6)


def test_16_bit_grey(tmp_path: Path) -> None:
    grey = RGB16[..., 0] // 16  # 12 bits, as many sensors give
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    tifffile.imwrite(tmp_path / "a.tif", grey)
    tifffile.imwrite(tmp_path / "b.tif", grey, byteorder=">")
    for name in ("a.png", "a.tif", "b.tif"):
        assert close(decode(tmp_path / name, 1), scaled(grey, 0, 65535)[..., None]), name
        assert close(decode(tmp_path / name, 3, "image"), scaled(grey, grey.min(), grey.max())[..., None].repeat(3, 2))


@pytest.mark.parametrize("kind", ["png", "contiguous", "tiled", "strips"])
def test_16_bit_rgb_keeps_its_range(tmp_path: Path, kind: str) -> None:
    # All values within a 256th of the range: read as 8 bits, "image" would see two grey levels.
    narrow = (RGB16 // 256 + 20000).astype(np.uint16)
    path = tmp_path / "a"
    if kind == "png":
        path.write_bytes(png16(narrow))
    else:
        options: dict[str, Any] = {"contiguous": {}, "tiled": {"tile": (16, 16)}, "strips": {"rowsperstrip": 3}}[kind]
        tifffile.imwrite(path, narrow, photometric="rgb", compression="zlib", **options)
    assert close(decode(path, 3, "image"), scaled(narrow, narrow.min(), narrow.max()))
    assert close(decode(path, 3), scaled(narrow, 0, 65535))
    assert len(np.unique(decode(path, 1, "image"))) > 100


@pytest.mark.parametrize("bigtiff", [False, True])
def test_planes_are_read_right_or_refused(tmp_path: Path, bigtiff: bool) -> None:
    planes = np.moveaxis(RGB16, -1, 0).copy()
    options: dict[str, Any] = {"photometric": "rgb", "planarconfig": "separate", "bigtiff": bigtiff}
    tifffile.imwrite(tmp_path / "8.tif", (planes >> 8).astype(np.uint8), **options)
    assert np.array_equal(decode(tmp_path / "8.tif", 3), RGB16 >> 8)
    for name, values in (("16.tif", planes), ("float.tif", (planes / 65535).astype(np.float32))):
        tifffile.imwrite(tmp_path / name, values, **options)
        with pytest.raises(UnreadableImage, match="plane a channel; save it with interleaved"):
            decode(tmp_path / name, 3)


def test_white_is_zero_is_turned_at_every_depth(tmp_path: Path) -> None:
    grey = RGB16[..., 0]
    for name, values in (("8.tif", (grey >> 8).astype(np.uint8)), ("16.tif", grey)):
        tifffile.imwrite(tmp_path / name, values, photometric="miniswhite")
        assert close(decode(tmp_path / name, 1)[..., 0], 255 - (grey >> 8)), name


def test_16_bit_alpha_is_scaled_by_its_type(tmp_path: Path) -> None:
    rgba = np.dstack([RGB16 // 256, np.full((20, 30), 32768, dtype=np.uint16)])
    (tmp_path / "a.png").write_bytes(png16(rgba))
    found = decode(tmp_path / "a.png", 4, "image")
    assert found[..., :3].max() == 255
    assert (found[..., 3] == 128).all()
    la = RGB16[..., :2]
    (tmp_path / "la.png").write_bytes(png16(la))
    assert close(decode(tmp_path / "la.png", 4), scaled(la, 0, 65535)[..., [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("int16", -32768, 32767), ("uint32", 0, 2**32 - 1), ("int32", -(2**31), 2**31 - 1)],
)
def test_wide_integers_are_scaled_by_their_own_type(tmp_path: Path, dtype: str, low: int, high: int) -> None:
    values = np.linspace(low, high, 600).astype(dtype).reshape(20, 30)
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert close(decode(tmp_path / "a.tif", 1), scaled(values, low, high)[..., None])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_pixels(tmp_path: Path, dtype: str) -> None:
    values = (RGB16 / 65535).astype(dtype)
    tifffile.imwrite(tmp_path / "rgb.tif", values, photometric="rgb")
    assert close(decode(tmp_path / "rgb.tif", 3), scaled(values, 0, 1))
    grey = values[..., 0].copy()
    grey[0, 0], grey[0, 1], grey[0, 2] = np.nan, np.inf, 1.01
    tifffile.imwrite(tmp_path / "grey.tif", grey)
    found = decode(tmp_path / "grey.tif", 1)[..., 0]
    assert found[0, :3].tolist() == [0, 255, 255]
    assert close(found[1:], scaled(grey[1:], 0, 1))
    tifffile.imwrite(tmp_path / "big.tif", (values[..., 0] * 3000 - 1000).astype(dtype))
    assert close(
        decode(tmp_path / "big.tif", 1, "image")[..., 0],
        scaled(values[..., 0], values[..., 0].min(), values[..., 0].max()),
    )
    with pytest.raises(UnreadableImage, match=r"not in 0\.\.1; set input.range=image"):
        decode(tmp_path / "big.tif", 1)


def test_range_image_leaves_8_bits_alone_and_a_flat_image_black(tmp_path: Path) -> None:
    Image.fromarray(RGB // 4).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", 3, "image"), RGB // 4)
    tifffile.imwrite(tmp_path / "flat.tif", np.full((4, 4), 900, dtype=np.uint16))
    assert (decode(tmp_path / "flat.tif", 1, "image") == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png", "a.tif"):
        Image.fromarray(SMOOTH).save(tmp_path / name, exif=exif, **({"quality": 95} if name == "a.jpg" else {}))
        with Image.open(tmp_path / name) as image:
            wanted = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        assert (wanted.shape[:2] == (160, 120)) == (orientation >= 5)
        assert np.array_equal(decode(tmp_path / name, 3), wanted), name
        eight_bit = wanted
    # What OpenCV reads must turn alike: PNG by its EXIF chunk, TIFF by its tag, and neither twice.
    deep = SMOOTH.astype(np.uint16) * 257
    (tmp_path / "deep.png").write_bytes(png16(deep, exif.tobytes().removeprefix(b"Exif\0\0")))
    (tmp_path / "grey.png").write_bytes(png16(deep[..., 0], exif.tobytes().removeprefix(b"Exif\0\0")))
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb", extratags=[(0x0112, "H", 1, orientation, True)])
    assert np.array_equal(decode(tmp_path / "deep.png", 3), eight_bit)
    assert np.array_equal(decode(tmp_path / "grey.png", 1)[..., 0], eight_bit[..., 0])
    assert np.array_equal(decode(tmp_path / "deep.tif", 3), eight_bit)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
        ("GIF", {}),
    ],
)
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    whole = io.BytesIO()
    Image.fromarray(SMOOTH).save(whole, kind, **options)
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "cut").write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
        with pytest.raises(UnreadableImage, match="cut: not a readable image"):
            decode(tmp_path / "cut", 3)


def test_truncated_deep_files_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "rgb.tif", RGB16, photometric="rgb")
    tifffile.imwrite(tmp_path / "float.tif", (RGB16 / 65535).astype(np.float32), photometric="rgb")
    (tmp_path / "a.png").write_bytes(png16(RGB16))
    for name in ("rgb.tif", "float.tif", "a.png"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
        with pytest.raises(UnreadableImage):
            decode(tmp_path / name, 3)


def test_what_is_no_image_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("<html>not found</html>")
    (tmp_path / "folder.png").mkdir()
    cases = {"empty.png": "is empty", "text.png": "neither Pillow", "folder.png": "a folder", "none.png": "not exist"}
    for name, words in cases.items():
        with pytest.raises(UnreadableImage, match=words) as caught:
            decode(tmp_path / name, 3)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "0x" not in str(caught.value)
    with pytest.raises(UnreadableImage, match="cannot be read"):
        decode(tmp_path / "a\0b.png", 3)
    Image.fromarray(SMOOTH).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="million pixels, which is not safe"):
        decode(tmp_path / "bomb.png", 3)


def test_broken_exif_does_not_lose_the_image(tmp_path: Path) -> None:
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(tmp_path / "a.jpg", 3).shape == SMOOTH.shape


def test_spec_of_the_input_section() -> None:
    assert ImageSpec.from_config(Input(size=64)).shape == (64, 64, 3)
    assert ImageSpec.from_config(Input(size=64, cache_size=80, channels=1)).shape == (80, 80, 1)
    assert hash(ImageSpec.from_config(Input())) == hash(ImageSpec.from_config(Input()))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("how", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("interpolation", ["area", "linear", "cubic", "lanczos"])
def test_resize_always_makes_the_square(channels: int, how: str, interpolation: str) -> None:
    for height, width in ((8, 8), (5, 3), (40, 60), (4, 60), (1, 1), (1, 500)):
        image = np.full((height, width, channels), 100, dtype=np.uint8)
        found = resize(image, spec(8, channels, how, interpolation))
        assert found.shape == (8, 8, channels)
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        assert set(np.unique(found)) <= ({0, 100} if how == "letterbox" else {100})


def test_squash_letterbox_and_crop_differ_as_they_say() -> None:
    image = np.zeros((20, 40, 1), dtype=np.uint8)
    image[:, :10], image[:, 10:30], image[:, 30:] = 50, 100, 200
    assert resize(image, spec(8, 1))[0, :, 0].tolist() == [50, 50, 100, 100, 100, 100, 200, 200]
    boxed = resize(image, spec(8, 1, "letterbox"))[..., 0]
    assert boxed[:, 0].tolist() == [0, 0, 50, 50, 50, 50, 0, 0]
    assert (resize(image, spec(8, 1, "crop")) == 100).all()
    assert (resize(image.transpose(1, 0, 2), spec(8, 1, "crop")) == 100).all()


def test_area_averages_where_it_shrinks_and_is_linear_where_it_grows() -> None:
    stripes = np.zeros((4, 64, 1), dtype=np.uint8)
    stripes[:, ::2] = 200
    # 64 wide to 16 and 4 high to 16: plain linear would alias the stripes to 0 or 200.
    assert (resize(stripes, spec(16, 1)) == 100).all()
    ramp = np.array([[0, 100]], dtype=np.uint8)[..., None]
    assert resize(ramp, spec(4, 1))[0, :, 0].tolist() == [0, 25, 75, 100]


def test_load_is_decode_and_resize(tmp_path: Path) -> None:
    Image.fromarray(SMOOTH).save(tmp_path / "a.png")
    assert np.array_equal(load(tmp_path / "a.png", spec(32)), resize(SMOOTH, spec(32)))


FRAME = pd.DataFrame({"id": ["1", "22"], "class": ["cat", "dog"], "file name": ["a/b.png", "c.d.png"]})


def test_locate_fills_the_pattern() -> None:
    root = Path("/project")
    assert locate("d/{class}/{id:0>5}.png", FRAME, root, "w") == [
        root / "d/cat/00001.png",
        root / "d/dog/00022.png",
    ]
    assert locate("{file name}", FRAME, root, "w") == [root / "a/b.png", root / "c.d.png"]
    assert locate("/data/x_{id}.png", FRAME, root, "w") == [Path("/data/x_1.png"), Path("/data/x_22.png")]
    assert locate("../x/{id}", FRAME, root, "w") == [root / "../x/1", root / "../x/22"]
    assert locate("d/{id}", FRAME.iloc[:0], root, "w") == []


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("d/{name}.png", "unknown column 'name'; the columns are id, class, file name"),
        ("d/{id.__class__}.png", "unknown column 'id.__class__'"),
        ("d/{}.png", "unknown column ''"),
        ("d/a.png", "names no column"),
        ("d/{id", "not understood"),
        ("d/{id!r}", "not understood"),
        ("d/{id:05d}", "not understood"),
    ],
)
def test_locate_refuses_a_wrong_pattern(pattern: str, words: str) -> None:
    with pytest.raises(BadInput, match="image_path: ") as caught:
        locate(pattern, FRAME, Path("/project"), "image_path")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ("d/images/{v}", "../secret"),
        ("d/images/{v}.png", "a/../../b"),
        ("d/images/{v}", ".."),
        ("d/images/{v}", "/etc/passwd"),
        ("d/images/i{v}", "/../../x"),
        ("{v}", "/etc/passwd"),
        ("{v}", "../x"),
        ("../{v}", "../x"),
        ("/d/{v}", "../etc/passwd"),
    ],
)
def test_locate_refuses_a_value_that_leads_out(pattern: str, value: str) -> None:
    frame = pd.DataFrame({"v": ["fine", value]})
    with pytest.raises(BadInput) as caught:
        locate(pattern, frame, Path("/project"), "train.csv")
    assert f"row 1 (v={value})" in str(caught.value)


def test_locate_lets_harmless_dots_pass_and_refuses_missing_values() -> None:
    frame = pd.DataFrame({"v": ["a..b.png", "sub/../c.png", "sub/d.png", ".hidden"]})
    assert len(locate("d/{v}", frame, Path("/project"), "w")) == 4
    with pytest.raises(BadInput, match="row 1 has no value"):
        locate("d/{v}", pd.DataFrame({"v": ["a", None]}), Path("/project"), "w")


def test_locate_takes_a_hundred_thousand_rows() -> None:
    frame = pd.DataFrame({"id": [f"{row:06d}" for row in range(100_000)]})
    found = locate("d/images/{id}.png", frame, Path("/project"), "w")
    assert (len(found), found[-1]) == (100_000, Path("/project/d/images/099999.png"))


def test_find_unreadable_names_all_that_fail_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for path in paths:
        Image.fromarray(RGB).save(path)
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    paths[33].unlink()
    ids = [f"id{number}" for number in range(40)]
    for workers in (1, 3, None):
        found = find_unreadable(paths, ids, spec(), workers)
        assert [name for name, _ in found] == ["id3", "id33"]
        assert "3.png" in found[0][1]
        assert "not exist" in found[1][1]
    good = [path for path in paths if path.exists() and path != paths[3]]
    assert find_unreadable(good, [str(path) for path in good], spec(), 2) == []


def test_decoded_arrays_are_the_callers_own(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for channels, how in itertools.product((1, 3, 4), ("squash", "crop")):
        pixels = load(tmp_path / "a.png", spec(20, channels, how))
        pixels[:] = 0
