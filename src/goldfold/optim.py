"""The optimizer, by timm: which parameters it gets, at which rates, and what happens to their gradients."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import Lookahead, create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

from goldfold.config.schema import Optim
from goldfold.errors import BadInput, GoldfoldError, some
from goldfold.models import Classifier

LOOKAHEAD = "lookahead_"
FUSED = (torch.optim.Adam, torch.optim.AdamW)
"""Optimizers whose step is one kernel over all parameters; on a GPU they skip one with infinite gradients by themselves.
Not SGD: its fused form fails where layers that thaw have no momentum yet, and others have."""

OWN_KEYS = ("lr", "weight_decay", "momentum", "betas", "eps")
"""What has a key of its own beside optim.args."""


def make_optimizer(
    settings: Optim,
    model: Classifier,
    ever: Collection[str] | None = None,
    *,
    lr: float | None = None,
    device: torch.device | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over the parameters named in ``ever``; None: those that are trainable now.

    One-dimensional parameters (biases, norms) have no weight decay (He et al. 2019) unless ``decay_all``. Each group
    carries ``lr_scale``, which ``set_rate`` honours: layer_decay ** (distance from the head) in the backbone
    (BEiT, Bao et al. 2022), by timm's finest groups of layers; head_lr_scale in all that is not the backbone.

    ``lr``: the peak rate after scaling, which variants with corrected weight decay compare with; None: settings.lr.
    ``device``: where the parameters lie; on a GPU and a CPU the step of ``FUSED`` is fused, unless ``args`` choose its form.
    Raises BadInput on an unknown name, on one that cannot be had or stepped here, and on values that it does not take.
    """
    name, lookahead = _known_name(settings.name)
    arguments, slow = _arguments(settings, name, lookahead)
    if _fuses(name, arguments, device):
        arguments["fused"] = True
    groups = _groups(settings, model, ever)
    try:
        optimizer = create_optimizer_v2(
            groups,
            opt=name,
            lr=settings.lr if lr is None else lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            **arguments,
        )
        return Lookahead(optimizer, **slow) if lookahead else optimizer
    except (ValueError, TypeError, ImportError, AssertionError, RuntimeError) as error:  # a value that it does not take
        raise BadInput("optim", f"{settings.name} cannot be made ({error})") from error


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a state that may come from another device, where the step had another form (fused or not).

    Moments get the memory layout of their parameters, as they had when they were made: files hold plain rows. A norm
    over another layout adds in another order: LAMB would go on a last digit apart.
    """
    own = [group.get("fused") for group in optimizer.param_groups]
    groups = [dict(group) for group in state["param_groups"]]
    for group, fused in zip(groups, own, strict=True):
        if "fused" in group:
            group["fused"] = fused
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, moments in base_optimizer(optimizer).state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def carry_state(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> None:
    """Give the new phase's optimizer the moments of the old one, by parameter: its groups may be others.

    What an optimizer counts in its groups (LAMB's steps, Lookahead's) is the same in all of them, and is no setting.
    """
    states, former = base_optimizer(new).state, base_optimizer(old).state
    for group in new.param_groups:
        for parameter in group["params"]:
            if parameter in former:
                states[parameter] = former[parameter]
                if group.get("fused") and "step" in former[parameter]:  # a fused step counts where the weights lie
                    states[parameter]["step"] = former[parameter]["step"].to(parameter.device)
        for key, value in old.param_groups[0].items():
            if key not in group or key == "lookahead_step":
                group[key] = value


def base_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """timm's Lookahead keeps its state in the optimizer that it wraps."""
    return getattr(optimizer, "_base_optimizer", optimizer)


def scaled_lr(settings: Optim, lr: float, batch: int) -> float:
    """The peak rate for ``batch`` images a step (batch_size x accumulate x processes).

    linear: lr x batch / lr_batch (Goyal et al. 2017); sqrt: lr x sqrt(batch / lr_batch) (Krizhevsky 2014).
    """
    if settings.lr_scaling == "none":
        return lr
    share = batch / settings.lr_batch
    return lr * (share if settings.lr_scaling == "linear" else share**0.5)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def set_momentum(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the momentum, or the first beta of those that have betas instead. Raises BadInput where there is neither."""
    for group in optimizer.param_groups:
        if "momentum" in group:
            group["momentum"] = value
        elif group.get("betas"):
            group["betas"] = (value, *group["betas"][1:])
        else:
            raise BadInput(
                "schedule.momentum_cycle",
                "the optimizer has neither momentum nor betas",
                "set it to null, or choose another optim.name",
            )


def add_penalties(model: nn.Module, l1: float, l2: float) -> None:
    """Add the gradients of ``l1`` x sum|w| and ``l2`` / 2 x sum w**2 over the weights (no biases, no norms).

    For gradients that are unscaled and not yet clipped.
    """
    if not l1 and not l2:
        return
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1 or not parameter.requires_grad or parameter.grad is None:
                continue
            if l1:
                parameter.grad.add_(parameter.sign(), alpha=l1)
            if l2:
                parameter.grad.add_(parameter, alpha=l2)


def clip_gradients(settings: Optim, model: Classifier) -> None:
    """Clip unscaled gradients: their joint norm, each value, or each unit's norm over its weights' (clip_mode).

    Adaptive clipping leaves out all that is not the backbone, since its authors spare the head (Brock et al. 2021).
    """
    if not settings.clip:
        return
    if settings.clip_mode == "norm":
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    elif settings.clip_mode == "value":
        torch.nn.utils.clip_grad_value_(model.parameters(), settings.clip)
    else:
        adaptive_clip_grad(list(model.backbone.parameters()), settings.clip)


def _fuses(name: str, arguments: Mapping[str, Any], device: torch.device | None) -> bool:
    kinds = ("cuda", "cpu")  # a third of AdamW's time on a CPU, less still on a GPU
    if (
        device is None
        or device.type not in kinds
        or arguments.keys() & {"fused", "foreach", "capturable", "differentiable"}
    ):
        return False
    return get_optimizer_class(name, bind_defaults=False) in FUSED


def _known_name(given: str) -> tuple[str, bool]:
    """timm's name and whether Lookahead wraps it."""
    known = list_optimizers()
    name = given.lower()
    bare = name.removeprefix(LOOKAHEAD)
    if bare not in known:
        near = difflib.get_close_matches(bare, known, 3)
        raise BadInput(
            "optim.name", f"timm has no optimizer '{given}'", f"did you mean {' or '.join(near)}?" if near else ""
        )
    if get_optimizer_info(bare).second_order:
        raise BadInput("optim.name", f"{given} needs second derivatives, which the loop does not take", "try adamw")
    return bare, name != bare


def _arguments(settings: Optim, name: str, lookahead: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of the optimizer and of Lookahead. timm drops what an optimizer does not take: here it is refused."""
    info = get_optimizer_info(name)
    try:
        taken = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    except (ImportError, AssertionError) as error:  # of packages that timm only wraps
        raise BadInput("optim.name", f"{settings.name} cannot be had here ({error})", "choose another") from None
    arguments: dict[str, Any] = {}
    if settings.betas is not None:
        if not info.has_betas or "betas" not in taken:
            raise BadInput("optim.betas", f"{settings.name} has no betas", "set it to null")
        if len(settings.betas) != info.num_betas:
            raise BadInput(
                "optim.betas", f"{settings.name} has {info.num_betas} betas and {len(settings.betas)} are given"
            )
        arguments["betas"] = settings.betas
    if settings.eps is not None:
        if not info.has_eps or "eps" not in taken:
            raise BadInput("optim.eps", f"{settings.name} has no eps", "set it to null")
        arguments["eps"] = settings.eps
    further = {key for key in taken if key not in OWN_KEYS and key != "params"}
    of_lookahead = {f"{LOOKAHEAD}alpha": "alpha", f"{LOOKAHEAD}k": "k"} if lookahead else {}
    slow: dict[str, Any] = {}
    for key, value in settings.args.items():
        if key in of_lookahead:
            slow[of_lookahead[key]] = value
        elif key in OWN_KEYS:
            raise BadInput(f"optim.args.{key}", "has a key of its own", f"set optim.{key}")
        elif key in further:
            arguments[key] = value
        else:
            choice = sorted(further | set(of_lookahead))
            near = difflib.get_close_matches(key, choice, 1)
            raise BadInput(
                f"optim.args.{key}",
                f"{settings.name} takes no such argument",
                f"did you mean {near[0]}?" if near else f"it takes {some(choice, 20)}",
            )
    return arguments, slow


def _groups(settings: Optim, model: Classifier, ever: Collection[str] | None) -> list[dict[str, Any]]:
    """Parameter groups of equal decay and equal scale, in the model's order. Each parameter lies in exactly one."""
    parameters = dict(model.named_parameters())
    trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
    wanted = trainable if ever is None else set(ever)
    if unknown := sorted(wanted - parameters.keys()):
        raise GoldfoldError(f"the model has no parameter {some(unknown)}")
    if left := sorted(trainable - wanted):
        raise GoldfoldError(f"trainable parameters that no optimizer would get: {some(left)}")
    if not wanted:
        raise BadInput("model.freeze", "nothing is left to train", "freeze less")
    scales = _scales(settings, model)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if name in wanted:
            decayed = settings.decay_all or parameter.ndim > 1
            groups.setdefault((scales.get(id(parameter), settings.head_lr_scale), decayed), []).append(parameter)
    return [
        {"params": members, "weight_decay": settings.weight_decay if decayed else 0.0, "lr_scale": scale}
        for (scale, decayed), members in groups.items()
    ]


def _scales(settings: Optim, model: Classifier) -> dict[int, float]:
    """``lr_scale`` of the backbone's parameters, by their identity."""
    backbone = model.backbone
    if settings.layer_decay == 1:
        return {id(parameter): 1.0 for parameter in backbone.parameters()}
    if not hasattr(backbone, "group_matcher"):
        raise BadInput(
            "optim.layer_decay", "this backbone does not say how its layers are grouped", "set it to 1, or take another"
        )
    matcher = backbone.group_matcher(coarse=False)  # type: ignore[operator]
    depths: Mapping[str, int] = group_parameters(_WithHead(backbone), matcher, reverse=True)
    top = depths[_WithHead.HEAD]
    return {
        id(parameter): settings.layer_decay ** (top - depths[name]) for name, parameter in backbone.named_parameters()
    }


class _WithHead:
    """A backbone and a name that no group of it matches: timm puts such names on top, where it counts from."""

    HEAD = "goldfold_head.weight"

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter | None]]:
        yield from self.backbone.named_parameters()
        yield self.HEAD, None
