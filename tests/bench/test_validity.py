"""Every flag: a measurement that deserves it has it, the same without the reason has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgewise.bench.config import Bench
from edgewise.bench.drift import change, drifted
from edgewise.bench.format import FLAG_WORDS
from edgewise.bench.record import Block, Energy, Launch, Measurement, Results
from edgewise.bench.validity import HARD, ONLY_SLOWER, dishonoured, flags_of, hard

Change = Callable[[Measurement], Measurement]
Row = dict[str, Any]
STEP = 100_000_000  # ns between telemetry rows


@pytest.fixture
def sound(made_up: Callable[..., Results]) -> Measurement:
    """Three launches of 8 blocks of 120 ms, one every 200 ms, that deserve no flag."""
    measurement = made_up({"small": {}}).measurements["small"]
    launches = []
    for number, launch in enumerate(measurement.launches):
        blocks = [replace(block, start_ns=10**9 + (number * 8 + block.round) * 200_000_000) for block in launch.blocks]
        launches.append(replace(launch, blocks=tuple(blocks)))
    return replace(measurement, launches=tuple(launches))


def blocks(change_one: Callable[[Block], Block]) -> Change:
    def changed(measurement: Measurement) -> Measurement:
        launches = [
            replace(launch, blocks=tuple(change_one(block) for block in launch.blocks))
            for launch in measurement.launches
        ]
        return replace(measurement, launches=tuple(launches))

    return changed


def rows(change_one: Callable[[int, Row], Row] = lambda i, row: row, count: int = 70) -> list[Row]:
    """Telemetry over the whole measurement and a bit more, in which nothing is wrong."""
    quiet = [
        {
            "t_ns": 900_000_000 + i * STEP,
            "freq_khz": [2_000_000, 600_000],
            "freq_max_khz": [2_000_000, 2_000_000],
            "temp_c": {"cpu": 40.0},
            "swapped_pages": 5,
            "psi_cpu_some_us": 1000 * i,
            "steal_ticks": 7,
            "battery": None,
            "throttle": {"core_throttle_count": 3},
        }
        for i in range(count)
    ]
    return [change_one(i, row) for i, row in enumerate(quiet)]


def flags(measurement: Measurement, telemetry: Sequence[Row] | None = None, **config: Any) -> set[str]:
    return set(flags_of(measurement, "onnxruntime", telemetry, Bench(**config)))


def test_a_sound_measurement_has_none(sound: Measurement) -> None:
    assert flags(sound) == set()
    assert flags(sound, rows()) == set()
    assert flags(sound, [{}, {"t_ns": None}, {"t_ns": "now"}]) == set()
    assert flags(replace(sound, launches=())) == set()


def test_warm_up_single_launch_and_precision(sound: Measurement) -> None:
    cold = tuple(replace(launch, warmup_converged=False) for launch in sound.launches)
    assert flags(replace(sound, launches=cold)) == {"warmup_not_converged"}
    assert flags(replace(sound, launches=sound.launches[:1])) == {"single_launch"}
    assert flags(sound, precision=0.0001) == {"precision_not_reached"}
    noisy = blocks(lambda block: slower(block, 1 + block.round % 2))
    assert {"unstable", "precision_not_reached"} <= flags(noisy(sound))


def test_a_p50_that_is_not_known_is_not_precise(sound: Measurement) -> None:
    first = sound.launches[0]
    few = replace(first.blocks[0], samples_ns=first.blocks[0].samples_ns[:1])
    assert {"unstable", "precision_not_reached"} <= flags(replace(sound, launches=(replace(first, blocks=(few,)),)))


def test_contention_of_one_thread(sound: Measurement) -> None:
    assert flags(blocks(lambda block: replace(block, process_cpu_ns=block.wall_ns // 2))(sound)) == {"contended"}
    # One thread's CPU time tells it all: a rival elsewhere on the machine is no harm.
    assert flags(sound, rows(lambda i, row: {**row, "psi_cpu_some_us": i * 60_000})) == set()
    gpu = blocks(lambda block: replace(block, process_cpu_ns=block.wall_ns // 2))(sound)
    assert flags_of(gpu, "tensorrt", None, Bench()) == ()


def test_contention_of_more_threads(sound: Measurement) -> None:
    two = replace(sound, threads=2, launches=tuple(with_settings(launch, threads=2) for launch in sound.launches))
    assert flags(two, rows()) == set()
    assert flags(two, rows(lambda i, row: {**row, "psi_cpu_some_us": i * 60_000})) == {"contended"}
    assert flags(blocks(lambda block: replace(block, nivcsw=40))(two)) == {"contended"}  # of 120 ms
    assert flags(blocks(lambda block: replace(block, nivcsw=2))(two)) == set()


def test_time_that_the_host_stole(sound: Measurement) -> None:
    assert flags(sound, rows(lambda i, row: {**row, "steal_ticks": 7 + 2 * i})) == {"contended"}  # a fifth
    assert flags(sound, rows(lambda i, row: {**row, "steal_ticks": 7 + i // 10})) == set()


def test_throttling(sound: Measurement) -> None:
    slow = {"freq_khz": [1_400_000, 600_000]}  # 70 % of the highest
    assert flags(sound, rows(lambda i, row: {**row, **slow})) == {"throttled"}
    assert flags(sound, rows(lambda i, row: {**row, **slow} if i == 20 else row)) == set()  # one of many
    assert "throttled" in flags(sound, rows(lambda i, row: {**row, **slow} if i % 4 == 0 else row))
    counted = rows(lambda i, row: {**row, "throttle": {"core_throttle_count": 3 + (i > 30)}})
    assert flags(sound, counted) == {"throttled"}
    assert flags(sound, rows(lambda i, row: {**row, "throttle": {"raspberry_pi": 0x50000}})) == set()  # long ago
    assert flags(sound, rows(lambda i, row: {**row, "throttle": {"raspberry_pi": 0x1}})) == {"throttled"}
    newly = rows(lambda i, row: {**row, "throttle": {"raspberry_pi": 0x40000 if i > 30 else 0}})
    assert flags(sound, newly) == {"throttled"}


def test_what_happened_before_or_after_is_not_this_measurements(sound: Measurement) -> None:
    before = rows(lambda i, row: {**row, "t_ns": row["t_ns"] - 10**12, "throttle": {"core_throttle_count": i}})
    after = rows(lambda i, row: {**row, "t_ns": row["t_ns"] + 10**12, "throttle": {"core_throttle_count": 70 + i}})
    still = {"core_throttle_count": 70}
    assert flags(sound, before + rows(lambda i, row: {**row, "throttle": still}) + after) == set()


def test_what_was_counted_between_launches_far_apart_is_nobodys(sound: Measurement) -> None:
    hour = 3600 * 10**9

    def later(launch: Launch) -> Launch:
        moved = [replace(block, start_ns=(block.start_ns or 0) + launch.index * hour) for block in launch.blocks]
        return replace(launch, blocks=tuple(moved))

    apart = replace(sound, launches=tuple(later(launch) for launch in sound.launches))
    telemetry = [
        {**row, "t_ns": row["t_ns"] + turn * hour, "steal_ticks": 10**6 * turn, "swapped_pages": 10**6 * turn}
        for turn in range(3)
        for row in rows()
    ]
    assert flags(apart, telemetry) == set()
    counted = [{**row, "throttle": {"core_throttle_count": row["t_ns"] // hour}} for row in telemetry]
    assert flags(apart, counted) == set()


def test_a_clock_that_moves(sound: Measurement) -> None:
    moving = rows(lambda i, row: {**row, "freq_khz": [2_000_000 - 10_000 * i % 400_000, 1]})
    assert flags(sound, moving) == {"frequency"}
    # With one thread only the fastest CPU counts: the others idle as they like.
    assert flags(sound, rows(lambda i, row: {**row, "freq_khz": [2_000_000, 400_000 + 20_000 * i]})) == set()


def test_swap_and_battery(sound: Measurement) -> None:
    assert flags(sound, rows(lambda i, row: {**row, "swapped_pages": 100 * i})) == {"swap"}
    assert flags(sound, rows(lambda i, row: {**row, "swapped_pages": 5 + i})) == set()
    assert flags(sound, rows(lambda i, row: {**row, "battery": {"status": "Discharging"}})) == {"battery"}
    low = {"status": "Charging", "capacity_percent": 12}
    assert flags(sound, rows(lambda i, row: {**row, "battery": low})) == {"battery"}
    assert flags(sound, rows(lambda i, row: {**row, "battery": {**low, "capacity_percent": 90}})) == set()


def test_energy_that_was_asked_for_and_is_not_there(sound: Measurement) -> None:
    """A limit on it is INVALID anyway; whoever only reads the report must know that it was tried."""
    asked = Bench(energy=True)
    assert flags_of(sound, "onnxruntime", None, asked) == ("energy_missing",)
    had = replace(sound, energy=Energy("ina3221", "VDD_IN", 0.1, 0.09, 0.11, 2.0, 3))
    assert flags_of(had, "onnxruntime", None, asked) == ()


def test_settings_that_were_not_honoured(sound: Measurement) -> None:
    asked = replace(sound, launches=tuple(with_settings(launch, threads=4) for launch in sound.launches))
    assert flags(asked) == {"setting_not_honoured"}
    assert dishonoured(asked, "onnxruntime")[0] == "asked for threads 1, launch 0 ran with 4"
    bf16 = replace(sound, launches=tuple(with_settings(launch, precision="bfloat16") for launch in sound.launches))
    assert "setting_not_honoured" in flags_of(bf16, "openvino", None, Bench(), precision="float32")
    assert flags_of(bf16, "openvino", None, Bench(), precision="default") == ()
    cuda = replace(sound, launches=tuple(with_settings(one, providers=["CUDA", "CPU"]) for one in sound.launches))
    assert flags(cuda) == {"setting_not_honoured"}
    odd = replace(sound, launches=(with_settings(sound.launches[0], version="1"), *sound.launches[1:]))
    assert "other version than the first" in dishonoured(odd, "onnxruntime")[0]
    untold = replace(sound, launches=tuple(replace(launch, settings={}) for launch in sound.launches))
    assert flags(untold) == set()


def test_drift_within_launches(sound: Measurement) -> None:
    longer = [replace(launch, blocks=launch.blocks + launch.blocks[:4]) for launch in sound.launches]

    def trend(launch: Launch) -> Launch:
        found = [replace(slower(b, 1 + 0.02 * turn), round=turn) for turn, b in enumerate(launch.blocks)]
        return replace(launch, blocks=tuple(found))

    assert "drift" in flags(replace(sound, launches=tuple(trend(launch) for launch in longer)))
    assert "drift" not in flags(replace(sound, launches=(trend(longer[0]), *longer[1:])))


def test_drift_from_launch_to_launch(sound: Measurement) -> None:
    level = sound.launches[0]

    def at(index: int, factor: float) -> Launch:
        return replace(level, index=index, blocks=tuple(slower(block, factor) for block in level.blocks))

    rising = tuple(at(i, 1 + 0.02 * i) for i in range(7))
    assert drifted(rising)
    mixed = tuple(at(i, 1 + 0.02 * (i * 3 % 7)) for i in range(7))
    assert not drifted(mixed)
    assert not drifted(rising[:4])  # too few to tell from chance


def test_theil_and_sen_against_scipy() -> None:
    from scipy.stats import theilslopes

    random = np.random.default_rng(0)
    for _ in range(20):
        values = random.normal(100, 5, 17) + np.arange(17) * random.normal()
        slope = theilslopes(values, np.arange(17)).slope
        assert change(values) == pytest.approx(slope * 16 / np.median(values))
    assert change(np.array([3.0])) == 0.0


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_noise_is_seldom_called_drift(correlation: float, sound: Measurement) -> None:
    random = np.random.default_rng(0)
    launch, found = sound.launches[0], 0
    for _ in range(300):
        launches = []
        for _ in range(3):
            noise = random.normal(0, 0.2, 12)
            for i in range(1, 12):
                noise[i] = correlation * noise[i - 1] + (1 - correlation**2) ** 0.5 * noise[i]
            series = [
                replace(launch.blocks[0], round=i, samples_ns=(int(1e6 * np.exp(v)),)) for i, v in enumerate(noise)
            ]
            launches.append(replace(launch, blocks=tuple(series)))
        found += drifted(launches)
    assert found <= (9 if correlation == 0 else 30)


def test_every_flag_has_words_and_hard_ones_a_reason(sound: Measurement) -> None:
    known = set(FLAG_WORDS)
    assert set(HARD) <= known
    assert set(HARD) >= ONLY_SLOWER
    assert hard(("drift", "battery")) == {"drift": HARD["drift"]}
    worst = blocks(lambda block: replace(slower(block, 1 + block.round), process_cpu_ns=1, nivcsw=999))(sound)
    worst = replace(worst, launches=tuple(with_settings(launch, threads=9) for launch in worst.launches[:1]))
    gone_mad = rows(
        lambda i, row: {
            **row,
            "freq_khz": [2_000_000 >> (i % 3), 1],
            "swapped_pages": i * 999,
            "battery": {"status": "Discharging"},
        }
    )
    found = flags(worst, gone_mad, precision=1e-9)
    assert found <= known
    assert len(found) >= 8


def slower(block: Block, factor: float) -> Block:
    return replace(block, samples_ns=tuple(int(value * factor) for value in block.samples_ns))


def with_settings(launch: Launch, **changed: Any) -> Launch:
    return replace(launch, settings={**launch.settings, **changed})
