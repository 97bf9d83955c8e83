"""Shares of samples and means of scores, alone and paired: intervals, tests and sample sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from edgewise.bench.stats.interval import Interval, Samples, normal_quantile

RESAMPLES = 1000
EQUAL = 1e-6  # of the scores' range: gaps that differ by less differ by rounding


def wilson(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval (Wilson 1927, JASA 22:209)."""
    z = normal_quantile(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p)))


def tango(lost: int, won: int, n: int, *, confidence: float = 0.95) -> Interval:
    """The drop (lost - won) / n of a paired proportion, with Tango's score interval (1998, Stat Med 17:891).

    ``lost``: samples that only the reference has right; ``won``: that only the other has right; ``n``: all samples.
    """
    z = normal_quantile(confidence)
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
    """The drop of a mean of per-sample scores that are not 0/1, with a paired bootstrap interval over samples.

    Under two samples nothing is known of their spread: the ends are infinite. Where all gaps are equal the bootstrap
    sees no spread either, and the rule of three stands in (Hanley, Lippman-Hand 1983, JAMA 249:1743), as Clopper and
    Pearson's exact share: up to p = 1 - ((1 - confidence) / 2)^(1 / n) of all samples may have another gap that was not
    met, at most as wide as the scores' range. That range is taken as [0, 1], or wider where the scores are.
    """
    before, after = np.asarray(reference, dtype=np.float64), np.asarray(other, dtype=np.float64)
    gaps = before - after
    n = len(gaps)
    if n < 2:
        return Interval(float(gaps[0]) if n else math.nan, -math.inf, math.inf)
    span = max(1.0, before.max(), after.max()) - min(0.0, before.min(), after.min())
    if np.ptp(gaps) <= EQUAL * span:
        value, unseen = float(gaps.mean()), 1 - ((1 - confidence) / 2) ** (1 / n)
        return Interval(value, value - unseen * (span + value), value + unseen * (span - value))
    random = np.random.default_rng(seed)
    draws = np.array([gaps[random.integers(0, n, n)].mean() for _ in range(resamples)])
    return _percentile_interval(float(gaps.mean()), draws, confidence)


def mean_interval(scores: Samples, *, confidence: float = 0.95) -> Interval:
    """A mean of per-sample scores with its interval: Wilson's for 0/1, the normal curve's for others."""
    n = len(scores)
    mean = float(np.mean(scores))
    if is_binary(scores):
        return wilson(float(np.sum(scores)), n, confidence=confidence)
    half = normal_quantile(confidence) * float(np.std(scores, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
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


def _percentile_interval(value: float, draws: Samples, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero."""
    for _ in range(100):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
