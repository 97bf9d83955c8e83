"""What a unit is worth, from the weights that would leave with it. Lower leaves first.

    l1, l2    mean over all sides of the sum of |w| or w^2 of the unit's places      (torch-pruning, arXiv 2301.12900)
    bn_scale  mean of |gamma| over the BatchNorms that scale it                      (Network Slimming, 1708.06519)
    taylor    mean over batches of (sum of w * dL/dw over what reads it)^2           (arXiv 1906.10771, eq. 8 on a gate)
    hessian   mean over all sides of the sum of w^2 * mean over samples of (dL/dw)^2 (Optimal Brain Damage)
    random    a number drawn from the seed

L is the labels' cross-entropy in evaluation mode: the mean of a batch, for hessian of one sample. What reads a unit are
the columns of the layers behind it: scaling those by (1 - e) is scaling the unit, BatchNorm and activation included, so
that their sum of weight times gradient is what the loss changes by, to first order, when the unit goes. All but random
are divided by their group's mean, because layers have scales of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.compress.lesson import label_loss
from edgewise.compress.losses.base import Batch
from edgewise.compress.macs import shown
from edgewise.compress.pruning.cut import by_place
from edgewise.compress.pruning.groups import Candidate, Group, Place, scored
from edgewise.errors import ModelError
from edgewise.progress import Tick, silent

Samples = Iterable[tuple[Tensor, Tensor]]
"""Batches of inputs (N, C, H, W) and targets (N,)."""

Score = Callable[[Candidate], "Tensor | None"]
"""One number a unit, (units,); None where nothing is said about them."""

GRADIENTS = frozenset({"taylor", "hessian"})
_SCORED = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)


def rank(
    model: nn.Module,
    candidates: Iterable[Candidate],
    criterion: str,
    *,
    seed: int,
    samples: Samples | None = None,
    tick: Tick = silent,
) -> tuple[list[Group], dict[str, str]]:
    """The candidates with their units ranked, and a reason for those that can't be scored.

    Raises:
        ModelError: the criterion needs samples, and there are none.
    """
    score = _scorer(model, criterion, seed, samples, tick)
    groups, skipped = [], {}
    for candidate in candidates:
        scores = score(candidate)
        if scores is None:
            reason = "no BatchNorm scales its" if criterion == "bn_scale" else "no weight leaves with its"
            skipped.update(dict.fromkeys(candidate.writers, f"{reason} {candidate.kind}"))
        elif not torch.isfinite(scores).all():
            reason = f"its {candidate.kind} can't be scored: are its weights finite?"
            skipped.update(dict.fromkeys(candidate.writers, reason))
        else:
            groups.append(scored(candidate, scores if criterion == "random" else _relative(scores)))
    return groups, skipped


def _relative(scores: Tensor) -> Tensor:
    mean = scores.mean()
    return scores / mean if mean > 0 else scores


def _scorer(model: nn.Module, criterion: str, seed: int, samples: Samples | None, tick: Tick) -> Score:
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return lambda candidate: torch.rand(candidate.units, generator=generator)
    if criterion in GRADIENTS and samples is None:
        raise ModelError(f"criterion {criterion} reads gradients on training samples, and got none")
    if criterion == "taylor":
        gates = _gates(model, samples or (), tick)
        return lambda candidate: _first_order(candidate, gates)
    fisher = _fisher(model, samples or (), tick) if criterion == "hessian" else {}

    def importance(place: Place) -> Tensor | None:
        module = model.get_submodule(place.name)
        weight = getattr(module, "weight", None)
        if place.side not in ("in", "out") or not isinstance(module, _SCORED) or weight is None:
            return None
        values = weight.detach().float().cpu()
        if criterion == "bn_scale":
            return values.abs() if values.dim() == 1 else None
        values = values.abs() if criterion == "l1" else values**2
        if criterion == "hessian":
            values = values * fisher[place.name]
        return by_place(module, place.side, values).sum(dim=1)

    return lambda candidate: _mean_of_sides(candidate, importance)


def _mean_of_sides(candidate: Candidate, importance: Callable[[Place], Tensor | None]) -> Tensor | None:
    """The sum over a unit's places on one side, then the mean over the sides that say something."""
    sides = []
    for place, rows in candidate.places.items():
        values = importance(place)
        if values is not None:
            sides.append(values[rows].sum(dim=1))
    return torch.stack(sides).mean(dim=0) if sides else None


def _first_order(candidate: Candidate, gates: dict[str, Tensor]) -> Tensor | None:
    """``gates``: (batches, inputs) of each layer."""
    reading = [gates[place.name][:, rows].sum(dim=2) for place, rows in candidate.places.items() if place.side == "in"]
    return torch.stack(reading).sum(dim=0).pow(2).mean(dim=0) if reading else None


def _gates(model: nn.Module, samples: Samples, tick: Tick) -> dict[str, Tensor]:
    """For each batch and each input of each layer the sum of weight times gradient: (batches, inputs)."""
    found: dict[str, list[Tensor]] = {}

    def read(name: str, module: Any, gradient: Tensor) -> None:
        if module.weight.dim() > 1:
            joint = module.weight.detach().float() * gradient
            found.setdefault(name, []).append(by_place(module, "in", joint).sum(dim=1).cpu())

    _each_gradient(model, samples, read, tick)
    return {name: torch.stack(rows) for name, rows in found.items()}


def _fisher(model: nn.Module, samples: Samples, tick: Tick) -> dict[str, Tensor]:
    """The mean over samples of each weight's squared gradient."""
    found: dict[str, Tensor] = {}

    def read(name: str, module: nn.Module, gradient: Tensor) -> None:
        squares = (gradient**2).cpu()
        found[name] = found[name] + squares if name in found else squares

    single = ((inputs[i : i + 1], targets[i : i + 1]) for inputs, targets in samples for i in range(len(inputs)))
    seen = _each_gradient(model, single, read, tick)
    return {name: total / seen for name, total in found.items()}


def _each_gradient(model: nn.Module, samples: Samples, read: Callable[[str, Any, Tensor], None], tick: Tick) -> int:
    """Show ``read`` every layer's gradient on each batch; how many batches there were.

    Raises:
        ModelError: there were none.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(True)
    layers: dict[str, Any] = {name: module for name, module in copied.named_modules() if isinstance(module, _SCORED)}
    layers = {name: module for name, module in layers.items() if module.weight is not None}
    seen = 0
    for inputs, targets in samples:
        copied.zero_grad(set_to_none=True)
        with torch.enable_grad():
            given = shown(copied, inputs.numpy())
            loss = label_loss(copied(given), Batch(given, targets.to(given.device), torch.arange(len(targets))), 0.0)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, module in layers.items():
            gradient = module.weight.grad
            read(name, module, torch.zeros_like(module.weight) if gradient is None else gradient.float())
        seen += 1
        tick(seen, seen, "gradients for scores")
    if seen == 0:
        raise ModelError("there is no training sample to take gradients on")
    return seen
