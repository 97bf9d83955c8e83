"""How far to go: the shortest beginning of the ordered steps that reaches a goal.

MACs and parameters are computed without cutting. A latency is measured: candidates are cut, untrained, and timed.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from edgewise.compress.macs import Cost
from edgewise.compress.pruning.groups import Group, Step
from edgewise.compress.pruning.order import kept
from edgewise.compress.resize import survey


@dataclass(frozen=True)
class Timed:
    """One measurement of a candidate beside the model before pruning: medians in ms, their ratio with a 95 %
    interval."""

    p50_ms: float
    reference_ms: float
    ratio: float
    low: float
    high: float


Clock = Callable[[nn.Module], Timed]
"""Exports a model, converts it, and times it in turns with the model before pruning."""


@dataclass(frozen=True)
class Trial:
    """A candidate that was timed: how many steps it is along, what is left of MACs and parameters, its times."""

    steps: int
    macs_ratio: float
    params_ratio: float
    timed: tuple[Timed, ...]

    @property
    def ratio(self) -> float:
        """The median over its measurements."""
        return statistics.median(one.ratio for one in self.timed)


class Footprint:
    """MACs and parameters after some steps, computed: a layer's are in proportion to its inputs times its outputs."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], cost: Cost) -> None:
        self.groups, self.cost, self.counts = list(groups), cost, survey(model)
        self.own = {name: _own(module) for name, module in model.named_modules()}
        held = sum(weight + vectors for weight, vectors in self.own.values())
        self.shared = cost.params - held  # a parameter that two modules hold is in no group

    def macs(self, steps: Sequence[Step]) -> float:
        """Multiply-accumulates of one sample."""
        gone = self._gone(steps)
        return sum(layer.macs * self._left(name, gone, attention=True) for name, layer in self.cost.layers.items())

    def params(self, steps: Sequence[Step]) -> float:
        """Parameters."""
        gone = self._gone(steps)
        total = float(self.shared)
        for name, (weight, vectors) in self.own.items():
            total += weight * self._left(name, gone) + vectors * self._part(name, "out", gone)
        return total

    def _gone(self, steps: Sequence[Step]) -> dict[tuple[str, str], int]:
        gone: dict[tuple[str, str], int] = defaultdict(int)
        for group, size in zip(self.groups, kept(self.groups, steps), strict=True):
            for place in group.of.places if size < group.size else ():
                gone[place.name, place.side] += (group.size - size) * group.reach(place)
        return gone

    def _part(self, name: str, side: str, gone: dict[tuple[str, str], int]) -> float:
        whole = self.counts.get(name, {}).get(side)
        return 1.0 if not whole else 1 - gone.get((name, side), 0) / whole

    def _left(self, name: str, gone: dict[tuple[str, str], int], attention: bool = False) -> float:
        """What is left of a layer's products, or of a weight that has rows and columns."""
        counts = self.counts.get(name, {})
        if "out" not in counts:  # heads: the products of attention are in proportion to their number
            return self._part(name, next(iter(counts)), gone) if attention and counts else 1.0
        if counts.get("groups", 1) == counts["out"] == counts.get("in"):  # depthwise: each channel on its own
            return self._part(name, "out", gone)
        return self._part(name, "out", gone) * self._part(name, "in", gone)


def shortest(steps: Sequence[Step], measure: Callable[[Sequence[Step]], float], target: float) -> list[Step]:
    """The shortest beginning of ``steps`` that brings ``measure`` to ``target`` or below, less the steps that turn out
    not to be needed, the most important first. All steps, if they don't reach it."""
    if measure(steps) > target:
        return list(steps)
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if measure(steps[:middle]) <= target else (middle, high)
    chosen = list(steps[:high])
    last = {step.group: step for step in chosen}  # only a group's last step can be taken back
    for step in sorted(last.values(), reverse=True):
        fewer = [other for other in chosen if other is not step]
        if measure(fewer) <= target:
            chosen = fewer
    return chosen


def _own(module: nn.Module) -> tuple[int, int]:
    """Numbers in the weights that have rows and columns, and in all other parameters, of the module itself."""
    sizes = [(parameter.dim() > 1, parameter.numel()) for parameter in module.parameters(recurse=False)]
    return sum(n for matrix, n in sizes if matrix), sum(n for matrix, n in sizes if not matrix)
