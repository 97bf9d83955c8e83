"""Multiply-accumulates and parameters of a model, by layer.

A multiply-accumulate is one product and one addition inside a convolution or a matrix product:
``Conv2d  N * C_out * H_out * W_out * (C_in / groups) * kH * kW``, ``Linear  rows * in * out``, attention
``2 * L * S * d`` for its two products, an LSTM ``rows * 4 H * (in + H)``. Biases, BatchNorm, activations, pooling and
additions are not counted, which is the convention of arXiv 1512.03385 and 1801.04381.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgewise.errors import ModelError
from edgewise.models.inputs import blank

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MATMUL = frozenset(
    {torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__}
)
_ATTENTION = torch.nn.functional.scaled_dot_product_attention


@dataclass(frozen=True)
class LayerCost:
    """One layer: its multiply-accumulates for one sample and the parameters it holds itself."""

    macs: int
    params: int


@dataclass(frozen=True)
class Cost:
    """A whole model for one sample. ``layers`` has the modules that multiply, by name, in order of execution."""

    macs: int
    params: int
    layers: dict[str, LayerCost]


def count(model: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Run one blank sample (1, C, H, W), or a text of L tokens, through ``model`` in eval mode and count; modes are put
    back.

    A module called twice counts twice; a parameter shared by two modules counts once in the total.

    Raises:
        ModelError: the model can't take an input of this shape.
    """
    macs: dict[str, int] = defaultdict(int)
    running: list[str] = [""]
    example = shown(model, blank(input_shape, 1))
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, module in model.named_modules():
            for handle in _watch(name, module, macs, running):
                stack.callback(handle.remove)
        stack.enter_context(_Products(macs, running))
        try:
            model(example)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"the model can't take an input of shape {tuple(example.shape)}: {error}",
                hint="check the task's input shape against the model",
            ) from error
    modules = dict(model.named_modules())
    own = {name: sum(p.numel() for p in modules[name].parameters(recurse=_whole(modules[name]))) for name in macs}
    layers = {name: LayerCost(macs=value, params=own[name]) for name, value in macs.items() if value}
    return Cost(sum(macs.values()), sum(p.numel() for p in model.parameters()), layers)


def shown(model: nn.Module, inputs: NDArray[Any]) -> Tensor:
    """``inputs`` where the model is: pixels in its dtype, token ids as they are."""
    place, tensor = placement(model), torch.from_numpy(np.ascontiguousarray(inputs))
    return tensor.to(**place) if tensor.is_floating_point() else tensor.to(place["device"])


def placement(model: nn.Module) -> dict[str, Any]:
    """``device`` and ``dtype`` of the model's first floating parameter: where its inputs must be."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return {"device": parameter.device, "dtype": parameter.dtype}
    return {"device": torch.device("cpu"), "dtype": torch.float32}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; each module's own mode is put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _watch(name: str, module: nn.Module, macs: dict[str, int], running: list[str]) -> Iterator[Any]:
    """Hooks that tell which module runs, and count those whose product is not visible from Python."""

    def enter(module: nn.Module, args: Any) -> None:
        running.append(name)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    counter = _counter(module)
    if counter is not None:

        def add(module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
            macs[name] += counter(module, args, output)

        yield module.register_forward_hook(add)
    yield module.register_forward_pre_hook(enter)
    yield module.register_forward_hook(leave, always_call=True)


def _counter(module: nn.Module) -> Callable[[Any, Any, Any], int] | None:
    if isinstance(module, _CONV):
        return _convolution
    if isinstance(module, nn.Linear):
        return _linear
    if isinstance(module, nn.LSTM):
        return _recurrent
    return _multihead if isinstance(module, nn.MultiheadAttention) else None


def _whole(module: nn.Module) -> bool:
    """True where a module uses its children's weights without calling them."""
    return isinstance(module, nn.MultiheadAttention)


def _convolution(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> int:
    places = args[0] if isinstance(module, _TRANSPOSED) else output
    channels = module.in_channels * module.out_channels // module.groups
    batch, _, *spatial = places.shape
    return int(batch * prod(spatial) * channels * prod(module.kernel_size))


def _linear(module: nn.Linear, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> int:
    return output.numel() * module.in_features


def _recurrent(module: nn.LSTM, args: tuple[torch.Tensor, ...], output: Any) -> int:
    """Each step multiplies its input and the state before; padded steps count."""
    steps = args[0].numel() // args[0].shape[-1]
    matrices = sum(weight.numel() for name, weight in module.named_parameters() if name.startswith("weight"))
    return steps * matrices


def _multihead(module: nn.MultiheadAttention, args: tuple[torch.Tensor, ...], output: Any) -> int:
    """Query, key, value and output projections, and the two products of attention."""
    query, key = args[0], args[1] if len(args) > 1 else args[0]
    wide = module.embed_dim
    rows, columns = query.numel() // query.shape[-1], key.numel() // key.shape[-1]
    length = key.shape[1] if module.batch_first and key.dim() == 3 else key.shape[0]
    projections = rows * wide * wide * 2 + columns * wide * ((module.kdim or wide) + (module.vdim or wide))
    return int(projections + 2 * rows * length * wide)


class _Products(TorchFunctionMode):
    """Counts matrix products called as functions, under the name of the module that runs."""

    def __init__(self, macs: dict[str, int], running: list[str]) -> None:
        super().__init__()
        self.macs, self.running = macs, running

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` and count it."""
        result = func(*args, **(kwargs or {}))
        if func in _MATMUL:
            self.macs[self.running[-1]] += result.numel() * args[0].shape[-1]
        elif func is _ATTENTION:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            query, key, value = named["query"], named["key"], named["value"]
            scores = query[..., 0].numel() * key.shape[-2]
            self.macs[self.running[-1]] += scores * (query.shape[-1] + value.shape[-1])
        return result
