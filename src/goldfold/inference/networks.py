"""The pack's networks: loaded when their turn comes, the next one while the one before it runs."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from goldfold.bundle import Bundle
from goldfold.errors import BadInput, GoldfoldError
from goldfold.forward import Shown, answers
from goldfold.images.colour import InputColours
from goldfold.inference.devices import first_line, machine_for
from goldfold.inference.inputs import HiddenRows
from goldfold.inference.reader import THREADS
from goldfold.kaggle.pack import Pack, PackFold, PackMember, find_damage, load_bundle, read_bundle
from goldfold.machine import Machine
from goldfold.memory import AtOnce, free_memory
from goldfold.metadata import MetadataEncoder
from goldfold.models import Classifier
from goldfold.predict import bundle_views
from goldfold.progress import warn
from goldfold.records import Floats
from goldfold.tta import View, merge, pixel_share

SHARE_OF_MEMORY = 0.6
"""Of what is free, the most that a batch's forward pass is meant to take."""


@dataclass(frozen=True, eq=False)
class Unit:
    """One trained network of a member; ``number`` among its folds, from 0. ``passes``: pixels of all its views over those
    of the picture."""

    member: PackMember
    fold: PackFold
    number: int
    bundle: Bundle
    passes: float

    @property
    def name(self) -> str:
        return f"{self.member.name} {self.fold.bundle.rsplit('/', 1)[-1]}"


@dataclass(eq=False)
class Network:
    """A loaded network on one device, and what shows it images. ``metadata`` (N, M) of all rows, or None.

    ``at_once``: how many images it takes, which falls when memory runs out.
    """

    unit: Unit
    model: Classifier
    machine: Machine
    views: Sequence[View]
    colours: InputColours
    metadata: Floats | None
    at_once: AtOnce

    def predict(self, pixels: Tensor, metadata: Floats | None) -> Floats:
        """Probabilities (B, C) float32 of uint8 ``pixels`` (B, S, S, C), the views merged, as ``goldfold predict`` has them.

        When memory runs out, half of the images are shown at once from then on, and nothing is lost. A network that gives
        NaN in half precision goes on in float32. Raises GoldfoldError when it still does, or when one image is too much.
        """
        shown = Shown(self.model, self.views, metadata, name=self.unit.name)
        seen = answers([shown], pixels, self.machine, self.at_once)[0].cpu()
        if seen.isfinite().all():
            bundle = self.unit.bundle
            merged = merge(list(seen), bundle.merge, yes_or_no=bundle.task.activation == "sigmoid")
            return bundle.task.normalise(merged.numpy())
        if self.machine.precision == "fp32":
            raise GoldfoldError(f"{self.unit.name}: the network gives NaN")
        warn(f"{self.unit.name}: gives NaN in {self.machine.precision}; it goes on in float32")
        self.machine = replace(self.machine, precision="fp32")
        return self.predict(pixels, metadata)


def find_units(pack: Pack) -> tuple[list[Unit], dict[str, str]]:
    """All units of a pack, by member and fold; and by name why one cannot be used (a missing or broken bundle.json)."""
    units: list[Unit] = []
    failed: dict[str, str] = {}
    for member in pack.members:
        for number, fold in enumerate(member.folds):
            try:
                bundle = read_bundle(pack, fold)
                passes = sum(pixel_share(view, bundle.side) for view in bundle_views(bundle))
            except BadInput as error:
                failed[f"{member.name} {fold.bundle.rsplit('/', 1)[-1]}"] = str(error)
            else:
                units.append(Unit(member, fold, number, bundle, passes))
    return units, failed


@dataclass
class Loader:
    """Loads networks, each file checked against the manifest when it is read first. Keeps the last; ``prepare`` fetches
    one in the background."""

    pack: Pack
    rows: HiddenRows
    now: Callable[[], float] = time.monotonic
    seconds: float = 0.0
    """Seconds that the last load took, where it was waited for."""
    _checked: dict[str, str | None] = field(default_factory=dict)
    _metadata: dict[MetadataEncoder, Floats] = field(default_factory=dict)
    _kept: tuple[Unit, Classifier] | None = None
    _coming: tuple[Unit, threading.Thread, list[Classifier | Exception]] | None = None

    def prepare(self, unit: Unit) -> None:
        """Begin to load a unit that will be taken next."""
        if (self._kept is not None and self._kept[0] is unit) or (self._coming is not None and self._coming[0] is unit):
            return
        result: list[Classifier | Exception] = []
        thread = threading.Thread(target=self._into, args=(unit, result), name=f"{THREADS}load", daemon=True)
        self._coming = (unit, thread, result)
        thread.start()

    def forget(self) -> None:
        """Drop the kept network, whose device broke down."""
        self._kept = None

    def take(self, unit: Unit, devices: Sequence[torch.device]) -> list[Network]:
        """The network on each of ``devices``. Raises BadInput where its files are broken or do not fit."""
        begun = self.now()
        if self._kept is None or self._kept[0] is not unit:
            self._kept = None
            self._kept = (unit, self._load(unit))
        model = self._kept[1]
        metadata = self._encode(unit)
        networks = []
        for number, device in enumerate(devices):
            machine = machine_for(unit.member, device)
            own = model if number == len(devices) - 1 else copy.deepcopy(model)
            own.to(machine.device, memory_format=machine.memory_format)  # type: ignore[call-overload]
            networks.append(
                Network(
                    unit,
                    own.eval(),
                    machine,
                    bundle_views(unit.bundle),
                    InputColours(unit.bundle.model.colour, unit.bundle.model.local_mean),
                    metadata,
                    AtOnce(_fitting(unit, device), device, machine.precision, unit.name),
                )
            )
        self.seconds = self.now() - begun
        return networks

    def _load(self, unit: Unit) -> Classifier:
        if self._coming is not None and self._coming[0] is unit:
            _, thread, result = self._coming
            thread.join()
            self._coming = None
        else:
            result = []
            self._into(unit, result)
        (found,) = result
        if isinstance(found, Exception):
            raise found
        return found

    def _into(self, unit: Unit, result: list[Classifier | Exception]) -> None:
        try:
            new = [path for path in unit.fold.files if path not in self._checked]
            damage = {item.path: item.reason for item in find_damage(self.pack.folder, new)}
            self._checked.update({path: damage.get(path) for path in new})
            broken = [f"{path} ({reason})" for path in unit.fold.files if (reason := self._checked[path])]
            if broken:
                raise BadInput(self.pack.folder / unit.fold.bundle, f"not as exported: {', '.join(broken)}")
            result.append(load_bundle(self.pack, unit.member, unit.fold)[1])
        except GoldfoldError as error:
            result.append(error)
        except Exception as error:  # whatever a network's code raises, the other members go on
            result.append(GoldfoldError(f"{unit.name}: {type(error).__name__}: {first_line(error)}"))

    def _encode(self, unit: Unit) -> Floats | None:
        encoder = unit.bundle.metadata
        if encoder is None:
            return None
        if encoder not in self._metadata:
            self._metadata[encoder] = encoder.transform(self.rows.frame, "the test CSV", unit.bundle.id_column)
        return self._metadata[encoder]


def _fitting(unit: Unit, device: torch.device) -> int:
    """Images at once: as many as in the member's own predictions, unless memory is short."""
    need = max(unit.member.image_bytes, 1)
    return max(1, min(unit.member.batch_size, int(SHARE_OF_MEMORY * free_memory(device) / need)))


def by_member(units: Sequence[Unit]) -> Mapping[str, list[Unit]]:
    """The units of each member, in the order of its folds."""
    found: dict[str, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.member.name, []).append(unit)
    return found
