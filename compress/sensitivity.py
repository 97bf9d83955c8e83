"""What each layer costs when it is quantized or pruned, on given samples.

Two questions about INT8, because errors neither add up nor stay where they are made: what does quantizing *only* this
layer cost, and what is gained by leaving only this one *without*. The first ranks layers that hurt, the second tells
which one is worth its float.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from edgewise.compress.agreement import BATCH, Samples, Score, answers, change
from edgewise.compress.pruning.channels import channel_groups
from edgewise.compress.pruning.criteria import rank
from edgewise.compress.pruning.cut import zero
from edgewise.compress.pruning.groups import Candidate, Cut
from edgewise.compress.pruning.heads import head_groups
from edgewise.compress.pruning.soundness import sound
from edgewise.compress.quantization.places import switched_off
from edgewise.compress.quantization.switches import Switches, find_switches
from edgewise.errors import ModelError
from edgewise.models.inputs import form_of
from edgewise.models.tasks.base import Float, Int, accuracy
from edgewise.progress import Tick, silent

RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer of a quantized model. SQNR is that of the logits against the model with every quantizer off (inf where
    nothing changed), flips are answers that changed, out of ``n``.

    ``only_*``: this layer's weight and inputs are quantized, all else is float. ``without_*``: all is quantized, but
    this layer's weight and the inputs that no one else reads. ``*_drop_pp``: the score's fall in percentage points,
    where targets were given. ``macs`` are of one sample.
    """

    name: str
    macs: int
    only_sqnr_db: float
    only_flips: int
    without_sqnr_db: float
    without_flips: int
    n: int
    only_drop_pp: float | None = None
    without_drop_pp: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data; an infinite SQNR is null."""
        return _plain(asdict(self))


@dataclass(frozen=True)
class PruningSensitivity:
    """``layers`` lose their least important ``ratio`` of channels together, and nothing else does."""

    layers: tuple[str, ...]
    ratio: float
    sqnr_db: float
    flips: int
    n: int
    drop_pp: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data; an infinite SQNR is null."""
        return _plain(asdict(self))


def quantization_sensitivity(
    quantized: nn.Module,
    inputs: Float | Samples,
    targets: Int | None = None,
    *,
    score: Score = accuracy,
    batch: int = BATCH,
    tick: Tick = silent,
    switches: Switches | None = None,
) -> list[LayerSensitivity]:
    """One row for each layer that multiplies by weights of its own, in order of execution.

    Args:
        quantized: with quantizers (``insert_quantizers``); it is the same afterwards.
        inputs: (N, C, H, W) float32.
        targets: (N,), for the change of the score.
        score: one value a sample, see :class:`edgewise.models.tasks.base.Task`.
        batch: samples at a time.
        tick: told after every layer.
        switches: of this model, where they are known already.

    Raises:
        ModelError: no quantizers, no samples, or samples that the model can't take.
    """
    switches = switches or find_switches(quantized, form_of(inputs[:1]))
    with switched_off(list(switches.readers)):
        reference = answers(quantized, inputs, batch)
    rows = []
    for done, (name, macs) in enumerate(switches.layers.items()):
        tick(done, len(switches.layers), f"sensitivity of {name}")
        with switches.only([name]):
            only = change(reference, answers(quantized, inputs, batch), targets, score)
        with switches.without([name]):
            without = change(reference, answers(quantized, inputs, batch), targets, score)
        rows.append(
            LayerSensitivity(
                name=name,
                macs=macs,
                only_sqnr_db=only.sqnr_db,
                only_flips=only.flips,
                without_sqnr_db=without.sqnr_db,
                without_flips=without.flips,
                n=len(inputs),
                only_drop_pp=only.drop_pp,
                without_drop_pp=without.drop_pp,
            )
        )
    tick(len(switches.layers), len(switches.layers), "sensitivity")
    return rows


def pruning_sensitivity(
    model: nn.Module,
    inputs: Float | Samples,
    targets: Int | None = None,
    *,
    ratios: Sequence[float] = RATIOS,
    score: Score = accuracy,
    batch: int = BATCH,
    seed: int = 0,
    tick: Tick = silent,
) -> tuple[list[PruningSensitivity], dict[str, str]]:
    """What it costs to lose part of one group of channels (or attention heads), the least of them by their L2 norm.

    They are set to zero, which for what can be pruned is the same as removing them; nothing is trained.

    Args:
        model: float; it stays as it is.
        inputs: (N, C, H, W) float32.
        targets: (N,), for the change of the score.
        ratios: parts of a group to lose, each above 0 and below 1.
        score: one value a sample.
        batch: samples at a time.
        seed: of the trial that tells which groups can be pruned.
        tick: told after every measurement.

    Returns:
        One row for each group and ratio, and the reason for each layer that can't be pruned.

    Raises:
        ModelError: a ratio out of bounds, no samples, or a model that can't be traced.
    """
    bad = [ratio for ratio in ratios if not 0 < ratio < 1]
    if bad or not ratios:
        raise ModelError(f"expected ratios above 0 and below 1, got {bad or 'none'}", where="pruning_sensitivity")
    candidates, skipped = _candidates(model, form_of(inputs[:1]), seed)
    groups, more = rank(model, candidates, "l2", seed=seed)
    skipped |= more
    probe = copy.deepcopy(model)
    reference = answers(probe, inputs, batch)
    rows = []
    total = len(groups) * len(ratios)
    for group in groups:
        for ratio in ratios:
            cuts = group.cuts(group.size - max(1, round(ratio * group.size)))
            kept = _touched(probe, cuts)
            zero(probe, cuts)
            found = change(reference, answers(probe, inputs, batch), targets, score)
            with torch.no_grad():
                for tensor, values in kept:
                    tensor.copy_(values)
            rows.append(PruningSensitivity(group.writers, ratio, found.sqnr_db, found.flips, found.n, found.drop_pp))
            tick(len(rows), total, f"pruning of {group.writers[0]}")
    return rows, dict(sorted(skipped.items()))


def _candidates(model: nn.Module, input_shape: tuple[int, ...], seed: int) -> tuple[list[Candidate], dict[str, str]]:
    """What can lose channels or heads, as pruning finds it, and a reason for the rest."""
    heads, skipped = head_groups(model, input_shape, round_to=1)
    channels, more = channel_groups(model, input_shape, seed=seed)
    skipped |= more
    claimed = {writer for one in heads for writer in one.writers}
    every = [*heads, *(one for one in channels if not claimed & set(one.writers))]
    skipped |= {writer: one.why_not for one in every if one.why_not for writer in one.writers}
    fine, more = sound(model, [one for one in every if not one.why_not], input_shape, seed)
    return fine, skipped | more


def _touched(model: nn.Module, cuts: Sequence[Cut]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every parameter of the layers that the cuts reach, and its values now."""
    names = dict.fromkeys(cut.place.name for cut in cuts)
    tensors = [tensor for name in names for tensor in model.get_submodule(name).parameters(recurse=False)]
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


__all__ = ["LayerSensitivity", "PruningSensitivity", "pruning_sensitivity", "quantization_sensitivity"]
