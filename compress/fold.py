"""Fold BatchNorm into the layer before it: the same function, one layer less (arXiv 1712.05877 §3.2).

Quantizers must go in afterwards: between a convolution and its BatchNorm they keep runtimes from fusing the two.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgewise.compress.macs import evaluating
from edgewise.models.inputs import blank

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how many operations read each tensor; keeps the tensors, so that no ``id`` is used twice."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[int] = Counter()
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor):
                self.count[id(leaf)] += 1
                self.kept.append(leaf)
        self.kept.extend(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out


def _foldable(layer: nn.Module, norm: nn.Module, parameter_uses: Counter[int]) -> bool:
    """Whether these two are plain enough: exact types, own parameters, stored statistics, no hooks."""
    if type(layer) not in LAYERS or not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return False
    if isinstance(layer, TRANSPOSED) and layer.groups != 1:
        return False
    hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in (layer, norm))
    shared = any(parameter_uses[id(p)] > 1 for m in (layer, norm) for p in m.parameters())
    return not hooked and not shared


def _pairs(model: nn.Module, input_shape: tuple[int, ...]) -> list[tuple[nn.Module, _BatchNorm]]:
    """(layer, BatchNorm) where the BatchNorm alone reads what the layer gives, both called once; found by one run."""
    parameter_uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    candidates = [m for m in model.modules() if type(m) in LAYERS or isinstance(m, _BatchNorm)]
    made: dict[int, nn.Module] = {}
    read: list[tuple[nn.Module, int]] = []
    calls: Counter[int] = Counter()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[id(module)] += 1
        if isinstance(module, _BatchNorm):
            read.append((module, id(inputs[0])))
        # A linear layer on (N, L, C) puts its channels last, where BatchNorm doesn't look.
        elif not isinstance(module, nn.Linear) or output.ndim == 2:
            made[id(output)] = module

    some = next(model.parameters(), torch.empty(0))
    example = torch.from_numpy(blank(input_shape, 1)).to(some.device)
    if example.is_floating_point():
        example = example.to(some.dtype)
    handles = [m.register_forward_hook(note) for m in candidates]
    try:
        with evaluating(model), _Reads() as reads:
            result = model(example)
    finally:
        for handle in handles:
            handle.remove()
    returned = {id(leaf) for leaf in tree_leaves(result)}
    found = []
    for norm, source in read:
        layer = made.get(source)
        if layer is None or calls[id(layer)] != 1 or calls[id(norm)] != 1:
            continue
        if reads.count[source] != 1 or source in returned:
            continue
        if _foldable(layer, norm, parameter_uses):
            assert isinstance(norm, _BatchNorm)
            found.append((layer, norm))
    return found


@torch.no_grad()
def _fold(layer: Any, norm: _BatchNorm) -> None:
    """Scale the layer's outputs by γ/√(σ²+ε) and move its bias; in float64, so that only one rounding is left."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = layer.weight
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    axis = 1 if isinstance(layer, TRANSPOSED) else 0
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight.copy_((weight.double() * scale.reshape(shape)).to(weight.dtype))
    if layer.bias is None:
        layer.bias = nn.Parameter(bias.to(weight.dtype))
    else:
        layer.bias.copy_(bias.to(weight.dtype))


def fold_batchnorm(model: nn.Module, input_shape: tuple[int, ...]) -> list[str]:
    """Fold every BatchNorm that alone reads one layer's output, in place; the others stay as they are.

    The pairs are found by one run on zeros of shape ``(1, *input_shape)`` in eval mode. A folded BatchNorm becomes
    ``nn.Identity``, so that the module tree keeps its names. A layer called twice, with shared parameters, with hooks,
    or whose output something else reads too, is left alone. The folded model is for inference and for
    quantization-aware training: its statistics no longer move.

    Returns:
        Names of the folded BatchNorms.
    """
    pairs = _pairs(model, input_shape)
    norms = {id(norm) for _, norm in pairs}
    names = [(name, id(m)) for name, m in model.named_modules(remove_duplicate=False) if id(m) in norms]
    for layer, norm in pairs:
        _fold(layer, norm)
    for name, _ in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    return [name for name, _ in names]


__all__ = ["fold_batchnorm"]
