"""What a device says of itself while it works: clocks, temperatures, power, waiting, swap, battery, throttling.

Python >= 3.8, standard library, sysfs and procfs, no root. What a device has is looked up once; a sample then only
reads. A source that isn't there, or can't be read now, is None: that is an answer, and never an error.

Sources: cpufreq, thermal zones, devfreq; the INA3221 rails of Jetsons; RAPL's energy counters (readable by root alone
since CVE-2020-8694); /proc/pressure/cpu, /proc/stat, /proc/meminfo, /proc/vmstat; power_supply; the throttle counters
of x86 (``thermal_throttle``), of Jetsons (``soctherm_oc``) and of the Raspberry Pi (``get_throttled``).
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Dict, List, Optional, Tuple

from edgewise.bench.agent import files

CPUS = "sys/devices/system/cpu"
POWERCAP = "sys/class/powercap"
SUPPLIES = "sys/class/power_supply"
PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
UNWIRED = ("", "NC", "N/C", "sum of shunt voltages")


class Sensors:
    """The sources of one device. ``root``: where its / is, for tests."""

    def __init__(self, root: str = "/") -> None:
        """Look up what there is."""
        self.root = root
        self.cpus = files.numbered(root, CPUS, "cpu")
        self.max_khz = [files.integer(root, "%s/cpu%d/cpufreq/cpuinfo_max_freq" % (CPUS, cpu)) for cpu in self.cpus]
        self._zones = _unique(
            [
                (files.read(root, "sys/class/thermal/%s/type" % zone) or zone, "sys/class/thermal/%s/temp" % zone)
                for zone in files.names(root, "sys/class/thermal")
                if zone.startswith("thermal_zone")
            ]
        )
        self._clocks = _unique(
            [(name, "sys/class/devfreq/%s/cur_freq" % name) for name in files.names(root, "sys/class/devfreq")]
        )
        self._rails = _rails(root)
        self._counters = [(name, folder, _Counter()) for name, folder in _rapl(root)]
        self._batteries, self._mains = _supplies(root)
        self._throttles = _throttles(root, self.cpus)
        self._has = {
            name: files.exists(root, path)
            for name, path in (("psi", "proc/pressure/cpu"), ("stat", "proc/stat"), ("pi", PI))
        }

    def read(self) -> Dict[str, Any]:
        """One row of telemetry: ``t_ns`` on the device's monotonic clock, the clock of ``Block.start_ns``.

        ``freq_khz``, ``freq_max_khz``: a value a CPU, the same order; ``temp_c``, ``power_w``, ``devfreq_hz``: by name;
        ``energy_j``: by rail, counted from the first sample on; ``swap_bytes``: in use; ``swapped_pages``: in and out
        since boot; ``psi_cpu_some_us``: how long anything waited for a CPU since boot; ``steal_ticks``: 1/100 s.
        """
        root = self.root
        row = {"t_ns": time.monotonic_ns()}  # type: Dict[str, Any]
        # Power first: it belongs to the instant of t_ns.
        row["power_w"] = _present({name: _watts(root, volt, ampere) for name, volt, ampere in self._rails})
        row["energy_j"] = _present({name: counter.joules(root, folder) for name, folder, counter in self._counters})
        clocks = [files.integer(root, "%s/cpu%d/cpufreq/scaling_cur_freq" % (CPUS, cpu)) for cpu in self.cpus]
        row["freq_khz"] = clocks if any(clock is not None for clock in clocks) else None
        row["freq_max_khz"] = self.max_khz if row["freq_khz"] else None
        row["temp_c"] = _present({name: _celsius(root, path) for name, path in self._zones})
        row["devfreq_hz"] = _present({name: files.integer(root, path) for name, path in self._clocks})
        row["psi_cpu_some_us"] = _pressure(files.read(root, "proc/pressure/cpu")) if self._has["psi"] else None
        row["steal_ticks"] = _steal(files.read(root, "proc/stat")) if self._has["stat"] else None
        row["swap_bytes"] = _swap(files.read(root, "proc/meminfo"))
        row["swapped_pages"] = _swapped(files.read(root, "proc/vmstat"))
        row["battery"] = self._battery()
        row["throttle"] = self._throttle()
        return row

    def _battery(self) -> Optional[Dict[str, Any]]:
        """None without a battery. With several, the first: no edge device has more."""
        if not self._batteries:
            return None
        folder = self._batteries[0]
        status = files.read(self.root, folder + "/status")
        online = [files.integer(self.root, mains + "/online") for mains in self._mains]
        return {
            "status": status,
            "capacity_percent": files.integer(self.root, folder + "/capacity"),
            "power_w": _battery_watts(self.root, folder),
            "on_mains": any(value == 1 for value in online) if any(value is not None for value in online) else None,
        }

    def _throttle(self) -> Optional[Dict[str, int]]:
        found = {}  # type: Dict[str, int]
        for name, path in self._throttles:
            count = files.integer(self.root, path)
            if count is not None and count >= 0:
                found[name] = found.get(name, 0) + count
        if self._has["pi"]:
            with contextlib.suppress(ValueError):
                found["raspberry_pi"] = int(files.read(self.root, PI) or "", 16) & 0xFFFFF
        return found or None


class _Counter:
    """An energy counter that starts again from 0 when it is full, as joules that only grow."""

    def __init__(self) -> None:
        self.last = None  # type: Optional[int]
        self.total = 0

    def joules(self, root: str, folder: str) -> Optional[float]:
        now = files.integer(root, folder + "/energy_uj")
        if now is None or now < 0:
            return None
        if self.last is not None:
            step = now - self.last
            if step < 0:
                # The counter's largest value is one less than what it counts round.
                step += (files.integer(root, folder + "/max_energy_range_uj") or 0) + 1
            self.total += max(0, step)
        self.last = now
        return self.total / 1e6


def _rails(root: str) -> List[Tuple[str, str, str]]:
    """(name, millivolts' file, milliamperes' file) of each wired channel of each INA3221."""
    found = []  # type: List[Tuple[str, str, str]]
    top = "sys/bus/i2c/drivers/ina3221"
    for chip in files.names(root, top):
        for monitor in files.names(root, "%s/%s/hwmon" % (top, chip)):
            folder = "%s/%s/hwmon/%s" % (top, chip, monitor)
            for channel in (1, 2, 3):
                label = files.read(root, "%s/in%d_label" % (folder, channel))
                if label is not None and label not in UNWIRED:
                    found.append((label, "%s/in%d_input" % (folder, channel), "%s/curr%d_input" % (folder, channel)))
    renamed = _unique([(name, volt) for name, volt, _ in found])
    return [(name, volt, ampere) for (name, _), (_, volt, ampere) in zip(renamed, found)]


def _rapl(root: str) -> List[Tuple[str, str]]:
    """(name, folder) of each RAPL domain: package-0, package-0/dram, psys."""
    found = []  # type: List[Tuple[str, str]]
    for zone in files.names(root, POWERCAP):
        # intel-rapl-mmio counts the same energy a second time.
        if not zone.startswith("intel-rapl:"):
            continue
        folder = "%s/%s" % (POWERCAP, zone)
        name = files.read(root, folder + "/name") or zone
        parent = files.read(root, "%s/%s/name" % (POWERCAP, zone.rpartition(":")[0]))
        if files.integer(root, folder + "/energy_uj") is not None:
            found.append(("%s/%s" % (parent, name) if parent and zone.count(":") > 1 else name, folder))
    return _unique(found)


def _supplies(root: str) -> Tuple[List[str], List[str]]:
    """Folders of the system's batteries, and of what else may feed it."""
    batteries, mains = [], []  # type: Tuple[List[str], List[str]]
    for name in files.names(root, SUPPLIES):
        folder = "%s/%s" % (SUPPLIES, name)
        if files.read(root, folder + "/type") != "Battery":
            mains.append(folder)
        # A mouse's battery is a battery, too; its scope is "Device".
        elif files.read(root, folder + "/scope") != "Device":
            batteries.append(folder)
    return batteries, mains


def _throttles(root: str, cpus: List[int]) -> List[Tuple[str, str]]:
    """(name, file) of every counter of throttling; counters of one name are added up."""
    found = []  # type: List[Tuple[str, str]]
    for cpu in cpus:
        for name in ("core_throttle_count", "package_throttle_count"):
            path = "%s/cpu%d/thermal_throttle/%s" % (CPUS, cpu, name)
            if files.exists(root, path):
                found.append((name, path))
    for monitor in files.names(root, "sys/class/hwmon"):
        for name in files.names(root, "sys/class/hwmon/" + monitor):
            if name.startswith("oc") and name.endswith("_event_cnt"):
                found.append((name, "sys/class/hwmon/%s/%s" % (monitor, name)))
    return found


def _watts(root: str, volt: str, ampere: str) -> Optional[float]:
    millivolts, milliamperes = files.integer(root, volt), files.integer(root, ampere)
    return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6


def _battery_watts(root: str, folder: str) -> Optional[float]:
    """What the battery gives or takes; drivers disagree about the sign, so it has none."""
    power = files.integer(root, folder + "/power_now")
    if power is not None:
        return abs(power) / 1e6
    volt, ampere = files.integer(root, folder + "/voltage_now"), files.integer(root, folder + "/current_now")
    return None if volt is None or ampere is None else abs(volt * ampere) / 1e12


def _celsius(root: str, path: str) -> Optional[float]:
    value = files.integer(root, path)
    # Sensors that are off answer with values such as -274000 or 0x7fffffff.
    return value / 1000 if value is not None and -100_000 < value < 300_000 else None


def _pressure(text: Optional[str]) -> Optional[int]:
    for line in (text or "").splitlines():
        if line.startswith("some "):
            return files.whole(line.rpartition("total=")[2])
    return None


def _steal(text: Optional[str]) -> Optional[int]:
    fields = (text or "").partition("\n")[0].split()
    return files.whole(fields[8]) if len(fields) > 8 and fields[0] == "cpu" else None


def _swap(text: Optional[str]) -> Optional[int]:
    found = _table(text, ("SwapTotal:", "SwapFree:"))
    return None if found is None else max(0, found[0] - found[1]) * 1024


def _swapped(text: Optional[str]) -> Optional[int]:
    found = _table(text, ("pswpin", "pswpout"))
    return None if found is None else sum(found)


def _table(text: Optional[str], keys: Tuple[str, str]) -> Optional[Tuple[int, int]]:
    """Two values of a text of lines ``key value …``; None unless both are there."""
    values = {}  # type: Dict[str, Optional[int]]
    for line in (text or "").splitlines():
        fields = line.split()
        if len(fields) > 1 and fields[0] in keys:
            values[fields[0]] = files.whole(fields[1])
    one, other = values.get(keys[0]), values.get(keys[1])
    return None if one is None or other is None else (one, other)


def _present(values: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """None where there is nothing at all; a value that can't be read now stays, as None."""
    return values or None


def _unique(pairs: List[Tuple[str, str]]) -> List[Tuple[str, str]]:
    """Names made different: the second ``cpu-thermal`` is ``cpu-thermal#2``."""
    seen = {}  # type: Dict[str, int]
    found = []
    for name, path in pairs:
        seen[name] = seen.get(name, 0) + 1
        found.append((name if seen[name] == 1 else "%s#%d" % (name, seen[name]), path))
    return found


def slowest_cpu(sensors: Sensors) -> Optional[int]:
    """Where a sampler disturbs least: the last of the slowest CPUs that this process may use; None if there is one."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    mine = sorted(os.sched_getaffinity(0))
    clocks = dict(zip(sensors.cpus, sensors.max_khz))
    return None if len(mine) < 2 else min(reversed(mine), key=lambda cpu: clocks.get(cpu) or 0)
