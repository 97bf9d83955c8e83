"""What leaves together: groups of units (channels, or heads of attention), the places each unit takes, and taking them
out.

Everything here is data: where a group comes from (``channels.py``, ``heads.py``), what its units are worth
(``criteria.py``) and how many leave (``order.py``, ``goals.py``) is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """One side of one layer: ``out`` or ``in`` of what has channels. Any other word is an attribute that counts what
    leaves (``num_heads``), of which a cut takes as many as it has places."""

    name: str
    side: str


@dataclass(frozen=True)
class Cut:
    """Places to remove on one side of one layer, ascending."""

    place: Place
    index: tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """Units that leave together, before they are scored.

    Attributes:
        writers: the layers whose outputs these units are, the first by which the group is known.
        places: for each side of each layer, the places of each unit: (units, places a unit).
        kind: what the units are, in the plural, for people and for the isomorphic scope.
        alike: (units,) the class of each unit, from 0, all classes being of one size: one unit of each class leaves at
            a time (grouped convolutions lose the same number from each group). None where any unit may leave alone.
        multiple: counts stay multiples of this; None: of what the target wants.
        why_not: where not empty, why nothing of it can be removed.
    """

    writers: tuple[str, ...]
    places: dict[Place, Tensor]
    kind: str = "channels"
    alike: Tensor | None = None
    multiple: int | None = None
    why_not: str = ""

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(next(iter(self.places.values())))


@dataclass(frozen=True)
class Group:
    """A scored group. ``portions[i]`` are the units that leave together (one, or one of each class), ``scores[i]`` what
    they are worth, ascending: the first portion leaves first."""

    of: Candidate
    portions: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]

    @property
    def writers(self) -> tuple[str, ...]:
        """The layers whose outputs these are."""
        return self.of.writers

    @property
    def size(self) -> int:
        """How many portions there are."""
        return len(self.portions)

    @property
    def breadth(self) -> int:
        """How many units leave at a time."""
        return len(self.portions[0])

    def reach(self, place: Place) -> int:
        """How many places on this side one portion takes."""
        return len(self.portions[0]) * int(self.of.places[place].shape[1])

    def cuts(self, keep: int) -> list[Cut]:
        """What leaves so that ``keep`` portions stay."""
        gone = [unit for portion in self.portions[: self.size - keep] for unit in portion]
        return cuts_of(self.of, gone)


@dataclass(frozen=True, order=True)
class Step:
    """Take group ``group`` down to ``keep`` portions. Steps are sorted by ``key``."""

    key: tuple[float, ...]
    group: int = field(compare=False)
    keep: int = field(compare=False)


def cuts_of(candidate: Candidate, units: Sequence[int]) -> list[Cut]:
    """What leaves with these units: one cut for each side of each layer."""
    chosen = torch.as_tensor(list(units), dtype=torch.int64)
    return [
        Cut(place, tuple(sorted(places[chosen].flatten().tolist())))
        for place, places in candidate.places.items()
        if len(chosen)
    ]


def portions(candidate: Candidate, scores: Tensor) -> tuple[tuple[int, ...], ...]:
    """The units in the order in which they leave, lowest score first; ``scores``: (units,). With classes, each portion
    has one unit of each: the lowest of all classes first, and so on."""
    order = torch.argsort(scores, stable=True)
    if candidate.alike is None:
        return tuple((unit,) for unit in order.tolist())
    classes = candidate.alike[order]
    ranked = [order[classes == one].tolist() for one in range(int(classes.max()) + 1)]
    return tuple(zip(*ranked, strict=True))


def scored(candidate: Candidate, scores: Tensor) -> Group:
    """The candidate's units ranked by ``scores`` (units,); a portion is worth the mean of its units."""
    found = portions(candidate, scores)
    return Group(candidate, found, tuple(float(scores[list(portion)].mean()) for portion in found))


def merge(found: Iterable[list[Cut]]) -> list[Cut]:
    """One cut for each side of each layer: groups that meet in one layer (a concatenation) are put together."""
    merged: dict[Place, set[int]] = {}
    for cuts in found:
        for cut in cuts:
            merged.setdefault(cut.place, set()).update(cut.index)
    return [Cut(place, tuple(sorted(index))) for place, index in merged.items()]
