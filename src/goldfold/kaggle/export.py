"""Packs written: bundles that share their weights, tables, wheels, metadata and a manifest of it all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from goldfold import files
from goldfold.bundle import Bundle
from goldfold.bundle import read_bundle as read_run_bundle
from goldfold.config.schema import Tta
from goldfold.errors import BadInput
from goldfold.kaggle import manifest, pack
from goldfold.kaggle.folder import copy, refuse_other, replaced
from goldfold.kaggle.manifest import Entry
from goldfold.kaggle.memory import image_bytes
from goldfold.kaggle.metadata import DATASET_FILE, check_dataset, read_dataset
from goldfold.kaggle.pack import Pack, PackFold, PackMember, Truth
from goldfold.kaggle.weights import Shared, share_weights
from goldfold.kaggle.wheels import write_wheels
from goldfold.models import ModelSpec
from goldfold.progress import progress, warn
from goldfold.tta import make_views, pixel_share


@dataclass(frozen=True)
class Part:
    """A trained fold: the folder with its bundle.json and model.safetensors."""

    fold: int
    seed: int
    folder: Path


@dataclass(frozen=True)
class Source:
    """A run that goes into a pack; the fields are those of ``PackMember``. ``oof``: its out-of-fold predictions."""

    name: str
    weight: float
    score: float | None
    marginal_gain: float | None
    leaky: bool
    optimistic: bool
    batch_size: int
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    channels_last: bool
    oof: Path
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Exported:
    """A written pack, its files, and the size of its members' weights before equal tensors were stored once."""

    pack: Pack
    files: tuple[Entry, ...]
    unshared: int

    def size(self, folder: str = "") -> int:
        """Bytes of all files, or of those under a folder of the pack."""
        return sum(entry.bytes for entry in self.files if entry.path.startswith(folder))

    def largest(self) -> PackMember:
        """The member that needs most memory: one network, and a batch of its images."""
        return max(self.pack.members, key=_memory)

    def to_text(self) -> str:
        """What was written, how large it is, and what it will need."""
        found, most = self.pack, self.largest()
        networks = sum(len(member.folds) for member in found.members)
        weights = self.size("weights/")
        smaller = weights < self.unshared and _size(self.unshared) != _size(weights)
        saved = f" instead of {_size(self.unshared)}" if smaller else ""
        lines = [
            f"{found.kind} {found.source}: {_count(len(found.members), 'member')}, {_count(networks, 'network')}, "
            f"{found.hours:g} hours",
            f"size: {_size(self.size())}, of which {found.weights} weights {_size(weights)}{saved}, "
            f"wheels {_size(self.size('wheels/'))}",
            f"expected memory: {_size(_memory(most))} at '{most.name}': one network {_size(most.weights_bytes)} and a batch "
            f"of {most.batch_size} images of {_size(most.image_bytes)} each",
            "  (one network at a time, float32; an image: twice what its network's widest operation reads and writes)",
        ]
        if found.rounding is not None:
            lines.append(rounding_text(found.rounding))
        return "\n".join(lines)


def rounding_text(found: pack.Rounding) -> str:
    """What float16 weights changed, in a line."""
    if found.before is None or found.after is None:
        scores = f"{found.metric} is undefined"
    else:
        change = found.after - found.before
        scores = f"{found.metric} {found.after:.6f} instead of {found.before:.6f} ({change:+.6f})"
    return (
        f"float16 weights: {scores} on {found.rows} out-of-fold rows; no value moved by more than {found.largest:.2g}"
    )


def is_pack(folder: Path) -> bool:
    """Whether a folder holds a pack, which another may replace."""
    return (folder / pack.NAME).is_file() and (folder / manifest.NAME).is_file()


def older_dataset(target: Path) -> dict[str, Any] | None:
    """dataset-metadata.json of the pack that will be replaced: its title and licence are the user's. Raises BadInput where
    Kaggle would refuse it, and where ``target`` holds anything but a pack."""
    refuse_other(target.resolve(), is_pack, "pack")
    return read_dataset(target) if is_pack(target) and (target / DATASET_FILE).is_file() else None


def older_hours(target: Path) -> float | None:
    """The time limit of the pack that will be replaced; None where there is none, or where it cannot be read."""
    if not is_pack(target):
        return None
    try:
        return pack.read_pack(target).hours
    except BadInput as error:
        warn(f"{error}; its hours are not taken over")
        return None


def export_pack(
    target: Path,
    head: Pack,
    sources: Sequence[Source],
    *,
    ensemble: Path | None,
    truth: Truth | None,
    modules: Mapping[str, Path],
    dataset: dict[str, Any],
) -> Exported:
    """Write the pack ``target``: whole, in the place of an older one, or not at all.

    ``head``: the pack but for its folder and members. ``ensemble``: the folder of ensemble.json; ``truth``: the labelled
    rows, for an ensemble; ``modules``: files of a metric of the user's own, by their path under ``modules/``;
    ``dataset``: dataset-metadata.json. Equal inputs give equal bytes. Raises BadInput for broken bundles and where
    ``target`` holds something else.
    """
    check_dataset(dataset, DATASET_FILE)
    with replaced(target, is_pack, "pack") as folder:
        exported = _fill(replace(head, folder=folder), sources, ensemble, truth, modules)
        files.write_json(folder / DATASET_FILE, dataset)
        _read_back(folder)
    return replace(exported, pack=replace(exported.pack, folder=target))


def _fill(
    head: Pack, sources: Sequence[Source], ensemble: Path | None, truth: Truth | None, modules: Mapping[str, Path]
) -> Exported:
    folder = head.folder
    parts = {f"members/{source.name}/{part.folder.name}": part for source in sources for part in source.parts}
    bundles = {place: _checked(part.folder) for place, part in progress(parts.items(), "checking", len(parts))}
    shared = share_weights(
        {place: part.folder / "model.safetensors" for place, part in parts.items()}, folder, head.weights == "float16"
    )
    for place, bundle in bundles.items():
        files.write_json(folder / place / "bundle.json", {**bundle.to_dict(), "tensors": shared.places[place]})
    known: dict[tuple[ModelSpec, int], int] = {}
    members = tuple(_member(source, bundles, shared, known) for source in sources)
    if ensemble is not None and truth is not None:
        copy(ensemble / pack.ENSEMBLE, folder / pack.ENSEMBLE)
        for source in sources:
            copy(source.oof, folder / f"oof/{source.name}.parquet")
        pack.write_truth(folder / pack.TRUTH, truth, head.competition.id_column, head.task.classes)
    for place, path in modules.items():
        copy(path, folder / pack.MODULES / place)
    write_wheels(folder / pack.WHEELS)
    whole = replace(head, members=members)
    pack.write_pack(whole)
    entries = manifest.write_manifest(folder, head.source)
    return Exported(whole, tuple(entries), sum(shared.bytes.values()))


def _checked(folder: Path) -> Bundle:
    bundle = read_run_bundle(folder)
    path = folder / "model.safetensors"
    if files.sha256_file(path) != bundle.weights_sha256:
        raise BadInput(path, "the file differs from the one that bundle.json records", "copy or train it again")
    return bundle


def _member(
    source: Source, bundles: Mapping[str, Bundle], shared: Shared, known: dict[tuple[ModelSpec, int], int]
) -> PackMember:
    places = [f"members/{source.name}/{part.folder.name}" for part in source.parts]
    first = bundles[places[0]]
    key = (first.model, _largest_side(first))
    if key not in known:
        known[key] = image_bytes(*key)
    return PackMember(
        name=source.name,
        weight=source.weight,
        score=source.score,
        marginal_gain=source.marginal_gain,
        leaky=source.leaky,
        optimistic=source.optimistic,
        views=first.views,
        merge=first.merge,
        side=first.side,
        images=first.images,
        batch_size=source.batch_size,
        precision=source.precision,
        channels_last=source.channels_last,
        weights_bytes=max(shared.bytes[place] for place in places),
        image_bytes=known[key],
        folds=tuple(
            PackFold(part.fold, part.seed, place, tuple(_files(shared.places[place])), bundles[place].chosen)
            for part, place in zip(source.parts, places, strict=True)
        ),
    )


def _largest_side(bundle: Bundle) -> int:
    """The side of the largest view that the network may be shown."""
    views = make_views(Tta(views=bundle.views), bundle.model.size)
    share = max((pixel_share(view, bundle.side) for view in views), default=1.0)
    return math.ceil(bundle.side * math.sqrt(max(share, 1.0)))


def _files(places: Mapping[str, str]) -> list[str]:
    """The weights files of a bundle, each once, in the order of their numbers."""
    return sorted(set(places.values()), key=lambda place: (len(place), place))


def _read_back(folder: Path) -> None:
    """Read what a kernel reads first, so that what it would refuse is refused here."""
    found = pack.read_pack(folder)
    for member in found.members:
        for fold in member.folds:
            pack.read_bundle(found, fold)


def _memory(member: PackMember) -> int:
    return member.weights_bytes + member.batch_size * member.image_bytes


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} bytes"
