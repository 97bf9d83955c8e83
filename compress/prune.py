"""Structured pruning: whole channels leave a model, and what is left is an ordinary, smaller model.

Which channels hang together comes from torch-pruning's dependency graph (DepGraph, arXiv 2301.12900), their score from
its group magnitude (sums of |w| or w² over every weight that would leave, divided by the group's mean). Two things are
ours:

- A group is only touched if removing its channels gives the same outputs as setting them to zero. This is *tried*, with
  random weights and random channels, so a layer whose forward does what no graph shows (a fixed reshape into heads, a
  shortcut that pads channels, a norm over channels) is found by what happens, not by the name of its family.
- Channels leave in chunks that keep every count at a multiple of ``round_to``; the chunks of all layers are put in one
  order, and the shortest beginning of it that reaches the target is taken.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from edgewise.compress.config import Prune
from edgewise.compress.macs import Cost, count, evaluating, placement
from edgewise.compress.resize import RESIZABLE, Plan, channels, difference, survey
from edgewise.errors import ModelError


@dataclass(frozen=True)
class Pruned:
    """What pruning did. ``plan`` has the new channel counts of every layer that changed, ``skipped`` the reason for
    every Conv and Linear layer whose outputs were not considered; MACs are of one sample."""

    plan: Plan
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    skipped: dict[str, str]


@dataclass(frozen=True)
class _Cut:
    """Channels to remove on one side of one layer. ``remove`` is torch-pruning's function for that side."""

    name: str
    side: str
    remove: Callable[[nn.Module, list[int]], Any]
    index: tuple[int, ...]


@dataclass(frozen=True)
class _Group:
    """Layers whose channels leave together. ``scores`` has one value a channel of the first; ``reach`` says how many
    places on each side of each layer one such channel takes."""

    writers: tuple[str, ...]
    scores: Tensor
    cuts: Callable[[Sequence[int]], list[_Cut]]
    reach: dict[tuple[str, str], int]

    @property
    def size(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class _Step:
    """Take group ``group`` down to ``keep`` channels. Steps are sorted by ``key``."""

    key: tuple[float, ...]
    group: int
    keep: int


def prune(model: nn.Module, config: Prune, input_shape: tuple[int, ...], *, round_to: int, seed: int) -> Pruned:
    """Remove channels from ``model`` in place until it has at most ``config.macs_ratio`` of its MACs.

    Channel counts stay multiples of ``round_to`` wherever they change, no layer loses more than
    ``config.max_layer_ratio`` of its channels, and the model's inputs and outputs keep their shape. Nothing is trained.
    ``round_to`` is ``config.round_to``, or the target's own where the recipe is silent. ``model`` is left untouched
    when an error is raised.

    Raises:
        ModelError: the model can't be traced, nothing in it can be pruned, or the ratio is out of reach.
    """
    before = count(model, input_shape)
    if before.macs == 0:
        raise ModelError("the model has no convolution or linear layer to prune", hint="leave the prune stage out")
    groups, skipped = _groups(model, config, input_shape, seed)
    groups, small = _large_enough(groups, config, round_to)
    skipped |= small
    steps = sorted(
        (step for i, group in enumerate(groups) for step in _steps(i, group, config, round_to)), key=lambda s: s.key
    )
    target = config.macs_ratio * before.macs
    counts = survey(model)
    chosen = _search(steps, lambda some: _macs(before, counts, groups, some), target)
    cuts = _cuts(groups, chosen)
    smaller = copy.deepcopy(model)
    _remove(smaller, cuts)
    after = count(smaller, input_shape)
    if after.macs > target:
        raise _out_of_reach(config, round_to, before, after, groups, skipped)
    _check(model, cuts, input_shape, seed)
    _remove(model, cuts)
    return Pruned(
        plan=difference(counts, model),
        macs_before=before.macs,
        macs_after=after.macs,
        params_before=before.params,
        params_after=after.params,
        skipped=dict(sorted(skipped.items())),
    )


# --- which channels hang together -----------------------------------------------------------------------------------


def _groups(
    model: nn.Module, config: Prune, input_shape: tuple[int, ...], seed: int
) -> tuple[list[_Group], dict[str, str]]:
    """All groups that can be pruned, and a reason for every Conv and Linear layer in none of them."""
    traced = copy.deepcopy(model)
    graph = _trace(traced, input_shape)
    names = {module: name for name, module in traced.named_modules()}
    generator = torch.Generator().manual_seed(seed)
    skipped: dict[str, str] = {}
    candidates: list[_Group] = []
    seen: set[str] = set()
    for name, module in traced.named_modules():
        if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) or name in seen:
            continue
        if module not in graph.module2node:
            skipped[name] = "not reached when the model was traced"
            continue
        try:
            writers, found = _group(graph, module, names, config, generator)
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, AssertionError) as error:
            writers, found = (name,), f"torch-pruning can't follow its channels ({error})"
        seen.update(writers)
        if isinstance(found, str):
            skipped.update(dict.fromkeys(writers, found))
        else:
            candidates.append(found)
    return _sound(model, candidates, input_shape, seed, skipped), skipped


def _trace(model: nn.Module, input_shape: tuple[int, ...]) -> Any:
    model.requires_grad_(True)
    example = torch.zeros(1, *input_shape, **placement(model))
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


def _group(
    graph: Any, root: nn.Module, names: dict[nn.Module, str], config: Prune, generator: torch.Generator
) -> tuple[tuple[str, ...], _Group | str]:
    """The layers that write the same channels as ``root``, and their group or the reason why there is none."""
    function = graph.get_pruner_of_module(root).prune_out_channels
    size = channels(root)["out"]

    def cuts(index: Sequence[int]) -> list[_Cut]:
        found = []
        for item in graph.get_pruning_group(root, function, list(index)):
            target, handler = item.dep.target.module, item.dep.handler
            if target in names:
                side = "out" if graph.is_out_channel_pruning_fn(handler) else "in"
                found.append(_Cut(names[target], side, handler, tuple(sorted(item.idxs))))
        return found

    items = graph.get_pruning_group(root, function, list(range(size)))
    found = {
        names[item.dep.target.module]: None
        for item in items
        if isinstance(item.dep.target.module, (nn.modules.conv._ConvNd, nn.Linear))
        and graph.is_out_channel_pruning_fn(item.dep.handler)
    }
    writers = tuple(found)
    if reason := _structural_reason(graph, items, names, root):
        return writers, reason
    if size == 1:
        return writers, "it has one channel"
    half = torch.randperm(size, generator=generator)[: size // 2].tolist()
    if any(cut.index != tuple(sorted(half)) for cut in cuts(half) if cut.name == names[root] and cut.side == "out"):
        return writers, "its channels are tied to each other"
    scores = _scores(items, size, config, generator)
    if scores is None or len(scores) != size or not torch.isfinite(scores).all():
        return writers, "its channels can't be scored: are its weights finite?"
    reach = {(cut.name, cut.side): len(cut.index) // size for cut in _merge([cuts(range(size))])}
    return writers, _Group(writers, scores, cuts, reach)


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
            if isinstance(module, nn.modules.conv._ConvNd) and module.groups not in (1, module.in_channels):
                return f"grouped convolution {name!r} needs the same number of channels in each group"
            if isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups != module.out_channels:
                return f"depthwise convolution {name!r} makes several channels of one"
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


def _pads_channels(grad_fn: Any, root: nn.Module) -> bool:
    """Does this autograd node pad dimension 1? torch lists pads from the last dimension backwards."""
    if not hasattr(grad_fn, "_saved_pad") or not isinstance(root, nn.modules.conv._ConvNd):
        return False
    at = 2 * len(root.kernel_size)
    return any(list(grad_fn._saved_pad)[at : at + 2])


def _scores(items: Any, size: int, config: Prune, generator: torch.Generator) -> Tensor | None:
    if config.criterion == "random":
        return torch.rand(size, generator=generator)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p={"l1": 1, "l2": 2}[config.criterion])
    scores: Tensor | None = importance(items)
    return None if scores is None else scores.float().cpu()


# --- is removing the same as zeroing? -------------------------------------------------------------------------------


def _sound(
    model: nn.Module, groups: list[_Group], input_shape: tuple[int, ...], seed: int, skipped: dict[str, str]
) -> list[_Group]:
    """Keep the groups for which removing random channels equals zeroing them; note the others in ``skipped``.

    All at once first, then halves: a model without trouble costs two forward passes.
    """
    if not groups:
        return []
    generator = torch.Generator().manual_seed(seed)
    probe = _randomized(model, generator)

    def keep(groups: list[_Group], halves: list[list[int]]) -> list[_Group]:
        cuts = _merge(group.cuts(half) for group, half in zip(groups, halves, strict=True))
        wrong = _difference(probe, cuts, input_shape)
        if not wrong:
            return groups
        if len(groups) == 1:
            skipped.update(dict.fromkeys(groups[0].writers, wrong))
            return []
        middle = len(groups) // 2
        return keep(groups[:middle], halves[:middle]) + keep(groups[middle:], halves[middle:])

    for _ in range(2):  # a second draw, for few channels may fall into place by accident
        halves = [torch.randperm(g.size, generator=generator)[: g.size // 2].tolist() for g in groups]
        groups = keep(groups, halves) if groups else []
    return groups


def _randomized(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with random weights: a branch that trained or started at zero would hide a mistake."""
    probe = copy.deepcopy(model)
    for name, tensor in [*probe.named_parameters(), *probe.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if tensor.dim() >= 2:
            random = torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5
        else:  # scales and variances near one, biases and means near zero
            shift = 0.0 if name.endswith(("bias", "mean")) else 1.0
            random = torch.rand(tensor.shape, generator=generator) - 0.5 + shift
        tensor.data.copy_(random)
    return probe


def _difference(model: nn.Module, cuts: list[_Cut], input_shape: tuple[int, ...]) -> str:
    """Empty if ``model`` with the cuts removed computes what it computes with them zeroed, else what happened."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, *input_shape, generator=generator).to(**placement(model))
    zeroed, removed = copy.deepcopy(model), copy.deepcopy(model)
    _zero(zeroed, cuts)
    try:
        _remove(removed, cuts)
        expected, got = _run(zeroed, inputs), _run(removed, inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        return f"its channel count is fixed in forward: {str(error).splitlines()[0]}"
    if expected.shape != got.shape:
        return "writes the model's output"
    largest = float((expected - got).abs().max())
    if not largest <= 1e-3 * float(expected.abs().max()):  # NaN too
        return "removing its channels is not the same as zeroing them: forward mixes or counts channels"
    return ""


def _run(model: nn.Module, inputs: Tensor) -> Tensor:
    with evaluating(model):
        output = model(inputs)
    if not isinstance(output, Tensor):
        raise TypeError(f"the model returns {type(output).__name__}, not one tensor")
    return output


def _check(model: nn.Module, cuts: list[_Cut], input_shape: tuple[int, ...], seed: int) -> None:
    wrong = _difference(model, cuts, input_shape) or _difference(
        _randomized(model, torch.Generator().manual_seed(seed)), cuts, input_shape
    )
    if wrong:
        raise ModelError(
            f"the pruned model doesn't compute what the channels it keeps computed before: {wrong}",
            hint="check that the model's own weights are finite, or leave the prune stage out",
        )


def _merge(found: Iterable[list[_Cut]]) -> list[_Cut]:
    """One cut for each side of each layer: groups that meet in one layer (a concatenation) are put together."""
    merged: dict[tuple[str, str], _Cut] = {}
    for cuts in found:
        for cut in cuts:
            old = merged.get((cut.name, cut.side))
            index = tuple(sorted({*cut.index, *(old.index if old else ())}))
            merged[cut.name, cut.side] = _Cut(cut.name, cut.side, cut.remove, index)
    return list(merged.values())


def _remove(model: nn.Module, cuts: Iterable[_Cut]) -> None:
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for cut in cuts:
        cut.remove(model.get_submodule(cut.name), list(cut.index))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])


@torch.no_grad()
def _zero(model: nn.Module, cuts: Iterable[_Cut]) -> None:
    for cut in cuts:
        module, index = model.get_submodule(cut.name), list(cut.index)
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        # Rows are outputs, columns inputs; a transposed convolution has it the other way round.
        columns = (cut.side == "in") != getattr(module, "transposed", False)
        if weight is not None:
            weight[(slice(None), index) if columns and weight.dim() > 1 else index] = 0
        if bias is not None and cut.side == "out":
            bias[index] = 0


# --- how many channels go -------------------------------------------------------------------------------------------


def _smallest(size: int, config: Prune, round_to: int) -> int:
    """The fewest channels a group of ``size`` may keep: a multiple of ``round_to``, or ``size`` itself."""
    allowed = size - int(config.max_layer_ratio * size + 1e-9)
    return min(size, -(-max(allowed, 1) // round_to) * round_to)


def _large_enough(groups: list[_Group], config: Prune, round_to: int) -> tuple[list[_Group], dict[str, str]]:
    kept, skipped = [], {}
    for group in groups:
        if _smallest(group.size, config, round_to) < group.size:
            kept.append(group)
        else:
            limits = f"within max_layer_ratio {config.max_layer_ratio:g}"
            reason = f"{group.size} channels: no smaller multiple of {round_to} {limits}"
            skipped.update(dict.fromkeys(group.writers, reason))
    return kept, skipped


def _steps(number: int, group: _Group, config: Prune, round_to: int) -> list[_Step]:
    """The chunks of one group, least important first. ``key`` orders them among those of all groups: by the mean
    score of the channels that leave, or, in the uniform scope, by the part of the layer that is gone afterwards."""
    ordered = group.scores.sort().values
    smallest = _smallest(group.size, config, round_to)
    steps, size = [], group.size
    while size > smallest:
        keep = (size - 1) // round_to * round_to
        score = float(ordered[group.size - size : group.size - keep].mean())
        gone = 1 - keep / group.size
        key = (score, number, gone) if config.scope == "global" else (gone, score, number)
        steps.append(_Step(key, number, keep))
        size = keep
    return steps


def _kept(groups: list[_Group], steps: Iterable[_Step]) -> list[int]:
    """Channels left in each group after these steps."""
    kept = [group.size for group in groups]
    for step in steps:
        kept[step.group] = min(kept[step.group], step.keep)
    return kept


def _cuts(groups: list[_Group], steps: Iterable[_Step]) -> list[_Cut]:
    found = []
    for group, size in zip(groups, _kept(groups, steps), strict=True):
        if size < group.size:
            order = torch.argsort(group.scores, stable=True)
            found.append(group.cuts(sorted(order[: group.size - size].tolist())))
    return _merge(found)


def _macs(before: Cost, counts: dict[str, dict[str, int]], groups: list[_Group], steps: Iterable[_Step]) -> int:
    """The MACs after these steps, without doing them: a layer's are in proportion to its inputs times its outputs."""
    gone: dict[tuple[str, str], int] = defaultdict(int)
    for group, size in zip(groups, _kept(groups, steps), strict=True):
        for place, reach in group.reach.items():
            gone[place] += (group.size - size) * reach
    total = 0
    for name, layer in before.layers.items():
        old = counts.get(name)
        if old is None or "in" not in old:
            total += layer.macs
        elif old.get("groups", 1) > 1:  # depthwise: each channel on its own
            total += layer.macs * (old["out"] - gone[name, "out"]) // old["out"]
        else:
            left = (old["out"] - gone[name, "out"]) * (old["in"] - gone[name, "in"])
            total += layer.macs * left // (old["out"] * old["in"])
    return total


def _search(steps: list[_Step], macs: Callable[[list[_Step]], int], target: float) -> list[_Step]:
    """The shortest beginning of ``steps`` that brings the MACs to ``target`` or below, less the steps that turn out
    not to be needed, the most important first. All steps, if they don't reach it."""
    low, high = 0, len(steps)
    if macs(steps) > target:
        return steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if macs(steps[:middle]) <= target else (middle, high)
    chosen = steps[:high]
    last = {step.group: step for step in chosen}  # only a group's last step can be taken back
    for step in sorted(last.values(), key=lambda s: s.key, reverse=True):
        fewer = [other for other in chosen if other is not step]
        if macs(fewer) <= target:
            chosen = fewer
    return chosen


def _out_of_reach(
    config: Prune,
    round_to: int,
    before: Cost,
    after: Cost,
    groups: list[_Group],
    skipped: dict[str, str],
) -> ModelError:
    if not groups:
        reasons = "; ".join(dict.fromkeys(skipped.values()))
        return ModelError(f"no layer of the model can lose channels: {reasons}", hint="leave the prune stage out")
    reached = after.macs / before.macs
    by_round = sum(_smallest(group.size, config, round_to) == round_to for group in groups)
    fixed = sum(after.layers[name].macs for name in skipped if name in after.layers) / before.macs
    some = ", ".join(list(skipped)[:4]) + (", …" if len(skipped) > 4 else "")
    return ModelError(
        f"macs_ratio {config.macs_ratio:g} is out of reach: the smallest is {reached:.4f}. Of {len(groups)} groups of "
        f"layers, {by_round} stop at round_to ({round_to} channels) and {len(groups) - by_round} at max_layer_ratio "
        f"({config.max_layer_ratio:g}); layers whose outputs can't lose channels keep {fixed:.1%} of the MACs ({some})",
        hint=f"ask for {reached + 0.0001:.4f} or more, raise max_layer_ratio, or lower round_to",
    )
