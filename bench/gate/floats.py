"""What the gate says without being asked: files that were made for speed and are not faster."""

from __future__ import annotations

from edgewise.bench.gate.device import BUSY, ON_CPU_TIME
from edgewise.bench.numbers import clock_of, speedup
from edgewise.bench.record import Results

HASTENED = ("int8", "int8_dynamic", "int8_weights", "bfloat16")
"""Precisions that are chosen for speed, or at least must not cost any (int8_weights)."""


def slower_than_float(results: Results) -> list[str]:
    """A sentence for each INT8 or bfloat16 file that isn't faster than the float file of the very same model."""
    found = []
    for file in results.files:
        if file.precision not in HASTENED or file.parent is None:
            continue
        clock = clock_of(results, file.parent, file.name)
        if clock is None:
            found.append(f"{file.name} is NOT shown to be faster than its own float model {file.parent}: {BUSY}")
            continue
        ratio = speedup(results, file.parent, file.name, clock=clock)
        if ratio is None or ratio.low > 1:
            continue
        times = f"{ratio.value:.2f}x its speed, interval {ratio.low:.2f} to {ratio.high:.2f}"
        times += f", {ON_CPU_TIME}" if clock == "cpu" else ""
        if ratio.high < 1:
            found.append(f"{file.name} is SLOWER than its own float model {file.parent}: {times}")
        elif file.precision != "int8_weights":  # made for its size
            found.append(f"{file.name} is NOT shown to be faster than its own float model {file.parent}: {times}")
    return found
