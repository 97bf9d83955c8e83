"""What a device can tell apart: a file against itself, and the smallest slowdown that would have been found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.compared import CONFIDENCE, Comparison, compare
from edgewise.bench.config import Bench
from edgewise.bench.devices.base import Device
from edgewise.bench.devices.local import LOCAL_DEVICE
from edgewise.bench.measure import measure
from edgewise.bench.record import FileUnderTest
from edgewise.bench.stats.interval import t_quantile
from edgewise.errors import MeasureError
from edgewise.progress import Tick, silent

POWER = 0.9
AGAIN = " (again)"


@dataclass(frozen=True)
class SelfTest:
    """A file against itself. ``slowdown``: the smallest that so many launches find in 90 % of all cases, .03 for 3 %.

    ``clean``: the interval holds 1, as it does in 95 % of all tests of a sound device.
    """

    comparison: Comparison
    slowdown: float
    clean: bool
    flags: tuple[str, ...]


def selftest(
    file: FileUnderTest,
    inputs: Path,
    config: Bench,
    out: Path,
    *,
    device: Device = LOCAL_DEVICE,
    tick: Tick = silent,
) -> SelfTest:
    """Measure ``file`` against itself, in as many launches as a comparison may take.

    Raises:
        MeasureError: the file can't be measured, or ``config`` leaves it fewer than three launches.
        DeviceError: the device can't be used.
    """
    again = replace(file, name=file.name + AGAIN)
    most = config.most_launches
    asked = config.model_copy(update={"launches": most, "max_launches": most, "accuracy_samples": 1, "scenarios": ()})
    count = len(np.load(inputs, mmap_mode="r", allow_pickle=False))
    ids, targets = [str(place) for place in range(count)], np.zeros(count, np.int64)
    score: Callable[..., NDArray[np.float32]] = lambda outputs, targets: np.zeros(len(targets), np.float32)  # noqa: E731
    results = measure([file, again], inputs, targets, ids, asked, out, score=score, device=device, tick=tick)
    found = results.measurements
    for one in found.values():
        if one.error:
            raise MeasureError(one.error, where=file.name)
    told = compare(found[file.name], found[again.name], margin=0.05)
    if told.ratio is None or told.launches < 2:
        raise MeasureError("expected launches in pairs", where=file.name, hint="ask for three launches or more")
    flags = tuple(sorted({flag for one in found.values() for flag in one.flags}))
    clean = told.ratio.low <= 1 <= told.ratio.high
    return SelfTest(told, detectable(told), clean, flags)


def detectable(comparison: Comparison, *, power: float = POWER) -> float:
    """The smallest slowdown that a comparison with this interval and these launches finds with chance ``power``.

    Found is what puts the whole interval above 1: the half width, and as much again as the estimate may fall short.
    """
    if comparison.ratio is None:
        return math.inf
    freedom = max(1, comparison.launches - 1)
    half = math.log(comparison.ratio.high / comparison.ratio.low) / 2
    return math.expm1(half * (1 + t_quantile(freedom, 2 * power - 1) / t_quantile(freedom, CONFIDENCE)))
