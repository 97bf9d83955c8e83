"""Intervals, paired tests and sample sizes. Pure functions on numpy arrays; scipy is imported where it is needed.

Times come as ``launches``: a list of launches, each a list of blocks, each an array of samples in ns. Samples within a
block hang together, and so do blocks within a process; so intervals resample launches and whole blocks, never samples.

An interval can't be the quantiles of the draws: three launches are too few to draw from. So the
bootstrap gives two variances, of drawing launches and of drawing blocks within them; their sum goes with the t
distribution whose degrees of freedom follow from both (Satterthwaite 1946, Biometrics 2:110). It errs to the wide side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]
Launches = Sequence[Sequence[Samples]]

RESAMPLES = 1000
TAIL_CONFIDENCE = 0.99
GRID = 2048


@dataclass(frozen=True)
class Interval:
    """An estimate and where the truth may lie."""

    value: float
    low: float
    high: float


@lru_cache
def sample_floor(q: float, over: int = 0) -> int:
    """How many samples it takes before the ``q``-quantile may be told from them, ``over`` of them above it.

    The smallest n for which so few of n independent samples exceed the true quantile with at most 1 % chance: MLPerf
    LoadGen's early-stopping rule (arXiv 1911.02549). 7, 44, 90, 459 and 4603 for p50, p90, p95, p99 and p99.9.
    """
    n = over + 1
    while _binomial_cdf(over, n, 1 - q) > 1 - TAIL_CONFIDENCE:
        n += 1
    return n


def percentile(samples: Samples, q: float) -> float | None:
    """The ``q``-quantile, always one of the samples; None below its floor."""
    return None if len(samples) < sample_floor(q) else _quantile(samples, q)


def percentile_upper(samples: Samples, q: float) -> float | None:
    """A value that the true ``q``-quantile exceeds with at most 1 % chance; None below the floor.

    The largest of the samples but ``over``, with the largest ``over`` that ``sample_floor`` allows so many samples.
    """
    n = len(samples)
    # Chances of exactly k samples above, as running sums of logs: q ** n itself may be too small for a float.
    k = np.arange(math.ceil(n * (1 - q)) + 1)
    steps = np.log((n - k) / (k + 1.0)) + math.log((1 - q) / q) if n else np.zeros(1)
    chances = np.exp(n * math.log(q) + np.concatenate([[0.0], np.cumsum(steps)[:-1]]))
    over = int((np.cumsum(chances) <= 1 - TAIL_CONFIDENCE).sum()) - 1
    return None if over < 0 else float(np.partition(samples, n - 1 - over)[n - 1 - over])


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
    draws = _draws([len(launch) for launch in launches], seed)
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

        wide = _interval(value, drawn, draws, confidence)
        # Two launches that differ say little, but no percentile of theirs lies beyond all that was seen.
        found.append(Interval(value, max(wide.low, float(pooled[0])), min(wide.high, float(pooled[-1]))))
    return found


def bootstrap_rate(
    counts: Sequence[Sequence[float]], seconds: Sequence[Sequence[float]], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Sum of ``counts`` over sum of ``seconds``, both per launch and block: queries a second, with its interval."""
    top = np.array([value for launch in counts for value in launch])
    bottom = np.array([value for launch in seconds for value in launch])
    draws = _draws([len(launch) for launch in counts], seed)
    return _interval(
        float(top.sum() / bottom.sum()), lambda weights: (weights @ top) / (weights @ bottom), draws, confidence
    )


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
    draws = _draws([len(logs) for logs in pairs], seed)

    def drawn(weights: Samples) -> Samples:
        ratios: Samples = np.exp(_trimmed(flat[order][None], weights[:, order]))
        return ratios

    return _interval(float(drawn(np.ones((1, len(flat))))[0]), drawn, draws, confidence)


def wilson(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval (Wilson 1927, JASA 22:209)."""
    z = _z(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p)))


def tango(lost: int, won: int, n: int, *, confidence: float = 0.95) -> Interval:
    """The drop (lost - won) / n of a paired proportion, with Tango's score interval (1998, Stat Med 17:891).

    ``lost``: samples that only the reference has right; ``won``: that only the other has right; ``n``: all samples.
    """
    z = _z(confidence)
    drop = (lost - won) / n
    return Interval(
        drop,
        _bisect(lambda delta: tango_z(lost, won, n, delta) - z, -1.0, drop),
        _bisect(lambda delta: tango_z(lost, won, n, delta) + z, drop, 1.0),
    )


def tango_z(lost: int, won: int, n: int, delta: float) -> float:
    """The score statistic of "the drop is ``delta``": large where the data say it is more, and falling in ``delta``.

    The variance is the one under that hypothesis: the chance to win is at its constrained maximum likelihood, the
    larger root of 2n q^2 + (2n d - lost - won - (lost - won) d) q - won d (1 - d) = 0.
    """
    if delta <= -1 or delta >= 1:
        return math.inf if delta <= -1 else -math.inf
    a = 2.0 * n
    b = (2.0 * n - lost + won) * delta - lost - won
    c = -won * delta * (1 - delta)
    win = (-b + math.sqrt(max(0.0, b * b - 4 * a * c))) / (2 * a)
    variance = n * (2 * win + delta * (1 - delta))
    gap = lost - won - n * delta
    if variance <= 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def mcnemar_p(lost: int, won: int) -> float:
    """Exact two-sided p value of "as many lost as won"."""
    from scipy.stats import binomtest

    return 1.0 if lost + won == 0 else float(binomtest(lost, lost + won, 0.5).pvalue)


def paired_mean_drop(
    reference: Samples, other: Samples, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The drop of a mean of per-sample scores that are not 0/1, with a paired bootstrap interval over samples."""
    gaps = np.asarray(reference, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    random = np.random.default_rng(seed)
    n = len(gaps)
    draws = np.array([gaps[random.integers(0, n, n)].mean() for _ in range(resamples)])
    return _percentile_interval(float(gaps.mean()), draws, confidence)


def mean_interval(scores: Samples, *, confidence: float = 0.95) -> Interval:
    """A mean of per-sample scores with its interval: Wilson's for 0/1, the normal curve's for others."""
    n = len(scores)
    mean = float(np.mean(scores))
    if is_binary(scores):
        return wilson(float(np.sum(scores)), n, confidence=confidence)
    half = _z(confidence) * float(np.std(scores, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, mean - half, mean + half)


def is_binary(scores: Samples) -> bool:
    """Whether every score is right or wrong, 1 or 0."""
    return bool(np.isin(scores, (0.0, 1.0)).all())


def paired_sample_size(discordant: float, gap: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Samples needed to tell, one-sided, that a drop lies ``gap`` under its limit; ``discordant``: share that differs.

    (z_alpha + z_power)^2 psi / gap^2, 6.18 psi / gap^2 with the defaults; but never fewer than it takes where not one
    pair differs, z_alpha^2 (1 - gap) / gap by Tango's interval, and Wilson's. None where no number would do. Scores are
    0 or 1.
    """
    normal = NormalDist()
    if gap <= 0 or not math.isfinite(gap):
        return None
    z_alpha = normal.inv_cdf(1 - alpha)
    floor = z_alpha**2 * (1 - gap) / gap
    return max(1, math.ceil(max((z_alpha + normal.inv_cdf(power)) ** 2 * discordant / gap**2, floor)))


def _quantile(samples: Samples, q: float) -> float:
    place = max(0, math.ceil(q * len(samples) - 1e-9) - 1)
    return float(np.partition(samples, place)[place])


def _binomial_cdf(k: int, n: int, p: float) -> float:
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


def _grid(pooled: Samples, quantiles: Sequence[float]) -> Samples:
    """``GRID`` of the sorted samples: spread evenly, and again as many close around each quantile asked for."""
    n = len(pooled)
    places = [np.linspace(0, n - 1, GRID)]
    for q in quantiles:
        half = min(0.05, 2 * (1 - q))
        places.append(np.linspace(max(0.0, q - half), min(1.0, q + half), GRID) * (n - 1))
    grid: Samples = pooled[np.unique(np.concatenate(places).astype(int))]
    return grid


@dataclass(frozen=True)
class _Draws:
    """How often each block counts, (RESAMPLES, blocks): drawing whole launches, and drawing blocks within each launch.

    One fewer is drawn than there are: with few, a plain bootstrap's variance is too small by 1 - 1/n, and this makes up
    for it (Rao and Wu 1988, JASA 83:231).
    """

    launches: Samples
    blocks: Samples
    launch_freedom: int
    block_freedom: int


def _draws(sizes: Sequence[int], seed: int) -> _Draws:
    random = np.random.default_rng(seed)
    starts = np.cumsum([0, *sizes[:-1]])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.arange(RESAMPLES)
    times = np.zeros((RESAMPLES, len(sizes)))
    for _ in range(max(1, len(sizes) - 1)):
        np.add.at(times, (rows, random.integers(0, len(sizes), RESAMPLES)), 1)
    within = np.zeros((RESAMPLES, len(owner)))
    for start, size in zip(starts, sizes, strict=True):
        drawn = max(1, size - 1)
        for _ in range(drawn):
            # Each launch keeps its weight, however many of its blocks are drawn.
            np.add.at(within, (rows, start + random.integers(0, size, RESAMPLES)), size / drawn)
    return _Draws(times[:, owner], within, len(sizes) - 1, len(owner) - len(sizes))


def _interval(value: float, drawn: Callable[[Samples], Samples], draws: _Draws, confidence: float) -> Interval:
    """The interval of a positive ``value`` on the log scale; ``drawn`` gives it for each row of weights."""
    from scipy.special import stdtrit

    between = float(np.var(np.log(drawn(draws.launches)))) if draws.launch_freedom else 0.0
    within = float(np.var(np.log(drawn(draws.blocks)))) if draws.block_freedom else 0.0
    variance = between + within
    if variance == 0:
        return Interval(value, value, value)
    spread = between**2 / max(1, draws.launch_freedom) + within**2 / max(1, draws.block_freedom)
    half = float(stdtrit(variance**2 / spread, (1 + confidence) / 2)) * math.sqrt(variance)
    return Interval(value, value * math.exp(-half), value * math.exp(half))


def _trimmed(values: Samples, weights: Samples, cut: float = 0.1) -> Samples:
    """Weighted means of sorted ``values`` (1, n) without the ``cut`` of the weight (resamples, n) at either end."""
    total = weights.sum(axis=1, keepdims=True)
    after = np.cumsum(weights, axis=1)
    inside = np.clip(np.minimum(after, (1 - cut) * total) - np.maximum(after - weights, cut * total), 0, None)
    mean: Samples = (inside * values).sum(axis=1) / inside.sum(axis=1)
    return mean


def _percentile_interval(value: float, draws: Samples, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero."""
    for _ in range(100):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
