"""Where to look next: the largest rate that holds a budget, and how many requests in flight still gain."""

from __future__ import annotations

from collections.abc import Callable, Iterator

FLOOR = 2**-6  # of the highest rate: below that it is said that no rate holds


def largest_rate(
    holds: Callable[[float], bool], high: float, *, tolerance: float, guess: float | None = None
) -> float | None:
    """The largest rate up to ``high`` that was seen to hold, by halving; None where not even ``high`` / 64 does.

    What lies above it by more than ``tolerance``, of the rate, was seen not to hold. ``guess`` is an earlier answer: if
    it was right, three runs find it again.

    Args:
        holds: run at a rate and say whether the budget held; true up to some rate, and false above.
        high: taken not to hold, and never tried.
        tolerance: share of the rate.
        guess: below ``high``.
    """
    low, floor = 0.0, high * FLOOR
    if guess is not None:
        for edge in (guess * (1 - tolerance), guess * (1 + tolerance)):
            if not low < edge < high:
                continue
            if holds(edge):
                low = edge
            else:
                high = edge
                break
    while high - low > tolerance * high:
        middle = (low + high) / 2
        if middle < floor:
            return None
        if holds(middle):
            low = middle
        else:
            high = middle
    return low or None


def doubled(most: int) -> Iterator[int]:
    """1, 2, 4, ... and ``most`` at the end."""
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def sweep(rate_at: Callable[[int], float | None], most: int, min_gain: float) -> tuple[int | None, str]:
    """Go through 1, 2, 4, ... in flight until a step gains less than ``min_gain`` of the rate before.

    Args:
        rate_at: samples a second with so many in flight; None where that did not run as it should.
        most: never more in flight.
        min_gain: 0.05 for 5 %.

    Returns:
        the last count that gained, None where not even one ran; and why it ended there.
    """
    best: int | None = None
    before = 0.0
    for count in doubled(most):
        rate = rate_at(count)
        if rate is None:
            return best, f"{count} in flight did not hold"
        if best is not None and rate < before * (1 + min_gain):
            return best, f"{count} in flight gained {100 * (rate / before - 1):.1f} %"
        best, before = count, rate
    return best, f"{most} in flight is the most"
