"""Latency as it went: every block in the order in which it ran, the spread of latencies, and what the device did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.record import Measurement, Results
from edgewise.bench.report.file import pooled_ns
from edgewise.bench.telemetry import read_rows
from edgewise.bench.validity import CONTENDED, SLOW_CLOCK

BINS = 72  # of a histogram; enough to see two humps
POINTS = 240  # of a telemetry line
NEAR_S = 1.0  # a row of telemetry further away says nothing of a block
QUANTILES = {"p10_ms": 0.1, "p50_ms": 0.5, "p90_ms": 0.9}


def origin_ns(results: Results) -> int | None:
    """When the first block of all began, on the device's clock; None where blocks don't tell."""
    launches = [launch for one in results.measurements.values() for launch in one.launches]
    starts = [block.start_ns for launch in launches for block in launch.blocks if block.start_ns is not None]
    return min(starts, default=None)


def blocks_of(
    measurement: Measurement, origin: int | None, telemetry: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each block in order: ``launch``, ``round``, ``start_s`` since ``origin``, its quantiles in ms, and ``busy``.

    ``busy`` is wall time / CPU time; ``contended`` whether other work held the CPU by that; ``slow_clock`` whether the
    device's clock was low by the nearest row of ``telemetry``.
    """
    rows = []
    times = np.array([row["t_s"] for row in telemetry])
    for launch in measurement.launches:
        for block in sorted(launch.blocks, key=lambda one: one.round):
            start = block.start_ns
            ms = np.asarray(block.samples_ns, dtype=np.float64) / 1e6
            busy = block.wall_ns / block.process_cpu_ns if block.process_cpu_ns else None
            rows.append(
                {
                    "launch": launch.index,
                    "round": block.round,
                    "start_s": (at := None if start is None or origin is None else (start - origin) / 1e9),
                    **{name: float(np.quantile(ms, q)) for name, q in QUANTILES.items()},
                    "runs": len(ms),
                    "busy": busy,
                    "contended": busy is not None and busy > CONTENDED,
                    "slow_clock": _slow(at, times, telemetry),
                }
            )
    return rows


def _slow(at: float | None, times: NDArray[np.float64], telemetry: Sequence[Mapping[str, Any]]) -> bool:
    if at is None or not len(times):
        return False
    nearest = int(np.abs(times - at).argmin())
    return bool(abs(times[nearest] - at) <= NEAR_S and telemetry[nearest]["slow_clock"])


def spread_of(results: Results) -> tuple[list[float], dict[str, list[int]]]:
    """Edges of bins in ms, the same for all files, even on a log scale; and each file's counts."""
    pooled = {name: pooled_ns(one) / 1e6 for name, one in results.measurements.items()}
    pooled = {name: values for name, values in pooled.items() if len(values)}
    if not pooled:
        return [], {}
    low = min(float(values.min()) for values in pooled.values())
    high = max(float(values.max()) for values in pooled.values())
    # A hair wider at both ends: rounding must not push the extremes out.
    edges = np.geomspace(low * (1 - 1e-9), max(high, 1.01 * low) * (1 + 1e-9), BINS + 1)
    return [float(edge) for edge in edges], {name: _counts(values, edges) for name, values in pooled.items()}


def telemetry_of(results: Results, origin: int | None) -> list[dict[str, Any]]:
    """What the device's sensors said while blocks ran, in order; empty where nothing was recorded.

    Rows of ``t_s`` since ``origin``, ``temp_c`` of the hottest zone, ``freq_mhz`` of the fastest CPU (others may idle),
    ``power_w`` of the largest rail (others may be parts of it), and whether that clock is a ``slow_clock``.
    """
    if results.telemetry is None or origin is None:
        return []
    return [_telemetry_row(row, origin) for row in read_rows(results.folder / results.telemetry)]


def thinned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most ``POINTS`` of the rows, evenly; but all with a slow clock."""
    step = max(1, math.ceil(len(rows) / POINTS))
    return [row for place, row in enumerate(rows) if place % step == 0 or row["slow_clock"]]


def _telemetry_row(row: Mapping[str, Any], origin: int) -> dict[str, Any]:
    now, most = row["freq_khz"] or (), row["freq_max_khz"] or ()
    shares = [one / top for one, top in zip(now, most, strict=False) if one and top]
    return {
        "t_s": (row["t_ns"] - origin) / 1e9,
        "temp_c": _most(row["temp_c"]),
        "freq_mhz": max((one for one in now if one), default=0) / 1000 or None,
        "power_w": _most(row["power_w"]),
        "slow_clock": bool(shares) and max(shares) < SLOW_CLOCK,
    }


def _most(named: Mapping[str, float | None] | None) -> float | None:
    return max((value for value in (named or {}).values() if value is not None), default=None)


def _counts(values: NDArray[np.float64], edges: NDArray[np.float64]) -> list[int]:
    return [int(count) for count in np.histogram(values, edges)[0]]
