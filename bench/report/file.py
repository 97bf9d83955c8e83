"""One file's row of the report: what it is, its answers, its times, its memory; plain numbers with units in names."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.bench import stats
from edgewise.bench.numbers import (
    accuracy_drop,
    clock_of,
    discordant,
    flippable,
    load_ms,
    paired_scores,
    peak_memory,
    qps,
    samples_of,
    speedup,
)
from edgewise.bench.record import Context, FileUnderTest, Measurement, Results

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
SPEED = (
    *("runs", "launches", "blocks", "mean_ms", "qps", "peak_memory_bytes", "pss_bytes"),
    *("load_ms", "first_ms", "phases", "settings"),
    *(f"{name}_{what}" for name in PERCENTILES for what in ("ms", "upper_ms", "needs")),
)


def file_row(results: Results, file: FileUnderTest, context: Context, out: Path) -> dict[str, Any]:
    """Everything about ``file`` that needs no other file's row; paths are relative to ``out``.

    ``versus_float``: faster, slower or unclear than the float file of the very same model, None where nothing tells.
    """
    # A float file is its own reference or parent at times; "1.00x faster than itself" tells nobody anything.
    file = replace(
        file,
        reference=None if file.role == "reference" else file.reference,
        parent=file.parent if file.role == "candidate" else None,
    )
    answers, measurement = results.answers.get(file.name), results.measurements.get(file.name)
    reference = next((one for one in results.files if one.name == file.reference), None)
    row = {
        **asdict(file),
        "path": _told_path(Path(file.path), out),
        "size_ratio": reference.size_bytes / file.size_bytes if reference and file.size_bytes else None,
        "error": next((part.error for part in (measurement, answers) if part is not None and part.error), None),
        "flags": list(measurement.flags) if measurement else [],
        **_accuracy(results, file, scored=context.metric is not None),
        **_speed(measurement),
        **_speedups(results, file),
    }
    row["versus_float"] = _versus(row["speedup_parent"])
    parity = context.parity.get(file.name)
    row["sqnr_db"] = parity[-1].sqnr_db if parity else None
    row["sqnr_exact"] = bool(parity) and row["sqnr_db"] == math.inf  # JSON has no infinity
    row["integer"] = context.integer.get(file.name)
    row["integer_macs_share"] = context.integer_macs_share.get(file.name)
    row["float_layers"] = list(context.float_layers.get(file.name, ()))
    return row


def pooled_ns(measurement: Measurement) -> NDArray[np.float64]:
    """Every timed inference, in ns (N,)."""
    blocks = [block for launch in samples_of(measurement) for block in launch]
    return np.concatenate(blocks) if blocks else np.empty(0)


def interval_of(found: stats.Interval | None, scale: float = 1.0) -> dict[str, float] | None:
    """An interval as ``value``, ``low``, ``high``; None where so few samples have none, for JSON knows no infinity."""
    told = {key: scale * value for key, value in asdict(found).items()} if found else {}
    return told if told and all(math.isfinite(value) for value in told.values()) else None


def _told_path(path: Path, out: Path) -> str:
    """Nobody else needs to know where on this machine a run lies."""
    path, out = path.resolve(), out.resolve()
    return path.relative_to(out).as_posix() if path.is_relative_to(out) else path.name


def _versus(ratio: dict[str, float] | None) -> str | None:
    if ratio is None:
        return None
    return "faster" if ratio["low"] > 1 else "slower" if ratio["high"] < 1 else "unclear"


def _speedups(results: Results, file: FileUnderTest) -> dict[str, Any]:
    """Against the reference and the own float: what is believed, which clock it is from, and the wall clock's ratio."""
    row: dict[str, Any] = {}
    for key, other in (("speedup", file.reference), ("speedup_parent", file.parent)):
        clock = clock_of(results, other, file.name)
        wall = interval_of(speedup(results, other, file.name))
        row[key] = wall if clock == "wall" else interval_of(speedup(results, other, file.name, clock=clock))
        row[f"{key}_clock"] = clock if row[key] else None
        row[f"{key}_wall"] = wall
    return row


def _accuracy(results: Results, file: FileUnderTest, *, scored: bool) -> dict[str, Any]:
    answers = results.answers.get(file.name)
    scores = results.scores(file.name) if scored else None
    usable = scores is not None and answers is not None and answers.finite
    found = stats.mean_interval(np.asarray(scores, dtype=np.float64)) if usable else None
    pair = paired_scores(results, file.reference, file.name) if usable else None
    row: dict[str, Any] = {
        "accuracy": interval_of(found),
        "samples": answers.samples if answers else 0,
        **dict.fromkeys(("drop_pp", "flips", "flip_share", "lost", "won", "mcnemar_p")),
    }
    drop = accuracy_drop(results, file.reference, file.name) if pair else None
    if pair is None or drop is None:
        return row
    if not flippable(results, file.name):
        return {**row, "drop_pp": interval_of(drop, 100)}
    lost, won = discordant(*pair)
    told = {"flips": lost + won, "flip_share": (lost + won) / len(pair[0]), "lost": lost, "won": won}
    return {**row, **told, "drop_pp": interval_of(drop, 100), "mcnemar_p": stats.mcnemar_p(lost, won)}


def _speed(measurement: Measurement | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SPEED)
    if measurement is None or not measurement.launches:
        return row
    launches, pooled = samples_of(measurement), pooled_ns(measurement)
    found = stats.bootstrap_percentiles(launches, list(PERCENTILES.values()))
    for (name, q), interval in zip(PERCENTILES.items(), found, strict=True):
        upper = stats.percentile_upper(pooled, q)
        row[f"{name}_ms"] = interval_of(interval, 1e-6)
        row[f"{name}_upper_ms"] = upper / 1e6 if upper is not None and interval else None
        row[f"{name}_needs"] = stats.sample_floor(q)
    firsts = [launch.phases["first_inference"].duration_ns / 1e6 for launch in measurement.launches]
    return {
        **row,
        "runs": len(pooled),
        "launches": len(launches),
        "blocks": sum(len(launch) for launch in launches),
        "mean_ms": float(pooled.mean()) / 1e6,
        "qps": interval_of(qps(measurement)[0]),
        "peak_memory_bytes": peak_memory(measurement),
        "pss_bytes": _largest([launch.pss_bytes for launch in measurement.launches]),
        "load_ms": _spread(load_ms(measurement)),
        "first_ms": _spread(firsts),
        "phases": _phases(measurement),
        "settings": measurement.launches[0].settings,
    }


def _phases(measurement: Measurement) -> list[dict[str, Any]]:
    """Of each phase over launches: the median time, the largest peak, medians of what was resident at its end."""
    found = []
    for name in measurement.launches[0].phases:
        phases = [launch.phases[name] for launch in measurement.launches if name in launch.phases]
        found.append(
            {
                "phase": name,
                "duration_ms": float(np.median([phase.duration_ns for phase in phases])) / 1e6,
                "peak_bytes": _largest([phase.peak_bytes for phase in phases]),
                **{
                    f"{kind}_bytes": _median([getattr(phase, f"{kind}_bytes") for phase in phases])
                    for kind in ("resident", "anonymous", "file", "shared")
                },
            }
        )
    return found


def _largest(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _median(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return int(np.median(known)) if known else None


def _spread(values: list[float]) -> dict[str, float]:
    return {"value": float(np.median(values)), "low": min(values), "high": max(values)}
