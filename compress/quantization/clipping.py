"""Where to clip: the range that a quantizer's levels cover, chosen from a histogram of what it is given.

A narrow range has small steps and clips the tail; a wide one clips nothing and is coarse everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.compress.quantization.histogram import Histogram, magnitude_quantile
from edgewise.errors import ModelError

CANDIDATES = 200  # thresholds tried, evenly up to the largest magnitude
NARROWEST = 10  # the first of them: a twentieth of the range
ENTROPY_BINS = 2048
EXPECTED = "mean_min_max, min_max, percentile, mse or entropy"
FLOOR = 2.0**-16  # of a range: a tensor that is zero throughout has none


def symmetric_threshold(histogram: Histogram, method: str, level_low: int, level_high: int, percentile: float) -> float:
    """The ``t`` that ``level_high`` stands for: levels are ``t / level_high`` apart, from ``level_low`` on.

    Args:
        histogram: of the tensor's values.
        method: mean_min_max, min_max, percentile, mse or entropy.
        level_low: 0, or about ``-level_high``.
        level_high: such as 127.
        percentile: 0..100, of |x|; only read by ``percentile``.

    Raises:
        ModelError: an unknown method.
    """
    largest = max(abs(histogram.low), abs(histogram.high))
    if method == "min_max":
        found = largest
    elif method == "mean_min_max":
        found = histogram.mean_extremes[2]
    elif method == "percentile":
        found = magnitude_quantile(histogram, percentile / 100)
    elif method == "mse":
        found = _least_error(histogram, largest, level_low, level_high)
    elif method == "entropy":
        found = min(_least_divergence(histogram, level_high + 1), largest)
    else:
        raise ModelError(f"expected {EXPECTED}, got {method!r}", where="ranges")
    return max(found, FLOOR)


def asymmetric_bounds(histogram: Histogram, method: str, levels: int, percentile: float) -> tuple[float, float]:
    """(low, high) of ``levels`` levels; zero is always between them. Percentile: ``100 - percentile`` of the values
    lie below ``low`` and as many above ``high``. Entropy: one threshold for both sides, never beyond what was seen.

    Raises:
        ModelError: an unknown method.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "mean_min_max":
        low, high = min(histogram.mean_extremes[0], 0.0), max(histogram.mean_extremes[1], 0.0)
    elif method == "percentile":
        low = min(histogram.quantile(1 - percentile / 100), 0.0)
        high = max(histogram.quantile(percentile / 100), 0.0)
    elif method == "mse":
        low, high = _least_error_of_both(histogram, low, high, levels)
    elif method == "entropy":
        threshold = _least_divergence(histogram, levels // 2)
        low, high = max(low, -threshold), min(high, threshold)
    elif method != "min_max":
        raise ModelError(f"expected {EXPECTED}, got {method!r}", where="ranges")
    return low, max(high, low + FLOOR)


def _least_error(histogram: Histogram, largest: float, level_low: int, level_high: int) -> float:
    """The threshold of the least squared error, clipping and rounding together."""
    if largest == 0:
        return 0.0
    candidates = largest * np.arange(NARROWEST, CANDIDATES + 1) / CANDIDATES
    errors = [_error(histogram, t / level_high, level_low, level_high) for t in candidates]
    return float(candidates[int(np.argmin(errors))])


def _least_error_of_both(histogram: Histogram, low: float, high: float, levels: int) -> tuple[float, float]:
    """Both ends in turn, twice: the error has one valley along each."""
    lows, highs = (bound * np.arange(NARROWEST, CANDIDATES + 1) / CANDIDATES for bound in (low, high))

    def error(a: float, b: float) -> float:
        step = max(b - a, FLOOR) / (levels - 1)
        zero = round(-a / step)
        return _error(histogram, step, -zero, levels - 1 - zero)

    for _ in range(2):
        low = float(lows[int(np.argmin([error(a, high) for a in lows]))]) if low else 0.0
        high = float(highs[int(np.argmin([error(low, b) for b in highs]))]) if high else 0.0
    return low, high


def _error(histogram: Histogram, step: float, level_low: int, level_high: int) -> float:
    centres = histogram.centres
    nearest = np.clip(np.rint(centres / step), level_low, level_high) * step
    return float(np.dot(histogram.counts, (centres - nearest) ** 2))


def _least_divergence(histogram: Histogram, levels: int) -> float:
    """The threshold whose ``levels`` magnitudes tell least less than the values do (Kullback-Leibler), as TensorRT
    calibrates: Migacz, "8-bit inference with TensorRT", GTC 2017."""
    width, counts = histogram.magnitudes(ENTROPY_BINS)
    values = counts.astype(np.float64)
    if len(values) > 1:
        values[0] = values[1]  # zero is a level whatever the threshold, and after a ReLU half of all values
    if len(values) <= levels or not values.any():
        return len(values) * width
    lengths = range(levels, len(values) + 1)
    divergences = [divergence(values, length, levels) for length in lengths]
    return lengths[int(np.argmin(divergences))] * width


def divergence(counts: NDArray[np.float64], length: int, levels: int) -> float:
    """KL(P || Q): P is the first ``length`` bins with all that lies beyond in the last; Q is the same bins (nothing
    added) in ``levels`` groups, each spread evenly over those of its bins that aren't empty. Infinite where P has
    something that Q has not."""
    kept = counts[:length]
    clipped = kept.copy()
    clipped[-1] += counts[length:].sum()
    starts = np.arange(levels) * length // levels
    sums, filled = np.add.reduceat(kept, starts), np.add.reduceat((kept > 0).astype(np.float64), starts)
    even = np.divide(sums, filled, out=np.zeros_like(sums), where=filled > 0)
    spread = np.repeat(even, np.diff(np.append(starts, length))) * (kept > 0)
    there = clipped > 0
    if not spread.any() or (spread[there] == 0).any():
        return float("inf")
    p, q = clipped[there] / clipped.sum(), spread[there] / spread.sum()
    return float(np.dot(p, np.log(p / q)))


__all__ = ["asymmetric_bounds", "divergence", "symmetric_threshold"]
