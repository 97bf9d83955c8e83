"""Switch single fake quantizers of a model off and on again, by the layers that read what they give.

Which quantizer serves which layer is not read from names: one forward pass follows each quantizer's output, through
operators that only move values, to the modules that compute with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgewise.compress.macs import evaluating, shown
from edgewise.compress.quantization.float_layers import weighted_layers
from edgewise.compress.quantization.insert import Whole, quantizers
from edgewise.compress.quantization.places import HOOKS, switched_off
from edgewise.models.inputs import blank

# Operators of torch that pick, place and copy values: what they give is as quantized as what they take.
MOVERS = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze"),
        *("squeeze", "clone", "contiguous", "_to_copy", "to", "cat", "stack", "constant_pad_nd", "split", "unbind"),
        *("split_with_sizes", "chunk", "alias", "detach", "index", "index_select", "gather", "as_strided", "flatten"),
        *("max_pool1d", "max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices", "roll", "flip"),
        *("pixel_shuffle", "channel_shuffle", "narrow", "unfold", "repeat", "upsample_nearest2d"),
    )
)


@dataclass(frozen=True)
class Switches:
    """The quantizers of a model and who computes with what they give.

    Args:
        model: with quantizers.
        layers: {name: multiply-accumulates of one sample} of the layers with weights, in order of execution.
        readers: for each quantizer the names of the modules that compute with its output: layers, and others, such as
            the block that adds a shortcut.
    """

    model: nn.Module
    layers: dict[str, int]
    readers: dict[nn.Module, frozenset[str]]

    def in_float(self) -> tuple[str, ...]:
        """The layers without a quantizer of their own, in order of execution."""
        quantized = frozenset[str]().union(*self.readers.values())
        return tuple(layer for layer in self.layers if layer not in quantized)

    def of(self, layer: str) -> list[nn.Module]:
        """The quantizers of a layer's weight and of its inputs."""
        return [quantizer for quantizer, names in self.readers.items() if layer in names]

    @contextmanager
    def only(self, layers: Collection[str]) -> Iterator[None]:
        """Quantize nothing but these layers: their weights and what they read."""
        off = [quantizer for quantizer, names in self.readers.items() if not names & set(layers)]
        with switched_off(off):
            yield

    @contextmanager
    def without(self, layers: Collection[str]) -> Iterator[None]:
        """Quantize all but these layers. A tensor that others read too stays quantized."""
        off = [quantizer for quantizer, names in self.readers.items() if names and names <= set(layers)]
        with switched_off(off):
            yield


def find_switches(model: nn.Module, input_shape: tuple[int, ...]) -> Switches:
    """Follow every quantizer's output through one run on a blank sample; the model stays as it is.

    Raises:
        ModelError: the model has no quantizers, or can't take such an input.
    """
    found = list(dict.fromkeys(quantizers(model).values()))
    around = "net." if isinstance(model, Whole) else ""
    names = {module: name.removeprefix(around) for name, module in model.named_modules() if not name.startswith(HOOKS)}
    follow = _Follow(found, names)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for handle in follow.watch():
            stack.callback(handle.remove)
        stack.enter_context(follow)
        model(shown(model, blank(input_shape, 1)))
    layers = {name.removeprefix(around): macs for name, macs in weighted_layers(model, input_shape).items()}
    return Switches(model, layers, {q: frozenset(follow.readers[q]) for q in found})


class _Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which module computes with which quantizer's output; keeps the tensors, so that no ``id`` is used twice."""

    def __init__(self, found: list[nn.Module], names: dict[nn.Module, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found, self.names = found, names
        self.running: list[str | None] = [""]
        self.sources: dict[int, frozenset[nn.Module]] = {}
        self.kept: list[Tensor] = []
        self.readers: dict[nn.Module, set[str]] = defaultdict(set)

    def watch(self) -> Iterator[Any]:
        """Hooks that tell which module runs and what quantizers give."""

        def enter(module: nn.Module, args: Any) -> None:
            self.running.append(self.names.get(module))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.running.pop()

        def mark(module: nn.Module, args: Any, output: Tensor) -> None:
            self.sources[id(output)] = frozenset((module,))
            self.kept.append(output)

        for quantizer in self.found:
            yield quantizer.register_forward_hook(mark)
        for module in (*self.names, *self.found):
            yield module.register_forward_pre_hook(enter)
            yield module.register_forward_hook(leave, always_call=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        where = self.running[-1]
        if where is None:  # inside a quantizer
            return out
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        sources = frozenset[nn.Module]().union(*(self.sources.get(id(leaf), frozenset()) for leaf in given))
        if func.overloadpacket.__name__ in MOVERS:
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self.sources[id(leaf)] = sources
                    self.kept.append(leaf)
        else:
            self.kept.extend(given)
            for source in sources:
                self.readers[source].add(where)
        return out


__all__ = ["Switches", "find_switches"]
