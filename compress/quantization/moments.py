"""What one layer is given when quantized, and what it answers in float: as sums over the calibration samples, whose
size hangs on the layer alone.

A layer's output is linear in its weights, so its mean squared error over all samples is a quadratic form of them:
with x the quantized input (one window of it) and y the float output,

    E|Wx - y|² = W·E[xxᵀ]·Wᵀ - 2·W·E[xyᵀ] + E[yyᵀ]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

CALLS = {F.conv2d: "conv", F.linear: "linear", torch.conv1d: "other", torch.conv3d: "other"}
CALLS |= {F.conv_transpose1d: "other", F.conv_transpose2d: "other", F.conv_transpose3d: "other"}
Call = tuple[str, tuple[Any, ...], dict[str, Any]]
CHUNK = 2**24  # values of unfolded input at a time


@dataclass
class Moments:
    """Sums over all windows of all samples, by group of the convolution.

    Args:
        count: windows.
        x: (G, D) sum of the quantized input, D values a window.
        xx: (G, D, D) sum of its products.
        xy: (G, D, C / G) sum of its products with the float output, bias taken off.
        y: (C,) sum of the float output, bias taken off.
    """

    count: int
    x: Tensor
    xx: Tensor
    xy: Tensor
    y: Tensor

    def centred(self) -> tuple[Tensor, Tensor]:
        """(covariance of x (G, D, D), covariance of x and y (G, D, C / G)): the error that a bias can't mend."""
        groups = len(self.x)
        x, y = self.x / self.count, (self.y / self.count).reshape(groups, -1)
        xx = self.xx / self.count - x[:, :, None] * x[:, None, :]
        return xx, self.xy / self.count - x[:, :, None] * y[:, None, :]

    def plain(self) -> tuple[Tensor, Tensor]:
        """(E[xxᵀ], E[xyᵀ])."""
        return self.xx / self.count, self.xy / self.count


class _Done(Exception):
    """The layer was called: the rest of the net need not run."""


class _Catch(TorchFunctionMode):
    """Keeps the call that a module makes, as NNCF's hooks pass it on, and stops there."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inside = False
        self.module = module
        self.call: Call | None = None
        self.output: Tensor | None = None

    def watch(self) -> list[Any]:
        """Hooks that tell when the module runs."""

        def enter(module: nn.Module, args: Any) -> None:
            self.inside = True

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.inside = False

        return [
            self.module.register_forward_pre_hook(enter),
            self.module.register_forward_hook(leave, always_call=True),
        ]

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run ``func``; end the run where it is the layer's own."""
        out = func(*args, **(kwargs or {}))
        if self.inside and func in CALLS:
            self.call, self.output = (CALLS[func], args, kwargs or {}), out
            raise _Done
        return out


def caught(model: nn.Module, layer: nn.Module, batch: Tensor) -> tuple[Call, Tensor]:
    """((kind, arguments), output) of the first convolution or product that ``layer`` makes on ``batch``."""
    catch = _Catch(layer)
    handles = catch.watch()
    try:
        with torch.no_grad(), catch:
            model(batch)
    except _Done:
        pass
    finally:
        for handle in handles:
            handle.remove()
    assert catch.call is not None
    assert catch.output is not None
    return catch.call, catch.output


@torch.no_grad()
def moments(
    quantized: nn.Module, layer: nn.Module, floats: nn.Module, twin: nn.Module, batches: Iterable[Tensor]
) -> Moments | None:
    """The sums of ``layer`` in ``quantized`` and of its float ``twin`` in ``floats``; None where the layer is of a kind
    that isn't a product of windows (transposed, 1-D and 3-D convolutions)."""
    found: Moments | None = None
    for batch in batches:
        (kind, args, kwargs), _ = caught(quantized, layer, batch)
        if kind == "other":
            return None
        _, target = caught(floats, twin, batch)
        bias: Any = twin.bias
        if kind == "conv":
            settings = _conv_settings(args, kwargs)
            if settings is None:
                return None
            target = target if bias is None else target - bias.reshape(1, -1, 1, 1)
            pieces = _windows(args[0], layer.weight, target, *settings)
        else:
            target = target if bias is None else target - bias
            pieces = [(args[0].reshape(-1, args[0].shape[-1])[None], target.reshape(-1, target.shape[-1]))]
        for x, y in pieces:
            now = _sums(x, y)
            if found is None:
                found = now
            else:
                found.count += now.count
                for name in ("x", "xx", "xy", "y"):
                    getattr(found, name).add_(getattr(now, name))
    return found


def _conv_settings(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any, int] | None:
    names = ("bias", "stride", "padding", "dilation", "groups")
    known = {
        "stride": 1,
        "padding": 0,
        "dilation": 1,
        "groups": 1,
        **kwargs,
        **dict(zip(names, args[2:], strict=False)),
    }
    if isinstance(known["padding"], str):
        return None
    return known["stride"], known["padding"], known["dilation"], known["groups"]


def _windows(
    x: Tensor, weight: Any, target: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Iterable[tuple[Tensor, Tensor]]:
    """((G, windows, D), (windows, C)), some samples at a time: unfolded, an input is as many times larger as the kernel
    has taps."""
    width = weight.shape[1:].numel()
    places = target.shape[2] * target.shape[3]
    size = max(1, CHUNK // (width * groups * places))
    for part, wanted in zip(torch.split(x, size), torch.split(target, size), strict=True):
        flat = F.unfold(part, weight.shape[2:], dilation=dilation, padding=padding, stride=stride)
        windows = flat.reshape(len(part), groups, width, -1).permute(1, 0, 3, 2).reshape(groups, -1, width)
        yield windows, wanted.permute(0, 2, 3, 1).reshape(-1, wanted.shape[1])


def _sums(x: Tensor, y: Tensor) -> Moments:
    """Of (G, N, D) and (N, C); products in float32, sums over batches in float64."""
    groups, number, _ = x.shape
    grouped = y.reshape(number, groups, -1).transpose(0, 1)
    turned = x.transpose(1, 2)
    return Moments(number, x.double().sum(1), (turned @ x).double(), (turned @ grouped).double(), y.double().sum(0))


__all__ = ["Moments", "caught", "moments"]
