"""Percentiles of pooled samples, told only from as many samples as they need."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from edgewise.bench.stats.interval import Samples

TAIL_CONFIDENCE = 0.99


@lru_cache
def sample_floor(q: float, over: int = 1) -> int:
    """How many samples it takes before the ``q``-quantile may be told from them, ``over`` of them above it.

    The smallest n for which so few of n independent samples exceed the true quantile with at most 1 % chance: MLPerf
    LoadGen's early-stopping rule (arXiv 1911.02549). With one above it 11, 64, 130, 662 and 6636 for p50, p90, p95, p99
    and p99.9; with none, which is enough for ``percentile_upper``, 7, 44, 90, 459 and 4603.
    """
    n = over + 1
    while _binomial_cdf(over, n, 1 - q) > 1 - TAIL_CONFIDENCE:
        n += 1
    return n


def percentile(samples: Samples, q: float) -> float | None:
    """The ``q``-quantile, always one of the samples; None below its floor."""
    return None if len(samples) < sample_floor(q) else quantile(samples, q)


def percentile_upper(samples: Samples, q: float) -> float | None:
    """A value that the true ``q``-quantile exceeds with at most 1 % chance; None below the floor with none above.

    The largest of the samples but those that ``over_allowed`` lets lie above.
    """
    n = len(samples)
    over = over_allowed(n, q)
    return None if over < 0 else float(np.partition(samples, n - 1 - over)[n - 1 - over])


def over_allowed(n: int, q: float) -> int:
    """How many of ``n`` samples may lie above a value that stands for the ``q``-quantile; -1 where ``n`` is too small.

    The largest number that ``sample_floor`` allows so many samples.
    """
    # Chances of exactly k samples above, as running sums of logs: q ** n itself may be too small for a float.
    k = np.arange(min(math.ceil(n * (1 - q)), max(n - 1, 0)) + 1)
    steps = np.log((n - k) / (k + 1.0)) + math.log((1 - q) / q) if n else np.zeros(1)
    chances = np.exp(n * math.log(q) + np.concatenate([[0.0], np.cumsum(steps)[:-1]]))
    return int((np.cumsum(chances) <= 1 - TAIL_CONFIDENCE).sum()) - 1


def quantile(samples: Samples, q: float) -> float:
    """The ``q``-quantile, always one of the samples, however few."""
    place = max(0, math.ceil(q * len(samples) - 1e-9) - 1)
    return float(np.partition(samples, place)[place])


def _binomial_cdf(k: int, n: int, p: float) -> float:
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
