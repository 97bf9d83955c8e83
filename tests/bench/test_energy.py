"""Made-up power whose truth is known, and a worker and a device that are made up too, on a clock of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.bench.config import Bench
from edgewise.bench.devices.local import LocalDevice
from edgewise.bench.energy import (
    Meter,
    Window,
    energy_of,
    measure_energy,
    meter_of,
    require_meter,
)
from edgewise.bench.measure import measure
from edgewise.bench.record import FileUnderTest
from edgewise.errors import MeasureError

S = 10**9
IDLE_W, BUSY_W, RUN_S = 2.0, 7.0, 0.01  # so (7 - 2) W x 10 ms = 50 mJ


class World:
    """A device with a clock, a power that depends on what it does, and telemetry of it at 10 Hz."""

    def __init__(
        self, source: str = "rail", noise: float = 0.0, drift: float = 0.0, silent: tuple[float, float] = (0, 0)
    ):
        self.name, self.file = "local", "net"
        self.now = 5.0
        self.spans: list[tuple[float, float]] = []
        self._source, self._noise, self._drift, self._silent = source, noise, drift, silent

    def power(self, t: float) -> float:
        busy = any(start <= t < end for start, end in self.spans)
        return (BUSY_W if busy else IDLE_W) + self._drift * t

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, do: str, *, limit_s: float, **request: Any) -> dict[str, Any]:
        assert do == "block"
        assert limit_s > request["ms"] / 1000
        self.now += 0.01 + 0.1 * request["ms"] / 1000  # it settles first: busy, but not counted
        start = self.now
        self.now += request["ms"] / 1000
        self.spans.append((start - 0.1 * request["ms"] / 1000, self.now))
        count = round(request["ms"] / 1000 / RUN_S)
        wall = round((self.now - start) * S)
        return {"start_ns": round(start * S), "wall_ns": wall, "samples_ns": [round(RUN_S * S)] * count}

    def kill(self) -> None: ...

    def close(self) -> None: ...

    @contextmanager
    def sample(self, hz: float) -> Iterator[list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        begin = self.now
        yield rows
        random, joules, last = np.random.default_rng(0), 0.0, begin
        for t in np.arange(begin, self.now, 1 / hz):
            steps = np.linspace(last, t, 20)
            joules += float(np.mean([self.power(step) for step in steps])) * (t - last)
            last = t
            watts = self.power(t) + float(random.normal(0, self._noise))
            if self._silent[0] <= t < self._silent[1]:
                continue
            told: dict[str, Any] = {
                "rail": {"power_w": {"VDD_IN": watts, "VDD_SOC": 1.0}},
                "counter": {"energy_j": {"package-0": joules / 2, "package-1": joules / 2, "package-0/dram": 1e6}},
                "battery": {"battery": {"status": "Discharging", "power_w": watts}},
                "mains": {"battery": {"status": "Charging", "power_w": watts}},
                "nothing": {"power_w": None, "energy_j": None, "battery": None},
            }[self._source]
            rows.append({"t_ns": round(float(t) * S), **told})

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@pytest.mark.parametrize(
    ("source", "rail"), [("rail", "VDD_IN"), ("counter", "package-0+package-1"), ("battery", "battery")]
)
def test_known_joules_are_found(source: str, rail: str) -> None:
    world = World(source)
    found = measure_energy(world, world, sleep=world.sleep)  # type: ignore[arg-type]
    assert found.rail == rail
    assert found.windows == 3
    assert found.joules_per_inference == pytest.approx(0.05, rel=0.005)
    assert found.idle_w == pytest.approx(IDLE_W, rel=0.005)
    assert found.low <= found.joules_per_inference <= found.high
    assert found.note


def test_a_slow_change_of_the_idle_power_cancels() -> None:
    world = World(drift=0.01)  # 0.7 W more by the end
    found = measure_energy(world, world, sleep=world.sleep)  # type: ignore[arg-type]
    # What is left is what the idle power grows from an idle window to the work right after it: 11 s.
    assert found.joules_per_inference == pytest.approx(0.05 + 0.01 * 12 * RUN_S, rel=0.02)


def test_intervals_hold_the_truth() -> None:
    held, random = 0, np.random.default_rng(1)
    times = np.arange(0, 100 * S, S // 2)
    for _ in range(300):
        levels = random.normal(0, 0.3, 3)
        watts = np.full(len(times), IDLE_W)
        idle, work = [], []
        for i, level in enumerate(levels):
            start = 5 + 30 * i
            watts[(times >= (start + 12) * S) & (times < (start + 24) * S)] = BUSY_W + level
            idle.append(Window(start * S, (start + 10) * S))
            work.append(Window((start + 13) * S, (start + 23) * S, 1000))
        meter = meter_of([{"t_ns": int(t), "power_w": {"VDD_IN": float(w)}} for t, w in zip(times, watts, strict=True)])
        assert meter is not None
        found = energy_of(meter, idle, work)
        held += found.low <= 0.05 <= found.high
    assert held >= 0.92 * 300  # nominal 95 %


def test_no_source_is_refused_and_nothing_is_made_up() -> None:
    for source in ("nothing", "mains"):
        world = World(source)
        with pytest.raises(MeasureError, match="no sensor"):
            measure_energy(world, world, sleep=world.sleep)  # type: ignore[arg-type]
    assert meter_of([]) is None
    assert meter_of([{"t_ns": 1}, {"t_ns": 2, "power_w": {"VDD_IN": None}}]) is None
    assert meter_of([{"t_ns": i, "power_w": {"VDD_IN": float("nan")}} for i in range(9)]) is None
    with pytest.raises(MeasureError, match=r"(?s)asked for energy.*next: leave it out"):
        require_meter(World("nothing"))  # type: ignore[arg-type]


def test_asking_for_it_in_vain_ends_before_anything_is_measured(tmp_path: Path) -> None:
    file = FileUnderTest("a", "onnxruntime", "float32", "candidate", str(tmp_path / "no.onnx"), 1, "0" * 64)
    inputs = tmp_path / "inputs.npy"
    np.save(inputs, np.zeros((2, 3), np.float32))

    class Nothing(LocalDevice):
        @contextmanager
        def sample(self, hz: float) -> Iterator[list[dict[str, Any]]]:
            yield [{"t_ns": 1, "power_w": None, "energy_j": None, "battery": None}]

        def worker(self, file: str, threads: int) -> Any:
            raise AssertionError("nothing may be started")

    with pytest.raises(MeasureError, match="asked for energy"):
        measure(
            [file],
            inputs,
            np.zeros(2, np.int64),
            ["a", "b"],
            Bench(energy=True),
            tmp_path / "out",
            score=lambda outputs, targets: np.ones(len(targets), np.float32),
            device=Nothing(),
        )


def test_a_source_that_goes_silent_is_an_error() -> None:
    world = World(silent=(20.0, 23.0))
    with pytest.raises(MeasureError, match=r"not read for 3\.\d s"):
        measure_energy(world, world, sleep=world.sleep)  # type: ignore[arg-type]
    world = World(silent=(60.0, 1e9))
    with pytest.raises(MeasureError, match="whole of a window"):
        measure_energy(world, world, sleep=world.sleep)  # type: ignore[arg-type]


def test_shorter_or_fewer_windows_are_refused() -> None:
    world = World()
    for wrong in ({"windows": 2}, {"window_s": 5.0}):
        with pytest.raises(MeasureError, match="at least 3 windows of 10 s"):
            measure_energy(world, world, sleep=world.sleep, **wrong)  # type: ignore[arg-type]


def test_the_rails_of_an_orin_are_added_but_not_twice() -> None:
    rails = {"VDD_GPU_SOC": 3.0, "VDD_CPU_CV": 4.0, "VIN_SYS_5V0": 5.0, "VDDQ_VDD2_1V8AO": 1.0}
    meter = meter_of([{"t_ns": i * S, "power_w": rails} for i in range(5)])
    assert meter is not None
    assert (meter.source, meter.rail) == ("ina3221", "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0")
    assert meter.watts(Window(S, 3 * S)) == pytest.approx(12.0)


def test_power_that_is_not_above_idle_is_said_so() -> None:
    meter = Meter("rapl", "package-0", np.arange(100) * S, np.arange(100) * 2.0)
    idle = [Window(i * 20 * S, (i * 20 + 10) * S) for i in range(3)]
    work = [Window((i * 20 + 10) * S, (i * 20 + 20) * S, 5) for i in range(3)]
    found = energy_of(meter, idle, work)
    assert found.joules_per_inference == pytest.approx(0)
    assert "not told apart" in found.note


def test_a_reply_without_a_start_is_refused() -> None:
    class Old(World):
        def ask(self, do: str, *, limit_s: float, **request: Any) -> dict[str, Any]:
            return {"wall_ns": 1, "samples_ns": [1]}

    world = Old()
    with pytest.raises(MeasureError, match="expected a block with its start"):
        measure_energy(world, world, sleep=world.sleep)  # type: ignore[arg-type]


def test_rows_may_come_in_any_order() -> None:
    rows: Sequence[dict[str, Any]] = [{"t_ns": i * S, "energy_j": {"package-0": 3.0 * i}} for i in (3, 1, 0, 2)]
    meter = meter_of(rows)
    assert meter is not None
    assert meter.watts(Window(0, 3 * S)) == pytest.approx(3.0)
