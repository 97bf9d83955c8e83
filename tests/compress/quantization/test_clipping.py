import math

import numpy as np
import pytest
import torch

from edgewise.compress.quantization.clipping import asymmetric_bounds, divergence, symmetric_threshold
from edgewise.compress.quantization.histogram import Histogram
from edgewise.errors import ModelError

GENERATOR = np.random.default_rng(0)
SIGNED = GENERATOR.standard_t(3, 30000).astype(np.float32)
POSITIVE = np.maximum(SIGNED + 0.3, 0).astype(np.float32)


def histogram(values: np.ndarray) -> Histogram:
    found = Histogram()
    for part in np.array_split(values, 9):
        found.add(torch.from_numpy(part))
    return found


@pytest.mark.parametrize(("values", "levels"), [(SIGNED, (-127, 127)), (SIGNED, (-128, 127)), (POSITIVE, (0, 255))])
def test_percentile_is_numpys_of_the_whole_tensor(values, levels):
    found = histogram(values)
    for percentile in (99.0, 99.9, 100.0):
        expected = np.percentile(np.abs(values.astype(np.float64)), percentile, method="inverted_cdf")
        assert abs(symmetric_threshold(found, "percentile", *levels, percentile) - expected) <= found.width


def test_min_max_is_the_largest_magnitude():
    assert symmetric_threshold(histogram(SIGNED), "min_max", -127, 127, 99.0) == np.abs(SIGNED).max()
    low, high = asymmetric_bounds(histogram(SIGNED), "min_max", 256, 99.0)
    assert (low, high) == (SIGNED.min(), SIGNED.max())
    assert asymmetric_bounds(histogram(POSITIVE + 1), "min_max", 256, 99.0)[0] == 0  # zero is always a level


def squared_error(values: np.ndarray, step: float, low: int, high: int) -> float:
    wide = values.astype(np.float64)
    return float(np.square(wide - np.clip(np.rint(wide / step), low, high) * step).mean())


@pytest.mark.parametrize("levels", [(-127, 127), (-7, 7), (0, 255)])
def test_mse_is_that_of_a_brute_force_search_over_all_values(levels):
    values = POSITIVE if levels[0] == 0 else SIGNED
    largest = float(np.abs(values).max())
    errors = [squared_error(values, largest * k / 400 / levels[1], *levels) for k in range(4, 401)]
    chosen = symmetric_threshold(histogram(values), "mse", *levels, 0.0)
    assert squared_error(values, chosen / levels[1], *levels) <= 1.02 * min(errors)
    assert squared_error(values, chosen / levels[1], *levels) < errors[-1]  # and better than min-max


def test_mse_of_both_ends_is_near_the_best_of_a_grid():
    values = np.concatenate([SIGNED[:5000] * 0.2, POSITIVE[:5000]])
    low, high = float(values.min()), float(values.max())

    def error(a: float, b: float) -> float:
        step = (b - a) / 255
        zero = round(-a / step)
        return squared_error(values, step, -zero, 255 - zero)

    grid = [error(low * i / 20, high * j / 20) for i in range(1, 21) for j in range(1, 21)]
    found = asymmetric_bounds(histogram(values), "mse", 256, 0.0)
    assert error(*found) <= 1.02 * min(grid)


def slow_divergence(counts: list[float], length: int, levels: int) -> float:
    """As the slides tell it, value by value."""
    p = [float(c) for c in counts[:length]]
    p[-1] += sum(counts[length:])
    q = [0.0] * length
    for level in range(levels):
        mine = range(level * length // levels, (level + 1) * length // levels)
        filled = [i for i in mine if counts[i] > 0]
        for i in filled:
            q[i] = sum(counts[j] for j in mine) / len(filled)
    total_p, total_q = sum(p), sum(q)
    found = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0 and b == 0:
            return math.inf
        if a > 0:
            found += a / total_p * math.log((a / total_p) / (b / total_q))
    return found


def test_divergence_is_that_of_the_definition():
    generator = np.random.default_rng(1)
    counts = generator.poisson(20 * np.exp(-np.arange(64) / 9)).astype(np.float64)
    for length in range(8, 65):
        expected = slow_divergence(list(counts), length, 8)
        found = divergence(counts, length, 8)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12) or (math.isinf(found) and math.isinf(expected))


def test_entropy_takes_the_length_of_the_least_divergence():
    found = histogram(SIGNED)
    width, counts = found.magnitudes(2048)
    values = [float(c) for c in counts]
    values[0] = values[1]
    lengths = range(128, len(values) + 1, 3)
    best = min(lengths, key=lambda length: slow_divergence(values, length, 128))
    chosen = symmetric_threshold(found, "entropy", -127, 127, 0.0)
    chosen_length = round(chosen / width)
    assert slow_divergence(values, chosen_length, 128) <= slow_divergence(values, best, 128) + 1e-12
    assert chosen < 0.8 * np.abs(SIGNED).max()


@pytest.mark.parametrize("method", ["min_max", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_constant_tensor_has_a_range(method, value):
    found = histogram(np.full(900, value, np.float32))
    threshold = symmetric_threshold(found, method, 0, 255, 99.9)
    assert np.isfinite(threshold)
    assert threshold > 0
    low, high = asymmetric_bounds(found, method, 256, 99.9)
    assert low <= 0 < high


def test_an_unknown_method_is_refused():
    with pytest.raises(ModelError, match="min_max, percentile, mse or entropy, got 'max'"):
        symmetric_threshold(histogram(SIGNED), "max", -127, 127, 0.0)
    with pytest.raises(ModelError, match="got 'max'"):
        asymmetric_bounds(histogram(SIGNED), "max", 256, 0.0)
