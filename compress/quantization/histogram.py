"""A histogram of a stream of values, of bounded size and exact: its bins are never split, only merged in pairs.

Bin ``i`` is [i·w, (i+1)·w) with ``w`` a power of two, so zero lies on an edge and a bin twice as wide is exactly two
narrower ones. What comes out hangs on the values alone, not on their order or on how they were cut into batches.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewise.errors import ModelError

BINS = 2**14
SMALLEST = -100  # of the exponent: a width that float32 still divides by exactly


class Histogram:
    """Counts of all values added so far, in at most ``bins`` bins; ``low`` and ``high`` are the extremes themselves,
    and ``mean_extremes`` the means of those of each addition: (smallest, largest, largest magnitude)."""

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.low, self.high = math.inf, -math.inf
        self.additions, self.extremes = 0, np.zeros(3)
        self.exponent = SMALLEST
        self.first = 0
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def width(self) -> float:
        """Of one bin."""
        return 2.0**self.exponent

    @property
    def total(self) -> int:
        """How many values there were."""
        return int(self.counts.sum())

    @property
    def mean_extremes(self) -> tuple[float, float, float]:
        """Over the additions: smallest, largest, largest magnitude."""
        smallest, largest, magnitude = (self.extremes / max(1, self.additions)).tolist()
        return smallest, largest, magnitude

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin: (B,)."""
        places = np.arange(self.first, self.first + len(self.counts), dtype=np.float64)
        return (places + 0.5) * np.float64(self.width)

    def add(self, values: Tensor) -> None:
        """Count ``values`` of any shape.

        Raises:
            ModelError: one of them isn't finite.
        """
        flat = values.detach().float().reshape(-1)
        if not flat.numel():
            return
        smallest, largest = (float(value) for value in flat.aminmax())
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            raise ModelError("an activation is NaN or infinite on the calibration samples", where="calibration")
        self.additions += 1
        self.extremes += (smallest, largest, max(abs(smallest), abs(largest)))
        self._make_room(min(smallest, self.low), max(largest, self.high))
        places = torch.floor(flat * 2.0**-self.exponent).to(torch.int64) - self.first
        self.counts += torch.bincount(places, minlength=len(self.counts)).cpu().numpy()

    def _make_room(self, low: float, high: float) -> None:
        """Widen the bins until [low, high] fits, and move the old counts over."""
        exponent = max(SMALLEST, _log2((high - low) / self.bins) - 1, _log2(max(abs(low), abs(high))) - 40)
        while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= self.bins:
            exponent += 1
        first, last = math.floor(low / 2.0**exponent), math.floor(high / 2.0**exponent)
        counts = np.zeros(last - first + 1, np.int64)
        if len(self.counts):
            old = self.first + np.arange(len(self.counts))
            np.add.at(counts, (old >> (exponent - self.exponent)) - first, self.counts)
        self.low, self.high, self.exponent, self.first, self.counts = low, high, exponent, first, counts

    def magnitudes(self, bins: int = BINS) -> tuple[float, NDArray[np.int64]]:
        """(width, counts) of |x| from zero on; merged in pairs until there are at most ``bins``."""
        indices = self.first + np.arange(len(self.counts))
        folded = np.where(indices < 0, -1 - indices, indices)
        exponent = self.exponent
        while int(folded.max()) >= bins:
            folded, exponent = folded >> 1, exponent + 1
        counts = np.zeros(int(folded.max()) + 1, np.int64)
        np.add.at(counts, folded, self.counts)
        return 2.0**exponent, counts

    def quantile(self, part: float) -> float:
        """The value below which ``part`` (0..1) of all values lie, right within one bin's width."""
        place = _quantile(self.counts, part)
        return float(np.clip((self.first + place) * self.width, self.low, self.high))


def magnitude_quantile(histogram: Histogram, part: float) -> float:
    """As :meth:`Histogram.quantile`, of |x|; right within the width of the bins of :meth:`Histogram.magnitudes`."""
    width, counts = histogram.magnitudes()
    largest = max(abs(histogram.low), abs(histogram.high))
    return min(_quantile(counts, part) * width, largest)


def _quantile(counts: NDArray[np.int64], part: float) -> float:
    """In bins from the first edge, even within a bin."""
    below = np.cumsum(counts)
    wanted = part * below[-1]
    place = int(np.searchsorted(below, wanted, side="left"))
    inside = wanted - (below[place] - counts[place])
    return place + float(inside / counts[place])


def _log2(value: float) -> int:
    return math.frexp(value)[1] - 1 if value > 0 else SMALLEST


__all__ = ["BINS", "Histogram", "magnitude_quantile"]
