"""Where a model's quantizers are, and which of them holds which parameter: seen in a run, not read from names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.models.inputs import blank

HOOKS = "__nncf_hooks"  # where NNCF keeps its quantizers; part of its names in a state dict


def all_quantizers(model: nn.Module) -> list[nn.Module]:
    """Each of them once, also where several calls share it; none where the model isn't quantized."""
    storage: Any = getattr(model, HOOKS, None)
    return [] if storage is None else [module for _, module in storage.named_hooks(remove_duplicate=True)]


@contextmanager
def switched_off(found: Collection[nn.Module]) -> Iterator[None]:
    """Let these quantizers pass on what they are given; afterwards each is as it was."""
    before = [(quantizer.get_buffer("enabled"), quantizer.get_buffer("enabled").clone()) for quantizer in found]
    try:
        for enabled, _ in before:
            enabled.zero_()
        yield
    finally:
        for enabled, old in before:
            enabled.copy_(old)


def given(model: nn.Module, inputs: Tensor) -> dict[nn.Module, Tensor]:
    """The tensor that each quantizer is called with last, in the order of their first calls."""
    found: dict[nn.Module, Tensor] = {}

    def remember(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[module] = args[0]

    handles = [module.register_forward_pre_hook(remember) for module in all_quantizers(model)]
    first = next(model.parameters())
    inputs = inputs.to(dtype=first.dtype if inputs.is_floating_point() else inputs.dtype, device=first.device)
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def owners(model: nn.Module, tensors: dict[nn.Module, Tensor]) -> dict[nn.Module, str]:
    """The name of the parameter that each quantizer is given, of those that are given one: they share its memory."""
    own = {id(parameter) for parameter in getattr(model, HOOKS).parameters()}
    names = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters() if id(p) not in own}
    found = {quantizer: names.get(tensor.untyped_storage().data_ptr()) for quantizer, tensor in tensors.items()}
    return {quantizer: name for quantizer, name in found.items() if name is not None}


def bake_weights(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Write every parameter as its quantizer sees it, in place: what left the range of a quantizer is clipped to it,
    and the nearest level is then the value itself for whoever rounds it next. A quantizer that is given a part or
    another view of a parameter writes just that.

    Args:
        model: with quantizers.
        input_shape: (C, H, W), or (L, V) of texts.
    """
    if not all_quantizers(model):
        return
    tensors = given(model, torch.from_numpy(blank(input_shape, 1)))
    with torch.no_grad():
        baked = [(tensors[quantizer], quantizer(tensors[quantizer])) for quantizer in owners(model, tensors)]
        for tensor, value in baked:
            tensor.data.copy_(value)


__all__ = ["HOOKS", "all_quantizers", "bake_weights", "given", "owners"]
