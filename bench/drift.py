"""Whether times moved in one direction while they were measured: heat, a filling cache, a rival that comes to stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.record import Launch

DRIFT = 0.05  # change over a launch, of the median
TREND_Z = 2.326  # of Kendall's S: in 1 % of series without a trend it is as large, in either direction


def drifted(launches: Sequence[Launch]) -> bool:
    """Whether times moved by over ``DRIFT`` in one direction, within the launches or from launch to launch.

    Within: the median over launches of Theil and Sen's slope (Sen 1968, JASA 63:1379) of the blocks' medians, as the
    change over a launch, and of the last third against the first, both over the limit; and Kendall's pairs of all
    launches together must show it, so that noise seldom does. From launch to launch: the same over the launches'
    medians; fewer than six of them can't show it.
    """
    series = [_medians(launch) for launch in launches]
    long = [values for values in series if len(values) >= 9]
    if long and _moved(long):
        slope = float(np.median([change(values) for values in long]))
        thirds = float(np.median([_thirds(values) for values in long]))
        if abs(slope) > DRIFT and abs(thirds) > DRIFT and slope * thirds > 0:
            return True
    levels = np.array([float(np.median(values)) for values in series if len(values)])
    return len(levels) >= 6 and abs(change(levels)) > DRIFT and _moved([levels])


def change(values: NDArray[np.float64]) -> float:
    """Theil and Sen's slope over the whole series, of its median: .1 for 10 % more at the end than at the start."""
    n = len(values)
    if n < 2:
        return 0.0
    one, other = np.triu_indices(n, 1)
    slope = float(np.median((values[other] - values[one]) / (other - one)))
    middle = float(np.median(values))
    return slope * (n - 1) / middle if middle else 0.0


def _thirds(values: NDArray[np.float64]) -> float:
    third = len(values) // 3
    first = float(np.median(values[:third]))
    return float(np.median(values[-third:])) / first - 1 if first else 0.0


def _moved(series: Sequence[NDArray[np.float64]]) -> bool:
    """Whether Kendall's S, summed over the series, is too large for times without a trend (Mann 1945)."""
    score = variance = 0.0
    for values in series:
        n = len(values)
        one, other = np.triu_indices(n, 1)
        score += float(np.sign(values[other] - values[one]).sum())
        variance += n * (n - 1) * (2 * n + 5) / 18
    return variance > 0 and (abs(score) - 1) / variance**0.5 > TREND_Z


def _medians(launch: Launch) -> NDArray[np.float64]:
    ordered = sorted(launch.blocks, key=lambda block: block.round)
    return np.array([float(np.median(block.samples_ns)) for block in ordered if block.samples_ns])
