"""Which layers carry channel counts, how to read them, and how to give a fresh layer other ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgewise.compress.attention import sizes
from edgewise.errors import ModelError

Plan = dict[str, dict[str, int]]
"""Module name -> its channel counts after pruning, for every module that changed: ``{"out", "in", "groups"}``, or the
attributes of an attention module that go with its heads, such as ``{"num_heads"}``."""

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORM = (nn.modules.batchnorm._NormBase,)  # BatchNorm and InstanceNorm: one statistic a channel

RESIZABLE = (*_CONV, nn.Linear, *_NORM, nn.PReLU)
"""Layers whose channels can be removed one by one without changing what the others compute."""


def channels(module: nn.Module) -> dict[str, int]:
    """The channel counts of one layer, or the head counts of an attention module; empty for a module with neither."""
    if isinstance(module, _CONV):
        return {"out": module.out_channels, "in": module.in_channels, "groups": module.groups}
    if isinstance(module, nn.Linear):
        return {"out": module.out_features, "in": module.in_features}
    if isinstance(module, _NORM):
        return {"out": module.num_features}
    return {"out": module.num_parameters} if isinstance(module, nn.PReLU) else sizes(module)


def difference(before: dict[str, dict[str, int]], model: nn.Module) -> Plan:
    """The plan that leads from the channel counts ``before`` to those of ``model``."""
    now = survey(model)
    return {name: counts for name, counts in now.items() if counts != before[name]}


def survey(model: nn.Module) -> dict[str, dict[str, int]]:
    """Channel and head counts of every layer that has them, by name."""
    return {name: counts for name, module in model.named_modules() if (counts := channels(module))}


def resize(model: nn.Module, plan: Plan) -> None:
    """Give each layer of ``plan`` its channel counts, in place. Its weights are empty afterwards: load them.

    Raises:
        ModelError: the plan names a layer the model doesn't have, or counts that its kind doesn't have.
    """
    modules = dict(model.named_modules())
    before = survey(model)  # of all layers at once: an attention's heads are read off its projections
    for name, counts in plan.items():
        known = before.get(name, {})
        if set(known) != set(counts) or any(value < 1 for value in counts.values()):
            has = ", ".join(known) or "no layer of this name"
            raise ModelError(
                f"the channel plan asks for {counts}, and the model has {has}",
                where=name,
                hint="the plan belongs to another architecture: prune again",
            )
        _resize_layer(modules[name], counts)


def _resize_layer(module: Any, counts: dict[str, int]) -> None:
    if "out" not in counts:
        for name, count in counts.items():
            setattr(module, name, count)
        return
    out = counts["out"]
    if isinstance(module, _CONV):
        module.out_channels, module.in_channels, module.groups = out, counts["in"], counts["groups"]
        shape = (counts["in"], out) if isinstance(module, _TRANSPOSED) else (out, counts["in"])
        shape = (shape[0], shape[1] // module.groups)
        _empty(module, {"weight": (*shape, *module.kernel_size), "bias": (out,)})
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = out, counts["in"]
        _empty(module, {"weight": (out, counts["in"]), "bias": (out,)})
    elif isinstance(module, nn.PReLU):
        module.num_parameters = out
        _empty(module, {"weight": (out,)})
    else:
        module.num_features = out
        _empty(module, dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (out,)))


def _empty(module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        old = getattr(module, name, None)
        if old is None:
            continue
        new = torch.zeros(shape, dtype=old.dtype, device=old.device)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
