"""MLPerf's LoadGen beside ours: the same numbers of the same samples. Skipped where its wheel isn't installed."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest

from edgewise.bench import stats
from edgewise.bench.agent import loadgen, scenarios
from edgewise.errors import MeasureError

pytest.importorskip("mlperf_loadgen", reason="pip install mlcommons-loadgen")

# No product with a quantile is whole: LoadGen's percentile and ours are then the same sample, not neighbours.
QUERIES = 667


def ask(kind: str, streams: list[Any], count: int, **more: Any) -> tuple[dict[str, Any], scenarios.Outcome]:
    reply, outcome = loadgen.run(streams, {"kind": kind, "count": count, "max_s": 60, **more})
    return reply["loadgen"], outcome


def spin(turn: int) -> None:
    """Some microseconds that differ."""
    sum(range(200 + 37 * (turn % 50)))


@pytest.fixture(scope="module")
def single() -> tuple[dict[str, Any], scenarios.Outcome]:
    return ask("single_stream", [spin], QUERIES, expected_ns=1000)


def test_single_stream_has_as_many_queries_as_asked_for(single: tuple[dict[str, Any], scenarios.Outcome]) -> None:
    said, outcome = single
    assert said["result_query_count"] == len(outcome.latencies_ns) == QUERIES
    assert len(scenarios.closed_loop([spin], QUERIES, 10**18).latencies_ns) == QUERIES
    assert outcome.stopped == ""
    assert said["result_validity"] == "VALID"


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.97, 0.99])
def test_percentiles_are_the_same_samples(q: float, single: tuple[dict[str, Any], scenarios.Outcome]) -> None:
    said, outcome = single
    assert (
        stats.percentile(np.array(outcome.latencies_ns, float), q)
        == said[f"result_{100 * q:.2f}_percentile_latency_ns"]
    )


@pytest.mark.parametrize("q", [0.9, 0.99])
def test_early_stopping_estimates_are_one_sample_apart(
    q: float, single: tuple[dict[str, Any], scenarios.Outcome]
) -> None:
    """LoadGen counts the estimate itself among those over it: its estimate is the next sample above ours."""
    said, outcome = single
    told = re.search(rf"{100 * q:.1f}th percentile estimate: (\d+)", said["early_stopping_result"])
    assert told is not None
    samples = sorted(outcome.latencies_ns)
    over = stats.over_allowed(QUERIES, q)
    assert samples[-over] == int(told[1])
    assert samples[-over - 1] == stats.percentile_upper(np.array(samples, float), q)


def test_early_stopping_leaves_out_one_fewer(single: tuple[dict[str, Any], scenarios.Outcome]) -> None:
    said, _ = single
    told = re.search(r"Would discard (\d+) highest", said["early_stopping_result"])
    assert told is not None
    assert stats.over_allowed(QUERIES, 0.9) - 1 == int(told[1])


@pytest.mark.parametrize(
    ("q", "floors"),
    [(0.5, (7, 11)), (0.9, (44, 64)), (0.95, (90, 130)), (0.97, (152, 219)), (0.99, (459, 662)), (0.999, (4603, 6636))],
)
def test_sample_floors_are_the_published_ones(q: float, floors: tuple[int, int]) -> None:
    assert (stats.sample_floor(q, 0), stats.sample_floor(q, 1)) == floors
    for over, floor in enumerate(floors):
        assert stats.over_allowed(floor, q) == over
        assert stats.over_allowed(floor - 1, q) == over - 1


def test_loadgen_wants_the_same_floor_of_p99(single: tuple[dict[str, Any], scenarios.Outcome]) -> None:
    said, _ = ask("single_stream", [spin], 100, expected_ns=1000)
    assert f"at least {stats.sample_floor(0.99, 1)} total queries" in re.sub(r"\s+", " ", said["early_stopping_result"])


def test_a_server_over_budget_needs_as_many_more_by_both() -> None:
    """Two of 700 are over: LoadGen says how many more it would take, which is our floor for two."""
    slow = {100, 200}
    served = iter(range(10**6))

    def run(turn: int) -> None:
        if next(served) in slow:
            threading.Event().wait(0.3)

    said, outcome = ask("server", [run] * 4, 700, rate=2000.0, budget_ns=250_000_000, seed=[0, 0])
    over = said["result_overlatency_query_count"]
    assert over == sum(latency > 250_000_000 for latency in outcome.latencies_ns) == 2
    told = re.search(r"at least (\d+) more queries", said["early_stopping_result"])
    assert told is not None
    assert 700 + int(told[1]) == stats.sample_floor(0.99, 2) == 838
    assert stats.over_allowed(700, 0.99) == 1


def test_multi_stream_and_offline_count_as_ours_do() -> None:
    said, outcome = ask("multi_stream", [spin], 20, runs=6, expected_ns=1000)
    assert said["result_query_count"] == len(outcome.latencies_ns) == 20
    assert len(scenarios.multi_stream([spin], 20, 6, 10**18).latencies_ns) == 20
    ran: list[int] = []
    said, outcome = ask("offline", [ran.append, ran.append], 300)
    assert said["result_query_count"] == 1
    assert len(ran) == len(outcome.latencies_ns) == 300
    assert said["result_samples_per_second"] == pytest.approx(300 / (outcome.duration_ns / 1e9), rel=1e-4)


def test_a_stream_that_fails_fails_the_run() -> None:
    def run(turn: int) -> None:
        raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        ask("single_stream", [run], 10, expected_ns=1000)


def test_more_queries_than_its_trace_holds_are_refused() -> None:
    with pytest.raises(MeasureError, match="at most 50000 queries, got single_stream with 50001"):
        ask("single_stream", [spin], 50_001, expected_ns=1000)
    with pytest.raises(MeasureError, match="got sweep"):
        ask("sweep", [spin], 10)
