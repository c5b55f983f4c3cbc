"""The pack: a folder with all that predicts a competition offline, which is a Kaggle data set.

``pack.json`` describes it, ``MANIFEST.json`` lists its files. Members' bundles lie under ``members/``; their weights lie in
``weights/``, where tensors that several bundles share are stored once. docs/formats.md lists the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from torch import Tensor

from goldfold import files
from goldfold.bundle import Bundle, bundle_from_dict
from goldfold.errors import BadInput, some
from goldfold.images import ImageSpec
from goldfold.kaggle.manifest import find_damage, inside, verify
from goldfold.models import Classifier, build_model
from goldfold.records import Floats, Ints, Predictions
from goldfold.submission import SubmissionFormat
from goldfold.tasks import Task

__all__ = [
    "FORMAT", "NAME", "Pack", "PackCompetition", "PackFold", "PackMember", "Rounding", "Truth", "find_damage",
    "load_bundle", "read_bundle", "read_oof", "read_pack", "read_truth", "verify", "write_pack", "write_truth",
]  # fmt: skip

FORMAT = 1
NAME = "pack.json"
ENSEMBLE, TRUTH, MODULES, WHEELS = "ensemble.json", "oof/truth.parquet", "modules", "wheels"
MEND = "export the pack with this version of Goldfold"


@dataclass(frozen=True)
class PackCompetition:
    """What a kernel needs of the section ``competition``.

    Paths are relative to the competition's input folder; ``test_images`` is a pattern over the test CSV's columns.
    ``metric`` and ``metric_direction``: as in the section; a metric of the user's own lies in the pack's ``modules/``.
    """

    slug: str
    id_column: str
    target_columns: tuple[str, ...]
    metric: str
    metric_direction: Literal["max", "min"] | None
    test_csv: str
    test_images: str
    sample_csv: str | None


@dataclass(frozen=True)
class PackFold:
    """One trained network of a member: its bundle's folder and all ``weights`` files that it reads, in the pack.

    ``chosen``: names of the views that it predicts with (None: all of its member's views).
    """

    fold: int
    seed: int
    bundle: str
    weights: tuple[str, ...]
    chosen: tuple[str, ...] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the pack that ``load_bundle`` reads, for ``find_damage``."""
        return (f"{self.bundle}/bundle.json", *self.weights)


@dataclass(frozen=True)
class PackMember:
    """A run in the pack.

    ``weight``: in the blend fitted on all rows (a lone run: 1). ``score``, ``marginal_gain``: as in ensemble.json, None
    where undefined or in the pack of a run. ``leaky``, ``optimistic``: its out-of-fold scores are inflated. ``views``,
    ``merge``: as in bundle.json; ``side``: of the pictures that are predicted, in pixels; ``images``: how files become
    them. ``batch_size``: images a batch of its own predictions. ``weights_bytes``: of its largest network as float32;
    ``image_bytes``: estimated memory of one image in a forward pass. ``precision``: as in ``train``. ``channels_last``:
    the memory layout of its own predictions.
    """

    name: str
    weight: float
    score: float | None
    marginal_gain: float | None
    leaky: bool
    optimistic: bool
    views: Any
    merge: str
    side: int
    images: ImageSpec
    batch_size: int
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    channels_last: bool
    weights_bytes: int
    image_bytes: int
    folds: tuple[PackFold, ...]


@dataclass(frozen=True)
class Rounding:
    """What rounding weights to float16 changed: on ``rows`` out-of-fold rows the metric ``before`` and ``after`` (None where
    undefined), and the largest change of a probability."""

    rows: int
    metric: str
    before: float | None
    after: float | None
    largest: float


@dataclass(frozen=True)
class Pack:
    """``pack.json``, and the folder in which it lies.

    ``prior`` (C,): the mean of the training targets, for images that cannot be predicted. ``hours``: what the kernel may
    take. ``weights``: how they are stored; they are float32 once loaded.
    """

    folder: Path
    source: str
    kind: Literal["run", "ensemble"]
    goldfold: str
    leaky: bool
    optimistic: bool
    hours: float
    task: Task
    competition: PackCompetition
    submission: SubmissionFormat
    prior: tuple[float, ...]
    members: tuple[PackMember, ...]
    weights: Literal["float32", "float16"] = "float32"
    rounding: Rounding | None = None

    @property
    def ensemble(self) -> Path | None:
        """The folder in which ``load_blend``, ``load_calibration`` and ``load_decisions`` find ensemble.json."""
        return self.folder if self.kind == "ensemble" else None

    @property
    def modules(self) -> Path:
        """Where ``get_metric`` looks for a metric of the user's own. Exists only where there is one."""
        return self.folder / MODULES

    @property
    def wheels(self) -> Path:
        return self.folder / WHEELS

    def member(self, name: str) -> PackMember:
        """Raises BadInput when the pack has no such member."""
        for member in self.members:
            if member.name == name:
                return member
        raise BadInput(self.folder, f"has no member '{name}'", f"it has {some([item.name for item in self.members])}")

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **{key: value for key, value in asdict(self).items() if key != "folder"}}


@dataclass(frozen=True, eq=False)
class Truth:
    """Labelled rows of an ensemble's pack: ``fold`` (N,) that validated each, ``targets`` (N, C), in the order of ``ids``."""

    ids: tuple[str, ...]
    fold: Ints
    targets: Floats
    where: object = field(default="truth", repr=False)


def write_pack(pack: Pack) -> None:
    """Write ``pack.json`` into the pack's folder."""
    files.write_json(pack.folder / NAME, pack.to_dict())


def read_pack(folder: Path) -> Pack:
    """The description of a pack; reads no weights. Raises BadInput when there is none of this format.

    ``verify`` or ``find_damage`` says whether its files are whole.
    """
    where = folder / NAME
    values = files.read_json(where)
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise BadInput(where, f"not a pack of format {FORMAT}", MEND)
    try:
        members = tuple(_member(item, where) for item in values.pop("members"))
        rounding = values.pop("rounding")
        pack = Pack(
            folder=folder,
            task=Task(**_tuples(values.pop("task"))),
            competition=PackCompetition(**_tuples(values.pop("competition"))),
            submission=SubmissionFormat(**_tuples(values.pop("submission"))),
            prior=tuple(float(value) for value in values.pop("prior")),
            members=members,
            rounding=None if rounding is None else Rounding(**rounding),
            **values,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(where, f"a key is missing or unknown ({error})", MEND) from None
    if len(pack.prior) != len(pack.task.classes) or not pack.members:
        raise BadInput(where, f"{len(pack.prior)} priors, {len(pack.members)} members", MEND)
    return pack


def read_bundle(pack: Pack, fold: PackFold) -> Bundle:
    """The description of one network of the pack; reads no weights. Raises BadInput.

    A bundle whose classes are not the pack's, in its order, is refused: its columns would be mixed up.
    """
    return _read_bundle(pack, fold)[0]


def load_bundle(pack: Pack, member: PackMember, fold: PackFold) -> tuple[Bundle, Classifier]:
    """One network in inference mode on the CPU, float32, its tensors joined from the pack's files.

    Raises BadInput, naming the member, where a file is missing or broken, or the weights do not fit.
    """
    bundle, places = _read_bundle(pack, fold)
    model = build_model(bundle.model)
    where = pack.folder / fold.bundle
    try:
        model.load_inference_state(read_tensors(pack.folder, places))
    except RuntimeError as error:
        what = f"the weights of '{member.name}' do not fit bundle.json ({' '.join(str(error).split())[:200]})"
        raise BadInput(where, what, "export the pack again") from None
    return bundle, model.eval()


def read_tensors(folder: Path, places: dict[str, str]) -> dict[str, Tensor]:
    """Tensors by name from the files that hold them; float16 becomes float32. Raises BadInput."""
    by_file: dict[str, list[str]] = {}
    for name, path in places.items():
        by_file.setdefault(path, []).append(name)
    state: dict[str, Tensor] = {}
    for path, names in by_file.items():
        try:
            with safetensors.safe_open(folder / path, framework="pt") as file:
                for name in names:
                    tensor = file.get_tensor(name)
                    state[name] = tensor.float() if tensor.dtype == torch.float16 else tensor
        except FileNotFoundError:
            raise BadInput(folder / path, "the weights file does not exist", "copy the pack again") from None
        except (safetensors.SafetensorError, OSError) as error:
            raise BadInput(folder / path, f"not a whole safetensors file ({error})", "copy the pack again") from None
    return state


def write_truth(path: Path, truth: Truth, id_column: str, classes: Sequence[str]) -> None:
    """A table like out-of-fold predictions, with the targets as its values."""
    Predictions(truth.ids, truth.targets, tuple(classes), "truth", truth.fold, path).write(path, id_column)


def read_truth(pack: Pack) -> Truth:
    """Raises BadInput when the pack has none (that of a run), or one of other classes."""
    found = _table(pack, TRUTH, "truth")
    assert found.fold is not None
    return Truth(found.ids, found.fold, found.values, found.where)


def read_oof(pack: Pack, member: str) -> Predictions:
    """The out-of-fold predictions of a member, with their folds; rows in the file's own order. Raises BadInput."""
    return _table(pack, f"oof/{member}.parquet", member)


def _table(pack: Pack, path: str, run: str) -> Predictions:
    found = Predictions.read(pack.folder / path, run)
    if found.classes != pack.task.classes or found.fold is None:
        what = (
            f"columns {some(found.classes)} without folds" if found.fold is None else f"classes {some(found.classes)}"
        )
        raise BadInput(pack.folder / path, f"{what} instead of {some(pack.task.classes)}", "export the pack again")
    return found


def _read_bundle(pack: Pack, fold: PackFold) -> tuple[Bundle, dict[str, str]]:
    where = pack.folder / fold.bundle / "bundle.json"
    values = files.read_json(where)
    places = values.pop("tensors", None) if isinstance(values, dict) else None
    if not isinstance(places, dict):
        raise BadInput(where, "does not say where its tensors lie", "export the pack again")
    bundle = bundle_from_dict(values, where)
    if bundle.task.classes != pack.task.classes:
        what = f"it predicts the classes {some(bundle.task.classes)}, the pack {some(pack.task.classes)}, in this order"
        raise BadInput(where, what, "export the pack again")
    return bundle, {str(name): inside(path, where) for name, path in places.items()}


def _member(values: dict[str, Any], where: Path) -> PackMember:
    folds = tuple(_fold(item, where) for item in values.pop("folds"))
    images = ImageSpec(**values.pop("images"))
    inside(f"oof/{values['name']}.parquet", where)
    return PackMember(images=images, folds=folds, **values)


def _fold(values: dict[str, Any], where: Path) -> PackFold:
    known = _tuples(values)
    for path in (known["bundle"], *known["weights"]):
        inside(path, where)
    return PackFold(**known)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
