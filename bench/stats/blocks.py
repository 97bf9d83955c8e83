"""Which blocks count as one draw: neighbours that hang together are drawn together.

An interval from blocks is as wide as it must be only where blocks know nothing of each other. Under AR(1) noise with
rho 0.8 and an inference a block, an interval that takes them for independent covers the truth in half of all cases, not
in 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.stats.interval import Samples

RESAMPLES = 1000
CORRELATED = 0.1  # lag-1 autocorrelation from which neighbours are merged
FEWEST = 3  # merged blocks a launch; fewer say nothing about their own spread


def lag_one(values: Sequence[Samples]) -> float:
    """The lag-1 autocorrelation of series that share it, a launch each, around each launch's own mean.

    With the bias of short series taken out: it is -(1 + 4 rho) / n (Marriott and Pope 1954, Biometrika 41:390).
    """
    gaps = [series - series.mean() for series in values if len(series) > 1]
    power = sum(float((gap * gap).sum()) for gap in gaps)
    # Equal values differ by rounding only.
    if power <= 1e-24 * max(1.0, sum(float((series * series).sum()) for series in values)):
        return 0.0
    found = sum(float((gap[:-1] * gap[1:]).sum()) for gap in gaps) / power
    n = float(np.mean([len(gap) for gap in gaps]))
    return found + (1 + 4 * found) / n


def merge_factor(values: Sequence[Samples]) -> int:
    """How many neighbours to merge, a power of two: until merged blocks' lag-1 autocorrelation is under 0.1.

    ``values``: one number a block, by launch. At least ``FEWEST`` merged blocks are left in each launch.
    """
    factor = 1
    while min(map(len, values)) // (2 * factor) >= FEWEST and lag_one(_merged(values, factor)) >= CORRELATED:
        factor *= 2
    return factor


@dataclass(frozen=True)
class Draws:
    """How often each block counts, (RESAMPLES, blocks): drawing whole launches, and drawing merged blocks within each.

    One fewer is drawn than there are: with few, a plain bootstrap's variance is too small by 1 - 1/n, and this makes up
    for it (Rao and Wu 1988, JASA 83:231).
    """

    launches: Samples
    blocks: Samples
    launch_freedom: int
    block_freedom: int


def draw(sizes: Sequence[int], seed: int, factor: int = 1) -> Draws:
    """Resamples of launches with ``sizes`` blocks, of which ``factor`` neighbours are drawn together."""
    random = np.random.default_rng(seed)
    starts = np.cumsum([0, *sizes[:-1]])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.arange(RESAMPLES)
    times = np.zeros((RESAMPLES, len(sizes)))
    for _ in range(max(1, len(sizes) - 1)):
        np.add.at(times, (rows, random.integers(0, len(sizes), RESAMPLES)), 1)
    within = np.zeros((RESAMPLES, len(owner)))
    freedom = 0
    for start, size in zip(starts, sizes, strict=True):
        group = _groups(size, factor)
        count = int(group[-1]) + 1
        drawn = max(1, count - 1)
        freedom += count - 1
        for _ in range(drawn):
            # Each launch keeps its weight, however many of its blocks are drawn.
            chosen = random.integers(0, count, RESAMPLES)
            within[:, start : start + size] += (group == chosen[:, None]) * (count / drawn)
    return Draws(times[:, owner], within, len(sizes) - 1, freedom)


def _groups(size: int, factor: int) -> NDArray[np.int64]:
    """The merged block that each of ``size`` blocks belongs to; what is left over goes to the last."""
    return np.minimum(np.arange(size) // factor, max(1, size // factor) - 1)


def _merged(values: Sequence[Samples], factor: int) -> list[Samples]:
    if factor == 1:
        return list(values)
    return [
        np.bincount(group, series) / np.bincount(group) for series in values for group in [_groups(len(series), factor)]
    ]
