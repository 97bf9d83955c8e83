"""A line of Jetson's ``tegrastats`` as a row of telemetry. The formats of JetPack 4 to 7, from public logs.

``GR3D_FREQ`` comes as ``10%``, ``10%@1000``, ``0%@[1300,1300]`` and, on Thor, ``@[1000,1000,1000]``; power as
``VDD_IN 4859mW/4899mW`` (now and the mean) or, on JetPack 4, without the unit. A sensor that is off says -256 °C. sysfs
has the same values with better timing, and is preferred: this is for logs that exist already.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

RAM = re.compile(r"\bRAM (\d{1,9})/(\d{1,9})MB")
SWAP = re.compile(r"\bSWAP (\d{1,9})/(\d{1,9})MB")
CPU = re.compile(r"\bCPU \[([^\]]{0,2000})\]")
CORE = re.compile(r"(\d{1,3})%(?:@(\d{1,6}))?")
GPU = re.compile(r"\bGR3D_FREQ (?:(\d{1,3})%)?(?:@(?:(\d{1,6})|\[([\d,]{0,100})\]))?")
TEMPERATURE = re.compile(r"\b([A-Za-z][\w-]{0,30})@(-?\d{1,4}(?:\.\d{1,6})?)C\b")
POWER = re.compile(r"\b((?:VDD|VIN|POM|NC|GPU|CPU|SOC|CV|VDDRQ|SYS5V)\w{0,30}) (\d{1,9})(mW)?/(\d{1,9})(?:mW)?(?=\s|$)")
COLDEST_C = -100.0


@dataclass(frozen=True)
class Tegrastats:
    """One line. Loads in percent, clocks in MHz; a core that is off is None in both."""

    ram_bytes: int | None = None
    ram_total_bytes: int | None = None
    swap_bytes: int | None = None
    cpu_percent: tuple[int | None, ...] = ()
    cpu_mhz: tuple[int | None, ...] = ()
    gpu_percent: int | None = None
    gpu_mhz: tuple[int, ...] = ()
    temp_c: dict[str, float] = field(default_factory=dict)
    power_w: dict[str, float] = field(default_factory=dict)


def tegrastats(text: str) -> tuple[Tegrastats, ...]:
    """A value for each line that is one of tegrastats; others are passed over."""
    return tuple(_row(line) for line in text.splitlines() if RAM.search(line))


def _row(line: str) -> Tegrastats:
    ram, swap, cores, gpu = RAM.search(line), SWAP.search(line), CPU.search(line), GPU.search(line)
    each = [CORE.fullmatch(core.strip()) for core in cores.group(1).split(",")] if cores else []
    clocks = (gpu.group(3) or gpu.group(2) or "").split(",") if gpu else []
    return Tegrastats(
        ram_bytes=_megabytes(ram, 1),
        ram_total_bytes=_megabytes(ram, 2),
        swap_bytes=_megabytes(swap, 1),
        cpu_percent=tuple(int(core.group(1)) if core else None for core in each),
        cpu_mhz=tuple(int(core.group(2)) if core and core.group(2) else None for core in each),
        gpu_percent=int(gpu.group(1)) if gpu and gpu.group(1) else None,
        gpu_mhz=tuple(int(clock) for clock in clocks if clock),
        temp_c={name: float(value) for name, value in TEMPERATURE.findall(line) if float(value) > COLDEST_C},
        power_w={name: int(now) / 1000 for name, now, _, _ in POWER.findall(line) if name != "NC"},
    )


def _megabytes(match: re.Match[str] | None, group: int) -> int | None:
    return None if match is None else int(match.group(group)) * 2**20
