"""The server's search and the sweep, on curves whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.bench.search import doubled, largest_rate, sweep


@pytest.mark.parametrize("truth", [2.1, 10.0, 33.3, 50.0, 99.0])
@pytest.mark.parametrize("tolerance", [0.01, 0.05])
def test_the_largest_rate_is_found_within_the_tolerance(truth: float, tolerance: float) -> None:
    """Latency of M/M/1, 1 / (mu - rate), against a budget: it holds up to ``truth``."""
    budget = 1 / (100 - truth)
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return 1 / (100 - rate) <= budget

    found = largest_rate(holds, 100, tolerance=tolerance)
    assert found is not None
    assert found in tried
    assert truth * (1 - 1.02 * tolerance) <= found <= truth
    assert len(tried) <= np.log2(100 / (tolerance * truth)) + 2


def test_a_right_guess_takes_three_runs_and_a_wrong_one_does_no_harm() -> None:
    for guess in (40.0, 41.0, 5.0, 90.0):
        tried: list[float] = []

        def holds(rate: float, tried: list[float] = tried) -> bool:
            tried.append(rate)
            return rate <= 40

        found = largest_rate(holds, 100, tolerance=0.02, guess=guess)
        assert found is not None
        assert 40 * 0.975 <= found <= 40
        assert len(tried) <= (4 if guess == 40 else 12)


def test_where_no_rate_holds_there_is_none() -> None:
    tried: list[float] = []
    assert largest_rate(lambda rate: bool(tried.append(rate)), 64, tolerance=0.01) is None
    assert min(tried) >= 1


def test_where_all_hold_the_answer_stays_below_what_was_ruled_out() -> None:
    found = largest_rate(lambda rate: True, 64, tolerance=0.01)
    assert found is not None
    assert 63 < found < 64


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_counts_double(most: int, counts: list[int]) -> None:
    assert list(doubled(most)) == counts


@pytest.mark.parametrize(
    ("rates", "best", "why", "tried"),
    [
        ({1: 100.0, 2: 190.0, 4: 195.0, 8: 400.0}, 2, "4 in flight gained 2.6 %", [1, 2, 4]),
        ({1: 100.0, 2: 105.0, 4: 110.0, 8: 120.0}, 2, "4 in flight gained 4.8 %", [1, 2, 4]),
        ({1: 100.0, 2: 200.0, 4: 400.0, 8: 800.0}, 8, "8 in flight is the most", [1, 2, 4, 8]),
        ({1: 100.0, 2: 60.0}, 1, "2 in flight gained -40.0 %", [1, 2]),
        ({1: 100.0, 2: None}, 1, "2 in flight did not hold", [1, 2]),
        ({1: None}, None, "1 in flight did not hold", [1]),
    ],
)
def test_a_sweep_ends_where_the_gain_stops(
    rates: dict[int, float | None], best: int | None, why: str, tried: list[int]
) -> None:
    asked: list[int] = []

    def rate_at(count: int) -> float | None:
        asked.append(count)
        return rates[count]

    assert sweep(rate_at, 8, 0.05) == (best, why)
    assert asked == tried
