"""Percentiles against MLPerf's table, numpy and scipy's exact distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as other

from edgewise.bench import stats


@pytest.mark.parametrize(
    ("q", "none_over", "one_over"),
    # The table of MLPerf's early stopping at 99 % confidence.
    [(0.5, 7, 11), (0.9, 44, 64), (0.95, 90, 130), (0.97, 152, 219), (0.99, 459, 662), (0.999, 4603, 6636)],
)
def test_sample_floors_are_the_published_ones(q: float, none_over: int, one_over: int) -> None:
    assert stats.sample_floor(q, 0) == none_over
    assert stats.sample_floor(q) == one_over


def test_percentile_is_a_sample_and_none_below_its_floor() -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1.0, 663.0))
    assert stats.percentile(samples, 0.5) == np.percentile(samples, 50, method="inverted_cdf")
    assert stats.percentile(samples, 0.99) == np.percentile(samples, 99, method="inverted_cdf")
    assert stats.percentile(samples[:661], 0.99) is None
    assert stats.percentile(samples[:10], 0.5) is None


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [6, 7, 459, 662, 5000, 120_000])
def test_upper_bound_of_a_percentile_is_the_binomial_one(q: float, n: int) -> None:
    found = stats.percentile_upper(np.arange(float(n)), q)
    # Largest k with P(at most k of n exceed the quantile) <= 1 %, from scipy's exact distribution.
    over = np.searchsorted(other.binom.cdf(np.arange(n), n, 1 - q), 0.01, side="right") - 1
    assert stats.over_allowed(n, q) == over
    assert found == (None if over < 0 else n - 1 - over)


def test_upper_bound_fails_as_rarely_as_it_says() -> None:
    random = np.random.default_rng(1)
    truth = -math.log(0.01)
    below = sum(stats.percentile_upper(random.exponential(size=700), 0.99) < truth for _ in range(1000))
    assert below <= 20  # expected at most 10 of 1,000
