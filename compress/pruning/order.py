"""In which order portions leave, and how many each group may lose."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from edgewise.compress.config import Prune
from edgewise.compress.pruning.groups import Candidate, Cut, Group, Step, merge
from edgewise.compress.resize import survey
from edgewise.compress.taps import near
from edgewise.errors import ModelError

Counts = Mapping[str, Mapping[str, int]]
"""What :func:`edgewise.compress.resize.survey` gives."""


@dataclass(frozen=True)
class Limits:
    """What no group may go below: a multiple of ``round_to``, ``max_layer_ratio`` of what it had before the first
    round (``whole``, portions by key), and the floors of layers with ``counts`` outputs."""

    round_to: int
    max_layer_ratio: float
    floors: Mapping[str, int]
    counts: Counts
    whole: Mapping[str, int]

    def chunk(self, group: Group) -> int:
        """Portions leave by so many, which keeps counts at multiples."""
        multiple = group.of.multiple or self.round_to
        return multiple // math.gcd(multiple, group.breadth)

    def smallest(self, group: Group, key: str) -> int:
        """The fewest portions a group may keep: a multiple of its chunk, or all it has."""
        whole, chunk = self.whole.get(key, group.size), self.chunk(group)
        allowed = max(whole - int(self.max_layer_ratio * whole + 1e-9), self.floor(group), 1)
        return min(group.size, -(-allowed // chunk) * chunk)

    def stops(self, group: Group, key: str) -> str:
        """Which limit stops the group."""
        whole, smallest = self.whole.get(key, group.size), self.smallest(group, key)
        if smallest == self.chunk(group):
            return "round_to"
        floor = self.floor(group)
        return "floors" if floor > whole - int(self.max_layer_ratio * whole + 1e-9) else "max_layer_ratio"

    def floor(self, group: Group) -> int:
        """The fewest portions that the floors allow; a layer that several groups write gets its share of each."""
        shares = [0]
        for place in group.of.places:
            if place.side != "in" and place.name in self.floors:
                part = group.size / self.counts[place.name][place.side]
                shares.append(math.ceil(self.floors[place.name] * part - 1e-9))
        return max(shares)


def limits(model: nn.Module, config: Prune, round_to: int, whole: Mapping[str, int]) -> Limits:
    """The limits that ``config`` sets for the layers of ``model``.

    Raises:
        ModelError: a floor is for a layer that isn't there.
    """
    floors = {layer: count for pattern, count in config.floors.items() for layer in named(model, [pattern], "floors")}
    return Limits(round_to, config.max_layer_ratio, floors, survey(model), whole)


def check_floors(model: nn.Module, config: Prune) -> None:
    """Tell of floors that no layer can be under, whatever leaves: they are mistakes.

    Raises:
        ModelError: a floor is for a layer that isn't there, or above what the layer has.
    """
    counts = survey(model)
    for pattern, floor in config.floors.items():
        for layer in named(model, [pattern], "floors"):
            what = "outputs" if "out" in counts[layer] else "heads"
            has = counts[layer].get("out") or max(counts[layer].values())
            if floor > has:
                raise ModelError(
                    f"expected at most {has}, the {what} that {layer} has, got {floor}",
                    where=f"floors.{pattern}",
                    hint="a layer that is to stay whole belongs in ignore",
                )


def named(model: nn.Module, patterns: Sequence[str], where: str) -> list[str]:
    """The convolutions, linear layers and attentions that ``patterns`` (names or globs) mean.

    Raises:
        ModelError: one of them means none.
    """
    modules = dict(model.named_modules())
    known = [
        name
        for name, counts in survey(model).items()
        if "out" not in counts or isinstance(modules[name], (nn.modules.conv._ConvNd, nn.Linear))
    ]
    found: dict[str, None] = {}
    for pattern in patterns:
        meant = [name for name in known if fnmatchcase(name, pattern)]
        if not meant:
            raise ModelError(
                f"the model has no convolution, linear layer or attention {pattern!r}",
                where=where,
                hint=f"{near(pattern, known)}; names are the model's own, and * stands for anything",
            )
        found |= dict.fromkeys(meant)
    return list(found)


def keyed(groups: Iterable[Group]) -> dict[str, Group]:
    """The groups by a name that stays from round to round."""
    seen: Counter[tuple[str, ...]] = Counter()
    found = {}
    for group in groups:
        seen[group.writers] += 1
        found[f"{'+'.join(group.writers)}#{seen[group.writers]}"] = group
    return found


def large_enough(groups: Mapping[str, Group], bounds: Limits) -> tuple[dict[str, Group], dict[str, str]]:
    """The groups that can lose a chunk, and the reason for the others."""
    kept, skipped = {}, {}
    for key, group in groups.items():
        if bounds.smallest(group, key) < group.size:
            kept[key] = group
            continue
        many = group.size * group.breadth
        limit = f"within max_layer_ratio {bounds.max_layer_ratio:g}" + (" and floors" if bounds.floor(group) else "")
        multiple = group.of.multiple or bounds.round_to
        reason = f"{many} {group.of.kind}: no smaller multiple of {multiple} {limit}"
        skipped.update(dict.fromkeys(group.writers, reason))
    return kept, skipped


def ordered(groups: Mapping[str, Group], config: Prune, bounds: Limits, model: nn.Module) -> list[Step]:
    """The chunks of all groups, in the order in which they leave; those of one group from its least important on.

    By their mean score in the global scope; in the uniform one by the part of the layer that is gone afterwards, then
    by score. In the isomorphic one (arXiv 2407.04616) groups of one topology are ranked among themselves by score, and
    the rankings are merged by the part of the topology's units that is gone.
    """
    steps: list[Step] = []
    for number, (key, group) in enumerate(groups.items()):
        size, smallest, chunk = group.size, bounds.smallest(group, key), bounds.chunk(group)
        while size > smallest:
            keep = max((size - 1) // chunk * chunk, smallest)
            score = sum(group.scores[group.size - size : group.size - keep]) / (size - keep)
            gone = 1 - keep / bounds.whole.get(key, group.size)
            order = (gone, score, number) if config.scope == "uniform" else (score, number, gone)
            steps.append(Step(order, number, keep))
            size = keep
    steps.sort()
    return _merged(steps, list(groups.values()), model) if config.scope == "isomorphic" else steps


def topology(candidate: Candidate, model: nn.Module) -> tuple[str, ...]:
    """What a group looks like, whatever its sizes: the kinds of its layers, and on which side they lose units."""
    found = [candidate.kind]
    for place in candidate.places:
        module = model.get_submodule(place.name)
        groups = getattr(module, "groups", 1)
        kind = "" if groups == 1 else " depthwise" if groups == getattr(module, "in_channels", 0) else " grouped"
        found.append(f"{type(module).__name__}{kind} {place.side}")
    return tuple(found)


def _merged(steps: list[Step], groups: list[Group], model: nn.Module) -> list[Step]:
    kinds = [topology(group.of, model) for group in groups]
    units: dict[tuple[str, ...], int] = defaultdict(int)
    for kind, group in zip(kinds, groups, strict=True):
        units[kind] += group.size * group.breadth
    gone: dict[tuple[str, ...], int] = defaultdict(int)
    left = [group.size for group in groups]
    found = []
    for step in steps:  # by score
        kind = kinds[step.group]
        gone[kind] += (left[step.group] - step.keep) * groups[step.group].breadth
        left[step.group] = step.keep
        found.append(Step((gone[kind] / units[kind], *step.key), step.group, step.keep))
    return sorted(found)


def kept(groups: Sequence[Group], steps: Iterable[Step]) -> list[int]:
    """Portions left in each group after these steps."""
    left = [group.size for group in groups]
    for step in steps:
        left[step.group] = min(left[step.group], step.keep)
    return left


def cuts_after(groups: Sequence[Group], steps: Iterable[Step]) -> list[Cut]:
    """What leaves with these steps, one cut for each side of each layer."""
    left = kept(groups, steps)
    return merge(group.cuts(keep) for group, keep in zip(groups, left, strict=True) if keep < group.size)
