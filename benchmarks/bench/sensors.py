"""What one sample of telemetry costs: CPU time of ``Sensors.read``, here and on a planted tree of a large device.

python benchmarks/bench/sensors.py [SAMPLES]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from edgewise.bench.agent.sensors import Sensors

CPUS, ZONES, CHIPS = 12, 10, ("1-0040", "1-0041")
PROC = ("proc/pressure/cpu", "proc/stat", "proc/meminfo", "proc/vmstat")


def planted(root: Path) -> None:
    """Files as a large Jetson has them: clocks, temperatures, six rails, and this machine's own /proc."""
    tree = {f"sys/devices/system/cpu/cpu{n}/cpufreq/{name}": "2000000\n" for n in range(CPUS) for name in CLOCKS}
    tree |= {f"sys/class/thermal/thermal_zone{n}/{name}": value for n in range(ZONES) for name, value in ZONE.items()}
    for chip in CHIPS:
        folder = f"sys/bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon3"
        for n in (1, 2, 3):
            tree |= {
                f"{folder}/in{n}_label": f"RAIL{n}",
                f"{folder}/in{n}_input": "5000",
                f"{folder}/curr{n}_input": "900",
            }
    tree |= {name: Path("/", name).read_text() for name in PROC if Path("/", name).exists()}
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


CLOCKS = ("scaling_cur_freq", "cpuinfo_max_freq")
ZONE = {"type": "zone\n", "temp": "45000\n"}


def show(name: str, sensors: Sensors, samples: int) -> None:
    """Print the median and the 95 % quantile in microseconds of CPU time."""
    spent = []
    for _ in range(samples):
        start = time.thread_time_ns()
        sensors.read()
        spent.append((time.thread_time_ns() - start) / 1000)
    spent.sort()
    print(f"{name}: median {spent[samples // 2]:.0f} us, 95 % below {spent[int(samples * 0.95)]:.0f} us, n {samples}")


def main() -> None:
    """Both."""
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    show("this machine", Sensors(), samples)
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as root:
        planted(Path(root))
        show(f"planted: {CPUS} CPUs, {ZONES} zones, 6 rails", Sensors(root), samples)


if __name__ == "__main__":
    main()
