"""What a device is, how it stands now, and the versions on it. From files of /proc, /sys and /etc: no root.

Python >= 3.8, standard library. The same code describes the host and, carried there, the device. What can't be told is
None. Names that could tell a person or a machine apart, such as a serial number, are kept as a hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
from importlib import metadata
from typing import Any, Dict, List, Optional

from edgewise.bench.agent import jetson
from edgewise.bench.agent.files import cpu_list, exists, integer, numbered, read, whole
from edgewise.bench.agent.sensors import CPUS, Sensors

# Instruction sets that decide how fast int8 and half precision can be.
FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "asimdhp",
    "i8mm",
    "bf16",
    "sve",
)
PACKAGES = ("numpy", "onnxruntime", "openvino", "ai-edge-litert", "tflite-runtime", "tensorrt")
UNLIMITED = 1 << 60  # cgroup v1 says a huge number where there is no limit


def probe(root: str = "/") -> Dict[str, Any]:
    """The device now: ``device`` (its identity), ``state`` (what changes), ``versions``."""
    cpuinfo = _cpuinfo(root)
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    sensors = Sensors(root)
    row = sensors.read()
    return {
        "device": {
            "machine": platform.machine(),
            "cpu": _cpu_name(root, cpuinfo),
            "board": read(root, "sys/firmware/devicetree/base/model") or read(root, "sys/class/dmi/id/product_name"),
            "serial": _hashed(read(root, "sys/firmware/devicetree/base/serial-number")),
            "flags": [flag for flag in FLAGS if flag in flags],
            "cores": os.cpu_count(),
            "clusters": clusters(root),
            "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "cpu_limit": cpu_limit(root),
            "memory_limit_bytes": memory_limit(root),
            "governor": read(root, CPUS + "/cpu0/cpufreq/scaling_governor"),
            "boost": _boost(root),
            "smt": _switch(integer(root, CPUS + "/smt/active")),
            "power_mode": jetson.power_mode(root),
            "memory_bytes": _total_memory(root),
            "kernel": platform.release(),
            "os": _os_name(root),
            "container": _container(root),
        },
        "state": {
            "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
            "frequency_khz": row["freq_khz"] and row["freq_khz"][0],
            "temperature_c": max(
                (value for value in (row["temp_c"] or {}).values() if value is not None), default=None
            ),
            "swap_bytes": row["swap_bytes"],
            "battery": row["battery"],
            "throttle": row["throttle"],
            "power_sources": sorted([*(row["power_w"] or {}), *(row["energy_j"] or {})]),
            "clock_resolution_ns": clock_resolution_ns(),
            # The monotonic clock starts anew with each boot: times of two boots have no common zero.
            "boot": _hashed(read(root, "proc/sys/kernel/random/boot_id")),
        },
        "versions": dict({"python": sys.version.split()[0]}, **versions(), **jetson.versions(root)),
    }


def versions() -> Dict[str, str]:
    """Version of each runtime that is installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def usable_cpus(root: str = "/") -> int:
    """CPUs that this process may use: its affinity, cut by its group's limit."""
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit(root)
    return have if limit is None else max(1, min(have, int(limit)))


def cpu_limit(root: str = "/") -> Optional[float]:
    """CPUs that the control group, or one it lies in, may use at once; None for no limit."""
    found = []
    for folder in _groups(root):
        quota, _, period = (read(root, folder + "/cpu.max") or "max").partition(" ")
        found.append(_share(quota, period))
    old = "sys/fs/cgroup/cpu/"
    found.append(_share(read(root, old + "cpu.cfs_quota_us") or "", read(root, old + "cpu.cfs_period_us") or ""))
    return min((share for share in found if share is not None), default=None)


def memory_limit(root: str = "/") -> Optional[int]:
    """Bytes that the control group, or one it lies in, may use; None for no limit."""
    found = [integer(root, folder + "/memory.max") for folder in _groups(root)]
    found.append(integer(root, "sys/fs/cgroup/memory/memory.limit_in_bytes"))
    return min((limit for limit in found if limit is not None and 0 < limit < UNLIMITED), default=None)


def clusters(root: str = "/") -> List[Dict[str, Any]]:
    """CPUs that are alike: their numbers, highest clock, capacity and limits now; the slowest first."""
    found = {}  # type: Dict[str, Dict[str, Any]]
    offline = set(cpu_list(read(root, CPUS + "/offline")))
    for cpu in numbered(root, CPUS, "cpu"):
        if cpu in offline:
            continue
        at = "%s/cpu%d/" % (CPUS, cpu)
        like = {
            "max_khz": integer(root, at + "cpufreq/cpuinfo_max_freq"),
            "capacity": integer(root, at + "cpu_capacity"),
            "limits_khz": [integer(root, at + "cpufreq/scaling_%s_freq" % end) for end in ("min", "max")],
            "governor": read(root, at + "cpufreq/scaling_governor"),
        }
        key = json.dumps(like, sort_keys=True)
        found.setdefault(key, dict(like, cpus=[]))["cpus"].append(cpu)
    return sorted(found.values(), key=lambda one: (one["max_khz"] or 0, one["capacity"] or 0, one["cpus"]))


def clock_resolution_ns() -> int:
    """The smallest step of the clock that times inferences, as it is seen: the median of a few."""
    steps = []
    for _ in range(31):
        start = now = time.perf_counter_ns()
        while now == start:
            now = time.perf_counter_ns()
        steps.append(now - start)
    return sorted(steps)[len(steps) // 2]


def _cpuinfo(root: str) -> Dict[str, str]:
    found = {}  # type: Dict[str, str]
    for line in (read(root, "proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _cpu_name(root: str, cpuinfo: Dict[str, str]) -> str:
    board = read(root, "sys/firmware/devicetree/base/model")
    numbers = "/".join(cpuinfo[key] for key in ("CPU implementer", "CPU part") if key in cpuinfo)
    name = cpuinfo.get("model name") or cpuinfo.get("Hardware") or numbers or platform.processor() or "unknown"
    return "%s (%s)" % (name, board) if board else name


def _os_name(root: str) -> str:
    for line in (read(root, "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.platform()


def _total_memory(root: str) -> Optional[int]:
    for line in (read(root, "proc/meminfo") or "").splitlines():
        fields = line.split()
        if len(fields) > 1 and fields[0] == "MemTotal:":
            kilobytes = whole(fields[1])
            return None if kilobytes is None else kilobytes * 1024
    return None


def _boost(root: str) -> Optional[bool]:
    off = integer(root, CPUS + "/intel_pstate/no_turbo")
    return _switch(integer(root, CPUS + "/cpufreq/boost")) if off is None else off == 0


def _switch(value: Optional[int]) -> Optional[bool]:
    return None if value is None else value == 1


def _container(root: str) -> Optional[str]:
    """What kind of container this is, as far as files tell; None for none that is known."""
    for path, kind in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if exists(root, path):
            return kind
    text = read(root, "proc/1/cgroup") or ""
    return next((kind for kind in ("kubepods", "docker", "lxc", "containerd") if kind in text), None)


def _groups(root: str) -> List[str]:
    """Folders of this process's control group (version 2) and of those it lies in."""
    top = "sys/fs/cgroup"
    for line in (read(root, "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = [part for part in path.split("/") if part]
        if number == "0" and not controllers and ".." not in parts:
            return ["/".join([top, *parts[:depth]]) for depth in range(len(parts) + 1)]
    return [top]


def _share(quota: str, period: str) -> Optional[float]:
    top, bottom = whole(quota), whole(period)
    return top / bottom if top is not None and bottom is not None and top > 0 and bottom > 0 else None


def _hashed(text: Optional[str]) -> Optional[str]:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12] if text else None


def main(arguments: List[str]) -> int:
    """Print the device as one JSON line, then the end; the exit status."""
    if arguments:
        sys.stderr.write("expected no arguments, got %s\n" % " ".join(arguments))
        sys.stdout.write('{"type": "end", "rc": 2}\n')
        return 2
    sys.stdout.write(json.dumps(dict(probe(), type="probe")) + "\n")
    sys.stdout.write('{"type": "end", "rc": 0}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
