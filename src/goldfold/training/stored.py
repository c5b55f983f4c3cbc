"""Behind a frozen trunk: its stored features of all images, and what the rest of the network says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from goldfold.augment import make_augmenter
from goldfold.data import parts_of
from goldfold.errors import BadInput, GoldfoldError
from goldfold.features import Features, JoinedFeatures, open_features, turned
from goldfold.images import Images
from goldfold.images.colour import InputColours
from goldfold.machine import Machine
from goldfold.models import Classifier, trainable_names
from goldfold.models.trunk import Split, split_trunk
from goldfold.predict import in_inference
from goldfold.records import Floats, Ints
from goldfold.training.job import FoldJob
from goldfold.tta import View

BEHIND_TRUNK = (
    "head",
    "n_logits",
    "activation",
    "drop_rate",
    "drop_path_rate",
    "metadata",
    "target_mean",
    "target_std",
)
"""Parts of a network that stored features never depend on: they lie behind the trunk, or act in training alone."""

POOLING = ("pool", "reduce")
"""What lies behind the trunk where that ends inside the backbone."""


@dataclass(frozen=True, eq=False)
class Stored:
    """``features`` of all training images, among them the validated ones, and the network that was ``split`` for them."""

    features: JoinedFeatures
    split: Split
    size: int

    def find(self, views: Sequence[View]) -> dict[str, int]:
        """By name, those of ``views`` that are stored, with their numbers there. Drawn ones are nobody's test view."""
        square = np.arange(self.size**2, dtype=np.float32).reshape(1, self.size, self.size, 1)
        known = [
            turned(square, number)[..., 0] for number in range(1 if self.features.first else self.features.n_views)
        ]
        found = {}
        for view in views:
            shown = view(torch.from_numpy(square).permute(0, 3, 1, 2))[:, 0].numpy()
            number = next((number for number, seen in enumerate(known) if np.array_equal(seen, shown)), None)
            if number is not None:
                found[view.name] = number
        return found

    def predict(
        self,
        job: FoldJob,
        machine: Machine,
        model: Classifier,
        rows: Ints,
        number: int,
        metadata: Floats | None,
    ) -> Floats:
        """Probabilities (N, C) float32 of one stored view of ``rows`` of the training images.

        ``model``: the network that was split, or another of its build and trunk. Stored numbers have 16 bits, so these
        are the network's own within about 0.001. Raises GoldfoldError when the network gives NaN.
        """
        tail, size = self.split.tail_of(model), job.recipe.tta.batch_size
        parts = [np.zeros((0, len(job.task.classes)), dtype=np.float32)]
        with torch.inference_mode(), in_inference(tail):
            for start in range(0, len(rows), size):
                place = slice(start, start + size)
                values = self.features.read(rows[place], np.full(len(rows[place]), number))
                columns = None
                if metadata is not None and metadata.shape[1]:
                    columns = torch.from_numpy(metadata[place]).to(machine.device)
                with machine.autocast():
                    logits = tail(torch.from_numpy(values).to(machine.device), columns)
                parts.append(tail.probabilities(logits).cpu().numpy())
        said = np.concatenate(parts)
        if not np.isfinite(said).all():
            mend = "train with a lower optim.lr, or with train.precision=fp32"
            raise GoldfoldError(f"{job.run} fold {job.fold}: the network gives NaN; {mend}")
        return said


def open_stored(job: FoldJob, machine: Machine, model: Classifier) -> Stored:
    """Split the network behind its frozen layers and compute what is not yet stored: a store for each set of images.

    The key holds no run, fold, seed or head: all that share trunk, images and views share the stores. Raises BadInput.
    """
    freeze, images, recipe = job.recipe.model.freeze, job.examples.images, job.recipe
    if job.cache is None or images.digest is None:
        raise BadInput("model.freeze.cache", "features are stored beside decoded images", "set input.cache to true")
    size, colours = recipe.input.size, InputColours.from_config(recipe.input)
    example = torch.zeros(2, size, size, images.shape[2], dtype=torch.uint8, device=machine.device)
    example[1] = 200
    split = split_trunk(model, model.prepare(example, machine.memory_format))
    names = trainable_names(model, freeze.stages, freeze.batch_norm)
    state = {name: value for name, value in model.backbone.state_dict().items() if f"backbone.{name}" not in names}
    behind = BEHIND_TRUNK + (POOLING if split.trunk.place.startswith("backbone.") else ())
    spec = {key: value for key, value in job.spec.to_dict().items() if key not in behind}
    key = {"state": digest_state(state), "spec": spec, "stages": freeze.stages, "precision": machine.precision}
    draw = None
    if isinstance(freeze.cache_views, int):
        draw = make_augmenter(recipe.augment, size, 1, colours, crop=size)
        key["augment"] = recipe.augment.model_dump(mode="json")

    def prepare(pixels: Tensor) -> Tensor:
        return model.prepare(pixels, machine.memory_format)

    def opened(part: Images, folder: Path) -> Features:
        return open_features(
            folder,
            {**key, "images": part.digest},
            split.trunk,
            prepare,
            part,
            size,
            colours,
            freeze.cache_views,
            machine,
            what=f"{job.run}: features of the frozen stages",
            draw=draw,
        )

    return Stored(JoinedFeatures([opened(part, job.cache) for part in parts_of(images)]), split, size)


def digest_state(state: dict[str, Tensor]) -> str:
    """A digest of names and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
