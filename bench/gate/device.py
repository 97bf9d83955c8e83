"""Checks on what a file costs the device: time, throughput, memory, bytes, energy."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from edgewise.bench import stats
from edgewise.bench.gate.found import AGAIN, Finding, TooFew, Unusable, exactly, more, reference, runs
from edgewise.bench.gate.verdict import CONFIDENCE
from edgewise.bench.numbers import clock_of, load_ms, peak_memory, qps
from edgewise.bench.numbers import speedup as measured_speedup
from edgewise.bench.record import FileUnderTest, Results

ON_CPU_TIME = "on CPU time: the machine was busy"
BUSY = f"the machine was busy, and with more than one thread, or off the CPU, CPU time can't stand in: {AGAIN}"
FEW_WINDOWS = 3  # of energy; fewer say nothing about how far they differ


def speedup(results: Results, file: FileUnderTest) -> Finding:
    """p50 of the reference / p50 of the file, from paired blocks."""
    reference(results, file)
    runs(results, file)
    clock = clock_of(results, file.reference, file.name)
    if clock is None:
        raise Unusable(BUSY)
    found = measured_speedup(results, file.reference, file.name, clock=clock, confidence=CONFIDENCE)
    if found is None:
        raise Unusable(f"the reference {file.reference} was not measured in the same launches")
    pairs = sum(len(launch.blocks) for launch in results.measurements[file.name].launches)
    note = ON_CPU_TIME if clock == "cpu" else ""
    return Finding(found, pairs, "block pairs", partial(more, found, pairs), "ratio", note, file.reference)


def latency(q: float, results: Results, file: FileUnderTest) -> Finding:
    """The ``q``-quantile in ms; of a tail the upper end is at least what so few samples can vouch for."""
    launches = runs(results, file)
    pooled = np.concatenate([block for launch in launches for block in launch])
    (found,) = stats.bootstrap_percentiles(launches, [q], confidence=CONFIDENCE)
    if found is None:
        raise TooFew(len(pooled), stats.sample_floor(q))
    # A tail is rarely seen: its upper end is at least what so few samples can vouch for.
    upper = stats.percentile_upper(pooled, q) if q > 0.5 else None
    high = max(found.high, upper) if upper is not None else found.high
    in_ms = stats.Interval(found.value / 1e6, found.low / 1e6, high / 1e6)
    return Finding(in_ms, len(pooled), "runs", partial(more, in_ms, len(pooled)), "absolute")


def throughput(results: Results, file: FileUnderTest) -> Finding:
    """Samples a second of one caller that never waits."""
    runs(results, file)
    found, n = qps(results.measurements[file.name], confidence=CONFIDENCE)
    return Finding(found, n, "blocks", partial(more, found, n), "absolute")


def memory(results: Results, file: FileUnderTest) -> Finding:
    """The largest peak of the launches, in bytes."""
    runs(results, file)
    measurement = results.measurements[file.name]
    peak = peak_memory(measurement)
    if peak is None:
        raise Unusable("this system does not tell a process's peak memory")
    return Finding(exactly(peak), len(measurement.launches), "launches", kind="memory")


def load(results: Results, file: FileUnderTest) -> Finding:
    """The median load time of the launches, in ms."""
    runs(results, file)
    times = load_ms(results.measurements[file.name])
    return Finding(exactly(float(np.median(times))), len(times), "launches", kind="absolute")


def size(results: Results, file: FileUnderTest) -> Finding:
    """Bytes of all parts."""
    return Finding(exactly(file.size_bytes), 1, "file")


def size_ratio(results: Results, file: FileUnderTest) -> Finding:
    """Bytes of the reference / bytes of the file."""
    theirs = reference(results, file)
    value = theirs.size_bytes / file.size_bytes if file.size_bytes else math.inf
    return Finding(exactly(value), 1, "file", baseline=theirs.name)


def joules(results: Results, file: FileUnderTest) -> Finding:
    """Joules an inference takes above idling. Its interval is the sensor's, of 95 %."""
    runs(results, file)
    found = results.measurements[file.name].energy
    if found is None:
        raise Unusable("no energy was measured: the device has no sensor that may be read, or bench.energy is off")
    if found.windows < FEW_WINDOWS:
        raise TooFew(found.windows, FEW_WINDOWS, "windows")
    interval = stats.Interval(found.joules_per_inference, found.low, found.high)
    note = f"{found.source}, {found.rail}{f': {found.note}' if found.note else ''}"
    return Finding(interval, found.windows, "windows", partial(more, interval, found.windows), "energy", note)
