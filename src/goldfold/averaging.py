"""Averages of weights over training: EMA, stochastic weight averaging and soups of epochs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from goldfold.errors import BadInput, some

State = dict[str, Tensor]


class Ema(ModelEmaV3):  # type: ignore[misc]  # timm's has no types
    """timm's average, over lists of tensors that are gathered once: two state dicts a step cost half of its time.

    ``update`` wants the network that it was made of, whose tensors stay the same objects.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        super().__init__(model, decay=decay, use_warmup=warmup)  # only arguments that timm 1.0.26 has too
        self._lists: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        if self._lists is None:
            pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            others = [pair for pair in pairs if not pair[0].is_floating_point()]
            self._lists = (
                [own for own, _ in floats],
                [new for _, new in floats],
                [own for own, _ in others],
                [new for _, new in others],
            )
        averages, values, counts, new_counts = self._lists
        torch._foreach_lerp_(averages, values, weight=1.0 - self.get_decay(step))
        if counts:
            torch._foreach_copy_(counts, new_counts)


def make_ema(model: nn.Module, decay: float, warmup: bool) -> Ema:
    """An exponential moving average of a network's floating-point state, batch-norm statistics included.

    Call ``update(model, step=n)`` after optimizer step n = 1, 2, ...: average = d x average + (1 - d) x state, where d is
    0 at step 1 and ``decay`` afterwards; with ``warmup`` d is at most 1 - n^(-2/3), so that early weights are soon
    forgotten. Integers are copied. ``module`` holds the averaged network, always in inference mode.
    """
    return Ema(model, decay, warmup)


class Swa:
    """Stochastic weight averaging (Izmailov et al. 2018): the equal average of a network's states.

    Floating-point tensors are averaged, in float32 at least; integers are those of the last state. Batch-norm statistics
    of an average of weights are not the average of statistics: call ``update_batch_norm`` after ``store``.
    """

    def __init__(self) -> None:
        self.count = 0
        self._average: State = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Let the network's present state into the average. Raises ValueError when it is another network's."""
        state = model.state_dict()
        if self.count:
            _check_names(state, self._average)
        for name, tensor in state.items():
            if not self.count or not tensor.is_floating_point():
                self._average[name] = tensor.detach().to(_wide(tensor.dtype), copy=True)
                continue
            average = self._average[name].to(tensor.device)  # a restored average lies on the CPU
            self._average[name] = average.lerp_(tensor.to(average.dtype), 1 / (self.count + 1))
        self.count += 1

    @torch.no_grad()
    def store(self, model: nn.Module) -> None:
        """Write the average into a network. Raises ValueError when nothing was averaged yet."""
        if not self.count:
            raise ValueError("the average holds no state yet")
        state = model.state_dict()
        _check_names(state, self._average)
        for name, tensor in state.items():
            tensor.copy_(self._average[name])

    def state_dict(self) -> dict[str, Any]:
        """The count and the tensors themselves, not copies."""
        return {"count": self.count, "average": dict(self._average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = int(state["count"])
        self._average = {name: tensor.clone() for name, tensor in state["average"].items()}


@torch.no_grad()
def update_batch_norm(model: nn.Module, forward: Callable[[Any], object], batches: Iterable[Any]) -> None:
    """Compute batch-norm statistics anew: the mean over ``batches`` of each batch's own, a batch counting as any other.

    ``forward`` runs the network on one batch. Only the batch-norm layers are in training mode meanwhile (dropout and
    drop-path are off); layers in ``model.frozen`` and layers that ``forward`` does not reach stay as they are. Reads no
    batch when no layer is left. Raises ValueError when there are no batches.
    """
    frozen = {id(layer) for module in getattr(model, "frozen", ()) for layer in module.modules()}
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and id(layer) not in frozen
    ]
    if not layers:
        return
    before = [{name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)} for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    seen = 0
    try:
        # Not model.train(False) and back: that would undo modes that single layers were given.
        for module, _ in modes:
            module.training = False
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for an equal average
            layer.training = True
        for batch in batches:
            forward(batch)
            seen += 1
    finally:
        for module, training in modes:
            module.training = training
        for layer, momentum, buffers in zip(layers, momenta, before, strict=True):
            layer.momentum = momentum
            tracked = layer.num_batches_tracked
            if tracked is not None and int(tracked) == 0:
                for name, buffer in layer.named_buffers(recurse=False):
                    buffer.copy_(buffers[name])
    if not seen:
        raise ValueError("there are no batches to compute batch-norm statistics from")


def average_states(paths: Sequence[Path]) -> State:
    """The uniform mean of safetensors state files, on the CPU: sums in float64, integers from the last file.

    Raises BadInput when a file is missing or broken, or holds another network than the first.
    """
    if not paths:
        raise ValueError("no states to average")
    with ExitStack() as stack:
        states = [_open(path, stack) for path in paths]
        names = list(states[0].keys())
        for path, state in zip(paths[1:], states[1:], strict=True):
            _check_same(path, paths[0], set(state.keys()) ^ set(names))
        return {name: _mean(name, states, paths) for name in names}


def greedy_soup(
    candidates: Sequence[tuple[float, Path]],
    evaluate: Callable[[State], float],
    better: Callable[[float, float], bool],
) -> tuple[State, tuple[int, ...]]:
    """The greedy soup (Wortsman et al. 2022, recipe 1) of state files with their own scores.

    The best candidate begins; each next one, in order of score (equal ones in the order given), stays when the score of
    the average does not fall. ``evaluate`` judges every average, the first of one candidate included, so that like is
    compared with like; ``better(a, b)``: whether score a is better than b. Returns the averaged state and the positions
    in ``candidates`` that went in, rising. Raises BadInput as ``average_states`` does.
    """

    def compare(a: int, b: int) -> int:
        first, second = candidates[a][0], candidates[b][0]
        if math.isnan(first) or math.isnan(second):
            return math.isnan(first) - math.isnan(second)
        return better(second, first) - better(first, second)

    if not candidates:
        raise ValueError("no states to choose from")
    first, *others = sorted(range(len(candidates)), key=functools.cmp_to_key(compare))
    chosen: tuple[int, ...] = (first,)
    soup = average_states([candidates[first][1]])
    best = evaluate(soup)
    for candidate in others:
        tried = tuple(sorted((*chosen, candidate)))
        state = average_states([candidates[row][1] for row in tried])
        score = evaluate(state)
        if score == best or better(score, best):
            chosen, soup, best = tried, state, score
    return soup, chosen


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def _check_names(state: State, average: State) -> None:
    if state.keys() != average.keys():
        raise ValueError(f"another network's state: {some(sorted(state.keys() ^ average.keys()))}")


def _check_same(path: Path, first: Path, others: Iterable[str]) -> None:
    others = sorted(others)
    if others:
        raise BadInput(path, f"not a state of the same network as {first.name}: {some(others)} differ")


def _open(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safetensors.safe_open(path, framework="pt"))
    except FileNotFoundError:
        raise BadInput(path, "the weights file does not exist", "train the fold again") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(path, f"not a whole safetensors file ({error})", "train the fold again") from None


def _mean(name: str, states: Sequence[Any], paths: Sequence[Path]) -> Tensor:
    """One tensor of all states, so that only one tensor a time lies in float64."""
    last: Tensor = states[-1].get_tensor(name)
    total = torch.zeros(last.shape, dtype=torch.float64)
    for path, state in zip(paths, states, strict=True):
        tensor: Tensor = state.get_tensor(name)
        if tensor.shape != last.shape or tensor.dtype != last.dtype:
            _check_same(path, paths[-1], [name])
        if last.is_floating_point():
            total += tensor
    return (total / len(states)).to(last.dtype) if last.is_floating_point() else last
