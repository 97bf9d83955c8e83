"""Take the fake quantizers off a model again, and keep what they learned: weights on their grid, and all ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewise.compress.quantization.places import HOOKS, all_quantizers, bake_weights, given, owners

WRAPPED = ("forward", "_replicate_for_data_parallel")  # what NNCF 3.4 puts on the instance


@dataclass(frozen=True)
class Learned:
    """One quantizer: the tensor it was given and the range it maps onto its levels.

    Args:
        values: of a parameter (as the quantizer sees it), or of an activation (1, ...) in a run with float activations.
        low: the value of the lowest level; of shape (), or with one entry along the channel axis.
        high: the value of the highest level, likewise.
        levels: how many there are.
        weight: whether ``values`` is a parameter.
    """

    values: NDArray[np.float32]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    levels: int
    weight: bool

    @property
    def step(self) -> NDArray[np.float64]:
        """The distance between two levels."""
        return (self.high - self.low) / (self.levels - 1)


def strip_quantizers(model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """Write every parameter as its quantizer sees it, then remove all quantizers, in place.

    Which quantizer belongs to which parameter is not read from names: one forward pass shows what each is given. The
    quantizers of activations are dropped, so answers change by their rounding. A model without quantizers stays as it
    is.

    Args:
        model: with NNCF's hooks, as ``edgewise.compress.quantization.insert`` makes it.
        input_shape: (C, H, W).

    Returns:
        The model in eval mode, a plain float module.
    """
    model.eval()
    if not hasattr(model, HOOKS):
        return model
    bake_weights(model, input_shape)
    delattr(model, HOOKS)
    for attribute in WRAPPED:  # NNCF's forward lives on the instance and hides the class's own
        model.__dict__.pop(attribute, None)
    return model


def learned_ranges(model: nn.Module, sample: NDArray[np.float32]) -> list[Learned]:
    """What each quantizer learned; nothing where the model has none. Those of activations are switched off by it.

    Args:
        model: with NNCF's hooks.
        sample: (1, C, H, W), any real input: the values it gives rise to tell the tensors apart.
    """
    model.eval()
    if not hasattr(model, HOOKS):
        return []
    inputs = torch.from_numpy(np.ascontiguousarray(sample))
    weights = owners(model, given(model, inputs))
    for quantizer in all_quantizers(model):
        if quantizer not in weights:
            quantizer.get_buffer("enabled")[0] = 0
    learned = []
    for quantizer, tensor in given(model, inputs).items():
        is_weight = quantizer in weights
        with torch.no_grad():
            low, high = cast(Any, quantizer).get_input_low_input_high()
            values = quantizer(tensor) if is_weight else tensor
        learned.append(
            Learned(
                values=values.detach().cpu().numpy().copy(),
                low=_bound(low),
                high=_bound(high),
                levels=int(cast(Any, quantizer).levels),
                weight=is_weight,
            )
        )
    return learned


def _bound(value: torch.Tensor) -> NDArray[np.float64]:
    array = value.detach().cpu().numpy().astype(np.float64)
    return array.reshape(()) if array.size == 1 else array


__all__ = ["Learned", "learned_ranges", "strip_quantizers"]
