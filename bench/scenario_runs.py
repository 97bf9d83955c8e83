"""One run of a scenario in a fresh process, and what the runs of one scenario say together."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgewise.bench import stats
from edgewise.bench.ask import LIMIT_S, open_and_warm
from edgewise.bench.devices.base import Device, Worker
from edgewise.bench.record import ScenarioPoint, ScenarioResult
from edgewise.bench.scenario_config import MultiStream, Offline, Scenario, SingleStream, Sweep
from edgewise.errors import MeasureError

MAX_QUERIES = 200_000  # as the agent has it


@dataclass(frozen=True)
class Loaded:
    """A file on a device and how to open it there.

    ``asked``: ``path`` and ``inputs`` on the device, ``threads``, ``batch``, ``precision``, as the worker takes them.
    """

    name: str
    runtime: str
    asked: dict[str, Any]
    device: Device
    warmup_s: float = 0.5

    @property
    def batch(self) -> int:
        """Samples an inference."""
        return int(self.asked["batch"])


@dataclass(frozen=True)
class Run:
    """One run: queries' latencies in ns, samples a second, and why it doesn't count, else ""."""

    in_flight: int
    target_qps: float | None
    latencies_ns: tuple[int, ...]
    duration_ns: int
    qps: float
    stopped: str


@dataclass
class Taken:
    """All that was run for one scenario so far, and what runtime and scheduler said they did."""

    loaded: Loaded
    scenario: Scenario
    points: list[ScenarioPoint] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def opened(self, streams: int) -> Iterator[tuple[Worker, float]]:
        """A fresh process with the file open and warm; and how long one inference takes alone, in ns.

        Raises:
            MeasureError: it can't be opened, or a setting was not honoured.
        """
        loaded = self.loaded
        asked = {**loaded.asked, "streams": streams, "length": self.scenario.length}
        with contextlib.closing(loaded.device.worker(loaded.name, asked["threads"])) as worker:
            told = open_and_warm(worker, loaded.runtime, asked, loaded.warmup_s)
            self.settings.update(told["load"]["settings"])
            warm = told["warm"]["samples_ns"]
            yield worker, float(np.median(warm[len(warm) // 2 :]))
            worker.ask("close", limit_s=LIMIT_S)

    def ask(self, worker: Worker, repeat: int, streams: int, count: int, **request: Any) -> Run:
        """Let the worker run ``count`` queries, and note what came of it.

        Raises:
            MeasureError: the worker failed, or its times are impossible.
        """
        asked: dict[str, Any] = {"kind": self.scenario.kind, "engine": engine_of(self.scenario)}
        asked = {**asked, "streams": streams, "count": count, "max_s": self.scenario.max_seconds, **request}
        reply = worker.ask("scenario", limit_s=LIMIT_S + asked["max_s"], **asked)
        latencies, duration = tuple(reply["latencies_ns"]), reply["duration_ns"]
        if duration <= 0 or min(latencies, default=0) < 0:
            raise MeasureError(f"expected times above 0 ns, got {min(latencies, default=0)} in {duration} ns")
        samples = len(latencies) * request.get("runs", 1) * self.loaded.batch
        target = request.get("rate")
        if asked["kind"] == "offline":
            latencies = (duration,)  # all samples are one query
        run = Run(streams, target, latencies, duration, samples * 1e9 / duration, reply["stopped"])
        pooled = np.asarray(latencies, np.float64)
        self.points.append(
            ScenarioPoint(
                repeat=repeat,
                in_flight=streams,
                target_qps=target,
                queries=len(latencies),
                duration_ns=duration,
                qps=run.qps,
                p50_ns=stats.percentile(pooled, 0.5),
                p99_ns=stats.percentile(pooled, 0.99),
                p99_upper_ns=stats.percentile_upper(pooled, 0.99),
                valid=not run.stopped,
                note=run.stopped,
            )
        )
        told = ("slept", "wake_p50_ns", "wake_p99_ns", "process_cpu_ns", "nivcsw", "loadgen")
        self.settings.update({key: reply[key] for key in told if key in reply})
        return run

    def result(self, runs: Sequence[Run], *, note: str = "", valid: bool = True, **changed: Any) -> ScenarioResult:
        """What ``runs``, one a repeat, say together; ``changed`` takes the place of fields."""
        stopped = [run.stopped for run in runs if run.stopped]
        others = f"and so in {len(stopped) - 1} more repeats" if len(stopped) > 1 else ""
        latencies = pooled(runs)
        qps, low, high = rate_interval([run.qps for run in runs]) if runs else (None, None, None)
        batch = self.loaded.batch
        a_query = self.scenario.samples_a_query if isinstance(self.scenario, MultiStream) else batch
        if isinstance(self.scenario, Offline) and runs:
            a_query = round(runs[0].qps * runs[0].duration_ns / 1e9)
        made: dict[str, Any] = {
            "kind": self.scenario.kind,
            "name": self.scenario.known_as,
            "settings": dict(self.settings),
            "in_flight": runs[0].in_flight if runs else streams_of(self.scenario),
            "target_qps": None,
            "queries": len(latencies),
            "samples_a_query": a_query,
            "duration_ns": sum(run.duration_ns for run in runs),
            "latencies_ns": tuple(value for run in runs for value in run.latencies_ns),
            "qps": qps,
            "qps_low": low,
            "qps_high": high,
            "p50_ns": stats.percentile(latencies, 0.5),
            "p90_ns": stats.percentile(latencies, 0.9),
            "p99_ns": stats.percentile(latencies, 0.99),
            "p99_upper_ns": stats.percentile_upper(latencies, 0.99),
            "valid": valid and bool(runs) and not stopped,
            "note": "; ".join(filter(None, [note, *stopped[:1], others])),
            "engine": engine_of(self.scenario),
            "config": self.scenario.model_dump(mode="json"),
            "repeat_queries": tuple(len(run.latencies_ns) for run in runs),
            "points": tuple(self.points),
        }
        return ScenarioResult(**{**made, **changed})


def rate_interval(rates: Sequence[float], tolerance: float = 0.0) -> tuple[float, float | None, float | None]:
    """The mean of repeats' rates with its 95 % interval by Student's t; no interval from a single one.

    Rates that were searched are known to ``tolerance``, a share of the rate: repeats may agree by its steps alone.
    """
    mean = float(np.mean(rates))
    if len(rates) < 2:
        return mean, None, None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(rates) - 1)) * float(np.std(rates, ddof=1)) / math.sqrt(len(rates))
    half = max(half, tolerance * mean)
    return mean, max(0.0, mean - half), mean + half


def pooled(runs: Sequence[Run]) -> stats.Samples:
    """The latencies of all queries, in ns."""
    return np.array([value for run in runs for value in run.latencies_ns], dtype=np.float64)


def count_of(wanted: float, least: int) -> int:
    """A whole number of queries from ``least`` on that fits into one reply."""
    return min(MAX_QUERIES, max(least, math.ceil(wanted)))


def streams_of(scenario: Scenario) -> int:
    """How many streams it asks for; a sweep starts with one."""
    return 1 if isinstance(scenario, SingleStream | Sweep) else scenario.streams


def engine_of(scenario: Scenario) -> str:
    """Whose scheduler sends its queries."""
    return "edgewise" if isinstance(scenario, Sweep) else scenario.engine
