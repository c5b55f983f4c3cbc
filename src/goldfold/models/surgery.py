"""Changes to a backbone that is already built: its activations, the kernel of its stem, the start of its residuals."""

from __future__ import annotations

import torch
from timm.layers import activations, activations_me
from torch import Tensor, nn

from goldfold.errors import BadInput

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
_INPLACE = ("relu", "leaky_relu", "elu")  # these need their output alone for the gradient, so in place saves memory

# Sigmoid, tanh and their hard forms are left out: they are gates.
_REPLACED: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish),
    *(nn.Hardswish, activations.Swish, activations.Mish, activations.HardSwish, activations.HardMish),
    *(activations.GELU, activations.GELUTanh, activations.QuickGELU),
    *(activations_me.SwishMe, activations_me.MishMe, activations_me.HardSwishMe, activations_me.HardMishMe),
)

# Modules of timm that compute their activation in a function, where it cannot be replaced.
_INSEPARABLE = {"GammaAct", "InplaceAbn", "LinearSelfAttention", "NASNetALarge", "PNASNet5Large", "Xception"}
_INSEPARABLE_PREFIXES = ("EvoNorm", "FilterResponseNorm")


def make_activation(name: str, inplace: bool = False) -> nn.Module:
    """relu, leaky_relu, prelu, elu, silu or gelu, with PyTorch's own arguments. ``inplace`` where that saves memory."""
    kind = ACTIVATIONS[name]
    return kind(inplace=True) if inplace and name in _INPLACE else kind()


def swap_activation(backbone: nn.Module, name: str) -> int:
    """Put the activation ``name`` in place of each of the backbone's own; how many were replaced.

    Gates stay (the sigmoid of squeeze-and-excitation). A module that is used in several places stays one module. Raises
    BadInput when the backbone has no activation modules, or computes some activations in functions.
    """
    fixed = sorted({kind for module in backbone.modules() if (kind := type(module).__name__) and _inseparable(kind)})
    if fixed:
        what = f"the backbone computes activations inside {' and '.join(fixed)}, where they cannot be replaced"
        raise BadInput("model.activation", what, "set it to null or choose another backbone")
    made: dict[int, nn.Module] = {}
    for parent in list(backbone.modules()):
        for place, old in parent._modules.items():
            if old is None or not isinstance(old, _REPLACED):
                continue
            if id(old) not in made:
                made[id(old)] = make_activation(name, inplace=bool(getattr(old, "inplace", False))).train(old.training)
            parent._modules[place] = made[id(old)]
    if not made:
        raise BadInput("model.activation", "the backbone has no activation modules", "set it to null")
    return len(made)


def _inseparable(kind: str) -> bool:
    return kind in _INSEPARABLE or kind.startswith(_INSEPARABLE_PREFIXES)


def resize_stem(backbone: nn.Module, kernel: int) -> None:
    """Give the first convolution a ``kernel`` of another odd side, in place; its output keeps its size.

    A larger kernel is the old one in a border of zeros, so the network computes the same at first; a smaller one is its
    centre. Raises BadInput when the first convolution has no such form (patches, even or oblong kernels).
    """
    if kernel < 1 or kernel % 2 == 0:
        raise BadInput("model.stem_kernel", f"{kernel} is not odd")
    name, conv = _first_convolution(backbone)
    old = conv.kernel_size[0]
    shape = "x".join(map(str, conv.kernel_size))
    mend = "set it to null or choose another backbone"
    if old % 2 == 0 or conv.kernel_size != (old, old) or (conv.kernel_size == conv.stride and old > 1):
        what = (
            f"the first convolution ({name}) has a kernel of {shape} and a stride of {conv.stride[0]}, which must stay"
        )
        raise BadInput("model.stem_kernel", what, mend)
    if conv.padding_mode != "zeros" or "StdConv" in type(conv).__name__:
        # Weight standardisation counts a border of zeros too, so the padded kernel would compute something else.
        what = f"the first convolution ({name}) is a {type(conv).__name__}, whose kernel cannot be resized"
        raise BadInput("model.stem_kernel", what, mend)
    grow = (kernel - old) // 2
    if not isinstance(conv.padding, str) and type(conv).__name__ not in ("Conv2dSame", "Conv2dSameExport"):
        padding = tuple(pad + grow * step for pad, step in zip(conv.padding, conv.dilation, strict=True))
        if min(padding) < 0:
            what = f"the first convolution ({name}) is {shape} without padding: a smaller one changes its output's size"
            raise BadInput("model.stem_kernel", what, f"use {old} or more")
        conv.padding = padding
    with torch.no_grad():
        weight = _resized(conv.weight, grow)
    conv.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    conv.kernel_size = (kernel, kernel)


def _resized(weight: Tensor, grow: int) -> Tensor:
    """(O, I, k, k) → (O, I, k + 2 grow, k + 2 grow). Negative paddings crop."""
    return nn.functional.pad(weight, [grow] * 4).contiguous()


def _first_convolution(backbone: nn.Module) -> tuple[str, nn.Conv2d]:
    modules = dict(backbone.named_modules())
    named = (getattr(backbone, "pretrained_cfg", None) or {}).get("first_conv")
    if isinstance(named, str) and isinstance(modules.get(named), nn.Conv2d):
        return named, modules[named]  # type: ignore[return-value]
    found = next(((name, module) for name, module in modules.items() if isinstance(module, nn.Conv2d)), None)
    if found is None or isinstance(named, list | tuple):
        what = (
            "the backbone has no first convolution" if found is None else "the backbone has several first convolutions"
        )
        raise BadInput("model.stem_kernel", what, "set it to null or choose another backbone")
    return found


def zero_last_norms(backbone: nn.Module) -> int:
    """Zero the last scale of each residual branch (zero-γ; Goyal et al. 2017, He et al. 2019); how many were zeroed.

    Each residual block then starts as its shortcut alone. timm's own way is used where a block has one (pre-activation
    blocks zero their last convolution); otherwise the branch's last norm. Raises BadInput where no block has such a
    scale.
    """
    zeroed = 0
    for block in backbone.modules():
        scale = _last_scale(block)
        if scale is not None:
            nn.init.zeros_(scale)
            zeroed += 1
        elif hasattr(block, "zero_init_last") and callable(block.zero_init_last) and _adds_shortcut(block):
            block.zero_init_last()
            # Pre-activation RegNets have the method, and it does nothing.
            zeroed += any(not parameter.any() for name, parameter in block.named_parameters() if "weight" in name)
    if not zeroed:
        what = "no residual branch of the backbone ends in a norm whose scale could be zeroed"
        raise BadInput("model.zero_init_last", what, "set it to false or choose another backbone")
    return zeroed


def fill_zero_norms(backbone: nn.Module) -> int:
    """Give norms whose whole scale is zero the usual scale of one; how many there were.

    timm zeroes some families' last norms by itself when weights are random; a configuration that does not ask for zero-γ
    means a network without it.
    """
    filled = 0
    for module in backbone.modules():
        if _is_norm(module) and not module.weight.any():  # type: ignore[operator, union-attr]
            nn.init.ones_(module.weight)  # type: ignore[arg-type]
            filled += 1
    return filled


def _adds_shortcut(block: nn.Module) -> bool:
    # RegNet's blocks add nothing where this is None; in ResNets None means that the input itself is added.
    return not (type(block).__module__.endswith(".regnet") and getattr(block, "downsample", True) is None)


def _last_scale(block: nn.Module) -> Tensor | None:
    """The scale that ends the residual branch of EfficientNet-like and ByobNet blocks; None for other modules."""
    if getattr(block, "has_skip", False) is True and not hasattr(block, "attn"):
        norms = [module for module in block.modules() if _is_norm(module)]
    elif getattr(block, "shortcut", None) is not None and hasattr(block, "init_weights"):
        parts = [part for name, part in block.named_children() if name.startswith("conv")]
        norms = [module for module in (parts[-1].modules() if parts else ()) if _is_norm(module)]
    else:
        return None
    return norms[-1].weight if norms else None  # type: ignore[return-value]


def _is_norm(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return isinstance(module, kinds) and isinstance(module.weight, nn.Parameter)
