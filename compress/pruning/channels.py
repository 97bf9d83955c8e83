"""Which channels hang together, from torch-pruning's dependency graph (DepGraph, arXiv 2301.12900)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from edgewise.compress.macs import shown
from edgewise.compress.pruning.cut import places
from edgewise.compress.pruning.groups import Candidate, Place
from edgewise.compress.resize import RESIZABLE, channels
from edgewise.errors import ModelError
from edgewise.models.inputs import blank

_CONV = nn.modules.conv._ConvNd


def channel_groups(
    model: nn.Module, input_shape: tuple[int, ...], *, seed: int
) -> tuple[list[Candidate], dict[str, str]]:
    """All groups of channels, and a reason for every Conv and Linear layer that the graph doesn't reach or follow.

    Raises:
        ModelError: the model can't be traced.
    """
    traced = copy.deepcopy(model)
    graph = _trace(traced, input_shape)
    names = {module: name for name, module in traced.named_modules()}
    generator = torch.Generator().manual_seed(seed)
    skipped: dict[str, str] = {}
    found: list[Candidate] = []
    seen: set[str] = set()
    for name, module in traced.named_modules():
        if not isinstance(module, (_CONV, nn.Linear)) or name in seen:
            continue
        if module not in graph.module2node:
            skipped[name] = "not reached when the model was traced"
            continue
        try:
            group = _group(graph, module, names, generator)
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError) as error:
            skipped[name] = f"torch-pruning can't follow its channels ({error})"
            continue
        seen.update(writer for one in group for writer in one.writers)
        found += group
    return found, skipped


def _trace(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    model.requires_grad_(True)
    example = shown(model, blank(input_shape, 1))
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad():
            # A tuple, since torch-pruning unpacks a bare tensor into its samples.
            graph.build_dependency(model, example_inputs=(example,), verbose=False)
    except Exception as error:  # torch-pruning walks autograd's graph and raises whatever it trips over
        raise ModelError(
            f"the model can't be traced for pruning: {type(error).__name__}: {error}",
            hint="its forward must be plain torch on one tensor, with gradients on; or leave the prune stage out",
        ) from error
    return graph


def _group(graph: Any, root: nn.Module, names: dict[nn.Module, str], generator: torch.Generator) -> list[Candidate]:
    """The channels that ``root`` writes, with all that hangs on them. Channels that reach other layers than their
    neighbours (one part of a concatenation that something is added to) make a group of their own."""
    function = graph.get_pruner_of_module(root).prune_out_channels
    size = channels(root)["out"]
    items = list(graph.get_pruning_group(root, function, list(range(size))))
    why_not = _structural_reason(graph, items, names, root) or ("it has one channel" if size == 1 else "")
    taken: dict[Place, list[list[int]]] = {}
    for item in items:
        module = item.dep.target.module
        if module not in names or not channels(module) or "out" not in channels(module):
            continue
        writes = graph.is_out_channel_pruning_fn(item.dep.handler) or "in" not in channels(module)
        place = Place(names[module], "out" if writes or _depthwise(module) else "in")
        rows = taken.setdefault(place, [[] for _ in range(size)])
        for index, unit in zip(item.idxs, item.root_idxs, strict=True):
            if index not in rows[unit]:
                rows[unit].append(index)
    if not why_not:
        half = torch.randperm(size, generator=generator)[: size // 2].tolist()
        why_not = _tied(graph, root, function, half)
    return _uniform(graph.model, taken, root, why_not)


def _tied(graph: Any, root: nn.Module, function: Any, half: list[int]) -> str:
    """Removing half of the channels must remove no others."""
    for item in graph.get_pruning_group(root, function, half):
        ours = item.dep.target.module is root and (
            graph.is_out_channel_pruning_fn(item.dep.handler) or _depthwise(root)
        )
        if ours and sorted(item.idxs) != sorted(half):
            return "its channels are tied to each other"
    return ""


def _uniform(model: nn.Module, taken: dict[Place, list[list[int]]], root: Any, why_not: str) -> list[Candidate]:
    """One candidate for each set of channels that take as many places in the same layers."""
    size = len(next(iter(taken.values())))
    shapes = [tuple(len(rows[unit]) for rows in taken.values()) for unit in range(size)]
    found = []
    for shape in dict.fromkeys(shapes):
        units = [unit for unit in range(size) if shapes[unit] == shape]
        held = {
            place: torch.tensor([rows[unit] for unit in units], dtype=torch.int64)
            for (place, rows), k in zip(taken.items(), shape, strict=True)
            if k
        }
        writers = tuple(
            place.name
            for place in held
            if place.side == "out" and isinstance(model.get_submodule(place.name), (_CONV, nn.Linear))
        )
        alike, clash = (None, "") if why_not else _alike(model, held)
        found.append(Candidate(writers, held, alike=alike, why_not=why_not or clash))
    return found


def _alike(model: nn.Module, held: dict[Place, Tensor]) -> tuple[Tensor | None, str]:
    """Which group of each grouped convolution each unit is in, as one number a unit; and why none can leave, if so.

    A grouped convolution must lose the same number of channels from each of its groups, so one unit of each kind leaves
    at a time.
    """
    seats, wanted = [], 1
    for place, rows in held.items():
        module: Any = model.get_submodule(place.name)
        if not isinstance(module, _CONV) or module.groups == 1 or _depthwise(module):
            continue
        part = places(module, place.side) // module.groups
        seats.append(rows // part)  # (units, k)
        wanted = max(wanted, module.groups)
        told = f"grouped convolution {place.name!r}"
        if len(rows) * rows.shape[1] != places(module, place.side):
            return None, f"{told} takes only a part of its channels from here, and needs as many in each group"
        if part == 1:
            return None, f"each group of {told} has one channel on this side"
    if not seats:
        return None, ""
    kinds, alike = torch.unique(torch.cat(seats, dim=1), dim=0, return_inverse=True)
    sizes = torch.bincount(alike)
    if len(set(sizes.tolist())) > 1 or len(kinds) != wanted:
        return (
            None,
            "grouped convolutions divide these channels differently: all can't lose as many from each group",
        )
    if int(sizes[0]) == 1:
        return None, "each group of its grouped convolutions has one channel"
    return alike, ""


def _structural_reason(graph: Any, items: Iterable[Any], names: dict[nn.Module, str], root: nn.Module) -> str:
    uses = Counter(id(p) for _, p in graph.model.named_parameters(remove_duplicate=False))
    for item in items:
        node, module = item.dep.target, item.dep.target.module
        if module in names:
            kind, name = type(module).__name__, names[module]
            if any(uses[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
                return f"{kind} {name!r} shares its weights with another layer"
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                return f"{kind} {name!r} takes its statistics over these channels"
            if isinstance(module, _CONV) and 1 < module.groups == module.out_channels != module.in_channels:
                return f"grouped convolution {name!r} has one output a group, made of several inputs"
            if channels(module) and not isinstance(module, RESIZABLE):
                return f"{kind} {name!r} can't lose single channels"
            if not channels(module) and list(module.parameters(recurse=False)):
                return f"{kind} {name!r} holds a parameter along these channels"
        elif isinstance(module, nn.Parameter):
            return f"parameter {graph._param_to_name[module]!r}, in no layer, runs along these channels"
        if not node.outputs and graph.is_out_channel_pruning_fn(item.dep.handler):
            return "writes the model's output"
        if _pads_channels(getattr(node, "grad_fn", None), root):
            return "a parameter-free shortcut pads these channels; removing some would move the padding"
    return ""


def _depthwise(module: Any) -> bool:
    """Each channel on its own: input, output and group leave together."""
    return isinstance(module, _CONV) and 1 < module.groups == module.in_channels == module.out_channels


def _pads_channels(grad_fn: Any, root: nn.Module) -> bool:
    """Does this autograd node pad dimension 1? torch lists pads from the last dimension backwards."""
    if not hasattr(grad_fn, "_saved_pad") or not isinstance(root, _CONV):
        return False
    at = 2 * len(root.kernel_size)
    return any(list(grad_fn._saved_pad)[at : at + 2])
