"""A bundle: trained weights and everything that inference needs, without hub, training code or pickles."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file

from goldfold import files
from goldfold.config.schema import Input, Tta
from goldfold.errors import BadInput
from goldfold.images import ImageSpec
from goldfold.metadata import MetadataEncoder
from goldfold.models import Classifier, ModelSpec, build_model
from goldfold.tasks import Task

FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """What ``bundle.json`` holds beside ``model.safetensors``.

    ``images``: how files become stored pictures; ``size``: the side to which those are brought for prediction (None: that
    of the network's input); ``views``: as ``tta.views``, of which ``chosen`` names those that are used (None: all).
    """

    run: str
    fold: int
    seed: int
    task: Task
    model: ModelSpec
    images: ImageSpec
    views: Any
    merge: str
    id_column: str
    weights_sha256: str
    metadata: MetadataEncoder | None = None
    size: int | None = None
    chosen: tuple[str, ...] | None = None

    @property
    def side(self) -> int:
        """Side in pixels of the pictures that are predicted, before their views."""
        return self.size or self.model.size

    def to_dict(self) -> dict[str, Any]:
        metadata = None if self.metadata is None else self.metadata.to_dict()
        return {"format": FORMAT, **asdict(self), "metadata": metadata}


def prediction_images(input: Input, tta: Tta) -> ImageSpec:
    """How files become the pictures that are predicted: larger than those trained on where ``tta.size`` needs it."""
    spec = ImageSpec.from_config(input)
    return replace(spec, size=max(spec.size, tta.size or 0))


def save_weights(path: Path, model: Classifier) -> None:
    """Write what inference needs of a network as safetensors, atomically. Equal states are equal bytes."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.inference_state().items()}
    files.write_atomic(path, lambda temporary: save_file(state, temporary))


def load_weights(path: Path, model: Classifier) -> None:
    """Raises BadInput when the file is missing, broken, or of another network."""
    try:
        model.load_inference_state(load_file(path))
    except FileNotFoundError:
        raise BadInput(path, "the weights file does not exist", "train the fold again") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(path, f"not a whole safetensors file ({error})", "copy or train it again") from None
    except RuntimeError as error:
        raise BadInput(path, f"the weights do not fit bundle.json ({' '.join(str(error).split())[:200]})") from None


def write_bundle(path: Path, bundle: Bundle) -> None:
    files.write_json(path, bundle.to_dict())


def read_bundle(folder: Path) -> Bundle:
    """The description in ``folder/bundle.json``. Raises BadInput."""
    path = folder / "bundle.json"
    return bundle_from_dict(files.read_json(path), path)


def bundle_from_dict(values: Any, path: Path) -> Bundle:
    """The inverse of ``Bundle.to_dict``, through JSON; empties ``values``. Raises BadInput, naming ``path``."""
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise BadInput(path, f"not a bundle of format {FORMAT}", "export it with this version of Goldfold")
    try:
        task: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.pop("task").items()
        }
        metadata = values.pop("metadata", None)
        chosen = values.pop("chosen", None)
        return Bundle(
            metadata=None if metadata is None else MetadataEncoder.from_dict(metadata),
            task=Task(**task),
            model=ModelSpec.from_dict(values.pop("model")),
            images=ImageSpec(**values.pop("images")),
            chosen=None if chosen is None else tuple(chosen),
            **values,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            path, f"a key is missing or unknown ({error})", "export it with this version of Goldfold"
        ) from None


def load_bundle(folder: Path) -> tuple[Bundle, Classifier]:
    """A bundle and its network in inference mode on the CPU. Raises BadInput when the weights differ from their record."""
    bundle = read_bundle(folder)
    path = folder / "model.safetensors"
    if files.sha256_file(path) != bundle.weights_sha256:
        raise BadInput(path, "the file differs from the one that bundle.json records", "copy or train it again")
    model = build_model(bundle.model)
    load_weights(path, model)
    return bundle, model.eval()
