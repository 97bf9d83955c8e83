"""What a clock makes of a measurement: times on a quiet machine, and on a busy one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgewise.bench.config import Bench
from edgewise.bench.record import Block, Launch, Measurement, Results
from edgewise.bench.validity import flags_of
from edgewise.errors import MeasureError
from edgewise.stages.clock import timed_from


def measured(name: str, cpu_us: int, *, waits: int = 1, threads: int = 1, blocks: int = 8) -> Measurement:
    """Inferences of ``cpu_us``, each of which took ``waits`` times as long on the wall."""
    runs = 10
    made = tuple(
        Block(
            round=number,
            samples_ns=(cpu_us * waits * 1000,) * runs,
            wall_ns=cpu_us * waits * 1000 * runs,
            thread_cpu_ns=cpu_us * 1000 * runs,
            process_cpu_ns=cpu_us * 1000 * runs,
            nivcsw=0,
            settle_runs=0,
        )
        for number in range(blocks)
    )
    launch = Launch(0, phases={}, settings={}, warmup_ns=(), warmup_converged=True, blocks=made)
    found = Measurement(name, 1, threads, (launch,) if blocks else ())
    return replace(found, flags=flags_of(found, "onnxruntime", None, Bench()))


def results(reference: Measurement, candidate: Measurement) -> Results:
    return Results((), {"reference": reference, "candidate": candidate}, {}, "", {}, {})


def test_on_a_quiet_machine_the_wall_clock_decides() -> None:
    timed = timed_from(results(measured("reference", 2000), measured("candidate", 1000)))
    assert (timed.reference_ms, timed.p50_ms) == (2.0, 1.0)
    assert timed.ratio == pytest.approx(0.5)
    assert timed.low <= timed.ratio <= timed.high


def test_on_a_busy_machine_cpu_time_does() -> None:
    """The scheduler cuts the longer inference: ten times on the wall what it computes."""
    timed = timed_from(results(measured("reference", 2000, waits=10), measured("candidate", 1000)))
    assert (timed.reference_ms, timed.p50_ms) == (2.0, 1.0)
    assert timed.ratio == pytest.approx(0.5)


def test_with_several_threads_there_is_only_the_wall() -> None:
    busy = results(measured("reference", 2000, waits=2, threads=2), measured("candidate", 1000, threads=2))
    assert timed_from(busy).ratio == pytest.approx(0.25)


def test_what_could_not_be_run_is_told() -> None:
    with pytest.raises(MeasureError, match="candidate could not be timed"):
        timed_from(results(measured("reference", 2000), measured("candidate", 1000, blocks=0)))
