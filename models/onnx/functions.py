"""The torch functions and layers that the program of an ONNX file may call; it can call nothing else."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DTYPES = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}


def _slice(x: Tensor, dims: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> Tensor:
    places = [slice(None)] * x.ndim
    for dim, start, end, step in zip(dims, starts, ends, steps, strict=True):
        places[dim] = slice(start, end, step)
    return x[tuple(places)]


def _take(x: Tensor, dim: int, index: int) -> Tensor:
    return torch.select(x, dim, index)


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, dims: Sequence[int], keep: bool) -> Tensor:
        return function(x, dim=tuple(dims), keepdim=keep)

    return reduce


def _mean(x: Tensor, dims: Sequence[int], keep: bool) -> Tensor:
    return torch.mean(x, dim=list(dims), keepdim=keep)


def _sum(x: Tensor, dims: Sequence[int], keep: bool) -> Tensor:
    return torch.sum(x, dim=list(dims), keepdim=keep)


def _pad(x: Tensor, pads: Sequence[int], mode: str, value: float) -> Tensor:
    return F.pad(x, list(pads), mode, value) if mode == "constant" else F.pad(x, list(pads), mode)


def _resize(x: Tensor, size: Sequence[int], mode: str, align: bool | None) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=align)


def _rsub(x: Tensor, from_: float) -> Tensor:
    return torch.rsub(x, from_)


def _rdiv(x: Tensor, top: float) -> Tensor:
    return top / x


def _depth_first(x: Tensor, block: int) -> Tensor:
    """ONNX's DepthToSpace in DCR order: (N, b*b*C, H, W) -> (N, C, b*H, b*W)."""
    n, _, height, width = x.shape
    x = x.reshape(n, block, block, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, -1, height * block, width * block)


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _to(x: Tensor, dtype: str) -> Tensor:
    return x.to(DTYPES[dtype])


def _joined(*parts: Tensor, dim: int) -> Tensor:
    return torch.cat(parts, dim)


def _least(*values: Tensor) -> Tensor:
    first, *rest = values
    for other in rest:
        first = torch.minimum(first, torch.as_tensor(other))
    return first


def _most(*values: Tensor) -> Tensor:
    first, *rest = values
    for other in rest:
        first = torch.maximum(first, torch.as_tensor(other))
    return first


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "rsub": _rsub,
    "rdiv": _rdiv,
    "pow": torch.pow,
    "matmul": torch.matmul,
    "einsum": lambda *inputs, equation: torch.einsum(equation, *inputs),
    "sqrt": torch.sqrt,
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "abs": torch.abs,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "sign": torch.sign,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "reciprocal": torch.reciprocal,
    "softplus": F.softplus,
    "hard_sigmoid": _hard_sigmoid,
    "clamp": torch.clamp,
    "minimum": _least,
    "maximum": _most,
    "where": torch.where,
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "cast": _to,
    "reshape": torch.reshape,
    "flatten": torch.flatten,
    "transpose": torch.permute,
    "squeeze": lambda x, dims: torch.squeeze(x, tuple(dims)),
    "unsqueeze": lambda x, dim: torch.unsqueeze(x, dim),
    "expand": lambda x, shape: x.expand(shape),
    "tile": lambda x, times: x.repeat(times),
    "concat": _joined,
    "split": lambda x, sizes, dim: torch.split(x, sizes, dim),
    "slice": _slice,
    "flip": lambda x, dims: torch.flip(x, dims),
    "take": _take,
    "gather": torch.index_select,
    "pad": _pad,
    "resize": _resize,
    "pixel_shuffle": F.pixel_shuffle,
    "depth_first": _depth_first,
    "mean": _mean,
    "sum": _sum,
    "amax": _reduce(torch.amax),
    "amin": _reduce(torch.amin),
    "norm": lambda x, dims, keep: torch.sqrt(torch.sum(x * x, dim=list(dims), keepdim=keep)),
    "softmax": torch.softmax,
    "layer_norm": lambda x, weight, bias, shape, eps: F.layer_norm(x, shape, weight, bias, eps),
}
LAYERS: dict[str, Callable[..., nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.LayerNorm),
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.Tanh),
        *(nn.GELU, nn.Softmax, nn.LogSoftmax, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    )
}

__all__ = ["DTYPES", "FUNCTIONS", "LAYERS"]
