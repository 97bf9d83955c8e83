"""Measure .tflite files on a phone: LiteRT's ``benchmark_model`` in a fresh process a launch, files taking turns.

What comes back is an average a launch. The interval is Student's over the launches' averages on the log scale, so it
has the differences between processes in it and needs two of them. No single times: no percentile but the tool's own,
and that only above the floor of samples that it takes (``edgewise.bench.stats.sample_floor``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.bench.devices.adb import Adb, tool_argv
from edgewise.bench.parsers.benchmark_model import BenchmarkModel, benchmark_model
from edgewise.bench.parsers.text import last_words
from edgewise.bench.stats import Interval, sample_floor
from edgewise.bench.validity import LOW_BATTERY
from edgewise.errors import MeasureError
from edgewise.progress import Tick, silent

RUNS = 50
SECONDS = 1.0
WARMUP_S = 0.5
MOST_S = 150.0
GRACE_S = 30.0
TIMED_OUT = 124  # what `timeout` exits with
HOT = ("moderate", "severe", "critical", "emergency", "shutdown")


@dataclass(frozen=True)
class PhoneResult:
    """One file's launches on the phone; ``error`` says why it has fewer than were asked for."""

    name: str
    path: str
    size_bytes: int
    threads: int
    launches: tuple[BenchmarkModel, ...]
    flags: tuple[str, ...] = ()
    error: str | None = None

    def mean_ms(self, confidence: float = 0.95) -> Interval | None:
        """The average of an inference with its interval over launches; None without a launch."""
        return mean_of([launch.inference_us / 1000 for launch in self.launches], confidence=confidence)

    def percentile_ms(self, which: str) -> float | None:
        """``median`` or ``p95`` as the tool told it, the median over launches; None where too few runs were in it."""
        floor = sample_floor({"median": 0.5, "p95": 0.95}[which])
        told = [(getattr(launch, f"{which}_us"), launch.count or 0) for launch in self.launches]
        known = [value for value, count in told if value is not None and count >= floor]
        return float(np.median(known)) / 1000 if known and len(known) == len(told) else None


@dataclass(frozen=True)
class PhoneResults:
    """All files, and the phone before and after."""

    results: tuple[PhoneResult, ...]
    provenance: dict[str, Any]
    tool: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def measure_on_phone(
    files: Sequence[Path],
    adb: Adb,
    binary: Path,
    *,
    threads: int = 1,
    launches: int = 3,
    runs: int = RUNS,
    mask: str | None = None,
    seed: int = 0,
    tick: Tick = silent,
) -> PhoneResults:
    """Measure ``files`` with the phone's own ``binary`` of benchmark_model, ``launches`` fresh processes each.

    Args:
        files: ``.tflite``.
        adb: the phone.
        binary: ``benchmark_model`` for the phone's CPU.
        threads: ``--num_threads``, read back from what the tool says.
        launches: processes a file; each round visits the files in a new random order.
        runs: inferences a launch at least; the tool goes on for a second at least.
        mask: CPUs as a hexadecimal mask for ``taskset``; a mixed set of cores makes times jump.
        seed: of the order.
        tick: told after each launch.

    Raises:
        MeasureError: a file isn't a .tflite or can't be read, or not one could be measured.
        DeviceError: the phone can't be used, or not any more.
    """
    for path in files:
        if path.suffix != ".tflite":
            raise MeasureError(f"expected a .tflite, got {path.name}", where=adb.name)
    before = adb.probe()
    tool = adb.put(binary)
    adb.shell("chmod", "755", tool)
    there = {path: adb.put(path) for path in files}
    options = [
        f"--num_threads={threads}",
        f"--num_runs={runs}",
        f"--min_secs={SECONDS:g}",
        f"--max_secs={MOST_S:g}",
        f"--warmup_min_secs={WARMUP_S:g}",
    ]
    found: dict[Path, list[BenchmarkModel]] = {path: [] for path in files}
    failed: dict[Path, str] = {}
    for turn in range(launches):
        order = np.random.default_rng([seed, turn]).permutation(len(files))
        for step, place in enumerate(order):
            path = files[place]
            if path not in failed:
                try:
                    found[path].append(_launch(adb, tool, there[path], options, mask))
                except MeasureError as error:
                    failed[path] = str(error)
            tick(turn * len(files) + step + 1, launches * len(files), f"{path.name}: launch {turn + 1}/{launches}")
    if not any(found.values()):
        said = "\n  ".join(f"{path.name}: {why}" for path, why in failed.items())
        raise MeasureError(f"not one file could be measured:\n  {said}", where=adb.name)
    after = adb.state()
    return PhoneResults(
        results=tuple(
            PhoneResult(
                name=path.name,
                path=str(path),
                size_bytes=path.stat().st_size,
                threads=threads,
                launches=tuple(found[path]),
                flags=_flags(found[path], threads, before["state"], after),
                error=failed.get(path),
            )
            for path in files
        ),
        provenance={**before, "state_after": after},
        tool={"name": "benchmark_model", "options": options, "taskset": mask},
    )


def mean_of(values: Sequence[float], *, confidence: float = 0.95) -> Interval | None:
    """The geometric mean of positive values with Student's interval on the log scale; of one value, from 0 to infinity.

    None without a value.
    """
    from scipy.special import stdtrit

    if not values:
        return None
    logs = np.log(np.asarray(values, dtype=np.float64))
    n, middle = len(logs), float(logs.mean())
    if n == 1:
        return Interval(math.exp(middle), 0.0, math.inf)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * float(logs.std(ddof=1)) / math.sqrt(n)
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def _launch(adb: Adb, tool: str, graph: str, options: Sequence[str], mask: str | None) -> BenchmarkModel:
    # The tool's limits are those of one of its two phases each, and loading comes before.
    limit = 2 * MOST_S + GRACE_S
    argv = tool_argv(tool, graph, options, mask=mask, limit_s=limit)
    said = adb.shell(*argv, limit_s=limit + GRACE_S, folder=graph.rpartition("/")[0])
    if said.code == TIMED_OUT:
        raise MeasureError(f"it ran for over {limit:g} s and was ended; {last_words(said.text)}", where=adb.name)
    if said.code != 0:
        raise MeasureError(f"it ended with exit status {said.code}; {last_words(said.text)}", where=adb.name)
    return benchmark_model(said.text)


def _flags(
    launches: Sequence[BenchmarkModel], threads: int, before: dict[str, Any], after: dict[str, Any]
) -> tuple[str, ...]:
    """Those of ``edgewise.bench.validity`` that a phone lets one see."""
    if not launches:
        return ()
    batteries = [state["battery"] for state in (before, after)]
    levels = [battery["capacity_percent"] for battery in batteries if battery["capacity_percent"] is not None]
    found = {
        "throttled": any(state["thermal_status"] in HOT for state in (before, after)),
        "battery": any(battery["status"] == "Discharging" for battery in batteries)
        or any(level < LOW_BATTERY for level in levels),
        "single_launch": len(launches) == 1,
        "setting_not_honoured": any(launch.threads not in (None, threads) for launch in launches),
    }
    return tuple(name for name, is_so in found.items() if is_so)
