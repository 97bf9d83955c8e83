"""Structured pruning: whole channels and heads leave a model, and what is left is an ordinary, smaller model.

Which channels hang together comes from torch-pruning's dependency graph (DepGraph, arXiv 2301.12900). Two things are
ours:

- A group is only touched if removing its channels gives the same outputs as setting them to zero: it is tried.
- Channels leave in chunks that keep every count at a multiple of ``round_to``; the chunks of all layers are put in one
  order, and the shortest beginning of it that reaches the goal is taken: MACs, parameters, or a measured latency.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from edgewise.compress.config import Latency, Prune
from edgewise.compress.macs import Cost, count
from edgewise.compress.pruning.cut import remove
from edgewise.compress.pruning.find import Found, find
from edgewise.compress.pruning.goals import Clock, Footprint, Timed, Trial, shortest
from edgewise.compress.pruning.groups import Cut, Group, Step
from edgewise.compress.pruning.latency import MEASUREMENTS, LatencySearch
from edgewise.compress.pruning.order import cuts_after, kept
from edgewise.compress.pruning.soundness import check
from edgewise.compress.resize import Plan, difference, survey
from edgewise.errors import ModelError
from edgewise.models.tasks.base import Split
from edgewise.progress import Tick, silent

Learn = Callable[[nn.Module, int], None]
"""``learn(model, round)`` trains the model in place, after that round."""


@dataclass(frozen=True)
class Pruned:
    """What pruning did. ``plan`` has the new channel counts of every layer that changed, ``skipped`` the reason for
    every Conv and Linear layer whose outputs were not considered; MACs are of one sample. ``trials`` are the candidates
    that were timed for a latency goal, ``told`` lines for people."""

    plan: Plan
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    skipped: dict[str, str]
    trials: tuple[Trial, ...] = ()
    told: tuple[str, ...] = ()


def prune(
    model: nn.Module,
    config: Prune,
    input_shape: tuple[int, ...],
    *,
    round_to: int,
    seed: int,
    samples: Split | None = None,
    clock: Clock | None = None,
    learn: Learn | None = None,
    tick: Tick = silent,
) -> Pruned:
    """Remove channels and heads from ``model`` in place until it reaches the goal of ``config``.

    Counts stay multiples of ``round_to`` wherever they change, no layer goes below its floor or loses more than
    ``config.max_layer_ratio`` of its channels, and the model's inputs and outputs keep their shape. ``model`` is left
    untouched when an error is raised before the first round's training.

    Args:
        model: any torch model of one tensor.
        config: the goal, which channels, how many rounds.
        input_shape: (C, H, W), or (L, V) of texts.
        round_to: ``config.round_to``, or the target's own where the recipe is silent.
        seed: of the random criterion, and of what is tried.
        samples: the training split, for the criteria that read gradients.
        clock: measures a candidate; needed for a latency goal. The candidate it gets may be changed.
        learn: trains the model between two rounds.
        tick: told of the progress.

    Raises:
        ModelError: the model can't be traced, nothing in it can be pruned, a name is unknown, or the goal is out of
            reach.
    """
    before, counts = count(model, input_shape), survey(model)
    if before.macs == 0:
        raise ModelError("the model has no convolution or linear layer to prune", hint="leave the prune stage out")
    looking = (config, input_shape, round_to, seed, samples, tick)
    found = find(model, *looking, whole={})
    _check_reach(model, config, found, before, input_shape)
    skipped, whole = found.skipped, {key: group.size for key, group in found.groups.items()}
    schedule: list[dict[str, int]] = []  # a latency is reached before any training: what each round must keep
    trials: tuple[Trial, ...] = ()
    told: list[str] = []
    goal = config.macs_ratio or config.params_ratio
    if config.latency is not None:
        schedule, search, steps = _timed(model, config.latency, config.rounds, found, before, clock, input_shape, tick)
        trials = search.trials()
        told.append(search.in_words(steps))
        goal = search.size(steps)[0]
    for number in range(1, config.rounds + 1):
        if number > 1:
            found = find(model, *looking, whole=whole)
        if schedule:
            chosen = _exactly(found.groups, schedule[number - 1])
        else:
            chosen = _chosen(model, config, found, before, number, input_shape)
        cuts = cuts_after(list(found.groups.values()), chosen)
        check(model, cuts, input_shape, seed)
        remove(model, cuts)
        if learn is not None and number < config.rounds:
            learn(model, number)
    after = count(model, input_shape)
    if goal is not None and _share(config, after, before) > goal * (1 + 1e-6):
        told.append(_missed(config, goal, _share(config, after, before), found))
    return Pruned(
        plan=difference(counts, model),
        macs_before=before.macs,
        macs_after=after.macs,
        params_before=before.params,
        params_after=after.params,
        skipped=dict(sorted(skipped.items())),
        trials=trials,
        told=tuple(told),
    )


def _share(config: Prune, cost: Cost, before: Cost) -> float:
    """What is left of what the goal counts."""
    return cost.params / before.params if config.params_ratio is not None else cost.macs / before.macs


def _missed(config: Prune, goal: float, left: float, found: Found) -> str:
    """What a first round is refused for, found when the model has been trained: it stays, and is told of."""
    what = "parameters" if config.params_ratio is not None else "MACs"
    aim = f"the candidate that was timed had {goal:.4f}" if config.latency is not None else f"{goal:g} was the goal"
    reasons = "; ".join(dict.fromkeys(found.skipped.values()))
    return (
        f"the goal was MISSED: {left:.4f} of the {what} are left, and {aim}: after training, layers that could lose "
        f"channels in the first round no longer can" + (f" ({reasons})" if reasons else "")
    )


def _chosen(
    model: nn.Module, config: Prune, found: Found, before: Cost, number: int, shape: tuple[int, ...]
) -> list[Step]:
    """The steps of one round: each removes the same part of what the round before left."""
    footprint = Footprint(model, list(found.groups.values()), count(model, shape))
    part = number / config.rounds
    if config.params_ratio is not None:
        return shortest(found.steps, footprint.params, config.params_ratio**part * before.params)
    return shortest(found.steps, footprint.macs, (config.macs_ratio or 1.0) ** part * before.macs)


def _cut(model: nn.Module, cuts: list[Cut]) -> nn.Module:
    smaller = copy.deepcopy(model)
    remove(smaller, cuts)
    return smaller


def check_goal(model: nn.Module, config: Prune, input_shape: tuple[int, ...], round_to: int) -> None:
    """Whether ``prune`` would refuse the goal, told in seconds: weights don't matter, and no sample is read.

    Raises:
        ModelError: as :func:`prune`.
    """
    plain = config.model_copy(update={"criterion": "l2"})
    found = find(model, plain, input_shape, round_to, 0, None, silent, whole={})
    _check_reach(model, plain, found, count(model, input_shape), input_shape)


def _check_reach(model: nn.Module, config: Prune, found: Found, before: Cost, shape: tuple[int, ...]) -> None:
    """Before anything is timed or trained: can the goal be reached at all?"""
    if not found.steps:
        reasons = "; ".join(dict.fromkeys(found.skipped.values()))
        raise ModelError(f"no layer of the model can lose channels: {reasons}", hint="leave the prune stage out")
    goal = config.macs_ratio or config.params_ratio
    if goal is None:
        return
    groups, bounds = found.groups, found.bounds
    after = count(_cut(model, cuts_after(list(groups.values()), found.steps)), shape)
    reached = _share(config, after, before)
    if reached <= goal:
        return
    what = "macs_ratio" if config.macs_ratio is not None else "params_ratio"
    stops = [bounds.stops(group, key) for key, group in groups.items()]
    fixed = sum(after.layers[name].macs for name in found.skipped if name in after.layers) / before.macs
    some = ", ".join(list(found.skipped)[:4]) + (", …" if len(found.skipped) > 4 else "")
    by_floor = f", {stops.count('floors')} at floors" if "floors" in stops else ""
    raise ModelError(
        f"{what} {goal:g} is out of reach: the smallest is {reached:.4f}. Of {len(groups)} groups of layers, "
        f"{stops.count('round_to')} stop at round_to ({bounds.round_to} channels){by_floor} and "
        f"{stops.count('max_layer_ratio')} at max_layer_ratio ({config.max_layer_ratio:g}); layers whose outputs can't "
        f"lose channels keep {fixed:.1%} of the MACs ({some})",
        hint=f"ask for {reached + 0.0001:.4f} or more, raise max_layer_ratio, or lower round_to"
        + (" or floors" if by_floor else ""),
    )


def _timed(
    model: nn.Module,
    goal: Latency,
    rounds: int,
    found: Found,
    before: Cost,
    clock: Clock | None,
    shape: tuple[int, ...],
    tick: Tick,
) -> tuple[list[dict[str, int]], LatencySearch, int]:
    """What each round must keep, in portions by group, so that the last is the candidate that met the latency."""
    if clock is None:
        raise ModelError("a latency goal needs a clock", where="latency", hint="pass one, or set macs_ratio")
    groups = list(found.groups.values())
    footprint = Footprint(model, groups, before)

    def size(steps: int) -> tuple[float, float]:
        some = found.steps[:steps]
        return footprint.macs(some) / before.macs, footprint.params(some) / before.params

    def time(steps: int) -> Timed:
        tick(search.measured, MEASUREMENTS, f"candidate with {size(steps)[0]:.3f} of the MACs")
        return clock(_cut(model, cuts_after(groups, found.steps[:steps])))

    search = LatencySearch(goal, len(found.steps), size, time)
    steps = search.run()
    schedule = []
    for number in range(1, rounds + 1):
        part = found.steps[:steps]
        if number < rounds:
            part = shortest(part, footprint.macs, size(steps)[0] ** (number / rounds) * before.macs)
        schedule.append(dict(zip(found.groups, kept(groups, part), strict=True)))
    return schedule, search, steps


def _exactly(groups: Mapping[str, Group], keep: Mapping[str, int]) -> list[Step]:
    """The steps that leave each group what ``keep`` says."""
    wanted = [keep.get(key, group.size) for key, group in groups.items()]
    return [
        Step((float(number),), number, size)
        for number, (size, group) in enumerate(zip(wanted, groups.values(), strict=True))
        if size < group.size
    ]
