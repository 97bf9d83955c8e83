"""Intervals and tests against published values, slow restatements, other implementations and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as other

from edgewise.bench import stats


@pytest.mark.parametrize(
    ("q", "none_over", "one_over"),
    # The table of MLPerf's early stopping at 99 % confidence.
    [(0.5, 7, 11), (0.9, 44, 64), (0.95, 90, 130), (0.97, 152, 219), (0.99, 459, 662), (0.999, 4603, 6636)],
)
def test_sample_floors_are_the_published_ones(q: float, none_over: int, one_over: int) -> None:
    assert stats.sample_floor(q) == none_over
    assert stats.sample_floor(q, 1) == one_over


def test_percentile_is_a_sample_and_none_below_its_floor() -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1.0, 460.0))
    assert stats.percentile(samples, 0.5) == np.percentile(samples, 50, method="inverted_cdf")
    assert stats.percentile(samples, 0.99) == np.percentile(samples, 99, method="inverted_cdf")
    assert stats.percentile(samples[:458], 0.99) is None
    assert stats.percentile(samples[:6], 0.5) is None


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [6, 7, 459, 662, 5000, 120_000])
def test_upper_bound_of_a_percentile_is_the_binomial_one(q: float, n: int) -> None:
    found = stats.percentile_upper(np.arange(float(n)), q)
    # Largest k with P(at most k of n exceed the quantile) <= 1 %, from scipy's exact distribution.
    over = np.searchsorted(other.binom.cdf(np.arange(n), n, 1 - q), 0.01, side="right") - 1
    assert found == (None if over < 0 else n - 1 - over)


def test_upper_bound_fails_as_rarely_as_it_says() -> None:
    random = np.random.default_rng(1)
    truth = -math.log(0.01)
    below = sum(stats.percentile_upper(random.exponential(size=700), 0.99) < truth for _ in range(1000))
    assert below <= 20  # expected at most 10 of 1,000


def test_bootstrap_equals_its_slow_restatement() -> None:
    random = np.random.default_rng(2)
    launches = [[random.lognormal(size=random.integers(3, 9)) for _ in range(4)] for _ in range(3)]
    blocks = [block for launch in launches for block in launch]
    draws = stats._draws([4, 4, 4], seed=5)
    for q in (0.5, 0.9):
        (found,) = stats.bootstrap_percentiles(launches, [q], confidence=0.8, seed=5)
        parts = []
        for weights in (draws.launches, 3 * draws.blocks):
            resamples = [
                np.concatenate([np.tile(b, round(w)) for b, w in zip(blocks, row, strict=True)]) for row in weights
            ]
            parts.append(np.var([np.log(np.quantile(r, q, method="inverted_cdf")) for r in resamples]))
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 9)
        half = other.t.ppf(0.9, freedom) * math.sqrt(sum(parts))
        assert found is not None
        middle = np.quantile(np.concatenate(blocks), q, method="inverted_cdf")
        assert (found.low, found.high) == pytest.approx((middle * math.exp(-half), middle * math.exp(half)))


def test_resamples_are_of_whole_launches_or_within_them() -> None:
    draws = stats._draws([5, 5, 5, 5], seed=0)
    by_launch = draws.launches.reshape(-1, 4, 5)
    assert (by_launch == by_launch[:, :, :1]).all()
    assert (by_launch[:, :, 0].sum(axis=1) == 3).all()
    assert draws.blocks.reshape(-1, 4, 5).sum(axis=2) == pytest.approx(5)


def test_grid_of_many_samples_changes_nothing_that_matters() -> None:
    random = np.random.default_rng(11)
    launches = [[random.lognormal(sigma=0.1, size=3000) for _ in range(4)] for _ in range(3)]
    fine = stats.bootstrap_percentiles(launches, [0.5, 0.99])
    coarse_grid, stats.GRID = stats.GRID, 10**6
    try:
        exact = stats.bootstrap_percentiles(launches, [0.5, 0.99])
    finally:
        stats.GRID = coarse_grid
    for one, two in zip(fine, exact, strict=True):
        assert one is not None
        assert two is not None
        assert (one.low, one.value, one.high) == pytest.approx((two.low, two.value, two.high), rel=3e-4)


def _series(kind: str, random: np.random.Generator, count: int) -> list[list[np.ndarray]]:
    """Launches of ten blocks of 30 samples, true median 1; with more than one, they differ by some 2 %."""
    launches = []
    for _ in range(count):
        shift = np.exp(random.normal(0, 0.02)) if count > 1 else 1.0
        if kind == "iid":
            values = np.exp(random.normal(0, 0.1, 300))
        elif kind == "heavy":
            values = np.exp(0.05 * random.standard_t(2, 300))
        else:
            noise = random.normal(0, 0.1 * math.sqrt(1 - 0.64), 300)
            log = np.empty(300)
            log[0] = random.normal(0, 0.1)
            for i in range(1, 300):
                log[i] = 0.8 * log[i - 1] + noise[i]
            values = np.exp(log)
        launches.append(list((shift * values).reshape(10, 30)))
    return launches


@pytest.mark.parametrize("kind", ["iid", "heavy", "ar1"])
@pytest.mark.parametrize("launches", [1, 3])
def test_interval_of_the_median_covers_it(kind: str, launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 200)
    random = np.random.default_rng(3)
    covered, trials = 0, 300 if launches == 1 else 150
    for trial in range(trials):
        (found,) = stats.bootstrap_percentiles(_series(kind, random, launches), [0.5], seed=trial)
        assert found is not None
        covered += found.low <= 1 <= found.high
    # Not three standard errors under 92 %; quantiles of a bootstrap over three launches that differ cover some 80 %.
    assert covered / trials >= 0.92 - 3 * math.sqrt(0.92 * 0.08 / trials)


def test_paired_ratio_is_exact_where_blocks_only_scale() -> None:
    random = np.random.default_rng(4)
    launches = [[np.exp(random.normal(0, 0.1, 9)) for _ in range(6)] for _ in range(3)]
    slower = [[3 * block for block in launch] for launch in launches]
    found = stats.paired_ratio(slower, launches)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))


def test_paired_ratio_ignores_spells_that_hit_both() -> None:
    random = np.random.default_rng(5)
    spells = [[random.choice([1.0, 2.5]) for _ in range(12)] for _ in range(3)]
    one, other_side = (
        [[speed * spell * np.exp(random.normal(0, 0.02, 20)) for spell in launch] for launch in spells]
        for speed in (2.0, 1.0)
    )
    found = stats.paired_ratio(one, other_side)
    assert found is not None
    assert found.low < 2 < found.high
    assert found.high / found.low < 1.03


def test_a_file_against_itself_is_seldom_called_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 200)
    random = np.random.default_rng(6)
    wrong = 0
    for trial in range(200):
        one, same = (
            [[np.exp(random.normal(0, 0.1, 15)) * np.exp(random.normal(0, 0.01)) for _ in range(8)] for _ in range(3)]
            for _ in range(2)
        )
        found = stats.paired_ratio(one, same, seed=trial)
        assert found is not None
        wrong += not found.low <= 1 <= found.high
    assert wrong <= 0.10 * 200


def test_nothing_to_pair_gives_no_ratio() -> None:
    assert stats.paired_ratio([], []) is None


def test_rate_counts_completed_over_wall_time() -> None:
    found = stats.bootstrap_rate([[10, 30], [20, 20]], [[1.0, 1.0], [1.0, 1.0]])
    assert found.value == 20
    assert found.low < 20 < found.high


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
