"""What a model has to prune: its groups, ranked, in the order in which their units leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from edgewise.compress.config import Prune
from edgewise.compress.lesson import as_learnt
from edgewise.compress.pruning.channels import channel_groups
from edgewise.compress.pruning.criteria import GRADIENTS, Samples, rank
from edgewise.compress.pruning.groups import Group, Step
from edgewise.compress.pruning.heads import head_groups
from edgewise.compress.pruning.order import Limits, keyed, large_enough, limits, named, ordered
from edgewise.compress.pruning.soundness import sound
from edgewise.models.tasks.base import Split
from edgewise.progress import Tick

BATCH = 32
"""Samples read at a time for scores."""


@dataclass(frozen=True)
class Found:
    """The groups of a model by key, their steps in order, and why other layers have none."""

    groups: dict[str, Group]
    steps: list[Step]
    skipped: dict[str, str]
    bounds: Limits


def find(
    model: nn.Module,
    config: Prune,
    input_shape: tuple[int, ...],
    round_to: int,
    seed: int,
    samples: Split | None,
    tick: Tick,
    *,
    whole: Mapping[str, int],
) -> Found:
    """Look for everything that can leave, and rank it.

    Args:
        model: as it is now; it is not changed.
        config: criterion, scope, limits, names.
        input_shape: (C, H, W), or (L, V) of texts.
        round_to: counts stay multiples of this.
        seed: of the random criterion, and of what is tried.
        samples: the training split, for the criteria that read gradients.
        tick: told of the progress.
        whole: portions of each group before the first round; empty in the first.

    Raises:
        ModelError: a name is unknown, the model can't be traced, or samples are needed and missing.
    """
    bounds = limits(model, config, round_to, whole)
    ignored = set(named(model, config.ignore, "ignore"))
    heads, skipped = head_groups(model, input_shape, round_to=round_to)
    channels, more = channel_groups(model, input_shape, seed=seed)
    skipped |= more
    candidates = []
    claimed = {writer for one in heads for writer in one.writers}
    for one in [*heads, *(one for one in channels if not claimed & set(one.writers))]:
        owners = {place.name for place in one.places if place.side != "in"}
        reason = one.why_not or ("the recipe says to ignore it" if ignored & owners else "")
        if reason:
            skipped.update(dict.fromkeys(one.writers, reason))
        else:
            candidates.append(one)
    candidates, more = sound(model, candidates, input_shape, seed)
    skipped |= more
    batches = _batches(samples, config.samples) if config.criterion in GRADIENTS and samples is not None else None
    ranked, more = rank(model, candidates, config.criterion, seed=seed, samples=batches, tick=tick)
    skipped |= more
    groups, more = large_enough(keyed(ranked), bounds)
    skipped |= more
    for writer in (writer for group in groups.values() for writer in group.writers):
        skipped.pop(writer, None)  # of a concatenation one part may stay while another leaves
    return Found(groups, ordered(groups, config, bounds, model), skipped, bounds)


def _batches(split: Split, wanted: int) -> Samples:
    """Samples at fixed places, spread evenly."""
    places = np.unique(np.linspace(0, len(split.ids) - 1, min(wanted, len(split.ids))).round().astype(np.int64))

    def read() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(places), BATCH):
            index = places[start : start + BATCH]
            yield torch.from_numpy(split.read(index)), torch.from_numpy(as_learnt(split.targets[index]))

    return read()
