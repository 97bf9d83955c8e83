"""What makes a measurement doubtful: flags from its own blocks, from the device's telemetry, and from its settings.

A flag says what was seen, not what to do. ``HARD`` are those that spoil absolute times: a gate calls a limit on them
INVALID. Limits of the detectors stand here as names, with their reasons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.config import Bench
from edgewise.bench.drift import drifted
from edgewise.bench.numbers import samples_of
from edgewise.bench.record import Block, Launch, Measurement
from edgewise.bench.stats import bootstrap_percentiles
from edgewise.bench.telemetry import clean_rows

CONTENDED = 1.3  # wall time / CPU time of one thread; a quiet machine is near 1
SWITCHES = 60.0  # involuntary switches a second and thread; a quiet machine makes a few, one rival over a hundred
PRESSURE = 0.25  # share of the time in which something waited for a CPU; only where more threads hide it from CPU time
STOLEN = 0.05  # share of a thread's time that the host of a virtual machine gave to others
SLOW_CLOCK = 0.75  # of the highest clock: nvbench's rule for samples to throw away
SLOW_SHARE = 0.10  # of the samples may be slow
SPREAD = 0.10  # 10 % to 90 % quantile of the clock, of its median
UNSTABLE = 0.05  # half width of the p50's interval, of the p50
SWAPPED_PAGES = 256  # 1 MiB in pages of 4 KiB
LOW_BATTERY = 20  # percent; many devices save power below it
NEAR_NS = 10_000_000_000  # a telemetry row further from a launch isn't its own
FEW = 10  # telemetry rows within the file's own blocks that say enough
PI_NOW = 0xF  # Raspberry Pi: under-voltage, clock capped, throttled, soft temperature limit; "has happened" is << 16

Rows = list[dict[str, Any]]

HARD: Mapping[str, str] = {
    "contended": "other work held the CPU: times are longer than the file's own",
    "throttled": "the device ran below its clock: times are longer than the file's own",
    "drift": "times moved in one direction while measuring: no one number is true",
    "swap": "the system swapped: times hold the disk's, and peaks of memory miss what was swapped out",
    "setting_not_honoured": "the runtime did not do what was asked: these are another setting's times",
}
"""Flags that make a limit on an absolute time INVALID, and why."""

ONLY_SLOWER = frozenset({"contended", "throttled", "swap"})
"""Hard flags that can only make a file slower: a limit on its time that is held all the same is held."""

# What a runtime is opened with beside threads, batch and precision, as it says it back.
ECHO: Mapping[str, Mapping[str, Any]] = {
    "onnxruntime": {"providers": ["CPUExecutionProvider"], "inter_op_threads": 1},
    "openvino": {"devices": ["CPU"], "streams": 1},
}


def flags_of(
    measurement: Measurement,
    runtime: str,
    telemetry: Sequence[Mapping[str, Any]] | None,
    config: Bench,
    *,
    precision: str | None = None,
) -> tuple[str, ...]:
    """What is doubtful about ``measurement``, as names: see ``edgewise.bench.format.FLAG_WORDS``.

    Args:
        measurement: its launches; without a block there is nothing to doubt.
        runtime: with a GPU, CPU time says nothing about contention.
        telemetry: rows of ``edgewise.bench.agent.sensors`` on the clock of ``Block.start_ns``; None or empty where
            the device said nothing, and then no flag comes from it.
        config: what was asked for.
        precision: the arithmetic that was asked of the runtime; None where it was left open.
    """
    launches = measurement.launches
    blocks = [block for launch in launches for block in launch.blocks]
    if not blocks:
        return ()
    rows, own = _rows(launches, telemetry or ())
    (p50,) = bootstrap_percentiles(samples_of(measurement), [0.5])
    half = math.inf  # too few samples for a p50: nothing is known, however near each other they are
    if p50 is not None:
        half = 0.0 if p50.value == 0 else (p50.high - p50.low) / 2 / p50.value
    found = {
        "warmup_not_converged": not all(launch.warmup_converged for launch in launches),
        "contended": _contended(measurement, blocks, runtime, rows),
        "throttled": _throttled(rows, own),
        "frequency": _spread(own),
        "drift": drifted(launches),
        "swap": _swapped(rows),
        "battery": _on_battery(rows),
        "unstable": half > UNSTABLE,
        "precision_not_reached": half > config.precision,
        "single_launch": len(launches) == 1,
        "setting_not_honoured": bool(dishonoured(measurement, runtime, precision)),
        "energy_missing": config.energy and measurement.energy is None,
    }
    return tuple(name for name, is_so in found.items() if is_so)


def seen_meanwhile(telemetry: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """What telemetry of a time without blocks, as a scenario's, tells for certain: "throttled", "swap", "battery".

    Clocks say nothing there: between its runs the device idles.
    """
    rows = [clean_rows(telemetry)]
    found = {"throttled": _throttled(rows, []), "swap": _swapped(rows), "battery": _on_battery(rows)}
    return tuple(name for name, is_so in found.items() if is_so)


def hard(flags: Iterable[str]) -> dict[str, str]:
    """Those of ``flags`` that spoil absolute times, with the reason of each."""
    return {flag: HARD[flag] for flag in flags if flag in HARD}


def dishonoured(measurement: Measurement, runtime: str, precision: str | None = None) -> list[str]:
    """Settings that a launch's runtime did not say back as asked, as sentences: threads, streams, precision, provider.

    What a runtime can't be asked back is missing from its settings, and isn't judged.
    """
    asked: dict[str, Any] = {
        "threads": measurement.threads,
        "batch": measurement.batch,
        **ECHO.get(runtime, {}),
    }
    if precision not in (None, "default"):
        asked["precision"] = precision
    found = []
    for launch in measurement.launches:
        for key, want in asked.items():
            have = launch.settings.get(key, want)
            if have != want:
                found.append(f"asked for {key} {want}, launch {launch.index} ran with {have}")
    first = measurement.launches[0].settings if measurement.launches else {}
    for launch in measurement.launches[1:]:
        differ = sorted(key for key in {*first, *launch.settings} if first.get(key) != launch.settings.get(key))
        if differ:
            found.append(f"launch {launch.index} ran with other {', '.join(differ)} than the first")
    return found


def _rows(launches: Sequence[Launch], telemetry: Iterable[Any]) -> tuple[list[Rows], Rows]:
    """Rows of each launch, from its first block to its last with one more on either side; and those within any block.

    Where the blocks are too short for enough rows of their own, all in between stand in: the device was busy then with
    the files that took turns. Launches may lie hours apart, where a measurement went on from an earlier one: what
    counted up meanwhile isn't theirs.
    """
    rows = clean_rows(telemetry)
    times = np.array([row["t_ns"] for row in rows], dtype=np.int64)
    within, between, found = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool), []
    for launch in launches:
        spans = [(block.start_ns, block.start_ns + block.wall_ns) for block in launch.blocks if block.start_ns]
        if not spans:
            continue
        start, end = min(first for first, _ in spans), max(last for _, last in spans)
        near = (times >= start - NEAR_NS) & (times <= end + NEAR_NS)
        low = max(0, int(np.searchsorted(times, start, side="right")) - 1)
        high = int(np.searchsorted(times, end, side="left")) + 1
        found.append([row for place, row in enumerate(rows[low:high], low) if near[place]])
        between |= (times >= start) & (times <= end)
        for first, last in spans:
            within |= (times >= first) & (times <= last)
    chosen = within if within.sum() >= FEW else between
    return found, [row for row, inside in zip(rows, chosen, strict=True) if inside]


def _contended(measurement: Measurement, blocks: Sequence[Block], runtime: str, rows: Sequence[Rows]) -> bool:
    seconds = _grown(rows, "t_ns") / 1e9
    if seconds > 0 and _grown(rows, "steal_ticks") / 100 / seconds > STOLEN * measurement.threads:
        return True
    # With a GPU the clocks say nothing about each other.
    if runtime == "tensorrt":
        return False
    # Whatever the threads, one of them computes at any time: less CPU time means that the CPU was elsewhere.
    busy = [block.wall_ns / block.process_cpu_ns for block in blocks if block.process_cpu_ns > 0]
    if busy and float(np.median(busy)) > CONTENDED:
        return True
    if measurement.threads == 1:
        return False
    # With more threads one may wait for its CPU while the others' time hides it.
    wall = sum(block.wall_ns for block in blocks) / 1e9
    if wall > 0 and sum(block.nivcsw for block in blocks) / wall > SWITCHES * measurement.threads:
        return True
    return seconds > 0 and _grown(rows, "psi_cpu_some_us") / 1e6 / seconds > PRESSURE


def _throttled(rows: Sequence[Rows], own: Rows) -> bool:
    for launch in rows:
        counts = [row["throttle"] for row in launch if row["throttle"] is not None]
        for one, other in pairwise(counts):
            if any((other[key] or 0) > (one.get(key) or 0) for key in other if key in one and key != "raspberry_pi"):
                return True
        masks = [int(count.get("raspberry_pi") or 0) for count in counts]
        # What happened before the first row isn't this launch's; its mark stays set until the next boot.
        if any(mask & PI_NOW for mask in masks) or (masks and (masks[-1] & ~masks[0]) >> 16):
            return True
    clocks = _clocks(own)
    return len(clocks) > 0 and float(np.mean(clocks < SLOW_CLOCK)) > SLOW_SHARE


def _spread(own: Rows) -> bool:
    clocks = _clocks(own)
    if len(clocks) < 3:
        return False
    low, middle, high = np.quantile(clocks, [0.1, 0.5, 0.9])
    return bool(high - low > SPREAD * middle)


def _clocks(rows: Rows) -> NDArray[np.float64]:
    """A row's clock as a share of the highest, of its fastest CPU: others may idle, even with as many threads."""
    found = []
    for row in rows:
        now, most = row["freq_khz"] or (), row["freq_max_khz"] or ()
        shares = [one / top for one, top in zip(now, most, strict=False) if one and top]
        if shares:
            found.append(max(shares))
    return np.array(found)


def _swapped(rows: Sequence[Rows]) -> bool:
    return _grown(rows, "swapped_pages") > SWAPPED_PAGES


def _on_battery(rows: Sequence[Rows]) -> bool:
    for battery in (row["battery"] for launch in rows for row in launch if row["battery"] is not None):
        level = battery["capacity_percent"]
        if battery["status"] == "Discharging" or (level is not None and level < LOW_BATTERY):
            return True
    return False


def _grown(rows: Sequence[Rows], key: str) -> float:
    """How far a counter came from each launch's first row to its last, in all; 0 where it isn't counted."""
    found = 0.0
    for launch in rows:
        values = [float(row[key]) for row in launch if row[key] is not None]
        found += max(0.0, values[-1] - values[0]) if len(values) > 1 else 0.0
    return found
