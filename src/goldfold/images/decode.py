"""From an image file to a square uint8 array, and from a CSV row to its file."""

from __future__ import annotations

import io
import posixpath
import string
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from goldfold.config.schema import Input
from goldfold.cores import logical_cores
from goldfold.errors import BadInput, some
from goldfold.progress import progress

# OpenCV's own threads would fight with ours for the cores; what it cannot read is reported in our words.
cv2.setNumThreads(0)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")
R = TypeVar("R")

_FILTERS = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_SAMPLES_PER_PIXEL = 277
_PLANAR_CONFIGURATION = 284
_FLOAT_SLACK = 0.5
"""How far float pixels may overshoot 0..1 (resampling does that) before they are taken to be in another unit."""


class UnreadableImage(BadInput):
    """An image file that cannot be decoded. ``path`` and ``reason`` are kept for reports on many files."""

    def __init__(self, path: Path, reason: str, mend: str = "replace the file or take its row out of the CSV") -> None:
        super().__init__(path, reason, mend)
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class ImageSpec:
    """How files become arrays (size, size, channels); the words are those of the ``input`` section."""

    size: int
    channels: int
    resize: str
    interpolation: str
    range: str

    @classmethod
    def from_config(cls, input: Input) -> ImageSpec:
        """The arrays that are stored: of side ``cache_size`` where that is set, else ``size``."""
        return cls(
            size=input.cache_size or input.size,
            channels=input.channels,
            resize=input.resize,
            interpolation=input.interpolation,
            range=input.range,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, self.channels)


def load(path: Path, spec: ImageSpec) -> Pixels:
    """The image as (S, S, C) uint8. Raises UnreadableImage."""
    return resize(decode(path, spec.channels, spec.range), spec)


def decode(path: Path, channels: int, range: str = "full") -> Pixels:
    """The image as (H, W, C) uint8, upright (EXIF orientation applied); the first frame where there are several.

    ``channels``: 1 luminance (ITU-R 601), 3 RGB (alpha is dropped), 4 RGBA (alpha 255 where the file has none).
    Pixels of more than 8 bits are scaled to 0..255: ``range="full"`` maps the whole range of their type (floats: 0..1),
    ``"image"`` maps the image's own smallest and largest value. 8-bit pixels stay as they are.

    Raises UnreadableImage for a missing, empty, truncated or unknown file, for one of more pixels than Pillow deems
    safe, and for float pixels far outside 0..1 where ``range`` is ``"full"``.
    """
    return decode_ways(path, [(channels, range)])[0]


def load_specs(path: Path, specs: Sequence[ImageSpec]) -> list[Pixels]:
    """``load`` for several specs of one image, whose file is read and decoded once. Raises UnreadableImage."""
    ways = list(dict.fromkeys((spec.channels, spec.range) for spec in specs))
    decoded = dict(zip(ways, decode_ways(path, ways), strict=True))
    return [resize(decoded[spec.channels, spec.range], spec) for spec in specs]


def decode_ways(path: Path, ways: Sequence[tuple[int, str]]) -> list[Pixels]:
    """``decode`` for several pairs of channels and range: the file is read and decoded once."""
    data = _read(path)
    try:
        pixels = _pixels(data, {channels for channels, _ in ways})
        return [_with_channels(_to_bytes(pixels[channels], range, path), channels) for channels, range in ways]
    except UnreadableImage:
        raise
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        what = f"has more than {limit / 1e6:.0f} million pixels, which is not safe to decode"
        raise UnreadableImage(path, what, "make the image smaller") from None
    except Exception as error:  # decoders raise a dozen kinds of errors on broken files
        raise UnreadableImage(path, f"not a readable image ({error})") from error


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImage(path, "the image does not exist", "check competition.image_path") from None
    except IsADirectoryError:
        raise UnreadableImage(path, "is a folder, not an image", "check competition.image_path") from None
    except (OSError, ValueError) as error:
        raise UnreadableImage(path, f"the file cannot be read ({error})") from error
    if not data:
        raise UnreadableImage(path, "the file is empty")
    return data


def _pixels(data: bytes, channels: Collection[int]) -> dict[int, npt.NDArray[Any]]:
    """By each number of channels (H, W) or (H, W, 3 or 4) in RGB order, of the file's own depth."""
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        return dict.fromkeys(channels, _by_opencv(data))  # such as float RGB TIFF
    with image:
        image.load()  # also where OpenCV reads the pixels: Pillow refuses truncated files for certain
        if _pillow_loses_depth(image, data):
            pixels = dict.fromkeys(channels, _by_opencv(data))
        else:
            pixels = {count: _by_pillow(image, count) for count in channels}
        # Read after load(): Pillow and OpenCV both turn a TIFF upright themselves, and Pillow then drops the tag.
        turn = _orientation(image)
        return {count: _upright(found, turn) for count, found in pixels.items()}


def _pillow_loses_depth(image: Image.Image, data: bytes) -> bool:
    # Seen with Pillow 13: 16-bit RGB, RGBA and LA become 8-bit, and 16- and 32-bit integers all become mode I.
    if image.mode == "F" or image.mode.startswith("I;16"):
        return False
    if image.mode == "I":
        return True
    if image.format == "PNG":
        return data[24] > 8
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    return False


def _by_pillow(image: Image.Image, channels: int) -> npt.NDArray[Any]:
    mode = image.mode
    if mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)
        white_is_zero = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC, 1) == 0
        return 65535 - pixels if white_is_zero else pixels  # Pillow inverts 8-bit pixels itself
    if mode == "F":
        return np.array(image)
    if mode in ("PA", "RGBa") or (mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
    elif mode == "La":
        image = image.convert("LA")
    elif mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image = image.convert("RGB")  # CMYK, YCbCr, HSV, LAB
    wanted = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    # Without a copy where Pillow already has what is wanted: an eighth of a JPEG's time.
    return np.asarray(image if image.mode == wanted else image.convert(wanted))


def _by_opencv(data: bytes) -> npt.NDArray[Any]:
    if _in_planes(data):
        # Seen with OpenCV 5.0: it mixes the planes up without a word.
        raise ValueError("a deep TIFF with a plane a channel; save it with interleaved channels or 8 bits")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise ValueError("a format, depth or compression that neither Pillow nor OpenCV reads, or a broken file")
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return pixels


def _in_planes(data: bytes) -> bool:
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return False
    head = 16 if b"+" in data[:4] else 8
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:head])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return bool(tags.get(_PLANAR_CONFIGURATION, 1) == 2 and tags.get(_SAMPLES_PER_PIXEL, 1) > 1)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF data does not make the pixels unreadable
        return 1


def _upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Undo the eight EXIF orientations (Exif 2.3, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _to_bytes(pixels: npt.NDArray[Any], range: str, path: Path) -> Pixels:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        # Alpha is a share of its type's range, whatever the colours' range.
        colours, alpha = pixels[..., :3], pixels[..., 3:]
        return np.concatenate([_to_bytes(colours, range, path), _to_bytes(alpha, "full", path)], axis=2)
    # Differences of large integers need float64.
    values: npt.NDArray[np.floating[Any]] = pixels.astype(np.float32 if pixels.dtype.itemsize <= 2 else np.float64)
    finite = values[np.isfinite(values)] if pixels.dtype.kind == "f" else values
    if not finite.size:
        raise UnreadableImage(path, "every pixel is NaN or infinite")
    smallest, largest = float(finite.min()), float(finite.max())
    if range == "image":
        low, high = smallest, largest
    elif pixels.dtype.kind == "f":
        low, high = 0.0, 1.0
        if smallest < -_FLOAT_SLACK or largest > 1 + _FLOAT_SLACK:
            what = f"float pixels lie in {smallest:g}..{largest:g}, not in 0..1"
            raise UnreadableImage(path, what, "set input.range=image")
    else:
        limits = np.iinfo(pixels.dtype)
        low, high = float(limits.min), float(limits.max)
    if finite is not values:
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return np.clip(scaled + 0.5, 0, 255).astype(np.uint8)


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    found = pixels.shape[2]
    pixels = np.ascontiguousarray(pixels)
    if found == channels:
        return pixels
    if found not in (1, 3, 4):
        raise ValueError(f"{found} channels")
    if channels == 1:
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY if found == 3 else cv2.COLOR_RGBA2GRAY)[..., None]
    if found == 1:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if channels == 3 else cv2.COLOR_GRAY2RGBA)
    return cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB if channels == 3 else cv2.COLOR_RGB2RGBA)


def resize(image: Pixels, spec: ImageSpec) -> Pixels:
    """(H, W, C) uint8 to (S, S, C).

    ``squash`` ignores the aspect, ``letterbox`` keeps it and fills the rest with zeros (black; in RGBA transparent),
    ``crop`` keeps the central square. ``area`` averages where a side shrinks and is linear where it grows.
    """
    height, width = image.shape[:2]
    size = spec.size
    if spec.resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _scale(image[top : top + side, left : left + side], size, size, spec.interpolation)
    if spec.resize == "letterbox":
        longest = max(height, width)
        inner = _scale(
            image, max(round(height * size / longest), 1), max(round(width * size / longest), 1), spec.interpolation
        )
        top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
        boxed = np.zeros((size, size, image.shape[2]), dtype=np.uint8)
        boxed[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return boxed
    return _scale(image, size, size, spec.interpolation)


def _scale(image: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    channels = image.shape[2]
    if interpolation == "area" and (height > image.shape[0] or width > image.shape[1]):
        # OpenCV's area filter is made for shrinking: shrink what shrinks first, then enlarge.
        smaller = (min(width, image.shape[1]), min(height, image.shape[0]))
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA).reshape(smaller[1], smaller[0], channels)
        interpolation = "linear"
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=_FILTERS[interpolation])
    # OpenCV drops an axis of length 1.
    return np.ascontiguousarray(image).reshape(height, width, channels)


def locate(pattern: str, frame: pd.DataFrame, root: Path, where: object) -> list[Path]:
    """The file of each row: ``pattern``, such as ``data/x/images/{id}.png``, filled with the row's columns.

    Relative patterns start at ``root``; format specifications such as ``{id:0>5}`` work on the text. Files are not
    looked at. Raises BadInput when the pattern names no or an unknown column, and when a value leads out of the folder
    that the pattern's fixed beginning names, so that no CSV reads files elsewhere.
    """
    literals, columns, formats = _parse(pattern, where)
    unknown = [name for name in columns if name not in frame.columns]
    if unknown or not columns:
        what = f"names the unknown column '{unknown[0]}'" if unknown else "names no column"
        raise BadInput(where, f"the image pattern '{pattern}' {what}", f"the columns are {some(frame.columns, 20)}")
    empty = frame[columns].isna().any(axis=1).to_numpy()
    if empty.any():
        raise BadInput(where, f"row {int(empty.argmax())} has no value for the image pattern '{pattern}'")

    parts: list[Sequence[str] | repeat[str]] = [repeat(literals[0])]
    for name, form, literal in zip(columns, formats, literals[1:], strict=True):
        column = frame[name].astype(str).tolist()
        parts += [[format(value, form) for value in column] if form else column, repeat(literal)]
    # strict is not for zip() with endless parts; the columns are of one frame and so of one length.
    texts = ["".join(pieces) for pieces in zip(*parts, strict=False)]

    fixed = literals[0]
    folder = posixpath.normpath(posixpath.dirname(fixed) or ".")
    at_boundary = not fixed or fixed.endswith("/")
    for row, text in enumerate(texts):
        absolute = at_boundary and text.startswith("/", len(fixed))
        # Only text with '..' can climb out; the rest, nearly always all of it, is not looked at twice.
        if absolute or (text.find("..", len(fixed)) >= 0 and not _inside(text, folder)):
            values = ", ".join(f"{name}={frame[name].iloc[row]}" for name in columns)
            what = f"row {row} ({values}) leads out of the image folder '{folder}'"
            raise BadInput(where, what, "its values may not hold '..' or begin with '/'")
    start = f"{str(root).rstrip('/')}/"  # one parse a path: joining parses twice
    return [Path(text if text.startswith("/") else start + text) for text in texts]


def _parse(pattern: str, where: object) -> tuple[list[str], list[str], list[str]]:
    """Literals (one more than columns), column names, format specifications."""
    literals, columns, formats = [""], [], []
    try:
        for literal, column, form, conversion in string.Formatter().parse(pattern):
            literals[-1] += literal
            if column is not None:
                if conversion or "{" in (form or ""):
                    raise ValueError("only {column} and {column:format} are known")
                format("", form or "")
                columns.append(column)
                formats.append(form or "")
                literals.append("")
    except ValueError as error:
        raise BadInput(where, f"the image pattern '{pattern}' is not understood ({error})") from None
    return literals, columns, formats


def _inside(text: str, folder: str) -> bool:
    relative = posixpath.relpath(text, folder)
    return relative != ".." and not relative.startswith("../")


def find_unreadable(
    paths: Sequence[Path], ids: Sequence[str], spec: ImageSpec, workers: int | None
) -> list[tuple[str, str]]:
    """Decode every file, in threads; (id, reason) of each that fails, in order. ``workers`` None: one a core."""

    def attempt(path: Path) -> str | None:
        try:
            decode(path, spec.channels, spec.range)
        except UnreadableImage as error:
            return str(error)
        return None

    reasons = in_threads(attempt, paths, workers, "decoding images")
    return [(name, reason) for name, reason in zip(ids, reasons, strict=True) if reason is not None]


def in_threads(work: Callable[[T], R], items: Sequence[T], workers: int | None, what: str) -> list[R]:
    """``work`` on every item, in threads and with progress; results in the items' order. ``workers`` None: one a core.

    Decoders, hashing and file access let go of Python's lock, so threads use all cores.
    """

    def some_of_them(start: int) -> list[R]:
        return [work(item) for item in items[start : start + chunk]]

    chunk = 16  # a future an item would cost more than small images do
    threads = workers or logical_cores()
    pool = ThreadPoolExecutor(threads)
    try:
        done = chain.from_iterable(pool.map(some_of_them, range(0, len(items), chunk)))
        return list(progress(done, what, len(items), "images"))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
