"""The weights of a pack: each tensor once, however many bundles share it, and float16 where that is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from goldfold import files
from goldfold.errors import BadInput
from goldfold.progress import progress


@dataclass(frozen=True)
class Shared:
    """``places``: by bundle, each tensor's file within the pack; ``bytes``: by bundle, its tensors' size as float32."""

    places: dict[str, dict[str, str]]
    bytes: dict[str, int]


def rounded(tensor: Tensor) -> Tensor:
    """A tensor as a pack of float16 stores it.

    Vectors stay as they are: norms and their statistics are small and need the range. So do matrices that hold a number
    beyond float16's.
    """
    if tensor.dtype != torch.float32 or tensor.ndim < 2:
        return tensor
    half = tensor.half()
    return half if bool(half.isfinite().all()) or not bool(tensor.isfinite().all()) else tensor


def share_weights(bundles: Mapping[str, Path], pack: Path, half: bool) -> Shared:
    """Write ``pack/weights/<n>.safetensors`` from the weights files of ``bundles`` (by their folder in the pack).

    Equal tensors of the same name are stored once. Tensors that the same bundles use lie in one file, so that no bundle
    reads what it does not need; at no time are there more tensors in memory than one bundle has. Raises BadInput.
    """
    users: dict[tuple[str, str], list[str]] = {}
    sizes: dict[str, int] = {}
    for bundle, path in progress(bundles.items(), "reading weights", len(bundles), "bundles"):
        sizes[bundle] = 0
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118, not a mapping
                tensor = file.get_tensor(name)
                sizes[bundle] += tensor.numel() * tensor.element_size()
                users.setdefault((name, _digest(rounded(tensor) if half else tensor)), []).append(bundle)
    groups: dict[tuple[str, ...], list[str]] = {}
    for (name, _), found in users.items():
        groups.setdefault(tuple(found), []).append(name)
    places: dict[str, dict[str, str]] = {bundle: {} for bundle in bundles}
    for number, (sharers, names) in enumerate(progress(groups.items(), "writing weights", len(groups), "files")):
        place = f"weights/{number}.safetensors"
        with _open(bundles[sharers[0]]) as file:
            tensors = {name: file.get_tensor(name) for name in names}
        if half:
            tensors = {name: rounded(tensor) for name, tensor in tensors.items()}
        files.write_atomic(pack / place, lambda temporary, tensors=tensors: save_file(tensors, temporary))  # type: ignore[misc]
        for bundle in sharers:
            places[bundle].update(dict.fromkeys(names, place))
    return Shared(places, sizes)


def _open(path: Path) -> safetensors.safe_open:
    try:
        return safetensors.safe_open(path, framework="pt")
    except FileNotFoundError:
        raise BadInput(path, "the weights file does not exist", "train the fold again") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(path, f"not a whole safetensors file ({error})", "copy or train it again") from None


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()
