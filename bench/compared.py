"""Is one file slower than another? Both measured in turns, launch after launch, until the ratio's interval can tell.

Told apart are "no slower" (a ratio of 1) and "slower by the margin" (1.05 for 5 %). Launches go on until the half width
of the ratio's interval is half the margin or less: then exactly one of the two lies within it. Stopping by width and
not by significance keeps the risks what they are said to be; a difference so large that even a far wider interval tells
it may end it sooner. Where the launches run out before, the answer is that it can't be told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgewise.bench.launches import Measured, Unfinished
from edgewise.bench.numbers import Clock, busy, time_ratio
from edgewise.bench.record import Measurement
from edgewise.bench.stats import Interval

CONFIDENCE = 0.95
SOONER = 0.995  # of the interval that may end it before its half width is small enough
FEWEST = 3  # launches; fewer say too little of how launches differ

Found = Literal["not slower", "slower", "can't tell"]


@dataclass(frozen=True)
class Comparison:
    """Time of ``candidate`` / time of ``reference``, and what follows for ``margin`` (.05: 5 %).

    ``slower``: it is slower for sure, and not shown to stay within the margin; ``not slower``: the whole interval lies
    under 1 + margin. ``ratio`` None: nothing pairs.
    """

    reference: str
    candidate: str
    margin: float
    found: Found
    ratio: Interval | None
    clock: Clock
    launches: int
    pairs: int


def compare(
    reference: Measurement, candidate: Measurement, margin: float, *, confidence: float = CONFIDENCE
) -> Comparison:
    """Compare two files that were measured in the same launches.

    On the wall clock; where other work kept the CPU busy and one thread computes, on that of wall clock and CPU time
    which says more: medians of short inferences are clean all the same, long ones are cut by the scheduler.
    """
    clocks: list[Clock] = ["wall"]
    if candidate.threads == 1 and (busy(reference) or busy(candidate)):
        clocks.append("cpu")
    ratios = [(clock, time_ratio(candidate, reference, clock=clock, confidence=confidence)) for clock in clocks]
    clock, ratio = min(ratios, key=lambda one: half_width(one[1]))
    common = {one.index for one in reference.launches} & {one.index for one in candidate.launches}
    pairs = sum(len(one.blocks) for one in candidate.launches if one.index in common)
    found = "can't tell" if len(common) < FEWEST else told(ratio, margin)
    return Comparison(reference.file, candidate.file, margin, found, ratio, clock, len(common), pairs)


def told(ratio: Interval | None, margin: float) -> Found:
    """What an interval of time of the candidate / time of the reference says."""
    if ratio is not None and ratio.high < 1 + margin:
        return "not slower"
    return "slower" if ratio is not None and ratio.low > 1 else "can't tell"


def half_width(ratio: Interval | None) -> float:
    """Half the width of an interval of a ratio on the log scale."""
    return math.inf if ratio is None else math.log(ratio.high / ratio.low) / 2


def undecided(
    pairs: Sequence[tuple[str, str]], margin: float, *, confidence: float = CONFIDENCE, sooner: float = SOONER
) -> Unfinished:
    """For ``measure(unfinished=...)``: go on with each pair (reference, candidate) until its comparison can tell."""

    def unfinished(measured: Measured) -> set[str]:
        names: set[str] = set()
        for reference, candidate in pairs:
            if reference not in measured or candidate not in measured:
                continue  # one of them failed
            one, other = measured[reference], measured[candidate]
            narrow = half_width(compare(one, other, margin, confidence=confidence).ratio) <= math.log1p(margin) / 2
            if not narrow and compare(one, other, margin, confidence=sooner).found == "can't tell":
                names |= {reference, candidate}
        return names

    return unfinished
