"""``sample --hz H``: a row of telemetry each 1/H s as JSON Lines, until stdin ends; then ``{"type": "end", "rc": 0}``.

A process of its own, so that reading disturbs no timed thread but by the CPU it takes: it sleeps between samples, and
runs on the slowest CPU that it may use.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from typing import IO, Iterator, List, Optional

from edgewise.bench.agent.sensors import Sensors, slowest_cpu

HZ = 10.0
MOST_HZ = 1000.0


def rows(sensors: Sensors, hz: float, source: Optional[int]) -> Iterator[str]:
    """JSON lines, the first at once, until the file descriptor ``source`` ends; for ever where it is None.

    A sample that took longer than its turn isn't made up for: the next one is at the next turn.
    """
    period = 1.0 / hz
    start = time.monotonic()
    while True:
        yield json.dumps(sensors.read(), separators=(",", ":"), allow_nan=False)
        turn = int((time.monotonic() - start) / period) + 1
        if _ended(source, start + turn * period):
            return


def _ended(source: Optional[int], until: float) -> bool:
    """Sleep until then; True as soon as ``source`` is at its end. What it says is thrown away."""
    while True:
        left = until - time.monotonic()
        if left <= 0:
            return False
        if source is None:
            time.sleep(left)
        elif select.select([source], [], [], left)[0] and not os.read(source, 4096):
            return True


def hertz(arguments: List[str]) -> Optional[float]:
    """The rate that the arguments ask for, None where it isn't one."""
    if not arguments:
        return HZ
    if len(arguments) != 2 or arguments[0] != "--hz":
        return None
    try:
        value = float(arguments[1])
    except ValueError:
        return None
    return value if 0 < value <= MOST_HZ else None


def main(arguments: List[str], out: Optional[IO[str]] = None) -> int:
    """Sample until stdin ends; the exit status."""
    hz = hertz(arguments)
    to = out or sys.stdout
    if hz is None:
        sys.stderr.write("expected --hz and a number above 0, at most %g, got %s\n" % (MOST_HZ, " ".join(arguments)))
        to.write('{"type":"end","rc":2}\n')
        to.flush()
        return 2
    sensors = Sensors()
    cpu = slowest_cpu(sensors)
    if cpu is not None:
        with contextlib.suppress(OSError):  # then it runs where the system puts it
            os.sched_setaffinity(0, {cpu})
    try:
        for line in rows(sensors, hz, sys.stdin.fileno()):
            to.write(line + "\n")
            to.flush()
        to.write('{"type":"end","rc":0}\n')
        to.flush()
    except BrokenPipeError:
        # Nobody listens any more. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
