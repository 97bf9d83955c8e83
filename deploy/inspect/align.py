"""Which point of one net is which of another: by name where layers have weights, by what they read everywhere else."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.deploy.inspect.points import LAYERS, Point, base

NAMED = LAYERS | {"norm"}


def align(one: Sequence[Point], other: Sequence[Point]) -> dict[int, int]:
    """{point of ``other``: point of ``one``}.

    First layers with weights, by name and kind. Then, in order, each point that does the same kind of thing to points
    that are matched already: adding, pooling and activations have no name that survives conversion. Last, what is one
    layer in ``one`` and several nodes in ``other``, such as a LayerNorm: the last of the nodes of its name.

    Without one layer matched by its name the files are strangers, and nothing is matched.
    """
    found = _by_name(one, other)
    if not found:
        return {}
    found[0] = 0
    _by_name_alone(one, other, found)
    _by_reading(one, other, found)
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def _by_name(one: Sequence[Point], other: Sequence[Point]) -> dict[int, int]:
    left, right = _layers(one), _layers(other)
    found: dict[int, int] = {}
    for key, places in right.items():
        # A layer that is called twice is two points: if both sides know both, in order.
        if len(left.get(key, ())) == len(places):
            found.update(zip(places, left[key], strict=True))
    return found


def _layers(points: Sequence[Point]) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for index, point in enumerate(points):
        if point.kind in NAMED:
            found.setdefault((base(point.name), point.kind), []).append(index)
    return found


def _by_name_alone(one: Sequence[Point], other: Sequence[Point], found: dict[int, int]) -> None:
    taken = set(found.values())
    groups: dict[str, int] = {}
    whole: set[str] = set()  # others have left gain and offset to the layer behind: another value
    for index, point in enumerate(other):
        if point.kind not in ("relu", "input"):
            groups[base(point.name)] = index
            whole |= {base(point.name)} if point.gain else set()
    for place, point in enumerate(one):
        last = groups.get(base(point.name))
        if point.kind == "norm" and place not in taken and last is not None and last not in found:
            found |= {last: place} if base(point.name) in whole else {}


def _by_reading(one: Sequence[Point], other: Sequence[Point], found: dict[int, int]) -> None:
    taken = set(found.values())
    readers: dict[tuple[str, frozenset[int]], list[int]] = {}
    for place, point in enumerate(one):
        if place not in taken:
            # A quantizer may stand for an activation that the other side doesn't have: then it changes nothing.
            plain = frozenset(_past(one, source) for source in point.inputs)
            for inputs in dict.fromkeys((frozenset(point.inputs), plain)):
                readers.setdefault((point.kind, inputs), []).append(place)
    known = dict(found)
    for index, point in enumerate(other):
        if index in known or not point.inputs or any(source not in known for source in point.inputs):
            continue
        waiting = readers.get((point.kind, frozenset(known[source] for source in point.inputs)), [])
        free = next((place for place in waiting if place not in taken), None)
        if free is not None:
            taken.add(free)
            found[index] = known[index] = free
        elif point.clips is not None:
            known[index] = known[point.clips]


def _past(points: Sequence[Point], index: int) -> int:
    clipped = points[index].clips
    return index if clipped is None else clipped
