"""Planted devices: a Raspberry Pi, a Jetson, a laptop in a container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edgewise.bench.agent import jetson
from edgewise.bench.agent.probe import clock_resolution_ns, clusters, cpu_limit, memory_limit, probe, usable_cpus
from edgewise.bench.provenance import IDENTITY

CPUS = "sys/devices/system/cpu/"


def test_a_jetson(plant: Callable[[Mapping[str, str]], str]) -> None:
    root = plant(
        {
            "sys/firmware/devicetree/base/model": "NVIDIA Jetson Orin Nano\0",
            "sys/firmware/devicetree/base/serial-number": "1420000000001\0",
            "proc/cpuinfo": "Features\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n",
            "var/lib/nvpmodel/status": "pmode:0002\n",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nX\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
            "var/lib/dpkg/status": "Package: nvidia-jetpack\nVersion: 6.2+b77\n\nPackage: other\nVersion: 1\n\n"
            "Package: libnvinfer10\nVersion: 10.3.0.30-1+cuda12.5\nDescription: x\n Version: 9\n",
            "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
        }
    )
    found = probe(root)
    device = found["device"]
    assert device["cpu"] == "0x41/0xd42 (NVIDIA Jetson Orin Nano)"
    assert device["board"] == "NVIDIA Jetson Orin Nano"
    assert device["flags"] == ["asimd", "asimddp"]
    assert device["power_mode"] == {"id": 2, "name": "MAXN_SUPER"}
    assert device["os"] == "Ubuntu 22.04.5 LTS"
    assert "1420000000001" not in json.dumps(found)  # a serial number is kept as a hash
    assert len(device["serial"]) == 12
    versions = found["versions"]
    assert (versions["l4t"], versions["nvidia-jetpack"], versions["libnvinfer10"]) == (
        "36.4.3",
        "6.2+b77",
        "10.3.0.30-1+cuda12.5",
    )
    assert "other" not in versions


def test_big_and_little_cores_are_told_apart(plant: Callable[[Mapping[str, str]], str]) -> None:
    tree = {CPUS + "offline": "7\n"}
    for cpu in range(8):
        big = cpu >= 4
        tree[f"{CPUS}cpu{cpu}/cpufreq/cpuinfo_max_freq"] = "2400000" if big else "1800000"
        tree[f"{CPUS}cpu{cpu}/cpufreq/scaling_governor"] = "performance" if big else "schedutil"
        tree[f"{CPUS}cpu{cpu}/cpufreq/scaling_min_freq"] = "2400000" if big else "400000"
        tree[f"{CPUS}cpu{cpu}/cpufreq/scaling_max_freq"] = "2400000" if big else "1800000"
        tree[f"{CPUS}cpu{cpu}/cpu_capacity"] = "1024" if big else "430"
    little, big_ones = clusters(plant(tree))
    assert (little["cpus"], little["max_khz"], little["capacity"]) == ([0, 1, 2, 3], 1800000, 430)
    assert (big_ones["cpus"], big_ones["limits_khz"]) == ([4, 5, 6], [2400000, 2400000])
    assert big_ones["governor"] == "performance"


def test_limits_of_the_groups_around_count_too(plant: Callable[[Mapping[str, str]], str]) -> None:
    root = plant(
        {
            "proc/self/cgroup": "0::/system.slice/job.service\n",
            "sys/fs/cgroup/system.slice/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/system.slice/job.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/memory.max": "1073741824\n",
            "sys/fs/cgroup/system.slice/job.service/memory.max": "max\n",
        }
    )
    assert cpu_limit(root) == 1.5
    assert usable_cpus(root) == 1
    assert memory_limit(root) == 1 << 30


@pytest.mark.parametrize("group", ["0::/../../etc\n", "garbage", "12:cpu:/x\n", ""])
def test_a_group_that_leads_elsewhere_is_not_followed(group: str, plant: Callable[[Mapping[str, str]], str]) -> None:
    root = plant({"proc/self/cgroup": group, "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert cpu_limit(root) == 0.5


def test_old_control_groups(plant: Callable[[Mapping[str, str]], str]) -> None:
    folder = "sys/fs/cgroup/"
    root = plant(
        {
            folder + "cpu/cpu.cfs_quota_us": "200000",
            folder + "cpu/cpu.cfs_period_us": "100000",
            folder + "memory/memory.limit_in_bytes": "9223372036854771712",
        }
    )
    assert cpu_limit(root) == 2.0
    assert memory_limit(root) is None
    assert cpu_limit(plant({folder + "cpu/cpu.cfs_quota_us": "-1"})) is None


def test_boost_and_smt(plant: Callable[[Mapping[str, str]], str]) -> None:
    device = probe(plant({CPUS + "intel_pstate/no_turbo": "1", CPUS + "smt/active": "1"}))["device"]
    assert (device["boost"], device["smt"]) == (False, True)


def test_an_empty_tree_is_a_device_that_tells_little(tmp_path: Path) -> None:
    found = probe(str(tmp_path))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["device"]["clusters"] == []
    assert found["device"]["power_mode"] is None
    assert "l4t" not in found["versions"]


def test_another_boot_is_another_state_of_the_same_device(plant: Callable[[Mapping[str, str]], str]) -> None:
    first, second = (probe(plant({"proc/sys/kernel/random/boot_id": text}))["state"]["boot"] for text in ("a\n", "b\n"))
    assert None not in (first, second)
    assert first != second
    assert "boot" not in IDENTITY


def test_a_power_mode_without_its_name(plant: Callable[[Mapping[str, str]], str]) -> None:
    root = plant({"var/lib/nvpmodel/status": "pmode:0007 fmode:quiet"})
    assert jetson.power_mode(root) == {"id": 7, "name": None}


def test_probe_is_a_command_that_ends_with_a_sentinel() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgewise.bench.agent.probe"], capture_output=True, text=True, check=True, timeout=60
    )
    found, end = (json.loads(line) for line in done.stdout.splitlines())
    assert found["device"]["cores"] == os.cpu_count()
    assert end == {"type": "end", "rc": 0}


def test_the_clock_ticks() -> None:
    assert 0 < clock_resolution_ns() < 1_000_000_000
