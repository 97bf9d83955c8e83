"""Merging of blocks that hang together, against series whose correlation is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edgewise.bench.stats import blocks


def _ar1(random: np.random.Generator, rho: float, count: int) -> np.ndarray:
    values = np.empty(count)
    values[0] = random.normal()
    for i in range(1, count):
        values[i] = rho * values[i - 1] + random.normal(0, np.sqrt(1 - rho * rho))
    return values


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8])
def test_correlation_is_estimated_without_the_bias_of_short_series(rho: float) -> None:
    random = np.random.default_rng(0)
    found = [blocks.lag_one([_ar1(random, rho, 24) for _ in range(3)]) for _ in range(400)]
    assert np.mean(found) == pytest.approx(rho, abs=0.05)


def test_correlation_is_the_textbook_sum_for_one_series() -> None:
    series = np.array([1.0, 3.0, 2.0, 5.0, 4.0, 4.0])
    gaps = [value - sum(series) / 6 for value in series]
    plain = sum(a * b for a, b in pairwise(gaps)) / sum(a * a for a in gaps)
    assert blocks.lag_one([series]) == pytest.approx(plain + (1 + 4 * plain) / 6)


def test_blocks_that_know_nothing_of_each_other_are_seldom_merged_and_others_nearly_always() -> None:
    random = np.random.default_rng(1)
    independent = [blocks.merge_factor([random.normal(size=48) for _ in range(3)]) for _ in range(200)]
    hanging = [blocks.merge_factor([_ar1(random, 0.8, 48) for _ in range(3)]) for _ in range(200)]
    assert np.mean(np.array(independent) == 1) > 0.75
    assert np.mean(np.array(hanging) >= 4) > 0.9


def test_merging_leaves_at_least_three_blocks_a_launch_and_equal_ones_alone() -> None:
    trend = np.arange(13.0)
    assert blocks.merge_factor([trend, trend]) == 4
    assert blocks.merge_factor([trend[:5]]) == 1
    assert blocks.merge_factor([np.full(12, 3.1)]) == 1
    assert blocks.merge_factor([np.ones(1)]) == 1


def test_resamples_are_of_whole_launches_or_of_neighbours_within_them() -> None:
    draws = blocks.draw([5, 5, 5, 5], seed=0, factor=2)
    by_launch = draws.launches.reshape(-1, 4, 5)
    assert (by_launch == by_launch[:, :, :1]).all()
    assert (by_launch[:, :, 0].sum(axis=1) == 3).all()
    within = draws.blocks.reshape(-1, 4, 5)
    # Of five blocks, the second pair takes the odd one along.
    assert (within[:, :, 0] == within[:, :, 1]).all()
    assert (within[:, :, 2] == within[:, :, 3]).all()
    assert (within[:, :, 2] == within[:, :, 4]).all()
    assert (draws.launch_freedom, draws.block_freedom) == (3, 4)
    single = blocks.draw([6, 6], seed=0).blocks.reshape(-1, 2, 6)
    assert single.sum(axis=2) == pytest.approx(6)
