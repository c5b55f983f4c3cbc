"""Depthwise convolutions with wide kernels, whose weight gradients are slow on a CPU, made of narrow ones.

oneDNN (3.13) has a fast weight gradient for depthwise kernels of up to 3 columns and falls back to a general one beyond:
on 8 x 8 maps a 5 x 5 kernel takes 20 times as long as a 3 x 3 one, in bfloat16 over 100 times. So the gradient is taken
of up to 3 columns at a time. Sums are the same, in another order; outputs and the other gradients are untouched.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NARROW = 3
"""Columns of a kernel that oneDNN is fast for."""


def quicken_depthwise(model: nn.Module) -> int:
    """Let the model's wide depthwise convolutions take the faster gradient; returns how many there are.

    Weights, names and state stay as they are. Nothing changes off the CPU or without oneDNN.
    """
    count = 0
    for module in model.modules():
        quick = _QUICK.get(type(module))
        if quick is None or not torch.backends.mkldnn.is_available() or not _is_wide(module):  # type: ignore[no-untyped-call]
            continue
        if module.weight.device.type == "cpu":  # type: ignore[union-attr]
            module.__class__ = quick
            count += 1
    return count


def _is_wide(module: nn.Module) -> bool:
    assert isinstance(module, nn.Conv2d)
    depthwise = module.groups == module.in_channels == module.out_channels
    plain = module.padding_mode == "zeros" and not isinstance(module.padding, str) and tuple(module.dilation) == (1, 1)
    return depthwise and plain and module.kernel_size[1] > NARROW


class _Conv2d(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _convolve(self, input, self.padding)


class _Conv2dSame(Conv2dSame):  # type: ignore[misc]  # timm has no types
    def forward(self, x: Tensor) -> Tensor:
        return _convolve(self, pad_same(x, self.kernel_size, self.stride, self.dilation), (0, 0))


_QUICK: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: _Conv2d, Conv2dSame: _Conv2dSame}
"""By the very class: what inherits from it may compute otherwise."""


def _convolve(module: nn.Conv2d, x: Tensor, padding: Any) -> Tensor:
    weight, bias = module.weight, module.bias
    if not (torch.is_grad_enabled() and weight.requires_grad) or x.device.type != "cpu":
        return F.conv2d(x, weight, bias, module.stride, padding, groups=module.groups)
    if torch.is_autocast_enabled("cpu"):  # its casts come before the function, so that they have gradients of their own
        kind = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
    return _Depthwise.apply(x, weight, bias, module.stride, padding)  # type: ignore[no-any-return,no-untyped-call]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable  # type: ignore[misc,no-untyped-call]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        to_x = to_weight = to_bias = None
        if needs_x or needs_bias:
            to_x, _, to_bias = _gradients(grad, x, weight, ctx.stride, ctx.padding, (needs_x, False, needs_bias))
        if needs_weight:
            to_weight = weight_gradient(grad, x, weight, ctx.stride, ctx.padding)
        return to_x, to_weight, to_bias, None, None


def weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Of a depthwise convolution of ``x`` (B, C, H, W) by ``weight`` (C, 1, K, L) with the outputs' ``grad``; L >= 3."""
    (above, beside), (down, across) = padding, stride
    height, width = x.shape[2:]
    # Padding that the fast form takes by itself needs a map at least as high as the kernel.
    fills = 0 if height >= weight.shape[2] + (-above) % down else above
    needed = (grad.shape[3] - 1) * across + NARROW
    columns = weight.shape[3]
    out = torch.empty_like(weight)
    for first in (*range(0, columns - NARROW, NARROW), columns - NARROW):
        left = beside - first
        # Padding below zero cuts off; what is left is the part of x that these columns meet.
        part = F.pad(x, (left, needed - width - left, fills, fills))
        kernel = weight[..., first : first + NARROW]
        found = _gradients(grad, part, kernel, stride, (above - fills, 0), (False, True, False))[1]
        out[..., first : first + NARROW] = found
    return out


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, which: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    channels = len(weight)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, [channels], list(stride), list(padding), [1, 1], False, [0, 0], channels, list(which)
    )
    return found
