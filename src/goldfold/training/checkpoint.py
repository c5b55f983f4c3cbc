"""The resume state of a fold: one safetensors file, tensors as they are and all else as JSON in its metadata.

No generator's state is kept: each epoch seeds every generator from (seed, fold, epoch), so an epoch that is run again
draws as it did the first time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from goldfold import files
from goldfold.errors import BadInput

TENSOR, PAIRS, TUPLE, DTYPE = "__tensor__", "__pairs__", "__tuple__", "__dtype__"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write nested dictionaries and lists of tensors, numbers and text, atomically."""
    tensors: dict[str, torch.Tensor] = {}
    plain = _pack(state, tensors)
    metadata = {"state": json.dumps(plain)}
    files.write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_state(path: Path) -> dict[str, Any]:
    """What ``save_state`` wrote, tensors on the CPU. Raises BadInput when the file is broken."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        return _unpack(json.loads(metadata["state"]), tensors)  # type: ignore[no-any-return]
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise BadInput(
            path, f"the resume state cannot be read ({error})", "delete the fold's folder and train it again"
        ) from None


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # A copy: tensors that share memory cannot lie in one safetensors file.
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {TENSOR: name}
    if isinstance(value, dict):
        # As pairs, since JSON would turn an optimizer's whole-number keys into text.
        return {PAIRS: [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {TUPLE: [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if isinstance(value, torch.dtype):  # some optimizers keep the precision of their averages
        return {DTYPE: str(value).removeprefix("torch.")}
    return value


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        if TUPLE in value:
            return tuple(_unpack(item, tensors) for item in value[TUPLE])
        if DTYPE in value:
            return _dtype(value[DTYPE])
        return {key: _unpack(item, tensors) for key, item in value[PAIRS]}
    return value


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"no such precision: {name}")
    return found
