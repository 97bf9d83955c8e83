"""Take the fake quantizers off a model again, leaving weights that lie on the grid they were trained on."""

from __future__ import annotations

import torch
from torch import nn

from edgewise.errors import ModelError

HOOKS = "__nncf_hooks"  # where NNCF 3.4 keeps its quantizers, beside the forward it wraps
WRAPPED = ("forward", "_replicate_for_data_parallel")


def strip_quantizers(model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """Write every parameter as its quantizer sees it, then remove all quantizers, in place.

    Which quantizer belongs to which parameter is not read from names: one forward pass shows what each is given. The
    quantizers of activations are dropped, so answers change by their rounding. A model without quantizers stays as it
    is.

    Args:
        model: with NNCF's hooks, as ``edgewise.compress.quantize`` makes it.
        input_shape: (C, H, W).

    Returns:
        The model in eval mode, a plain float module.

    Raises:
        ModelError: a quantizer gets a weight that was reshaped or computed on the way, so it can't be written back.
    """
    model.eval()
    storage = getattr(model, HOOKS, None)
    if storage is None:
        return model
    given: dict[nn.Module, torch.Tensor] = {}
    quantizers = [module for _, module in storage.named_hooks(remove_duplicate=False)]

    def remember(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        given[module] = args[0]

    handles = [module.register_forward_pre_hook(remember) for module in quantizers]
    first = next(model.parameters())
    try:
        with torch.no_grad():
            model(torch.zeros(1, *input_shape, dtype=first.dtype, device=first.device))
    finally:
        for handle in handles:
            handle.remove()
    inner = {id(parameter) for parameter in storage.parameters()}
    owners = {
        parameter.untyped_storage().data_ptr(): (name, parameter)
        for name, parameter in model.named_parameters()
        if id(parameter) not in inner
    }
    baked: dict[str, torch.Tensor] = {}
    for module, tensor in given.items():
        owner = owners.get(tensor.untyped_storage().data_ptr())
        if owner is None:
            continue  # an activation
        name, parameter = owner
        if tensor.shape != parameter.shape or tensor.stride() != parameter.stride():
            raise ModelError("its quantizer gets it reshaped: it can't be written back", where=name)
        with torch.no_grad():
            baked[name] = module(parameter)
    for name, value in baked.items():
        model.get_parameter(name).data.copy_(value)
    _unwrap(model)
    return model


def _unwrap(model: nn.Module) -> None:
    """Undo NNCF's wrapping: its forward lives on the instance and hides the class's own."""
    delattr(model, HOOKS)
    for name in WRAPPED:
        model.__dict__.pop(name, None)
