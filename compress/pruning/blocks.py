"""Drop whole residual blocks: the layers of an encoder, the identity blocks of a ResNet.

A residual block adds something to what it is given; where that is little, the net does almost the same without it. How
little is told by its influence, ``1 - cos(input, output)``, averaged over positions and samples (ShortGPT, arXiv
2403.03853 §3.1), or by the rise of the loss when it is skipped. A dropped block becomes an identity, so that the others
keep their names.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.compress.config import DropBlocks
from edgewise.compress.lesson import as_learnt, label_loss
from edgewise.compress.losses.base import Batch
from edgewise.compress.macs import count, evaluating, shown
from edgewise.compress.pruning.identity import put_identities
from edgewise.compress.pruning.residual import find_blocks, without
from edgewise.compress.taps import near
from edgewise.errors import ModelError
from edgewise.models.tasks.base import IGNORED
from edgewise.progress import Tick, silent

BATCH = 64

Scores = dict[str, float]
"""Block -> what it is worth; the lowest leaves first."""


@dataclass(frozen=True)
class BlocksGone:
    """What dropping did. ``names``: the dropped blocks, in the order in which they left; ``scores``: of all that could
    have left, before any did; ``skipped``: why others could not; MACs are of one sample."""

    names: tuple[str, ...]
    scores: Scores
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    skipped: dict[str, str]


def drop_blocks(
    model: nn.Module,
    config: DropBlocks,
    input_shape: tuple[int, ...],
    *,
    seed: int,
    inputs: NDArray[Any] | None = None,
    targets: NDArray[Any] | None = None,
    tick: Tick = silent,
) -> BlocksGone:
    """Put identities in the place of blocks, in place. Nothing is trained.

    Args:
        model: (N, *input_shape) -> logits (N, K). Left as it is when an error is raised.
        config: which blocks, or how many and by which criterion.
        input_shape: of one sample, without N.
        seed: of the random criterion.
        inputs: training samples (S, *input_shape), for the criteria ``influence`` and ``loss``.
        targets: their classes (S,), for ``loss``.
        tick: progress, for each block that leaves or is tried.

    Raises:
        ModelError: no such block, none that can be dropped, or fewer than asked for.
    """
    blocks, skipped = find_blocks(model, input_shape)
    if not blocks:
        reasons = "; ".join(dict.fromkeys(f"{name}: {reason}" for name, reason in skipped.items())) or "it has none"
        raise ModelError(f"no block of the model can be dropped: {reasons}", hint="leave the drop_blocks stage out")
    before = count(model, input_shape)
    own = {
        name: sum(c.macs for layer, c in before.layers.items() if f"{layer}.".startswith(f"{name}.")) for name in blocks
    }
    if config.names is not None:
        gone = _named(config.names, blocks, skipped, model)
        scores: Scores = {}
    else:
        _check_goal(config, blocks, before.macs, own)
        score = _scorer(model, config, seed, inputs, targets, tick)
        gone, scores = _chosen(model, config, blocks, own, before.macs, score, tick)
    put_identities(model, gone)
    after = count(model, input_shape)
    return BlocksGone(tuple(gone), scores, before.macs, after.macs, before.params, after.params, skipped)


def influence(model: nn.Module, blocks: Sequence[str], inputs: NDArray[Any]) -> Scores:
    """``1 - cos(input, output)`` of each block, the mean over samples and positions: each token of (N, L, D), each
    pixel of (N, C, H, W), is one vector, padding left out. 0 for a block that changes no direction, up to 2."""
    sums = dict.fromkeys(blocks, 0.0)
    seen = dict.fromkeys(blocks, 0)
    taken: dict[str, Tensor] = {}
    padding = getattr(model, "padding", None)
    positions: list[Tensor] = []

    def enter(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _module, args: taken.__setitem__(name, args[0].clone())  # a block may write over its input

    def leave(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(_module: nn.Module, _args: Any, output: Tensor) -> None:
            one, other = taken.pop(name).double(), output.double()
            dim = 1 if one.dim() > 3 else -1
            if positions:  # what a net does with padding is no matter
                one, other = one[positions[0]], other[positions[0]]
            both_zero = (one.abs().amax(dim) == 0) & (other.abs().amax(dim) == 0)
            cosine = torch.where(both_zero, 1.0, nn.functional.cosine_similarity(one, other, dim=dim))
            sums[name] += float((1 - cosine).sum())
            seen[name] += cosine.numel()

        return note

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name in blocks:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
            stack.callback(module.register_forward_hook(leave(name)).remove)
        for batch in _batches(model, inputs):
            positions[:] = [] if padding is None or batch.is_floating_point() else [batch != padding]
            model(batch)
    return {name: sums[name] / seen[name] for name in blocks}


def mean_loss(model: nn.Module, inputs: NDArray[Any], targets: NDArray[Any]) -> float:
    """What the labels ask, the mean over samples, or over the tokens that have a label: cross-entropy in nats, or of
    numbers the squared error."""
    total, seen, place = 0.0, 0, 0
    with evaluating(model):
        for batch in _batches(model, inputs):
            labels = torch.from_numpy(as_learnt(targets[place : place + len(batch)])).to(batch.device)
            known = int((labels != IGNORED).sum())
            index = torch.arange(place, place + len(batch))
            total += known * float(label_loss(model(batch).double(), Batch(batch, labels, index), 0.0))
            place, seen = place + len(batch), seen + known
    return total / max(1, seen)


def _batches(model: nn.Module, inputs: NDArray[Any]) -> Iterator[Tensor]:
    for start in range(0, len(inputs), BATCH):
        yield shown(model, inputs[start : start + BATCH])


def _scorer(
    model: nn.Module,
    config: DropBlocks,
    seed: int,
    inputs: NDArray[Any] | None,
    targets: NDArray[Any] | None,
    tick: Tick,
) -> Callable[[Sequence[str]], Scores]:
    """Scores of the blocks that are left, given a model in which the others are skipped already."""
    if config.criterion == "last":
        return lambda left: {name: -float(place) for place, name in enumerate(left)}
    if config.criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return lambda left: dict(zip(left, torch.rand(len(left), generator=generator).tolist(), strict=True))
    if inputs is None or not len(inputs) or (config.criterion == "loss" and targets is None):
        raise ModelError(f"the criterion {config.criterion} needs training samples", where="drop_blocks")
    if config.criterion == "influence":
        return lambda left: _finite(influence(model, left, inputs))
    labels = targets
    assert labels is not None

    def rise(left: Sequence[str]) -> Scores:
        base = mean_loss(model, inputs, labels)
        found: Scores = {}
        for name in left:
            with without(model, [name]):
                found[name] = mean_loss(model, inputs, labels) - base
            tick(len(found), len(left), f"loss without {name}")
        return _finite(found)

    return rise


def _finite(scores: Scores) -> Scores:
    for name, value in scores.items():
        if not np.isfinite(value):
            raise ModelError(
                f"the block's score is {value}", where=name, hint="check that weights and samples are finite"
            )
    return scores


def _chosen(
    model: nn.Module,
    config: DropBlocks,
    blocks: list[str],
    own: dict[str, int],
    macs: int,
    score: Callable[[Sequence[str]], Scores],
    tick: Tick,
) -> tuple[list[str], Scores]:
    """The lowest first, until the goal is reached; then those are taken back, the last first, that it doesn't need."""
    gone: list[str] = []

    def reached(gone: list[str]) -> bool:
        if config.macs_ratio is None:
            return len(gone) == config.count
        return macs - sum(own[name] for name in gone) <= config.macs_ratio * macs

    first = scores = score(blocks)
    with ExitStack() as skipped:
        while not reached(gone):
            left = [name for name in blocks if name not in gone]
            if gone and config.rescore and config.criterion in ("influence", "loss"):
                scores = score(left)
            name = min(reversed(left), key=scores.__getitem__)  # of equals the last
            gone.append(name)
            skipped.enter_context(without(model, [name]))
            tick(len(gone), config.count or len(blocks), f"without {name}")
    for name in reversed(gone[:] if config.macs_ratio is not None else []):
        fewer = [other for other in gone if other != name]
        gone = fewer if reached(fewer) else gone
    return gone, first


def _check_goal(config: DropBlocks, blocks: list[str], macs: int, own: dict[str, int]) -> None:
    if config.count is not None and config.count > len(blocks):
        raise ModelError(
            f"count {config.count} is out of reach: {len(blocks)} blocks can be dropped ({', '.join(blocks)})",
            hint=f"ask for {len(blocks)} or fewer",
        )
    smallest = 1 - sum(own.values()) / macs
    if config.macs_ratio is not None and smallest > config.macs_ratio:
        raise ModelError(
            f"macs_ratio {config.macs_ratio:g} is out of reach: without all {len(blocks)} blocks that can be dropped, "
            f"{smallest:.4f} of the MACs are left",
            hint=f"ask for {smallest + 0.0001:.4f} or more, or prune channels",
        )


def _named(patterns: Sequence[str], blocks: list[str], skipped: dict[str, str], model: nn.Module) -> list[str]:
    """The blocks that these names or patterns with ``*`` mean, in the net's order.

    Raises:
        ModelError: one means no block, or a block that can't be dropped.
    """
    for pattern in patterns:
        if fnmatch.filter(blocks, pattern):
            continue
        if pattern in skipped:
            raise ModelError(f"this block can't be dropped: {skipped[pattern]}", where=pattern)
        known = "" if pattern not in dict(model.named_modules()) else ": it is a part of a block, or holds several"
        raise ModelError(f"no block of the model is called {pattern!r}{known}", hint=near(pattern, blocks))
    return [name for name in blocks if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
