"""The canary's competition on disk: decoded once at a small size, planted with twins, labels shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from goldfold import files
from goldfold.canary.plant import FILLERS, Planting, twin_pixels
from goldfold.canary.settings import FOLD
from goldfold.config.schema import Competition
from goldfold.images import ImageSpec, load
from goldfold.images.decode import in_threads
from goldfold.pipeline.competition import CompetitionData
from goldfold.pipeline.external import load_unlabelled
from goldfold.records import Ints
from goldfold.seeds import derive_seed

Pixels = npt.NDArray[np.uint8]


def build(
    folder: Path,
    planting: Planting,
    data: CompetitionData,
    settings: Competition,
    spec: ImageSpec,
    root: Path,
    seed: int,
) -> dict[str, int]:
    """Write ``folder/data``: train.csv with shuffled labels and the folds, test.csv, unlabelled.csv where ``settings`` (the
    pipeline's competition) have such images, and their images as PNG of ``spec.size``; returns the number of images of each table.

    Twins stand in both pools, each drawn anew. Columns of the tables are kept (groups and ids apart), a twin has its
    original's. Raises UnreadableImage.
    """
    rng = np.random.default_rng(derive_seed(seed, 0x7817))
    images = folder / "data" / "images"
    images.mkdir(parents=True, exist_ok=True)
    id_column = settings.id
    sources = np.unique(planting.pixels)
    decoded = dict(zip(sources.tolist(), _decode([data.train_paths[row] for row in sources], spec), strict=True))

    train = data.train.iloc[planting.pixels].reset_index(drop=True)
    labels = data.train.iloc[planting.labels].reset_index(drop=True)
    train[data.target_columns] = labels[data.target_columns]
    train[id_column] = planting.ids
    train[FOLD] = planting.fold
    for place, (name, row) in enumerate(zip(planting.ids, planting.pixels.tolist(), strict=True)):
        pixels = decoded[row]
        _save(images / f"{name}.png", pixels if planting.original[place] else twin_pixels(pixels, rng))
    order = rng.permutation(len(train))
    files.write_csv(folder / "data" / "train.csv", train.iloc[order])
    counts = {"train": len(train)}

    pools = [("test", "p", _test_pool(data)), ("unlabelled", "u", _unlabelled_pool(data, settings, root))]
    originals = planting.pixels[planting.pool_of]
    columns = [name for name in data.train.columns if name not in data.target_columns]
    for name, prefix, (frame, paths) in pools:
        if name == "unlabelled" and not settings.unlabelled:
            continue
        ids = [f"{prefix}{text[1:]}" for text in planting.pool_ids]
        twins = data.train.iloc[originals][columns].reset_index(drop=True)
        twins[id_column] = ids
        for text, row in zip(ids, originals.tolist(), strict=True):
            _save(images / f"{text}.png", twin_pixels(decoded[row], rng))
        few = min(len(paths), int(planting.original.sum()) // FILLERS)
        chosen: Ints = np.sort(rng.permutation(len(paths))[:few])
        others = frame.iloc[chosen].reset_index(drop=True)
        others[id_column] = [f"{prefix}f{row}" for row in range(few)]
        for text, pixels in zip(others[id_column], _decode([paths[row] for row in chosen], spec), strict=True):
            _save(images / f"{text}.png", pixels)
        pool = pd.concat([twins, others], ignore_index=True).fillna("")
        files.write_csv(folder / "data" / f"{name}.csv", pool.iloc[rng.permutation(len(pool))])
        counts[name] = len(pool)
    return counts


def _test_pool(data: CompetitionData) -> tuple[pd.DataFrame, list[Path]]:
    if data.test is None:
        return pd.DataFrame(columns=[data.settings.id]), []
    return data.test, list(data.test_paths)


def _unlabelled_pool(data: CompetitionData, settings: Competition, root: Path) -> tuple[pd.DataFrame, list[Path]]:
    parts = load_unlabelled(settings, root, data.ids, data.test_ids)
    frames = [pd.DataFrame(columns=[settings.id]), *(part.frame for part in parts)]
    return pd.concat(frames, ignore_index=True), [path for part in parts for path in part.paths]


def _decode(paths: Sequence[Path], spec: ImageSpec) -> list[Pixels]:
    return in_threads(lambda path: load(path, spec), list(paths), None, "decoding the canary's images")


def _save(path: Path, pixels: Pixels) -> None:
    # One channel is stored as grey: Pillow takes (H, W) for it.
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path, compress_level=1)
