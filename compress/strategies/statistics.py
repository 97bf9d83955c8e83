"""What a teacher's BatchNorm layers remember of its training data, as a loss of other images.

    L = sum over layers l of |mean_l(x) - m_l|_2 + |var_l(x) - v_l|_2

m and v are the stored statistics, mean(x) and var(x) (biased) those of the layer's input over a batch and all
positions.
Yin et al., "Dreaming to Distill", arXiv 1912.08795, equation 4: norms, not squares, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgewise.errors import ModelError

QUANTIZED = ("__nncf_hooks", "nncf", "torch.ao", "torchao")
"""Where a quantized net keeps its quantizers: an attribute, or the home of its modules' classes."""


def statistics_gap(inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Scalar |mean(x) - ``mean``|_2 + |var(x) - ``variance``|_2, in float32.

    Args:
        inputs: what goes into a BatchNorm: (N, C, ...).
        mean: (C,), the running mean.
        variance: (C,), the running variance.
    """
    values = inputs.float().transpose(0, 1).flatten(1)
    spread, centre = torch.var_mean(values, dim=1, correction=0)
    gap: Tensor = torch.linalg.vector_norm(centre - mean.float()) + torch.linalg.vector_norm(spread - variance.float())
    return gap


def batchnorms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The layers that hold statistics, by name.

    Raises:
        ModelError: there is none, or the net is quantized.
    """
    homes = {type(module).__module__ for module in model.modules()}
    if hasattr(model, QUANTIZED[0]) or any(f"{home}.".startswith(f"{q}.") for home in homes for q in QUANTIZED[1:]):
        raise ModelError(
            "the teacher is quantized: its statistics are folded away and its gradient is only straight-through",
            hint="give the float teacher",
        )
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not found:
        raise ModelError(
            "the teacher has no BatchNorm with stored statistics (a transformer, or a net whose BatchNorm is folded)",
            hint="give the teacher before folding, or use the generator with statistics 0",
        )
    return found


@contextmanager
def watched(model: nn.Module, *, first: float = 1.0) -> Iterator[list[Tensor]]:
    """While the block lasts, each forward pass of ``model`` adds one scalar for each BatchNorm call to the list, in the
    order of execution, the first times ``first``. Empty the list before each pass.

    Raises:
        ModelError: see :func:`batchnorms`.
    """
    gaps: list[Tensor] = []

    def hook(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gap = statistics_gap(inputs[0], norm.running_mean, norm.running_var)
        gaps.append(gap if gaps else first * gap)

    handles = [norm.register_forward_pre_hook(hook) for norm in batchnorms(model).values()]
    try:
        yield gaps
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient for the parameters; both are put back afterwards."""
    modules = [module for model in models for module in model.modules()]
    modes = [module.training for module in modules]
    parameters = [parameter for model in models for parameter in model.parameters()]
    wanted = [parameter.requires_grad for parameter in parameters]
    for model in models:
        model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, gradient in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(gradient)
