"""Cross-layer equalization, arXiv 1906.04721 §4.1: neighbouring layers share out their scales before they are rounded.

    W1' = W1 / s,  b1' = b1 / s,  W2' = W2 · s,   s_i = sqrt(r1_i · r2_i) / r2_i

with r the largest magnitude of channel i on either side, so that both have the same afterwards. The answers stay: what
lies between must be positively homogeneous, f(s·x) = s·f(x) for s > 0, which ReLU is and ReLU6 is not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgewise.compress.fold import CONVOLUTIONS
from edgewise.compress.macs import evaluating, shown
from edgewise.errors import ModelError
from edgewise.models.inputs import blank, dims_in_words

LAYERS: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear)
ELEMENTWISE = frozenset({"relu", "relu_", "leaky_relu", "leaky_relu_", "clone", "alias", "detach"})
# Of each channel of (N, C, ...) by itself.
PER_CHANNEL = frozenset(
    {"max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "mean.dim"}
)
RESHAPING = frozenset({"view", "_unsafe_view", "reshape", "flatten", "squeeze"})
ROUNDS = 20
SETTLED = 1e-3  # the largest change of a scale in the last round


@dataclass(frozen=True)
class Equalized:
    """What was evened out, and what not, with the reason: ``features.0 -> features.3: hardtanh``."""

    pairs: tuple[tuple[str, str], ...]
    skipped: tuple[str, ...]


@dataclass
class _Trace(TorchDispatchMode):
    """Which operation read which tensor. Every result gets a number of its own, also one made in place."""

    numbers: dict[int, int] = field(default_factory=dict)
    reads: dict[int, list[tuple[str, Any, tuple[int, ...]]]] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def number(self, tensor: Tensor) -> int:
        """Of the value that ``tensor`` has now."""
        if id(tensor) not in self.numbers:
            self.kept.append(tensor)
            self.numbers[id(tensor)] = len(self.kept)
        return self.numbers[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        read = [self.number(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        shape = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
        out = func(*args, **(kwargs or {}))
        made = []
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.kept.append(leaf)
                self.numbers[id(leaf)] = len(self.kept)
                made.append(leaf)
        name = func.__name__.removesuffix(".default")
        first = self.numbers[id(made[0])] if made else 0
        kind = _kind(name, args, shape, tuple(made[0].shape) if made else ())
        for number in read:
            self.reads.setdefault(number, []).append((kind, name, (first,)))
        return out


def _kind(name: str, args: tuple[Any, ...], before: tuple[int, ...], after: tuple[int, ...]) -> str:
    if name in ELEMENTWISE:
        return "elementwise"
    if name in PER_CHANNEL:
        spatial = name != "mean.dim" or (len(before) == 4 and {axis % 4 for axis in args[1]} <= {2, 3})
        return "per channel" if spatial else "other"
    # (N, C, 1, 1) -> (N, C)
    plain = len(before) == 4 and before[2:] == (1, 1) and after == before[:2]
    return "per channel" if name.split(".")[0] in RESHAPING and plain else "other"


def equalize(model: nn.Module, input_shape: tuple[int, ...]) -> Equalized:
    """Even out every pair of layers that allows it, in place; pairs that share a layer until all of them settle.

    A pair is two convolutions or linear layers where the second alone reads what the first gives, with nothing between
    but ReLU, LeakyReLU and pooling; found by one run on zeros of shape (1, *input_shape). Fold BatchNorm first.

    Returns:
        The pairs, and those that were skipped.
    """
    pairs, skipped = find_pairs(model, input_shape)
    for _ in range(ROUNDS if pairs else 0):
        if max(_even_out(first, second) for _, first, _, second in pairs) < SETTLED:
            break
    return Equalized(tuple((a, b) for a, _, b, _ in pairs), tuple(skipped))


def find_pairs(
    model: nn.Module, input_shape: tuple[int, ...]
) -> tuple[list[tuple[str, nn.Module, str, nn.Module]], list[str]]:
    """(name, layer, name of the next, next layer) of what can be evened out, and why the other neighbours can't.

    Raises:
        ModelError: the model can't take an input of this shape.
    """
    names = {module: name for name, module in model.named_modules() if type(module) in LAYERS}
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    calls: Counter[nn.Module] = Counter()
    made: dict[nn.Module, int] = {}
    read: dict[int, list[nn.Module]] = {}
    ranks: dict[nn.Module, int] = {}
    taken: dict[nn.Module, int] = {}
    trace = _Trace()

    def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        taken[module] = args[0].ndim
        read.setdefault(trace.number(args[0]), []).append(module)

    def leave(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        made[module], ranks[module] = trace.number(output), output.ndim

    handles = [module.register_forward_pre_hook(enter) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    try:
        with evaluating(model), trace:
            model(shown(model, blank(input_shape, 1)))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"the model can't take an input of shape {dims_in_words(input_shape)}: {error}", where="equalize"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    pairs, skipped = [], []
    for module, output in made.items():
        following, why = _follow(trace, read, output, channels_last=isinstance(module, nn.Linear) and ranks[module] > 2)
        if following is None:
            if why:
                skipped.append(f"{names[module]}: {why}")
            continue
        plain = all(
            calls[m] == 1 and all(uses[id(p)] == 1 for p in m.parameters()) and not hasattr(m, "parametrizations")
            for m in (module, following)
        )
        # A linear layer reads the last axis, a convolution writes axis 1: the same one only of (N, C).
        turned = isinstance(module, nn.Linear) != isinstance(following, nn.Linear) and taken[following] != 2
        if plain and not turned and _outputs(module) == _inputs(following):
            pairs.append((names[module], module, names[following], following))
        else:
            skipped.append(f"{names[module]} -> {names[following]}: a layer or weight that is used twice, or reshaped")
    return pairs, skipped


def _follow(
    trace: _Trace, read: dict[int, list[nn.Module]], number: int, channels_last: bool
) -> tuple[nn.Module | None, str]:
    """The layer that alone reads tensor ``number``, through what lets a scale pass; or None and what is in the way."""
    while True:
        layers, readers = read.get(number, []), trace.reads.get(number, [])
        if layers:
            # A linear layer turns and reshapes its input by itself: its own first operation is its only reader.
            return (layers[0], "") if len(layers) == 1 and len(readers) <= 1 else (None, "read by several layers")
        if len(readers) != 1:
            return None, "read by several operations" if readers else ""
        kind, name, (made,) = readers[0]
        if kind == "other" or (channels_last and kind == "per channel"):
            return None, f"{name.split('.')[0]} lets no scale pass"
        number = made


def _outputs(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _inputs(layer: Any) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def _by_input(layer: Any) -> Tensor:
    """The weights (in, out / groups, taps) as a view by input channel: of group g, those outputs that read it."""
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.detach()
    flat = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    by_input: Tensor = flat.transpose(1, 2).reshape(groups * weight.shape[1], weight.shape[0] // groups, -1)
    return by_input


@torch.no_grad()
def _even_out(first: Any, second: Any) -> float:
    """One pair; the largest relative change of a scale."""
    ours = first.weight.detach().flatten(1).abs().amax(1).double()
    theirs = _by_input(second).flatten(1).abs().amax(1).double()
    alive = (ours > 0) & (theirs > 0)
    scale = torch.where(alive, torch.sqrt(ours / theirs), torch.ones_like(ours))
    shape = [-1, *[1] * (first.weight.ndim - 1)]
    first.weight.copy_((first.weight.double() / scale.reshape(shape)).to(first.weight.dtype))
    if first.bias is not None:
        first.bias.copy_((first.bias.double() / scale).to(first.bias.dtype))
    groups = getattr(second, "groups", 1)
    weight = second.weight
    wide = scale.reshape(groups, 1, weight.shape[1]).expand(groups, weight.shape[0] // groups, weight.shape[1])
    wide = wide.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.ndim - 2))
    weight.copy_((weight.double() * wide).to(weight.dtype))
    return float((scale.log().abs()).max())


__all__ = ["Equalized", "equalize", "find_pairs"]
