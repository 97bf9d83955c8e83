"""Planted trees of /sys and /proc: what is read, and that nothing is missed or made up where something is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgewise.bench.agent import files
from edgewise.bench.agent.sample import hertz
from edgewise.bench.agent.sensors import Sensors

Plant = Callable[[Mapping[str, str]], str]
CPU = "sys/devices/system/cpu/cpu{}/"
INA = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/"
BATTERY = "sys/class/power_supply/BAT0/"


def test_clocks_and_temperatures(plant: Plant) -> None:
    tree = {CPU.format(n) + "cpufreq/scaling_cur_freq": f"{1000 + n}\n" for n in (0, 2, 10)}
    tree |= {CPU.format(n) + "cpufreq/cpuinfo_max_freq": f"{2000 + n}\n" for n in (0, 2, 10)}
    tree |= {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "45500\n",
        "sys/class/thermal/thermal_zone1/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "-274000\n",  # off
        "sys/class/thermal/cooling_device0/type": "fan\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    }
    row = Sensors(plant(tree)).read()
    assert row["freq_khz"] == [1000, 1002, 1010]  # cpu10 after cpu2
    assert row["freq_max_khz"] == [2000, 2002, 2010]
    assert row["temp_c"] == {"cpu-thermal": 45.5, "cpu-thermal#2": None}
    assert row["devfreq_hz"] == {"17000000.gpu": 306000000}


def test_rails_of_a_jetson(plant: Plant) -> None:
    tree = {
        INA + "in1_label": "VDD_IN\n",
        INA + "in1_input": "5000\n",
        INA + "curr1_input": "1020\n",
        INA + "in2_label": "NC\n",
        INA + "in2_input": "0\n",
        INA + "curr2_input": "0\n",
        INA + "in3_label": "VDD_SOC\n",
        INA + "in3_input": "5000\n",  # its current can't be read
        INA + "in7_label": "sum of shunt voltages\n",
    }
    assert Sensors(plant(tree)).read()["power_w"] == {"VDD_IN": pytest.approx(5.1), "VDD_SOC": None}


def test_an_energy_counter_that_wraps_goes_on(plant: Plant) -> None:
    domain = "sys/class/powercap/intel-rapl:0/"
    tree = {
        domain + "name": "package-0\n",
        domain + "energy_uj": "999000000\n",
        domain + "max_energy_range_uj": "999999999\n",
        "sys/class/powercap/intel-rapl:0:0/name": "dram\n",
        "sys/class/powercap/intel-rapl:0:0/energy_uj": "5\n",
        "sys/class/powercap/intel-rapl-mmio:0/name": "package-0\n",
        "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "5\n",
    }
    root = plant(tree)
    sensors = Sensors(root)
    assert sensors.read()["energy_j"] == {"package-0": 0.0, "package-0/dram": 0.0}
    plant({domain + "energy_uj": "999500000"})
    assert sensors.read()["energy_j"]["package-0"] == pytest.approx(0.5)
    plant({domain + "energy_uj": "250000"})  # round: half a joule and a quarter more
    assert sensors.read()["energy_j"]["package-0"] == pytest.approx(1.25)


def test_battery_throttling_swap_pressure_and_steal(plant: Plant) -> None:
    tree = {
        BATTERY + "type": "Battery\n",
        BATTERY + "status": "Discharging\n",
        BATTERY + "capacity": "83\n",
        BATTERY + "current_now": "-500000\n",
        BATTERY + "voltage_now": "12000000\n",
        "sys/class/power_supply/AC/type": "Mains\n",
        "sys/class/power_supply/AC/online": "0\n",
        "sys/class/power_supply/hidpp_0/type": "Battery\n",
        "sys/class/power_supply/hidpp_0/scope": "Device\n",  # a mouse
        CPU.format(0) + "thermal_throttle/core_throttle_count": "3\n",
        CPU.format(1) + "thermal_throttle/core_throttle_count": "4\n",
        "sys/class/hwmon/hwmon5/oc1_event_cnt": "2\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        "proc/pressure/cpu": "some avg10=1.00 avg60=2.00 avg300=3.00 total=1234567\nfull avg10=0.00 total=9\n",
        "proc/stat": "cpu  10 20 30 40 50 60 70 80 90 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n",
        "proc/meminfo": "MemTotal: 1000 kB\nSwapTotal:   2048 kB\nSwapFree:   1024 kB\n",
        "proc/vmstat": "pswpin 7\npswpout 5\n",
    }
    row = Sensors(plant(tree)).read()
    assert row["battery"] == {
        "status": "Discharging",
        "capacity_percent": 83,
        "power_w": pytest.approx(6.0),
        "on_mains": False,
    }
    assert row["throttle"] == {"core_throttle_count": 7, "oc1_event_cnt": 2, "raspberry_pi": 0x50005}
    assert (row["psi_cpu_some_us"], row["steal_ticks"]) == (1234567, 80)
    assert (row["swap_bytes"], row["swapped_pages"]) == (1024 * 1024, 12)


def test_an_empty_tree_is_all_nulls(tmp_path: Path) -> None:
    row = Sensors(str(tmp_path)).read()
    assert row.pop("t_ns") > 0
    assert set(row.values()) == {None}


def test_a_source_that_goes_away_is_null_from_then_on(plant: Plant) -> None:
    root = plant({CPU.format(0) + "cpufreq/scaling_cur_freq": "1000", "proc/pressure/cpu": "some total=1\n"})
    sensors = Sensors(root)
    assert sensors.read()["freq_khz"] == [1000]
    (Path(root) / CPU.format(0) / "cpufreq/scaling_cur_freq").unlink()
    (Path(root) / "proc/pressure/cpu").unlink()
    row = sensors.read()
    assert row["freq_khz"] is None
    assert row["psi_cpu_some_us"] is None


def test_this_machine_can_be_sampled() -> None:
    row = Sensors().read()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert abs(row["t_ns"] - time.monotonic_ns()) < 60e9


def test_numbers_are_plain_ones_only() -> None:
    assert files.whole("12") == 12
    assert files.whole("-5") == -5
    assert [files.whole(text) for text in ("", None, "1_0", "1.0", "0x1", "--1", "²", "9" * 30)] == [None] * 8
    assert files.cpu_list("0-3,6") == [0, 1, 2, 3, 6]
    assert [files.cpu_list(text) for text in (None, "", "3-1", "a", "0-99999999")] == [[]] * 5


def test_the_sampler_prints_rows_until_its_input_ends() -> None:
    command = [sys.executable, "-m", "edgewise.bench.agent.sample", "--hz", "100"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sampler:
        assert sampler.stdin is not None
        assert sampler.stdout is not None
        seen = [json.loads(sampler.stdout.readline()) for _ in range(3)]
        sampler.stdin.write("words it doesn't know\n")
        sampler.stdin.close()
        rest = [json.loads(line) for line in sampler.stdout]
        assert sampler.wait(timeout=30) == 0
    times = [row["t_ns"] for row in seen + rest[:-1]]
    assert times == sorted(times)
    assert set(seen[0]) >= {"t_ns", "freq_khz", "temp_c", "power_w", "swap_bytes", "psi_cpu_some_us", "steal_ticks"}
    assert rest[-1] == {"type": "end", "rc": 0}


@pytest.mark.parametrize(
    "wrong", [["--hz", "0"], ["--hz", "nan"], ["--hz", "inf"], ["--hz"], ["--hz", "x"], ["-1", "1"]]
)
def test_a_rate_that_is_none_is_refused(wrong: list[str]) -> None:
    assert hertz(wrong) is None
    done = subprocess.run(
        [sys.executable, "-m", "edgewise.bench.agent.sample", *wrong],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"type": "end", "rc": 2}


def test_the_sampler_ends_when_nobody_reads_it() -> None:
    read, write = os.pipe()
    command = [sys.executable, "-m", "edgewise.bench.agent.sample", "--hz", "200"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=write, stderr=subprocess.PIPE, text=True) as sampler:
        os.close(write)
        os.close(read)
        assert sampler.wait(timeout=60) == 1
        assert sampler.stderr is not None
        assert "Traceback" not in sampler.stderr.read()


def test_rows_are_plain_data(plant: Plant) -> None:
    row: dict[str, Any] = Sensors(plant({"proc/meminfo": "SwapTotal: x kB\nSwapFree: 1 kB\n"})).read()
    assert row["swap_bytes"] is None
