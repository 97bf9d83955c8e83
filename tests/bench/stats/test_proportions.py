"""Paired shares against published values, a numerical likelihood, scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as other

from edgewise.bench import stats


@pytest.mark.parametrize(
    ("lost", "won", "n", "confidence", "low", "high"),
    [
        # Airway hyper-responsiveness (Bentur 2009), in Fagerland, Lydersen, Laake 2014, BMC Med Res Methodol 14.
        (1, 7, 21, 0.95, -0.517, -0.026),
        # Values that R's PropCIs::scoreci.mp(25, 28, 618, 0.90) is documented to give elsewhere.
        (28, 25, 618, 0.90, -0.0148, 0.0247),
    ],
)
def test_tango_gives_published_intervals(
    lost: int, won: int, n: int, confidence: float, low: float, high: float
) -> None:
    found = stats.tango(lost, won, n, confidence=confidence)
    digits = 3 if n == 21 else 4
    assert (round(found.low, digits), round(found.high, digits)) == (low, high)


def _slow_tango_z(lost: int, won: int, n: int, delta: float) -> float:
    """The score statistic with the constrained maximum found by search, from the multinomial likelihood itself."""

    def minus_log_likelihood(win: float) -> float:
        lose, same = win + delta, 1 - 2 * win - delta
        total = 0.0
        for count, p in ((lost, lose), (won, win), (n - lost - won, same)):
            if count:
                total -= count * math.log(max(p, 1e-300))
        return total

    found = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-13}
    )
    return (lost - won - n * delta) / math.sqrt(n * (2 * found.x + delta - delta**2))


@pytest.mark.parametrize(("lost", "won", "n"), [(30, 12, 1000), (5, 9, 200), (400, 350, 10_000), (3, 1, 40)])
@pytest.mark.parametrize("delta", [-0.04, 0.004, 0.01, 0.03])
def test_tango_statistic_equals_numerical_likelihood(lost: int, won: int, n: int, delta: float) -> None:
    assert stats.tango_z(lost, won, n, delta) == pytest.approx(_slow_tango_z(lost, won, n, delta), rel=1e-4, abs=1e-4)


def test_tango_without_any_discordant_pair_has_its_closed_form() -> None:
    z = 1.959963984540054
    found = stats.tango(0, 0, 500)
    assert (found.value, found.high) == (0, pytest.approx(z * z / (500 + z * z)))
    assert found.low == pytest.approx(-found.high)


def test_tango_is_antisymmetric_and_holds_its_estimate() -> None:
    random = np.random.default_rng(7)
    for _ in range(50):
        n = int(random.integers(5, 3000))
        lost, won = (int(random.integers(0, n // 2 + 1)) for _ in range(2))
        one, mirrored = stats.tango(lost, won, n), stats.tango(won, lost, n)
        assert -1 <= one.low <= one.value <= one.high <= 1
        assert (one.low, one.high) == pytest.approx((-mirrored.high, -mirrored.low))


@pytest.mark.parametrize("n", [500, 5000, 50_000])
def test_tango_passes_a_drop_at_the_margin_in_one_of_twenty(n: int) -> None:
    delta, psi = 0.01, 0.04
    lose, win = (psi + delta) / 2, (psi - delta) / 2
    draws = np.random.default_rng(8).multinomial(n, [lose, win, 1 - psi], size=4000)
    passed = np.mean([stats.tango_z(lost, won, n, delta) < -1.6448536 for lost, won, _ in draws])
    assert 0.035 <= passed <= 0.065


def test_wilson_and_mcnemar_agree_with_scipy() -> None:
    for successes, n in [(0, 10), (3, 10), (880, 1000), (10, 10)]:
        theirs = other.binomtest(successes, n).proportion_ci(0.9, method="wilson")
        ours = stats.wilson(successes, n, confidence=0.9)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    by_hand = 2 * sum(math.comb(12, k) for k in range(4)) / 2**12
    assert stats.mcnemar_p(3, 9) == pytest.approx(by_hand)
    assert stats.mcnemar_p(0, 0) == 1


def test_scores_that_are_not_binary_get_a_paired_bootstrap() -> None:
    random = np.random.default_rng(9)
    reference = random.random(400)
    found = stats.paired_mean_drop(reference, reference - 0.1 + 0.01 * random.normal(size=400))
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(0.1, abs=0.005)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.01 / 20, rel=0.25)


def test_one_pair_says_nothing_of_a_drop() -> None:
    found = stats.paired_mean_drop([0.7], [0.5])
    assert (found.value, found.low, found.high) == (pytest.approx(0.2), -math.inf, math.inf)


@pytest.mark.parametrize("n", [2, 20, 2000])
def test_equal_gaps_leave_room_for_those_not_met(n: int) -> None:
    reference = np.random.default_rng(3).uniform(0.3, 0.9, n)
    found = stats.paired_mean_drop(reference, reference, confidence=0.9)
    unseen = other.binomtest(0, n).proportion_ci(0.9).high  # all may be lost by a whole point
    assert (found.value, found.low, found.high) == pytest.approx((0, -unseen, unseen))
    moved = stats.paired_mean_drop(reference, reference - 0.1, confidence=0.9)
    assert (moved.low, moved.high) == pytest.approx((0.1 - 1.1 * unseen, 0.1 + 0.9 * unseen))
    assert stats.paired_mean_drop(50 * reference, 50 * reference).high > 20 * unseen  # scores of another range


@pytest.mark.parametrize(("psi", "needed"), [(0.02, 1236), (0.04, 2473), (0.08, 4946), (0.15, 9273)])
def test_sample_sizes_are_the_published_rule(psi: float, needed: int) -> None:
    assert stats.paired_sample_size(psi, 0.01) == pytest.approx(needed, abs=2)
    assert stats.paired_sample_size(psi, 0) is None


@pytest.mark.parametrize("gap", [0.002, 0.01, 0.3])
def test_with_nothing_discordant_the_size_is_where_both_intervals_reach_the_gap(gap: float) -> None:
    n = stats.paired_sample_size(0, gap)
    assert n is not None
    for upper in (
        lambda n: stats.tango(0, 0, n, confidence=0.9).high,
        lambda n: 1 - stats.wilson(n, n, confidence=0.9).low,
    ):
        assert upper(n) <= gap * (1 + 1e-9)
        assert upper(n - 1) > gap


def test_planned_size_has_the_power_it_promises() -> None:
    psi, delta = 0.04, 0.01
    n = stats.paired_sample_size(psi, delta)
    assert n is not None
    draws = np.random.default_rng(10).multinomial(n, [psi / 2, psi / 2, 1 - psi], size=2000)
    passed = np.mean([stats.tango_z(lost, won, n, delta) < -1.6448536 for lost, won, _ in draws])
    assert 0.75 <= passed <= 0.85
