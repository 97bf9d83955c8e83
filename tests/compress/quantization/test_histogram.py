import tracemalloc

import numpy as np
import pytest
import torch

from edgewise.compress.quantization.histogram import Histogram, magnitude_quantile
from edgewise.errors import ModelError

STREAMS = {
    "normal": lambda g: g.standard_normal(20000),
    "after a relu": lambda g: np.maximum(g.standard_normal(20000), 0),
    "heavy tail": lambda g: g.standard_t(2, 20000),
    "far from zero": lambda g: 1000 + g.standard_normal(20000),
    "tiny": lambda g: 1e-20 * g.standard_normal(20000),
    "constant": lambda g: np.full(20000, -3.7),
    "zeros": lambda g: np.zeros(20000),
}


def filled(values: np.ndarray, cuts: int) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(values, cuts):
        histogram.add(torch.from_numpy(part))
    return histogram


@pytest.mark.parametrize("name", STREAMS)
def test_counts_are_numpys_over_the_same_edges(name):
    values = STREAMS[name](np.random.default_rng(0)).astype(np.float32)
    histogram = filled(values, 7)
    edges = (histogram.first + np.arange(len(histogram.counts) + 1)) * histogram.width
    # numpy closes the last bin, so it gets one more edge.
    expected, _ = np.histogram(values.astype(np.float64), np.append(edges, edges[-1] + histogram.width))
    assert expected[-1] == 0
    np.testing.assert_array_equal(histogram.counts, expected[:-1])
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    assert len(histogram.counts) <= histogram.bins


@pytest.mark.parametrize("name", STREAMS)
def test_neither_order_nor_batches_change_anything(name):
    values = STREAMS[name](np.random.default_rng(1)).astype(np.float32)
    first = filled(values, 1)
    for other in (filled(np.sort(values), 100), filled(np.sort(values)[::-1].copy(), 33)):
        assert (first.exponent, first.first) == (other.exponent, other.first)
        np.testing.assert_array_equal(first.counts, other.counts)


@pytest.mark.parametrize("name", ["normal", "after a relu", "heavy tail", "far from zero"])
@pytest.mark.parametrize("part", [0.001, 0.25, 0.5, 0.999, 1.0])
def test_quantiles_are_numpys_within_a_bin(name, part):
    values = STREAMS[name](np.random.default_rng(2)).astype(np.float32)
    histogram = filled(values, 5)
    expected = np.quantile(values.astype(np.float64), part, method="inverted_cdf")
    assert abs(histogram.quantile(part) - expected) <= histogram.width
    expected = np.quantile(np.abs(values.astype(np.float64)), part, method="inverted_cdf")
    assert abs(magnitude_quantile(histogram, part) - expected) <= histogram.magnitudes()[0]


def test_magnitudes_fold_at_zero():
    values = np.random.default_rng(3).standard_normal(5000).astype(np.float32)
    width, counts = filled(values, 3).magnitudes(512)
    assert len(counts) <= 512
    expected, _ = np.histogram(np.abs(values), np.arange(len(counts) + 2) * width)
    np.testing.assert_array_equal(counts, expected[:-1])


def test_memory_does_not_grow_with_the_stream():
    def state(batches: int) -> int:
        generator = np.random.default_rng(4)
        parts = [torch.from_numpy(generator.standard_normal(1000)) for _ in range(4)]
        tracemalloc.start()
        histogram = Histogram()
        for batch in range(batches):
            histogram.add(parts[batch % 4] * (1 + batch))
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert histogram.total == batches * 1000
        return held

    state(2)
    assert state(400) < state(20) + 8 * Histogram().bins


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_told(bad):
    with pytest.raises(ModelError, match="NaN or infinite"):
        Histogram().add(torch.tensor([1.0, bad]))
