"""Layers that are slower in INT8 than in float: found with the clock alone, so that it works for every runtime.

A single layer in float between two in INT8 pays for a conversion at either end, so stretches of consecutive layers are
tried: the one that saves most goes back to float, then the others are tried beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from numpy import array_split

PARTS = 8

Cost = Callable[[Sequence[str]], float]
"""What the net takes with these layers in float."""


def fastest_in_float(
    layers: Sequence[str], cost: Cost, *, now: float, limit: float, allowed: Callable[[Collection[str]], bool]
) -> tuple[list[str], float]:
    """The layers to leave in float so that ``cost`` is at most ``limit``, or as low as this search gets it.

    At most ``PARTS * (PARTS + 1) / 2`` candidates are timed, most often two dozen: after the first round only stretches
    that saved something, and neighbours of those in float, which share an end with them.

    Args:
        layers: in order of execution; cut into ``PARTS`` stretches of equally many.
        cost: of a candidate.
        now: with all of ``layers`` in INT8.
        limit: where to stop.
        allowed: whether these layers may be in float together.

    Returns:
        The layers in order of execution, none where nothing saves anything, and their cost.
    """
    parts = [part.tolist() for part in array_split(list(layers), min(PARTS, len(layers)))] if layers else []
    chosen: set[int] = set()
    saved = dict.fromkeys(range(len(parts)), 1.0)  # nothing is known yet: each is tried

    def names(of: Collection[int]) -> list[str]:
        return [name for place in sorted(of) for name in parts[place]]

    while now > limit:
        beside = {place + step for place in chosen for step in (-1, 1)}
        tried = {}
        for place in saved.keys() - chosen:
            if (saved[place] > 0 or place in beside) and allowed(names({*chosen, place})):
                tried[place] = cost(names({*chosen, place}))
                saved[place] = now - tried[place]
        best = min(tried, key=lambda place: tried[place], default=None)
        if best is None or tried[best] >= now:
            break
        chosen.add(best)
        now = tried[best]
    return names(chosen), now
