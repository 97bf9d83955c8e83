"""Intervals of times and rates from launches and their blocks.

Times come as ``launches``: a list of launches, each a list of blocks, each an array of samples in ns. Samples within a
block hang together, and so do blocks within a process; so intervals resample launches and whole blocks, never samples.

Launches are the independent repetitions, so with two or more of them the interval is Student's: the bootstrap's spread
of drawing launches times the t quantile with one degree of freedom fewer than there are launches. Quantiles of the
draws would not do: three launches are too few to draw from. Launches may agree by chance, so the interval is never
narrower than the one from blocks within launches, neighbours merged until they no longer hang together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.stats.blocks import Draws, draw, merge_factor
from edgewise.bench.stats.interval import Interval, Launches, Samples, t_quantile
from edgewise.bench.stats.percentiles import percentile

GRID = 2048
# Launches are added until an interval is narrow enough, and who looks again errs more often: from 3 to 6 launches up to
# 8 % for 5 %. A smaller share of error from the start makes up for it (benchmarks/bench/coverage.py, "stop").
LOOKED = 0.7
METRIC_RESAMPLES = 300


def bootstrap_percentiles(
    launches: Launches, quantiles: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> list[Interval | None]:
    """Each quantile with its interval; None for one below its floor.

    Blocks are counted on a grid of the pooled samples, so a resample is a product of counts and not a sort.
    """
    pooled = np.sort(np.concatenate([block for launch in launches for block in launch]))
    grid = pooled if len(pooled) <= GRID else _grid(pooled, quantiles)
    blocks = [block for launch in launches for block in launch]
    counts = np.stack([np.searchsorted(np.sort(block), grid, side="right") for block in blocks]).astype(np.float64)
    sizes = np.array([len(block) for block in blocks], dtype=np.float64)
    draws = draw([len(launch) for launch in launches], seed, _factor_of_medians(launches))
    found: list[Interval | None] = []
    for q in quantiles:
        value = percentile(pooled, q)
        if value is None:
            found.append(None)
            continue

        def drawn(weights: Samples, q: float = q) -> Samples:
            # The first grid value up to which at least q of a resample lies; the epsilon undoes float rounding.
            place = (weights @ counts < (q * (weights @ sizes) - 1e-9)[:, None]).sum(axis=1)
            values: Samples = grid[np.minimum(place, len(grid) - 1)]
            return values

        wide = interval_of(value, drawn, draws, confidence)
        # Two launches that differ say little, but no percentile of theirs lies beyond all that was seen.
        found.append(Interval(value, max(wide.low, float(pooled[0])), min(wide.high, float(pooled[-1]))))
    return found


def bootstrap_rate(
    counts: Sequence[Sequence[float]], seconds: Sequence[Sequence[float]], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Sum of ``counts`` over sum of ``seconds``, both per launch and block: queries a second, with its interval."""
    top = np.array([value for launch in counts for value in launch])
    bottom = np.array([value for launch in seconds for value in launch])
    factor = merge_factor([np.divide(some, time) for some, time in zip(counts, seconds, strict=True)])
    draws = draw([len(launch) for launch in counts], seed, factor)
    wide = interval_of(
        float(top.sum() / bottom.sum()), lambda weights: (weights @ top) / (weights @ bottom), draws, confidence
    )
    # As for percentiles: two launches that differ say little, but the rate of all lies within that of any block.
    rates = top / bottom
    return Interval(wide.value, max(wide.low, float(rates.min())), min(wide.high, float(rates.max())))


def bootstrap_metric(
    metric: Callable[[NDArray[np.int64]], float],
    n: int,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = METRIC_RESAMPLES,
) -> Interval:
    """A metric of a whole set of samples, such as F1 or a correlation, with a percentile interval over resampled sets.

    Args:
        metric: of the samples at some of the places 0 to n - 1, which may repeat.
        n: samples.
        confidence: of the interval.
        seed: of the draws.
        resamples: how many sets are drawn; such a metric is slow.
    """
    random = np.random.default_rng(seed)
    draws = [metric(random.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(metric(np.arange(n))), float(low), float(high))


def paired_ratio(
    reference: Launches, candidate: Launches, *, confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """How many times faster ``candidate`` is: reference / candidate, from block pairs measured side by side.

    Each pair (same launch, same round) gives the ratio of the two blocks' medians; the estimate is their 10 %-trimmed
    mean on the log scale, which one slow spell of the machine can't move. None where nothing pairs.
    """
    pairs = [
        np.array([np.log(np.median(r) / np.median(c)) for r, c in zip(one, other, strict=False) if len(r) and len(c)])
        for one, other in zip(reference, candidate, strict=False)
    ]
    pairs = [logs for logs in pairs if len(logs)]
    if not pairs:
        return None
    flat = np.concatenate(pairs)
    order = np.argsort(flat)
    draws = draw([len(logs) for logs in pairs], seed, merge_factor(pairs))

    def drawn(weights: Samples) -> Samples:
        ratios: Samples = np.exp(_trimmed(flat[order][None], weights[:, order]))
        return ratios

    return interval_of(float(drawn(np.ones((1, len(flat))))[0]), drawn, draws, confidence)


def interval_of(value: float, drawn: Callable[[Samples], Samples], draws: Draws, confidence: float) -> Interval:
    """The interval of a positive ``value`` on the log scale; ``drawn`` gives it for each row of weights."""
    half = 0.0
    of_launches = 1 - LOOKED * (1 - confidence)
    for weights, freedom, share in (
        (draws.launches, draws.launch_freedom, of_launches),
        (draws.blocks, draws.block_freedom, confidence),
    ):
        if freedom:
            half = max(half, t_quantile(freedom, share) * float(np.std(np.log(drawn(weights)))))
    return Interval(value, value * math.exp(-half), value * math.exp(half))


def _factor_of_medians(launches: Launches) -> int:
    return merge_factor([np.log([max(float(np.median(block)), 1e-9) for block in launch]) for launch in launches])


def _grid(pooled: Samples, quantiles: Sequence[float]) -> Samples:
    """``GRID`` of the sorted samples: spread evenly, and again as many close around each quantile asked for."""
    n = len(pooled)
    places = [np.linspace(0, n - 1, GRID)]
    for q in quantiles:
        half = min(0.05, 2 * (1 - q))
        places.append(np.linspace(max(0.0, q - half), min(1.0, q + half), GRID) * (n - 1))
    grid: Samples = pooled[np.unique(np.concatenate(places).astype(int))]
    return grid


def _trimmed(values: Samples, weights: Samples, cut: float = 0.1) -> Samples:
    """Weighted means of sorted ``values`` (1, n) without the ``cut`` of the weight (resamples, n) at either end."""
    total = weights.sum(axis=1, keepdims=True)
    after = np.cumsum(weights, axis=1)
    inside = np.clip(np.minimum(after, (1 - cut) * total) - np.maximum(after - weights, cut * total), 0, None)
    mean: Samples = (inside * values).sum(axis=1) / inside.sum(axis=1)
    return mean
