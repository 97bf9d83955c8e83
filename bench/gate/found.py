"""What a check finds, and why it can't be made: shared by all kinds of checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.bench import stats
from edgewise.bench.numbers import samples_of
from edgewise.bench.record import FileUnderTest, Results
from edgewise.bench.validity import HARD, ONLY_SLOWER

AGAIN = "measure again"
"""Ends the note of a check that is INVALID for what the device did meanwhile."""

NOT_SHOWN = "not shown to hold, but "
"""Begins the note of a check that is INVALID and would be INCONCLUSIVE on a quiet device."""

Kind = Literal["absolute", "energy", "ratio", "paired", "memory", "fixed"]

SPOILERS: Mapping[Kind, tuple[frozenset[str], frozenset[str]]] = {
    "absolute": (frozenset(HARD) - ONLY_SLOWER, ONLY_SLOWER),
    # A device below its clock may take fewer joules, one that waits more: a limit held is as doubtful as a broken one.
    "energy": (frozenset(HARD), frozenset()),
    # Times of paired blocks, on CPU time where the machine was busy.
    "ratio": (frozenset({"setting_not_honoured"}), frozenset()),
    # Nothing stands in for these on a busy machine.
    "paired": (frozenset({"setting_not_honoured"}), ONLY_SLOWER),
    # What was swapped out is missing from a peak.
    "memory": (frozenset({"setting_not_honoured", "swap"}), frozenset()),
    "fixed": (frozenset(), frozenset()),
}
"""Flags that make a finding INVALID, by its kind: whatever it finds, and where it finds a limit not held."""


@dataclass(frozen=True)
class Finding:
    """What a check measured.

    ``gap_n``: how many it takes to tell a limit so far from the value. ``kind``: an ``absolute`` time, ``energy``, a
    ``ratio`` of latencies, a ``paired`` ratio of load times or joules, peak ``memory``, what is ``fixed`` (answers,
    bytes); see ``SPOILERS``. ``note``: what the reader must know, whatever the verdict. ``limit``: the limit that
    holds, where it is not the budget's own number.
    """

    interval: stats.Interval
    n: int
    counted: str
    gap_n: Callable[[float], int | None] = lambda gap: None
    kind: Kind = "fixed"
    note: str = ""
    baseline: str | None = None
    limit: float | None = None


Measured = Callable[[Results, FileUnderTest], Finding]


class Unusable(Exception):
    """Why a check can't be made: INVALID."""


class TooFew(Exception):
    """Too few samples for a check: INCONCLUSIVE. Holds how many there are, and how many it takes."""

    def __init__(self, n: int, needed: int, counted: str = "runs") -> None:
        super().__init__(f"{n} {counted}, needs >= {needed}")
        self.n, self.needed, self.counted = n, needed, counted


def sound(results: Results, file: FileUnderTest) -> None:
    """Refuse a file that broke anywhere: a small file that doesn't run is not a small file."""
    measurement, answers = results.measurements.get(file.name), results.answers.get(file.name)
    for part in (measurement, answers):
        if part is not None and part.error:
            raise Unusable(part.error.splitlines()[0])
    if answers is not None and not answers.finite:
        raise Unusable("it answered NaN or infinity")


def runs(results: Results, file: FileUnderTest) -> list[list[NDArray[np.float64]]]:
    """Latencies in ns, by launch and block."""
    measurement = results.measurements.get(file.name)
    if measurement is None or not measurement.launches:
        raise Unusable("it was not measured")
    return samples_of(measurement)


def scores(results: Results, file: FileUnderTest) -> NDArray[np.float32]:
    """One score a sample (N,)."""
    found = results.scores(file.name)
    if found is None:
        raise Unusable(f"{file.name} has no answers that were scored")
    return found


def reference(results: Results, file: FileUnderTest) -> FileUnderTest:
    """The float file of the same runtime."""
    known = {one.name: one for one in results.files}
    if file.reference is None or file.reference not in known:
        raise Unusable("no float reference was measured in the same runtime")
    sound(results, known[file.reference])
    return known[file.reference]


def exactly(value: float) -> stats.Interval:
    """Something that is known without an interval."""
    return stats.Interval(value, value, value)


def more(found: stats.Interval, n: int, gap: float) -> int | None:
    """So many times ``n`` that the interval, which shrinks with its root, no longer reaches a limit ``gap`` away."""
    half = max(found.high - found.value, found.value - found.low)
    return max(n + 1, math.ceil(n * (half / gap) ** 2)) if gap > 0 else None
