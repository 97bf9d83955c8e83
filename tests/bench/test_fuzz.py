"""Whatever a tool prints or a kernel file holds: a MeasureError, null, or sound numbers; never another exception."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from edgewise.bench.agent import files, jetson
from edgewise.bench.agent.probe import clusters, cpu_limit, memory_limit, probe
from edgewise.bench.agent.sensors import Sensors
from edgewise.bench.config import Bench
from edgewise.bench.energy import Window, meter_of
from edgewise.bench.jetson import blocks_of
from edgewise.bench.parsers.benchmark_model import benchmark_model
from edgewise.bench.parsers.tegrastats import tegrastats
from edgewise.bench.parsers.trtexec import trtexec_log, trtexec_times
from edgewise.bench.record import Block, Launch, Measurement
from edgewise.bench.validity import flags_of
from edgewise.errors import MeasureError

TRANSCRIPTS = Path(__file__).parent / "transcripts"
FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# What goes wrong with numbers, and with characters around them.
ODD = some.sampled_from(
    [
        "nan",
        "NaN",
        "-1",
        "inf",
        "-inf",
        "1e999",
        "-0",
        "",
        "0",
        "9" * 40,
        "1_0",
        "٣",
        "\0",
        "0x1",
        "1.5.2",
        "null",
        "{}",
    ]
)
numbers = some.one_of(
    some.floats(), some.integers(), some.none(), some.booleans(), some.text(max_size=5), some.just(10**400)
)
values = some.recursive(
    some.one_of(numbers, some.text(max_size=20)),
    lambda inner: some.one_of(
        some.lists(inner, max_size=4), some.dictionaries(some.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@some.composite
def spoilt(draw: some.DrawFn, name: str) -> str:
    """A transcript with something wrong: words exchanged, lines lost or doubled, the end cut off, noise put in."""
    text = (TRANSCRIPTS / name).read_text(encoding="utf-8")
    for _ in range(draw(some.integers(0, 4))):
        kind = draw(some.integers(0, 3))
        place = draw(some.integers(0, max(0, len(text) - 1)))
        if kind == 0:
            words = text.split(" ")
            at = draw(some.integers(0, len(words) - 1))
            word = words[at].partition("=")
            words[at] = f"{word[0]}={draw(ODD)}" if word[1] else draw(ODD)
            text = " ".join(words)
        elif kind == 1:
            text = text[:place]
        elif kind == 2:
            text = text[:place] + draw(some.text(max_size=12)) + text[place:]
        else:
            lines = text.splitlines(keepends=True)
            draw(some.randoms(use_true_random=False)).shuffle(lines)
            text = "".join(lines)
    return text


def any_text(*names: str) -> some.SearchStrategy[str]:
    return some.one_of(some.text(max_size=300), *(spoilt(name) for name in names))


def sound(value: Any) -> None:
    """No NaN, no infinity and nothing negative, however deep."""
    if isinstance(value, dict):
        for inner in value.values():
            sound(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            sound(inner)
    elif isinstance(value, float | int):
        assert math.isfinite(value)
        assert value >= 0


@FEW
@given(any_text("benchmark_model_2026.txt", "benchmark_model_2020.txt", "benchmark_model_logcat.txt"))
def test_benchmark_model(text: str) -> None:
    try:
        found = benchmark_model(text)
    except MeasureError:
        return
    sound(asdict(found))
    assert found.inference_us > 0


@FEW
@given(any_text("trtexec_10.3.txt"))
def test_trtexec_log(text: str) -> None:
    try:
        sound(asdict(trtexec_log(text)))
    except MeasureError:
        return


@FEW
@given(some.one_of(any_text("trtexec_times.json"), values.map(json.dumps)))
def test_trtexec_times(text: str) -> None:
    try:
        queries = trtexec_times(text)
    except MeasureError:
        return
    sound([asdict(query) for query in queries])
    blocks = blocks_of(queries)
    assert sum(map(len, blocks)) == len(queries)
    assert min(map(min, blocks)) > 0


@FEW
@given(any_text("tegrastats.txt"))
def test_tegrastats(text: str) -> None:
    for row in tegrastats(text):
        plain = asdict(row)
        assert all(value > -100 and math.isfinite(value) for value in plain.pop("temp_c").values())
        sound(plain)


@FEW
@given(any_text("nvpmodel_q.txt", "nvpmodel_verbose.txt"))
def test_nvpmodel(text: str) -> None:
    found = jetson.nvpmodel(text)
    assert found is None or set(found) == {"id", "name"}


@FEW
@given(some.text(max_size=40))
def test_small_readers(text: str) -> None:
    number = files.whole(text)
    assert number is None or str(number).lstrip("-") == text.lstrip("-").lstrip("0") or number == 0
    assert files.cpu_list(text) == sorted(files.cpu_list(text)) or "," in text


PATHS = (
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
    "sys/devices/system/cpu/offline",
    "sys/class/thermal/thermal_zone0/temp",
    "sys/class/thermal/thermal_zone0/type",
    "sys/class/devfreq/gpu/cur_freq",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_label",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_input",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input",
    "sys/class/powercap/intel-rapl:0/name",
    "sys/class/powercap/intel-rapl:0/energy_uj",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj",
    "sys/class/power_supply/BAT0/type",
    "sys/class/power_supply/BAT0/status",
    "sys/class/power_supply/BAT0/current_now",
    "sys/class/power_supply/BAT0/voltage_now",
    "sys/class/hwmon/hwmon0/oc1_event_cnt",
    "sys/devices/platform/soc/soc:firmware/get_throttled",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/memory.max",
    "sys/firmware/devicetree/base/serial-number",
    "var/lib/nvpmodel/status",
    "var/lib/dpkg/status",
    "etc/nvpmodel.conf",
    "etc/nv_tegra_release",
    "etc/os-release",
    "proc/pressure/cpu",
    "proc/stat",
    "proc/meminfo",
    "proc/vmstat",
    "proc/cpuinfo",
    "proc/self/cgroup",
)
KNOWN = some.sampled_from(
    [
        "1000",
        "Battery\n",
        "cpu 1 2 3 4 5 6 7 8 9",
        "some total=5\n",
        "some total=nan",
        "SwapTotal: 5 kB\nSwapFree: -1 kB",
    ]
)
content = some.one_of(
    some.binary(max_size=60),
    some.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
    KNOWN.map(str.encode),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.dictionaries(some.sampled_from(PATHS), content, max_size=len(PATHS)))
def test_a_device_whose_files_hold_anything(tree: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        for name, data in tree.items():
            path = Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        sensors = Sensors(root)
        rows = [sensors.read(), sensors.read()]
        found = probe(root)
        assert (cpu_limit(root) or 1) > 0
        assert (memory_limit(root) or 1) > 0
        assert isinstance(clusters(root), list)
    for plain in (*rows, found):
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert rows[1]["t_ns"] >= rows[0]["t_ns"]
    assert all(value is None or value >= 0 for value in (rows[1]["energy_j"] or {}).values())


KEYS = ("t_ns", "freq_khz", "freq_max_khz", "power_w", "energy_j", "swapped_pages", "psi_cpu_some_us", "steal_ticks")
row_of_anything = some.dictionaries(some.sampled_from((*KEYS, "battery", "throttle")), values, max_size=10)
some_rows = some.lists(row_of_anything.map(lambda row: {"t_ns": 5, **row}), max_size=6)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some_rows, some.integers(1, 4))
def test_telemetry_of_anything(rows: list[dict[str, Any]], threads: int) -> None:
    block = Block(0, (1000, 1100, 1200), 3300, 3300, 3300, 0, 1, start_ns=1)
    launch = Launch(0, {}, {}, (), True, tuple(block for _ in range(9)))
    flags = flags_of(Measurement("a", 1, threads, (launch, launch)), "litert", rows, Bench())
    assert set(flags) <= {"contended", "throttled", "frequency", "swap", "battery"}
    meter = meter_of(rows)
    if meter is not None:
        try:
            assert meter.watts(Window(1, 10)) >= 0
        except MeasureError:
            return
