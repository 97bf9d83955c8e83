"""Joules an inference takes above idling: windows of work and of idleness in turns, read off the device's own sensor.

Each window lasts at least 10 s (MLPerf Tiny's minimum), there are at least three, and each has its own idle window
right before it, so that slow changes of the idle power cancel. A device without a sensor has no energy: it is never
guessed from a data sheet. ``joules_per_inference`` is a run of the file, whatever its batch, as latency is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.devices.base import Device, Worker
from edgewise.bench.record import Energy
from edgewise.bench.telemetry import clean_rows
from edgewise.errors import MeasureError

WINDOW_S = 10.0
WINDOWS = 3
HZ = 10.0
MOST_GAP_S = 1.0  # between two samples of power: over a longer silence nothing is known
SETTLE_S = 1.0  # the work's heat and clocks take a moment to go before a device is idle
LIMIT_S = 300.0

# Jetsons' rails that hold the whole module. Where there is none, the rails beside each other add up to it.
WHOLE_RAILS = ("VDD_IN", "POM_5V_IN")
INNER_RAILS = ("VDDQ_VDD2_1V8AO",)  # fed by VIN_SYS_5V0, which is measured too
NOTES = {
    "ina3221": "what the module draws, without the carrier board",
    "rapl": "the CPU package by its own counter, without memory and board",
    "battery": "coarse: the whole device by its battery's meter",
}


@dataclass(frozen=True)
class Window:
    """``runs`` inferences between two instants of the device's monotonic clock; none in an idle one."""

    start_ns: int
    end_ns: int
    runs: int = 0


@dataclass(frozen=True)
class Meter:
    """A source of joules and how to read it from telemetry rows: ``joules`` that only grow, at ``times_ns``."""

    source: str
    rail: str
    times_ns: NDArray[np.int64]
    joules: NDArray[np.float64]

    def watts(self, window: Window) -> float:
        """Mean power over a window.

        Raises:
            MeasureError: the rows don't cover it, or have a gap in it.
        """
        times = (self.times_ns - window.start_ns) / 1e9
        end = (window.end_ns - window.start_ns) / 1e9
        if end <= 0 or len(times) < 2 or times[0] > 0 or times[-1] < end:
            raise MeasureError(f"{self.rail} was not read over the whole of a window of {end:.1f} s", where=self.source)
        first, last = np.searchsorted(times, 0, side="right") - 1, np.searchsorted(times, end, side="left")
        gap = float(np.diff(times[first : last + 1]).max())
        if gap > MOST_GAP_S:
            raise MeasureError(f"{self.rail} was not read for {gap:.1f} s", where=self.source)
        low, high = np.interp([0.0, end], times, self.joules)
        return float(high - low) / end


def meter_of(rows: Sequence[Mapping[str, Any]]) -> Meter | None:
    """The best source that telemetry rows hold: a Jetson's rails, RAPL, the battery; None where there is none."""
    sources: tuple[Callable[[Sequence[Mapping[str, Any]]], Meter | None], ...] = (_ina3221, _rapl, _battery)
    ordered = clean_rows(rows)
    return next((meter for meter in (read(ordered) for read in sources) if meter is not None), None)


def require_meter(device: Device) -> Meter:
    """Refuse ``bench.energy`` at once where it can't be had, before minutes of measuring.

    Raises:
        MeasureError: the device has no source of energy that this user may read.
        DeviceError: the device doesn't answer.
    """
    with device.sample(HZ) as rows:
        time.sleep(4 / HZ)
    meter = meter_of(rows)
    if meter is None:
        raise MeasureError(
            f"asked for energy, but {device.name} has no sensor of it that this user may read",
            where="bench.energy",
            hint="leave it out, or see docs/devices.md: RAPL is readable by root alone, a battery counts unplugged",
        )
    return meter


def measure_energy(
    worker: Worker,
    device: Device,
    *,
    windows: int = WINDOWS,
    window_s: float = WINDOW_S,
    limit_s: float = LIMIT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Measure the file that ``worker`` has opened and warmed up; nothing else may be asked to compute meanwhile.

    Takes ``windows`` x (2 ``window_s`` + 2 s).

    Raises:
        MeasureError: fewer or shorter windows than the method allows, no source, or the source went silent.
        DeviceError: the device doesn't answer.
    """
    if windows < WINDOWS or window_s < WINDOW_S:
        raise MeasureError(
            f"expected at least {WINDOWS} windows of {WINDOW_S:g} s, got {windows} of {window_s:g} s", where="energy"
        )
    idle, work = [], []
    with device.sample(HZ) as rows:
        # Where the device's clock stands is known from its blocks alone: the host's is another clock.
        last = _block(worker, 100.0, limit_s)
        for _ in range(windows):
            sleep(SETTLE_S + window_s + 2 / HZ)
            start = last.end_ns + round(SETTLE_S * 1e9)
            idle.append(Window(start, start + round(window_s * 1e9)))
            last = _block(worker, 1000 * window_s, limit_s + 2 * window_s)
            work.append(last)
        sleep(3 / HZ)  # one sample must come after the last window
    meter = meter_of(rows)
    if meter is None:
        raise MeasureError(f"{device.name} has no sensor of energy that this user may read", where="bench.energy")
    return energy_of(meter, idle, work)


def energy_of(meter: Meter, idle: Sequence[Window], work: Sequence[Window], confidence: float = 0.95) -> Energy:
    """Joules an inference above idling, from windows in pairs, with Student's interval over the windows.

    Raises:
        MeasureError: the meter does not cover a window, or a window has no inference.
    """
    from scipy.special import stdtrit

    each = []
    baseline = [meter.watts(window) for window in idle]
    for rest, window in zip(baseline, work, strict=True):
        if window.runs < 1:
            raise MeasureError("expected inferences in every window, got none", where=meter.source)
        each.append((meter.watts(window) - rest) * (window.end_ns - window.start_ns) / 1e9 / window.runs)
    n = len(each)
    mean = float(np.mean(each))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * float(np.std(each, ddof=1)) / math.sqrt(n)
    notes = [NOTES[meter.source]]
    if mean - half <= 0:
        notes.append("not told apart from idling")
    return Energy(
        source=meter.source,
        rail=meter.rail,
        joules_per_inference=mean,
        low=mean - half,
        high=mean + half,
        idle_w=float(np.mean(baseline)),
        windows=n,
        note="; ".join(notes),
    )


def _block(worker: Worker, ms: float, limit_s: float) -> Window:
    reply = worker.ask("block", limit_s=limit_s, ms=ms)
    try:
        start, wall, runs = int(reply["start_ns"]), int(reply["wall_ns"]), len(reply["samples_ns"])
    except (KeyError, TypeError, ValueError) as error:
        raise MeasureError(f"expected a block with its start and length, got {error!r}", where=worker.file) from error
    return Window(start, start + wall, runs)


def _ina3221(rows: Sequence[Mapping[str, Any]]) -> Meter | None:
    known = [row for row in rows if row["power_w"]]
    if not known:
        return None
    rails = [rail for rail in known[0]["power_w"] if rail not in INNER_RAILS]
    whole = [rail for rail in WHOLE_RAILS if rail in rails][:1] or rails
    return _from_watts("ina3221", "+".join(whole), whole, known)


def _rapl(rows: Sequence[Mapping[str, Any]]) -> Meter | None:
    known = [row for row in rows if row["energy_j"]]
    packages = (
        [name for name in known[0]["energy_j"] if name.startswith("package") and "/" not in name] if known else []
    )
    found = [(row["t_ns"], [row["energy_j"].get(name) for name in packages]) for row in known]
    points = _complete(found)
    return _meter("rapl", "+".join(packages), points)


def _battery(rows: Sequence[Mapping[str, Any]]) -> Meter | None:
    known = [row for row in rows if row["battery"]]
    # Plugged in, its meter shows the charging.
    if not known or any(row["battery"]["status"] != "Discharging" for row in known):
        return None
    flat = [{"t_ns": row["t_ns"], "power_w": {"battery": row["battery"]["power_w"]}} for row in known]
    return _from_watts("battery", "battery", ["battery"], flat)


def _from_watts(source: str, name: str, rails: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Meter | None:
    """Power integrated by trapezoids."""
    found = [(row["t_ns"], [row["power_w"].get(rail) for rail in rails]) for row in rows]
    points = _complete(found)
    if len(points) < 2:
        return None
    times = np.array([t for t, _ in points]) / 1e9
    watts = np.array([value for _, value in points])
    joules = np.concatenate([[0.0], np.cumsum(np.diff(times) * (watts[1:] + watts[:-1]) / 2)])
    return _meter(source, name, list(zip([t for t, _ in points], joules, strict=True)))


def _complete(found: Sequence[tuple[int, list[float | None]]]) -> list[tuple[int, float]]:
    """The sums of those rows that have every rail."""
    return [
        (t, sum(value for value in values if value is not None)) for t, values in found if values and None not in values
    ]


def _meter(source: str, rail: str, points: Sequence[tuple[int, float]]) -> Meter | None:
    if len(points) < 2:
        return None
    return Meter(source, rail, np.array([t for t, _ in points]), np.array([joules for _, joules in points]))
