"""The power check, against simulation and published numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgewise.bench import stats
from edgewise.bench.config import Bench
from edgewise.bench.gate.config import Budget
from edgewise.bench.gate.power import Known, drop_prospect, known_of, prospects, to_json, warnings
from edgewise.bench.record import Results

MadeUp = Callable[..., Results]


@pytest.mark.parametrize(
    ("flips", "margin_pp", "needed"),
    [(0.02, 1, 1237), (0.04, 1, 2474), (0.08, 1, 4947), (0.15, 1, 9274), (0.04, 0.5, 9893)],
)
def test_samples_for_80_percent_power(flips: float, margin_pp: float, needed: int) -> None:
    """(1.6449 + 0.8416)^2 psi / margin^2, rounded up."""
    outlook, found, power = drop_prospect(margin_pp, needed, flips)
    assert abs((found or 0) - needed) <= 1
    assert (outlook, power) == ("fine", pytest.approx(0.8, abs=1e-3))
    assert drop_prospect(margin_pp, needed - 200, flips)[0] == "underpowered"


@pytest.mark.parametrize(("n", "flips"), [(1000, 0.04), (2000, 0.04), (3000, 0.08)])
def test_the_power_it_tells_is_what_a_simulation_finds(n: int, flips: float) -> None:
    draws = np.random.default_rng(2).multinomial(n, [flips / 2, flips / 2, 1 - flips], size=2000)
    passed = np.mean([stats.tango_z(lost, won, n, 0.01) < -1.6448536 for lost, won, _ in draws])
    assert drop_prospect(1.0, n, flips)[2] == pytest.approx(passed, abs=0.035)


def test_what_it_calls_impossible_does_not_pass_even_without_one_flip() -> None:
    outlook, _, power = drop_prospect(1.0, 260, 0.0)
    assert (outlook, power) == ("impossible", 0)
    assert stats.tango(0, 0, 260, confidence=0.9).high > 0.01
    assert drop_prospect(1.0, 275, 0.0)[0] == "fine"
    assert stats.tango(0, 0, 275, confidence=0.9).high <= 0.01
    assert drop_prospect(0.0, 10**9, 0.01)[0] == "impossible"


def test_slices_and_releases_have_their_own_rows() -> None:
    budget = Budget.model_validate(
        {
            "max_accuracy_drop_pp": 1,
            "slices": {"by": "class", "max_accuracy_drop_pp": 5, "max_release_drop_pp": 2, "min_n": 50},
            "release": {"max_accuracy_drop_pp": 0.5},
            "expected_flip_rate": 0.02,
        }
    )
    known = Known(1000, [{"class=a": 950, "class=b": 50, "class=c": 49}])
    rows = {(row.check, row.slice): row for row in prospects(budget, ["small"], Bench(), known)}
    assert set(rows) == {
        ("max_accuracy_drop_pp", None),
        ("release.max_accuracy_drop_pp", None),
        *(
            (check, f"class={name}")
            for check in ("max_accuracy_drop_pp", "release.max_accuracy_drop_pp")
            for name in "ab"
        ),
    }
    assert rows["max_accuracy_drop_pp", None].n == 1000
    assert rows["max_accuracy_drop_pp", None].assumed == "2 % flips expected"
    assert rows["max_accuracy_drop_pp", "class=b"].outlook == "impossible"  # 51 at least
    assert rows["release.max_accuracy_drop_pp", None].outlook == "underpowered"


def test_two_limits_on_one_split_have_their_own_slices() -> None:
    one = {"by": "class", "max_accuracy_drop_pp": 5, "min_n": 1}
    budget = Budget.model_validate({"slices": [{**one, "only": ["a"]}, {**one, "only": ["b"]}]})
    known = Known(1000, [{"class=a": 900}, {"class=b": 100}])
    rows = prospects(budget, ["small"], Bench(), known)
    assert [(row.slice, row.n) for row in rows] == [("class=a", 900), ("class=b", 100)]


def test_what_was_measured_before_is_used(made_up: MadeUp, scores: Callable[..., Any]) -> None:
    results = made_up({"small": {"scores": scores(20)}})
    known = known_of(results)
    assert (known.samples, known.flips["small"], known.accuracy["small"]) == (2000, 0.01, pytest.approx(0.99))
    assert known.p50_ms["small"] == pytest.approx(2, rel=0.02)
    half, pairs = known.ratio["small"]
    assert (0 < half < 0.02, pairs) == (True, 24)
    budget = Budget.model_validate(
        {"max_flip_rate": 0.005, "min_accuracy": 0.97, "release": {"max_latency_ratio": 1.05}, "max_p99_ms": 5}
    )
    rows = {row.check: row for row in prospects(budget, ["small"], Bench.model_validate(results.config), known)}
    assert rows["max_flip_rate"].outlook == "impossible"  # 1 % flip already
    assert rows["min_accuracy"].outlook == "fine"
    assert rows["release.max_latency_ratio"].outlook == "fine"
    assert rows["max_p99_ms"].outlook == "fine"
    (told,) = warnings(list(rows.values()))
    assert told.startswith("small, max_flip_rate: can't pass with 2,000 samples")
    assert [row["check"] for row in to_json(list(rows.values()))] == list(rows)


def test_a_tail_that_can_never_be_told() -> None:
    budget, slow = Budget(max_p99_ms=5000, max_p50_ms=5000), Known(100, p50_ms={"big": 900.0})
    config = Bench(launches=2, max_launches=4, blocks=10)
    rows = {row.check: row for row in prospects(budget, ["big"], config, slow)}
    assert (rows["max_p99_ms"].outlook, rows["max_p99_ms"].n, rows["max_p99_ms"].needed_n) == ("impossible", 40, 662)
    assert rows["max_p50_ms"].outlook == "fine"
    one = prospects(budget, ["big"], Bench(launches=1, max_launches=1), slow)
    assert {row.outlook for row in one} == {"impossible"}
