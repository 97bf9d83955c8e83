"""Fake quantization in plain torch, in place of NNCF's C++ and CUDA extensions.

NNCF compiles its extensions on first use: that needs a compiler (and nvcc beside a GPU), takes half a minute, and a
killed compilation leaves a lock behind that stops the next one. Its CPU backward pass is also slower than this one.
The values are NNCF's; the gradients are those of learned step sizes, arXiv 1902.08153, without its gradient scaling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def _round_to_grid(x: Tensor, step: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """``step`` times the integer in [lowest, highest] nearest to ``x / step``; ties to even, as in ONNX."""
    return (x / step).round_().clamp_(lowest, highest).mul_(step)


def _sum_to(x: Tensor, like: Tensor) -> Tensor:
    """Sum over the axes along which ``like`` was broadcast."""
    if like.numel() == 1:
        return x.sum().reshape(like.shape)
    return x.sum([i for i, size in enumerate(like.shape) if size == 1], keepdim=True)


def _dot_to(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """``_sum_to(a * b, like)``; without the product in memory where ``like`` is a single value."""
    if like.numel() == 1:
        return torch.dot(a.reshape(-1), b.reshape(-1)).reshape(like.shape)
    return _sum_to(a * b, like)


class Symmetric(Function):
    """Levels from ``level_low`` to ``level_high`` over [-scale·|level_low|/level_high, scale]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, level_low: int, level_high: int, levels: int) -> Tensor:
        """Any shape -> same shape and dtype; ``scale`` broadcasts against ``x``."""
        wide, scale = x.float(), scale.float()
        step = scale / level_high
        out = (wide / step).round_().clamp_(level_low, level_high).mul_(step)
        ctx.save_for_backward(wide, out, step)
        ctx.levels = (level_low, level_high)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Straight through inside the range; the step's gradient is Σ g·(out - x)/step inside, Σ g·level outside."""
        wide, out, step = ctx.saved_tensors
        grad = grads[0].float()
        level_low, level_high = ctx.levels
        inside = grad * ((wide >= step * level_low) & (wide <= step * level_high))
        # Outside, out = level·step: Σ g·out covers both parts, and only inside does x count against it.
        grad_step = (_dot_to(grad, out, step) - _dot_to(inside, wide, step)) / step
        return inside.to(grads[0].dtype), grad_step / level_high, None, None, None


class Asymmetric(Function):
    """``levels`` levels over [low, low + span], where zero is one of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, span: Tensor, level_low: int, level_high: int, levels: int) -> Tensor:
        """Any shape -> same shape and dtype; ``low`` and ``span`` broadcast against ``x``."""
        wide, low, span = x.float(), low.float(), span.float()
        step = span / (levels - 1)
        zero = (-low / step).round()
        out = _round_to_grid(wide, step, -zero, levels - 1 - zero)
        ctx.save_for_backward(wide, out, step, zero)
        ctx.levels = levels
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Straight through inside the range; ``low`` moves what saturates, ``span`` the step."""
        wide, out, step, zero = ctx.saved_tensors
        grad = grads[0].float()
        top = ctx.levels - 1
        inside = grad * ((wide >= -zero * step) & (wide <= (top - zero) * step))
        grad_step = (_dot_to(grad, out, step) - _dot_to(inside, wide, step)) / step
        saturated = _sum_to(grad, step) - _sum_to(inside, step)
        # low = -zero·step: at a fixed low, a larger step moves the saturated values back by zero.
        return inside.to(grads[0].dtype), saturated, (grad_step + zero * saturated) / top, None, None, None


def install() -> None:
    """Let NNCF's quantizers use these functions."""
    from nncf.torch.quantization import quantize_functions

    quantize_functions.QuantizeSymmetric = Symmetric
    quantize_functions.QuantizeAsymmetric = Asymmetric


__all__ = ["Asymmetric", "Symmetric", "install"]
