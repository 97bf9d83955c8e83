"""The grid of the weights: how many levels, and how far they reach in each output channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgewise.compress.quantization.places import given, owners
from edgewise.models.inputs import blank

CANDIDATES = 100
NARROWEST = 20  # of them: a fifth of the largest weight


def set_weight_grid(model: nn.Module, input_shape: tuple[int, ...], *, bits: int, method: str) -> None:
    """Choose the weight quantizers' levels and ranges, in place.

    Args:
        model: with quantizers.
        input_shape: (C, H, W).
        bits: 8, or 4: levels from -7 to 7; the first and the last layer to run keep 8, as is the custom.
        method: max, the largest weight of each output channel; mse, the least squared error of the channel's weights.
    """
    tensors = given(model, torch.from_numpy(blank(input_shape, 1)))
    held = list(owners(model, tensors))  # in the order in which they run
    for place, quantizer in enumerate(held):
        q: Any = quantizer
        if bits != 8 and 0 < place < len(held) - 1:
            q.num_bits = bits
            q._qspec.num_bits = bits  # what is saved of it
        with torch.no_grad():
            storage = q._scale_param_storage
            storage.copy_(weight_range(tensors[quantizer], storage.shape, q.level_high, method))


def weight_range(weight: Tensor, shape: torch.Size, level_high: int, method: str) -> Tensor:
    """What ``level_high`` stands for in each channel: of ``shape``, which has one entry a channel, such as
    (C, 1, 1, 1)."""
    axes = [axis for axis, size in enumerate(shape) if size == 1]
    largest = weight.detach().abs().amax(axes, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    if method == "max":
        return largest
    best, least = largest, torch.full_like(largest, torch.inf)
    for part in range(CANDIDATES, NARROWEST - 1, -1):
        bound = largest * (part / CANDIDATES)
        step = bound / level_high
        rounded = torch.clamp((weight / step).round(), -level_high, level_high) * step
        error = (weight - rounded).square().sum(axes, keepdim=True)
        best, least = torch.where(error < least, bound, best), torch.minimum(error, least)
    return best


__all__ = ["set_weight_grid", "weight_range"]
