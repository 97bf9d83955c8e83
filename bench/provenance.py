"""Where numbers come from: the device, its settings and the versions. Read from /proc and /sys, no root, no tools."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from edgewise.errors import MeasureError

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
# What must agree before two results may be compared. Load and free memory change by the minute and are not here.
IDENTITY = ("machine", "cpu", "flags", "cores", "affinity", "cpu_limit", "governor", "kernel", "os")


def provenance() -> dict[str, Any]:
    """The device now: ``device`` (its identity), ``state`` (what changes), ``versions``."""
    cpuinfo = _cpuinfo()
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "device": {
            "machine": platform.machine(),
            "cpu": _cpu_name(cpuinfo),
            "flags": [flag for flag in FLAGS if flag in flags],
            "cores": os.cpu_count(),
            "affinity": affinity,
            "cpu_limit": cpu_limit(),
            "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "memory_bytes": _total_memory(),
            "kernel": platform.release(),
            "os": _os_name(),
        },
        "state": {
            "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
            "frequency_khz": _integer(_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")),
            "temperature_c": _temperature(),
        },
        "versions": {"python": sys.version.split()[0], **versions()},
    }


def versions() -> dict[str, str]:
    """Version of each runtime that is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, cut by its group's limit."""
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit()
    return have if limit is None else max(1, min(have, int(limit)))


def cpu_limit() -> float | None:
    """CPUs that the control group may use at once, None for no limit."""
    quota, _, period = (_read("/sys/fs/cgroup/cpu.max") or "max").partition(" ")
    if quota != "max":
        return _share(quota, period)
    old = Path("/sys/fs/cgroup/cpu")
    return _share(_read(old / "cpu.cfs_quota_us") or "", _read(old / "cpu.cfs_period_us") or "")


def check_same_device(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, anyway: bool = False) -> list[str]:
    """What differs between the devices of two results, as sentences; nothing if they may be compared.

    Raises:
        MeasureError: they differ, and nobody said ``anyway``.
    """
    one, other = ours.get("device", {}), theirs.get("device", {})
    differ = [
        f"{key}: {one.get(key)!r} against {other.get(key)!r}" for key in IDENTITY if one.get(key) != other.get(key)
    ]
    if differ and not anyway:
        raise MeasureError(
            "these results come from different devices: " + "; ".join(differ),
            hint="measure both on one device, or ask for the comparison by name",
        )
    return differ


def _cpuinfo() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _cpu_name(cpuinfo: Mapping[str, str]) -> str:
    board = _read("/sys/firmware/devicetree/base/model")
    numbers = "/".join(cpuinfo[key] for key in ("CPU implementer", "CPU part") if key in cpuinfo)
    name = cpuinfo.get("model name") or cpuinfo.get("Hardware") or numbers or platform.processor() or "unknown"
    return f"{name} ({board})" if board else name


def _os_name() -> str:
    for line in (_read("/etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.platform()


def _total_memory() -> int | None:
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _temperature() -> float | None:
    values = [_integer(_read(zone / "temp")) for zone in Path("/sys/class/thermal").glob("thermal_zone*")]
    known = [value for value in values if value is not None]
    return max(known) / 1000 if known else None


def _share(quota: str, period: str) -> float | None:
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return share if share > 0 else None


def _integer(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None
