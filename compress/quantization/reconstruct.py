"""Mend a quantized net layer by layer, in the order in which they run: round the weights, then move the bias so that
the layer's mean answer is that of the float net (arXiv 1906.04721 §4.2, measured on samples)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.compress.macs import count
from edgewise.compress.quantization.adaround import adaround
from edgewise.compress.quantization.config import AdaRound
from edgewise.compress.quantization.moments import Moments, caught, moments
from edgewise.compress.quantization.observe import batches
from edgewise.compress.quantization.places import given, owners
from edgewise.models.inputs import form_of
from edgewise.progress import Tick, silent

LAYERS = (nn.Conv2d, nn.Linear)
BIAS_SAMPLES = (16, 128)
BIAS_MACS = 4e11  # for biases alone: every layer runs the net up to itself, so large nets are shown fewer samples


def reconstruct(
    model: nn.Module,
    floats: nn.Module,
    samples: NDArray[Any],
    rounding: AdaRound | None,
    tick: Tick = silent,
    *,
    padding: int | None = None,
) -> list[str]:
    """Correct ``model`` in place: weights rounded by ``rounding`` (None: as they are), then biases.

    What is written back are values on the grid, so that rounding to the nearest gives the same ones to every converter.

    Args:
        model: with quantizers, ranges set.
        floats: the same net without quantizers, modules of the same names.
        samples: (N, C, H, W), or ids (N, L); of many, some taken evenly.
        rounding: how to round; None leaves the weights.
        tick: told of each layer.
        padding: the id of texts' padding, which is left out.

    Returns:
        Names of the layers whose weights keep nearest rounding although ``rounding`` is set: those called twice, or of
        a kind that isn't a product of windows.
    """
    wanted = min(len(samples), rounding.samples if rounding else _enough(floats, form_of(samples)))
    some = samples[np.unique(np.linspace(0, len(samples) - 1, wanted).round().astype(np.int64))]
    device = next(model.parameters()).device
    tensors = given(model, torch.from_numpy(np.ascontiguousarray(some[:1])))
    held = owners(model, tensors)
    calls = _calls(model, some[:1])
    left = []

    def shown() -> Iterator[Tensor]:
        return batches(some, device, padding=padding)

    for done, (quantizer, name) in enumerate(held.items()):
        owner = name.rpartition(".")[0]
        layer, twin = model.get_submodule(owner), floats.get_submodule(owner)
        plain = name.endswith("weight") and type(layer) in LAYERS and calls.get(owner) == 1
        whole = plain and tensors[quantizer].shape == layer.get_parameter("weight").shape
        found = moments(model, layer, floats, twin, shown()) if whole and rounding else None
        if rounding is not None and found is None:
            left.append(owner or name)
        if found is not None and rounding is not None:
            _round(layer, quantizer, found, rounding)
        if plain and layer.bias is not None:
            _correct_bias(model, layer, floats, twin, shown, quantizer, found)
        tick(done + 1, len(held), f"reconstructed {owner}")
    return list(dict.fromkeys(left))


def _enough(floats: nn.Module, shape: tuple[int, ...]) -> int:
    cost = count(floats, shape)
    return int(np.clip(BIAS_MACS / max(cost.macs * len(cost.layers), 1), *BIAS_SAMPLES))


def _round(layer: Any, quantizer: Any, found: Moments, config: AdaRound) -> None:
    weight = layer.weight.detach()
    step = (quantizer.scale.detach().abs() + quantizer.eps) / quantizer.level_high
    flat = weight.flatten(1)
    # Without a bias to move, the mean's error counts as well.
    chosen = found.centred() if layer.bias is not None else found.plain()
    levels = (quantizer.level_low, quantizer.level_high)
    rounded = adaround(flat, step.expand(weight.shape).flatten(1)[:, :1], levels, chosen, config)
    layer.weight.data.copy_(rounded.reshape(weight.shape))


def _correct_bias(
    model: nn.Module,
    layer: Any,
    floats: nn.Module,
    twin: Any,
    shown: Callable[[], Iterator[Tensor]],
    quantizer: Any,
    found: Moments | None,
) -> None:
    with torch.no_grad():
        if found is not None:
            mean = found.x.float() / found.count
            weight = quantizer(layer.weight).flatten(1)
            ours = (weight.reshape(len(mean), -1, weight.shape[1]) @ mean[:, :, None]).reshape(-1) + layer.bias
            wanted = found.y.float() / found.count + twin.bias
        else:
            axis = 1 if isinstance(layer, nn.Conv2d) else -1
            sums = [torch.zeros_like(layer.bias, dtype=torch.float64) for _ in range(2)]
            windows = 0
            for batch in shown():
                for total, net, one in zip(sums, (model, floats), (layer, twin), strict=True):
                    _, output = caught(net, one, batch)
                    total += output.movedim(axis, -1).flatten(0, -2).double().sum(0)
                windows += output.numel() // output.shape[axis]
            ours, wanted = (total.float() / windows for total in sums)
        layer.bias.data.add_(wanted - ours)


def _calls(model: nn.Module, sample: NDArray[Any]) -> dict[str, int]:
    """How often each layer runs for one sample."""
    counts: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if type(module) in LAYERS:

            def note(module: nn.Module, args: Any, name: str = name) -> None:
                counts[name] = counts.get(name, 0) + 1

            handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.no_grad():
            for batch in batches(sample, next(model.parameters()).device):
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return counts


__all__ = ["reconstruct"]
