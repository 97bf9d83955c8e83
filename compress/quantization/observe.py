"""Set the ranges of a model's quantizers from what passes through them, in small batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.compress.quantization.clipping import asymmetric_bounds, symmetric_threshold
from edgewise.compress.quantization.histogram import Histogram
from edgewise.compress.quantization.places import all_quantizers, switched_off
from edgewise.progress import Tick, silent

BATCH = 32
BATCH_VALUES = 2**22  # of the inputs of one batch: large images go through in smaller ones


def batches(
    samples: NDArray[Any], device: torch.device, most: int = BATCH, *, padding: int | None = None
) -> Iterator[Tensor]:
    """(N, ...) in order, a few at a time; copied one batch at a time. Texts, whose ``padding`` is known, share a batch
    with those of their own length and come without it: what a net makes of padding moves no range."""
    size = max(1, min(most, BATCH_VALUES // max(1, samples[0].size)))
    groups = [samples]
    if padding is not None:
        lengths = samples.shape[1] - (samples[:, ::-1] != padding).argmax(axis=1)
        groups = [samples[lengths == length, :length] for length in np.unique(lengths)]
    for group in groups:
        for start in range(0, len(group), size):
            yield torch.from_numpy(np.ascontiguousarray(group[start : start + size])).to(device)


def observe(
    model: nn.Module,
    samples: NDArray[Any],
    tick: Tick = silent,
    *,
    singly: bool = False,
    padding: int | None = None,
) -> dict[nn.Module, Histogram]:
    """A histogram of what each activation quantizer is given when nothing is quantized. Memory: one batch, and a
    histogram of fixed size a quantizer, however many samples there are.

    Args:
        model: with quantizers; it stays as it is.
        samples: (N, C, H, W), or ids (N, L).
        tick: told of each batch.
        singly: one sample a batch, so that the mean of the additions' extremes is that of the samples'.
        padding: the id of texts' padding, which is left out.

    Raises:
        ModelError: an activation isn't finite.
    """
    histograms = {quantizer: Histogram() for quantizer in all_quantizers(model) if not is_weight(quantizer)}

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        histograms[module].add(args[0])

    handles = [quantizer.register_forward_pre_hook(count) for quantizer in histograms]
    done = 0
    try:
        with torch.no_grad(), switched_off(all_quantizers(model)):
            device = next(model.parameters()).device
            for batch in batches(samples, device, 1 if singly else BATCH, padding=padding):
                model(batch)
                done += len(batch)
                tick(done, len(samples), "ranges")
    finally:
        for handle in handles:
            handle.remove()
    return histograms


def set_activation_ranges(
    model: nn.Module, histograms: dict[nn.Module, Histogram], method: str, percentile: float
) -> None:
    """Give every activation quantizer the range that ``method`` finds best, in place. A symmetric one is signed where
    a value below zero was seen."""
    for quantizer, histogram in histograms.items():
        if not histogram.total:
            continue  # never reached by these samples
        q: Any = quantizer
        with torch.no_grad():
            if hasattr(quantizer, "input_low"):
                low, high = asymmetric_bounds(histogram, method, q.levels, percentile)
                q.input_low.fill_(low)
                q._input_range_param_storage.fill_(high - low)
            else:
                q.signed = histogram.low < 0
                q._scale_param_storage.fill_(
                    symmetric_threshold(histogram, method, q.level_low, q.level_high, percentile)
                )


def is_weight(quantizer: nn.Module) -> bool:
    """Weights alone leave out the lowest level, so that their range is symmetric."""
    return bool(quantizer._narrow_range)


__all__ = ["batches", "is_weight", "observe", "set_activation_ranges"]
