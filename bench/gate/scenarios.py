"""Checks under a pattern of load, by the name of a measured scenario."""

from __future__ import annotations

from functools import partial

import numpy as np

from edgewise.bench import stats
from edgewise.bench.gate.found import Finding, TooFew, Unusable, exactly, more
from edgewise.bench.gate.verdict import CONFIDENCE
from edgewise.bench.record import FileUnderTest, Results, ScenarioResult


def measured(name: str, key: str, limit: float, results: Results, file: FileUnderTest) -> Finding:
    """What the budget's ``key`` finds in the scenario called ``name``, to be held against ``limit``."""
    found = _scenario(name, results, file)
    if not found.valid:
        raise Unusable(f"scenario {name}: {found.note or 'it did not run as asked'}")
    if key != "min_qps":
        return _quantile(found, QUANTILES[key])
    offered = found.config.get("qps") if found.kind == "server" else None
    return _qps(found) if offered is None else _offered(found, float(offered) * found.samples_a_query, limit)


QUANTILES = {"max_p50_ms": 0.5, "max_p90_ms": 0.9, "max_p99_ms": 0.99}
STRETCHES = 8  # of a repeat


def _scenario(name: str, results: Results, file: FileUnderTest) -> ScenarioResult:
    measurement = results.measurements.get(file.name)
    known = {one.name: one for one in measurement.scenarios} if measurement else {}
    if name not in known:
        raise Unusable(f"no scenario {name!r} was measured, but: {', '.join(known) or 'none'}")
    return known[name]


def _qps(found: ScenarioResult) -> Finding:
    if found.qps is None:
        raise Unusable(f"scenario {found.name}: no rate was found")
    count = max(1, len(found.repeat_queries))
    if found.qps_low is None or found.qps_high is None:
        raise TooFew(count, count + 1, "repeats")
    interval = stats.Interval(found.qps, found.qps_low, found.qps_high)
    return Finding(interval, count, "repeats", partial(more, interval, count), "absolute", "95 % interval over repeats")


def _offered(found: ScenarioResult, rate: float, limit: float) -> Finding:
    """One rate was tried, and held: what was answered of it is chance, and no more than it was tried."""
    if limit > rate:
        raise Unusable(f"scenario {found.name}: only {rate:,.4g} /s were tried; leave its qps out, or try the limit")
    return Finding(exactly(rate), found.queries, "queries", kind="absolute", note="the rate that was tried, and held")


def _quantile(found: ScenarioResult, q: float) -> Finding:
    samples = np.asarray(found.latencies_ns, dtype=np.float64)
    if len(samples) < stats.sample_floor(q):
        raise TooFew(len(samples), stats.sample_floor(q), "queries")
    # Queries hang together within a process and while a queue lasts: stretches of each repeat are resampled, as blocks.
    ends = np.cumsum(found.repeat_queries or (len(samples),))[:-1]
    repeats = [np.array_split(one, min(STRETCHES, len(one))) for one in np.split(samples, ends) if len(one)]
    (interval,) = stats.bootstrap_percentiles(repeats, [q], confidence=CONFIDENCE)
    assert interval is not None  # enough samples
    upper = stats.percentile_upper(samples, q) if q > 0.5 else None
    high = max(interval.high, upper) if upper is not None else interval.high
    in_ms = stats.Interval(interval.value / 1e6, interval.low / 1e6, high / 1e6)
    note = "one repeat: the difference between processes is left out" if len(repeats) == 1 else ""
    return Finding(in_ms, len(samples), "queries", partial(more, in_ms, len(samples)), "absolute", note)
