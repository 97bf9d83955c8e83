"""A torch module's layers, as torch computes them: BatchNorm folded, as in every file; quantizers as they are."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from edgewise.compress.fold import fold_batchnorm
from edgewise.compress.quantization.insert import HOOKS
from edgewise.deploy.inspect.base import Float
from edgewise.deploy.inspect.points import MOVE, Point, attention
from edgewise.models.inputs import blank, is_text

MODULES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "conv"),
    ((nn.Linear,), "linear"),
    ((nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d), "norm"),
    ((nn.ReLU, nn.Hardtanh), "relu"),  # ReLU6 is a Hardtanh
    ((nn.GELU,), "gelu"),
    ((nn.SiLU,), "silu"),
    ((nn.Sigmoid,), "sigmoid"),
    ((nn.Tanh,), "tanh"),
    ((nn.Hardswish,), "hardswish"),
    ((nn.Softmax,), "softmax"),
    ((nn.AvgPool2d, nn.AdaptiveAvgPool2d), "mean"),
    ((nn.MaxPool2d,), "max_pool"),
    ((nn.Identity, nn.Dropout, nn.Flatten), MOVE),
)
FUNCTIONS = {
    "conv1d": "conv",
    "conv2d": "conv",
    "linear": "linear",
    "layer_norm": "norm",
    "relu": "relu",
    "hardtanh": "relu",
    "relu6": "relu",
    "clamp": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "hardswish": "hardswish",
    "softmax": "softmax",
    "add": "add",
    "iadd": "add",
    "radd": "add",
    "sub": "sub",
    "rsub": "sub",
    "mul": "mul",
    "imul": "mul",
    "rmul": "mul",
    "div": "div",
    "truediv": "div",
    "matmul": "matmul",
    "bmm": "matmul",
    "mean": "mean",
    "avg_pool2d": "mean",
    "adaptive_avg_pool2d": "mean",
    "max_pool2d": "max_pool",
    "cat": "concat",
    "concat": "concat",
    "scaled_dot_product_attention": "attention",
}


def _kind(module: nn.Module) -> str | None:
    return next((kind for types, kind in MODULES if isinstance(module, types)), None)


class _Trace(TorchFunctionMode):
    """One forward pass: which point each tensor comes from, and what the exposed ones hold."""

    def __init__(self, wanted: Collection[int]) -> None:
        super().__init__()
        self.wanted, self.points = wanted, [Point("input", "input", (), "input")]
        self.values: dict[int, Float] = {}
        self.scope: list[str] = [""]
        self.silent = 0  # inside a layer that is a point of its own, or a quantizer
        self.kept: list[Tensor] = []  # so that no id is used twice
        self.of: dict[int, tuple[int, ...]] = {}
        self.inside: set[int] = set()  # tensors made inside a layer: not yet what it gives
        self.rounded: set[int] = set()  # those that a quantizer left
        self.seen: dict[str, int] = {}

    def origins(self, values: Any) -> tuple[int, ...]:
        leaves = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
        return tuple(dict.fromkeys(point for leaf in leaves for point in self.of.get(id(leaf), ())))

    def put(self, values: Any, origin: tuple[int, ...]) -> None:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self.kept.append(leaf)
                self.of[id(leaf)] = origin
                if self.silent:
                    self.inside.add(id(leaf))

    def add(self, name: str, kind: str, inputs: tuple[int, ...], value: Tensor) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1
        if self.seen[name] > 1:
            name = f"{name}~{self.seen[name]}"
        self.points.append(Point(name, kind, inputs, name, quantized=id(value) in self.rounded))
        index = len(self.points) - 1
        self.put(value, (index,))
        self.note(index, value)

    def note(self, index: int, value: Tensor) -> None:
        if index in self.wanted:  # a copy: the next operation may be in place
            self.values[index] = value.detach().float().cpu().numpy().copy()

    def quantize(self, given: Tensor, left: Tensor) -> None:
        """A quantizer has rounded a tensor: that is what the layer gives from here on."""
        origin, inner = self.of.get(id(given), ()), id(given) in self.inside
        self.put(left, origin)
        if inner:
            self.rounded.add(id(left))
            return
        if len(origin) != 1 or self.points[origin[0]].quantized:
            return
        index, point = origin[0], self.points[origin[0]]
        self.points[index] = Point(point.name, point.kind, point.inputs, point.tensor, quantized=True)
        if index not in self.values or self.values[index].size == left.numel():
            self.note(index, left)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        given = self.origins((args, kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if not given or not any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            return out
        kind = FUNCTIONS.get(getattr(func, "__name__", "").strip("_"))
        if kind is None or self.silent or not isinstance(out, Tensor):
            # An attribute such as .T, a view, an op that is no point: what it gives comes from what it was given.
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor) and id(leaf) not in self.of:
                    self.put(leaf, given)
            return out
        self.add(f"{self.scope[-1]}.{kind}".strip("."), kind, given, out)
        return out


class TorchProbe:
    """A module in memory; it stays as it is."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], label: str = "torch") -> None:
        """Fold a copy, and run it once to see its layers."""
        self.label = label
        self.token_ids = is_text(input_shape)
        self.input_shape: tuple[int | None, ...] = (None,) if self.token_ids else input_shape
        self._net = copy.deepcopy(model).cpu().eval()
        self.precision = "int8" if hasattr(model, HOOKS) else "float32"
        if self.precision == "float32":
            fold_batchnorm(self._net, input_shape)
        self._wanted: Collection[int] = ()
        self.points = attention(self._trace(torch.from_numpy(blank(input_shape, 1)))[1].points)

    def expose(self, wanted: Collection[int]) -> None:
        """Name the points whose values ``run`` is to give."""
        self._wanted = frozenset(wanted)

    def run(self, inputs: NDArray[Any]) -> tuple[Float, dict[int, Float]]:
        """(N, C, H, W), or token ids (N, L) -> answers, and the exposed points' values."""
        out, trace = self._trace(torch.from_numpy(np.ascontiguousarray(inputs)))
        return out.float().numpy(), trace.values

    def close(self) -> None:
        """Give the memory back."""
        self._net = nn.Identity()

    def _trace(self, inputs: Tensor) -> tuple[Tensor, _Trace]:
        trace = _Trace(self._wanted)
        trace.put(inputs, (0,))
        trace.note(0, inputs)
        handles = []
        for name, module in self._net.named_modules():
            if not name.startswith(HOOKS):
                handles += _watch(trace, name, module)
        quantizers = getattr(self._net, HOOKS, None)
        for name, module in quantizers.named_hooks(remove_duplicate=True) if quantizers is not None else ():
            handles += _watch_quantizer(trace, module, before=name.startswith("pre_hooks"))
        try:
            with torch.no_grad(), trace:
                out: Tensor = self._net(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return out, trace


def _watch(trace: _Trace, name: str, module: nn.Module) -> list[Any]:
    kind = _kind(module)

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        trace.scope.append(name)
        trace.silent += kind is not None

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        trace.scope.pop()
        trace.silent -= kind is not None
        given = trace.origins((args, kwargs))
        if kind is not None and not trace.silent and given and isinstance(out, Tensor):
            if kind == MOVE:
                trace.put(out, given)
            else:
                trace.add(name, kind, given, out)

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, with_kwargs=True),
    ]


def _watch_quantizer(trace: _Trace, module: nn.Module, before: bool) -> list[Any]:
    """``before``: it rounds what one operation reads, and leaves what others read alone."""

    def enter(module: nn.Module, args: Any) -> None:
        trace.silent += 1

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        trace.silent -= 1
        if isinstance(out, Tensor) and isinstance(args[0], Tensor):
            if before:
                trace.put(out, trace.origins(args))
            else:
                trace.quantize(args[0], out)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
