"""Taking places out of a layer, or setting them to zero: for a channel that may leave, both come to the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.compress.pruning.groups import Cut

_CONV = nn.modules.conv._ConvNd


def remove(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """Take all cuts out of ``model``, in place; parameters stay frozen or trainable as they were.

    Raises:
        ValueError: a grouped convolution would lose different numbers of channels from its groups.
    """
    for cut in cuts:
        module: Any = model.get_submodule(cut.place.name)
        gone, side = set(cut.index), cut.place.side
        if side not in ("in", "out"):  # a count that a module keeps beside its layers: ``num_heads`` of an attention
            setattr(module, side, getattr(module, side) - len(gone))
        elif isinstance(module, _CONV) and module.groups > 1:
            _remove_grouped(module, side, gone)
        else:
            _remove_plain(module, side, gone)


@torch.no_grad()
def zero(model: nn.Module, cuts: Iterable[Cut]) -> None:
    """Set what the cuts would take out to zero, in place."""
    for cut in cuts:
        module: Any = model.get_submodule(cut.place.name)
        index, side = list(cut.index), cut.place.side
        if side in ("in", "out") and getattr(module, "weight", None) is not None:
            rows = by_place(module, side, torch.arange(module.weight.numel()).view_as(module.weight))
            gone = torch.zeros(module.weight.numel(), dtype=torch.bool)
            gone[rows[index].flatten()] = True
            module.weight.masked_fill_(gone.view(module.weight.shape).to(module.weight.device), 0)  # in any layout
        if side == "out" and getattr(module, "bias", None) is not None:
            module.bias[index] = 0


def by_place(module: Any, side: str, weights: Tensor) -> Tensor:
    """What of ``weights``, shaped like ``module.weight``, belongs to each place of ``side``: (places, the rest)."""
    if weights.dim() < 2:
        return weights.reshape(-1, 1)
    groups = module.groups if isinstance(module, _CONV) else 1
    parts = weights.reshape(groups, -1, *weights.shape[1:])  # (groups, rows of a group, columns of a group, ...)
    return (parts if _by_rows(module, side) else parts.transpose(1, 2)).flatten(0, 1).flatten(1)


def places(module: Any, side: str) -> int:
    """How many places one side of a layer has, the numbers of :func:`edgewise.compress.resize.channels`."""
    if isinstance(module, nn.Linear):
        return int(module.out_features if side == "out" else module.in_features)
    if isinstance(module, _CONV):
        return int(module.out_channels if side == "out" else module.in_channels)
    return int(module.num_parameters if isinstance(module, nn.PReLU) else module.num_features)


def _by_rows(module: Any, side: str) -> bool:
    """Rows of a weight are outputs, columns inputs; a transposed convolution has it the other way round."""
    return (side == "out") != bool(getattr(module, "transposed", False))


def _remove_plain(module: Any, side: str, gone: set[int]) -> None:
    keep = [place for place in range(places(module, side)) if place not in gone]
    if getattr(module, "weight", None) is not None:
        _select(module, "weight", keep, 0 if module.weight.dim() < 2 or _by_rows(module, side) else 1)
    if side == "out":
        for name in ("bias", "running_mean", "running_var"):
            if getattr(module, name, None) is not None:
                _select(module, name, keep, 0)
    _set_count(module, side, len(keep))


def _remove_grouped(module: Any, side: str, gone: set[int]) -> None:
    count, groups = places(module, side), module.groups
    if groups == module.in_channels == module.out_channels:  # depthwise: each channel is a group
        module.groups -= len(gone)
        module.in_channels -= len(gone)
        _remove_plain_rows(module, [place for place in range(count) if place not in gone])
        return
    part = count // groups
    left = [[place for place in range(g * part, (g + 1) * part) if place not in gone] for g in range(groups)]
    if len({len(kept) for kept in left}) > 1:
        raise ValueError("a grouped convolution needs the same number of channels in each group")
    if _by_rows(module, side):
        _select(module, "weight", [place for kept in left for place in kept], 0)
    else:
        blocks = module.weight.data.reshape(groups, -1, *module.weight.shape[1:])
        chosen = [
            block.index_select(1, torch.tensor([place % part for place in kept], device=block.device))
            for block, kept in zip(blocks, left, strict=True)
        ]
        module.weight = nn.Parameter(torch.cat(chosen), module.weight.requires_grad)
    if side == "out" and module.bias is not None:
        _select(module, "bias", [place for kept in left for place in kept], 0)
    _set_count(module, side, count - len(gone))


def _remove_plain_rows(module: Any, keep: list[int]) -> None:
    _select(module, "weight", keep, 0)
    if module.bias is not None:
        _select(module, "bias", keep, 0)
    module.out_channels = len(keep)


def _set_count(module: Any, side: str, count: int) -> None:
    if isinstance(module, nn.Linear):
        setattr(module, f"{side}_features", count)
    elif isinstance(module, _CONV):
        setattr(module, f"{side}_channels", count)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = count
    else:
        module.num_features = count


def _select(module: Any, name: str, keep: list[int], dim: int) -> None:
    old = getattr(module, name)
    new = old.data.index_select(dim, torch.tensor(keep, dtype=torch.int64, device=old.device)).contiguous()
    setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
