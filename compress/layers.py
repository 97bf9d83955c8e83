"""Which layer of the student learns from which of the teacher: a dry run of both nets, and what a recipe asks for.

Nets of one family share names; of others, only the sizes of their maps, so ``auto`` pairs by those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.compress.adapters import grid
from edgewise.compress.losses.base import LayerMap, Layers, Pair, Sizes
from edgewise.compress.macs import evaluating, placement, shown
from edgewise.compress.pruning.identity import Dropped
from edgewise.compress.taps import INPUT, WHERE, first_tensor, near
from edgewise.errors import ModelError
from edgewise.models.inputs import blank, dims_in_words, is_text

Shape = tuple[int, ...]
EMBEDDING = "embedding"

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Trace:
    """What one dry run shows. Shapes are without N: (C, H, W), tokens (L, D), vectors (D,).

    ``shapes``: what each layer gives, by name, in order of execution; ``inputs``: what it takes. ``overwritten``: taps
    whose tensor a later operation changes in place, so that a hook would read something else. ``stages``: the last
    block of each map size, from the largest map to the smallest, 1x1 left out; patch tokens count as their grid.
    ``classifier``: the Linear or Conv that gives the logits, where there is one. ``heads``: attention heads by module
    name. ``output``: the logits' shape. ``dropped``: where blocks were dropped, and the one before gives on.
    """

    shapes: Mapping[str, Shape]
    inputs: Mapping[str, Shape]
    overwritten: frozenset[str]
    stages: Mapping[str, tuple[int, int]]
    classifier: str | None
    heads: Mapping[str, int]
    output: Shape
    dropped: frozenset[str] = frozenset()


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Run two blank samples (2, C, H, W), or two texts of L tokens, through ``model`` in eval mode; modes, buffers and
    random state are put back.

    Raises:
        ModelError: the model can't take an input of this shape, or gives no tensor.
    """
    modules = dict(model.named_modules())
    given: dict[str, tuple[Tensor, int]] = {}
    taken: dict[str, tuple[Tensor, int]] = {}

    def enter(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _module, inputs: _record(taken, name, inputs)

    def leave(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _inputs, output: _record(given, name, output)

    place = placement(model)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[place["device"]] if place["device"].type == "cuda" else []))
        stack.enter_context(evaluating(model))
        stack.enter_context(_buffers_kept(model))
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
            stack.callback(module.register_forward_hook(leave(name)).remove)
        try:
            logits = first_tensor(model(shown(model, blank(input_shape, 2))))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"the model can't take an input of shape {dims_in_words(input_shape)}: {error}",
                hint="check the task's input shape against the model",
            ) from error
    if logits is None:
        raise ModelError("the model gives no tensor", hint="its forward pass must return logits (N, classes)")
    given.pop("", None)
    taken.pop("", None)
    changed = {name for name, (tensor, version) in given.items() if tensor._version != version}
    changed |= {name + INPUT for name, (tensor, version) in taken.items() if tensor._version != version}
    outputs = {name: tensor for name, (tensor, _) in given.items() if name not in changed}
    heads = {name: count for name, module in modules.items() if (count := _num_heads(module))}
    return Trace(
        shapes={name: tuple(tensor.shape[1:]) for name, tensor in outputs.items()},
        inputs={name: tuple(tensor.shape[1:]) for name, (tensor, _) in taken.items() if name + INPUT not in changed},
        overwritten=frozenset(changed),
        stages=(
            _last_block(modules, outputs, input_shape[0]) if is_text(input_shape) else _stages(modules, outputs, heads)
        ),
        classifier=_classifier(modules, {name: tensor for name, (tensor, _) in given.items()}, logits),
        heads=heads,
        output=tuple(logits.shape[1:]),
        dropped=frozenset(name for name, module in modules.items() if isinstance(module, Dropped)),
    )


def resolve(layers: Layers, student: Trace, teacher: Trace) -> tuple[Pair, ...]:
    """The pairs of layers that a loss compares, in order; see ``Layers`` for what can be asked for.

    Raises:
        ModelError: a layer doesn't exist, can't be tapped, or there is nothing to pair.
    """
    if isinstance(layers, LayerMap):
        return _mapped(layers, student, teacher)
    if layers == "auto":
        return _auto(student, teacher)
    if layers == "last":
        return _auto(student, teacher)[-1:]
    asked = (EMBEDDING,) if layers == EMBEDDING else layers
    if not asked:
        raise ModelError("an empty list of layers", where=WHERE, hint='name layers, or write "auto"')
    pairs = [(item, item) if isinstance(item, str) else (item.student, item.teacher) for item in asked]
    return tuple(
        Pair(student=_known(ours, student, "student"), teacher=_known(theirs, teacher, "teacher"))
        for ours, theirs in pairs
    )


def sizes(pairs: tuple[Pair, ...], student: Trace, teacher: Trace, samples: int) -> Sizes:
    """What a loss's learner is built from: the shapes of the resolved ``pairs``, the number of classes and of training
    ``samples``, and the teacher's attention heads around each of its layers."""
    heads = {pair.teacher: _heads_around(pair.teacher, teacher) for pair in pairs}
    return Sizes(
        student=tuple(_shape(pair.student, student) for pair in pairs),
        teacher=tuple(_shape(pair.teacher, teacher) for pair in pairs),
        classes=student.output[-1],
        samples=samples,
        heads={name: count for name, count in heads.items() if count is not None},
    )


def uniform(count: int, of: int) -> tuple[int, ...]:
    """g(m) = m N / M to the nearest for m = 1..M (halves up), counted from 0, where M is the student's ``count`` and N
    the teacher's ``of``. Equal depths give the identity; a deeper student gets repeats."""
    return tuple(max(1, (2 * m * of + count) // (2 * count)) - 1 for m in range(1, count + 1))


def chosen(map: str, count: int, of: int) -> tuple[int, ...]:
    """The teacher's layers, counted from 0, for the student's ``count`` layers: ``uniform``, the ``last`` or the
    ``first``.

    Raises:
        ModelError: the last or first M of fewer than M.
    """
    if map == "uniform":
        return uniform(count, of)
    if count > of:
        raise ModelError(
            f"the {map} {count} of {of}: the student has more layers than the teacher", where=WHERE, hint="map: uniform"
        )
    start = of - count if map == "last" else 0
    return tuple(range(start, start + count))


def _record(kept: dict[str, tuple[Tensor, int]], name: str, value: object) -> None:
    """Keep a batch-first tensor of 2 to 4 dimensions; a later call of the same module takes the earlier one's place."""
    kept.pop(name, None)
    tensor = first_tensor(value)
    if tensor is not None and 2 <= tensor.dim() <= 4 and len(tensor) == 2 and tensor.is_floating_point():
        kept[name] = (tensor, tensor._version)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Observers of a quantized net keep statistics in evaluation mode too: zeros must not become part of them."""
    kept = {
        module: {name: (buffer, buffer.clone()) for name, buffer in module._buffers.items() if buffer is not None}
        for module in model.modules()
    }
    try:
        yield
    finally:
        for module, buffers in kept.items():
            for name, (buffer, before) in buffers.items():
                same = module._buffers.get(name) is buffer and buffer.shape == before.shape
                module._buffers[name] = buffer.copy_(before) if same else before


def _num_heads(module: nn.Module) -> int | None:
    count = getattr(module, "num_heads", getattr(module, "num_attention_heads", None))
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def _map_size(shape: Shape) -> tuple[int, int] | None:
    """(H, W) of a map (C, H, W), or of the square grid of tokens (L, D); None for anything else."""
    if len(shape) == 3:
        return shape[1], shape[2]
    if len(shape) != 2:
        return None
    try:
        side, _ = grid(shape[0])
    except ModelError:
        return None
    return side, side


def _stages(
    modules: Mapping[str, nn.Module], outputs: Mapping[str, Tensor], heads: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """The last block of each map size, by its outermost name.

    A block is a module with two or more weight layers that is no plain sequence: not the expansion that opens the next
    block of a MobileNet at the old size, nor its widening last 1x1 convolution, nor the norm behind a transformer.
    Without one of a size, a sequence of such layers counts; where fewer than two sizes are so found (VGG), any layer.
    """
    # What leaves several modules as one tensor is one candidate: the best rank among them, the outermost name.
    ranks: dict[int, tuple[int, str, Tensor]] = {}
    for name, tensor in outputs.items():
        # Attention weights (heads, L, L) look like maps.
        if any(name.startswith(f"{attention}.") for attention in heads):
            continue
        rank = _rank(modules[name])
        earlier = ranks.pop(id(tensor), (0, name, tensor))
        ranks[id(tensor)] = (max(rank, earlier[0]), min(name, earlier[1], key=lambda name: name.count(".")), tensor)
    best: dict[tuple[int, int], tuple[int, str]] = {}
    for rank, name, tensor in ranks.values():
        size = _map_size(tuple(tensor.shape[1:]))
        if size is not None and prod(size) > 1 and rank >= best.get(size, (0, ""))[0]:
            best[size] = (rank, name)
    blocks = {size: (rank, name) for size, (rank, name) in best.items() if rank > 1}
    found = blocks if len(blocks) > 1 else best
    return {found[size][1]: size for size in sorted(found, key=prod, reverse=True)}


def _last_block(
    modules: Mapping[str, nn.Module], outputs: Mapping[str, Tensor], length: int
) -> dict[str, tuple[int, int]]:
    """Of a net for texts, the last block that gives a vector a token, which counts as a map of one row."""
    tokens = [name for name, tensor in outputs.items() if tensor.dim() == 3 and tensor.shape[1] == length]
    blocks = [name for name in tokens if _rank(modules[name]) == 3]
    return {blocks[-1]: (1, length)} if blocks else {}


def _rank(module: nn.Module) -> int:
    weighted = sum(any(p.dim() > 1 for p in inner.parameters(recurse=False)) for inner in module.modules())
    if weighted < 2:
        return 1
    return 2 if isinstance(module, nn.Sequential) else 3


def _classifier(modules: Mapping[str, nn.Module], outputs: Mapping[str, Tensor], logits: Tensor) -> str | None:
    """The last weight layer that gives as many numbers as there are logits; rather one that gives these very logits."""
    fitting = {
        name: tensor
        for name, tensor in outputs.items()
        if isinstance(modules[name], _WEIGHTED) and tensor.numel() == logits.numel()
    }
    very = [name for name, tensor in fitting.items() if tensor.data_ptr() == logits.data_ptr()]
    return next(iter([*reversed(very), *reversed(fitting)]), None)


def _auto(student: Trace, teacher: Trace) -> tuple[Pair, ...]:
    for who, net in (("student", student), ("teacher", teacher)):
        if not net.stages:
            raise ModelError(
                f"no layer of the {who} gives a map or a grid of tokens larger than 1x1",
                where=WHERE,
                hint='name the layers, or write "embedding" for what goes into the classifier',
            )
    ours = {size: name for name, size in student.stages.items()}
    theirs = {size: name for name, size in teacher.stages.items()}
    common = [size for size in ours if size in theirs]
    if common:
        return tuple(Pair(student=ours[size], teacher=theirs[size]) for size in common)
    # No size in common: stage by stage from the deep end, where both nets know most about classes.
    count = min(len(ours), len(theirs))
    names = zip(list(student.stages)[-count:], list(teacher.stages)[-count:], strict=True)
    return tuple(Pair(student=one, teacher=other) for one, other in names)


def _mapped(layers: LayerMap, student: Trace, teacher: Trace) -> tuple[Pair, ...]:
    ours = _matching(layers.student, student, "student")
    theirs = _matching(layers.teacher, teacher, "teacher")
    places = chosen(layers.map, len(ours), len(theirs))
    return tuple(Pair(student=name, teacher=theirs[place]) for name, place in zip(ours, places, strict=True))


def _matching(pattern: str, net: Trace, who: str) -> list[str]:
    """The layers that ``pattern`` names, in order of execution; a dropped block is none."""
    if "*" not in pattern:
        raise ModelError(
            f"the {who}'s pattern {pattern!r} has no * in it", where=WHERE, hint="write a name such as blocks.*"
        )
    bare = pattern.removesuffix(INPUT)
    number = re.compile(r"\d+".join(re.escape(part) for part in bare.split("*")))
    suffix = pattern[len(bare) :]
    taps = net.inputs if suffix else net.shapes
    found = [name + suffix for name in taps if number.fullmatch(name) and name not in net.dropped]
    if not found:
        known = dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in net.shapes if re.search(r"\b\d+\b", name))
        raise ModelError(f"no layer of the {who} is called {pattern!r}", where=WHERE, hint=near(pattern, known))
    return found


def _known(name: str, net: Trace, who: str) -> str:
    """``name``, checked; a module that is really called "embedding" goes before the word's meaning."""
    if name == EMBEDDING and name not in net.shapes:
        if net.classifier is None:
            raise ModelError(
                f"no Linear or Conv gives the {who}'s logits, so there is no embedding before it",
                where=WHERE,
                hint="name the layer; name:input is what goes into one",
            )
        name = net.classifier + INPUT
    if name in net.overwritten:
        raise ModelError(
            f"the {who}'s {name!r} is changed in place by a later operation, so it can't be read",
            where=WHERE,
            hint="tap the layer behind it, or build the model without inplace=True",
        )
    bare = name.removesuffix(INPUT)
    if bare not in (net.inputs if name.endswith(INPUT) else net.shapes):
        raise ModelError(
            f"the {who} has no layer {name!r} that gives a tensor with the batch first",
            where=WHERE,
            hint=near(name, net.shapes),
        )
    return name


def _shape(name: str, net: Trace) -> Shape:
    return net.inputs[name.removesuffix(INPUT)] if name.endswith(INPUT) else net.shapes[name]


def _heads_around(name: str, net: Trace) -> int | None:
    """Heads of the module itself, of the nearest one around it, or of all those inside it where they agree."""
    bare = name.removesuffix(INPUT)
    around = [module for module in net.heads if bare == module or bare.startswith(f"{module}.")]
    if around:
        return net.heads[max(around, key=len)]
    inside = {count for module, count in net.heads.items() if module.startswith(f"{bare}.")}
    return inside.pop() if len(inside) == 1 else None
