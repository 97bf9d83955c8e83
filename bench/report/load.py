"""What files did under load, and what they drew: rows of scenarios and of energy."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgewise.bench import stats
from edgewise.bench.record import Energy, Results, ScenarioResult

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def scenario_rows(results: Results) -> list[dict[str, Any]]:
    """A row a file and scenario. Percentiles are of queries, None below their floor; ``pXX_needs`` is that floor."""
    return [
        {"file": file.name, "runtime": file.runtime, **_row(found)}
        for file in results.files
        if file.name in results.measurements
        for found in results.measurements[file.name].scenarios
    ]


def energy_row(energy: Energy | None) -> dict[str, Any] | None:
    """Joules an inference as an interval, and where they were read."""
    if energy is None:
        return None
    joules = {"value": energy.joules_per_inference, "low": energy.low, "high": energy.high}
    told = ("source", "rail", "idle_w", "windows", "note")
    return {"joules": joules, **{key: getattr(energy, key) for key in told}}


def _row(found: ScenarioResult) -> dict[str, Any]:
    samples = np.asarray(found.latencies_ns, dtype=np.float64)
    row: dict[str, Any] = {
        "kind": found.kind,
        "name": found.name,
        "in_flight": found.in_flight,
        "target_qps": found.target_qps,
        "queries": found.queries,
        "samples_a_query": found.samples_a_query,
        "seconds": found.duration_ns / 1e9,
        "qps": _qps(found),
        "p99_upper_ms": None if found.p99_upper_ns is None else found.p99_upper_ns / 1e6,
        "valid": found.valid,
        "note": found.note,
        "settings": found.settings,
    }
    for name, q in PERCENTILES.items():
        value = stats.percentile(samples, q) if len(samples) else None
        row[f"{name}_ms"] = None if value is None else value / 1e6
        row[f"{name}_needs"] = stats.sample_floor(q)
    return row


def _qps(found: ScenarioResult) -> dict[str, float] | None:
    if found.qps is None:
        return None
    low, high = found.qps_low, found.qps_high
    return {"value": found.qps, "low": found.qps if low is None else low, "high": found.qps if high is None else high}
