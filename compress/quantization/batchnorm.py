"""Measure BatchNorm's statistics again: those stored are of other weights once a net was pruned, averaged or cut out of
a larger one (arXiv 1908.09791 does so for every net it cuts out)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgewise.compress.macs import placement
from edgewise.models.tasks.base import Split

SAMPLES = 4096  # of few, the noise of each layer's statistics adds up to more than what they mend
BATCH = 128
NO_BATCHNORM = "the model has no BatchNorm to measure again"


def reestimate(model: nn.Module, split: Split, *, samples: int = SAMPLES, batch_size: int = BATCH) -> int:
    """Replace the running mean and variance of every BatchNorm, in place, by those of ``samples`` of ``split``, taken
    evenly over it. Weights stay as they are, and so does each module's mode.

    Returns:
        How many BatchNorms there were; with none the model is left alone.
    """
    chosen = np.unique(np.linspace(0, len(split.ids) - 1, min(samples, len(split.ids))).round().astype(np.int64))
    # Neighbours in the file may be of one class: each batch takes every so-many-th of them.
    parts = max(1, len(chosen) // batch_size)
    return reestimate_on(model, (torch.from_numpy(split.read(chosen[part::parts])) for part in range(parts)))


def reestimate_on(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """As :func:`reestimate`, on batches (N, C, H, W). Each batch weighs by its samples: the mean is exactly that of all
    values, and the variance that about it, where the layers before see the same batches."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    moments: dict[nn.Module, tuple[float, Tensor, Tensor]] = {}

    def measure(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].double()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        count = x.numel() / x.shape[1]
        before = moments.get(module, (0.0, torch.zeros_like(x.sum(axes)), torch.zeros_like(x.sum(axes))))
        moments[module] = (before[0] + count, before[1] + x.sum(axes), before[2] + x.square().sum(axes))

    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        model.eval()
        for norm in norms:  # normalise by the batch at hand, without touching what is stored
            norm.training = True
        momenta = {norm: norm.momentum for norm in norms}
        for norm in norms:
            norm.momentum = 0.0
        with torch.no_grad():
            for batch in batches:
                model(batch.to(**placement(model)))
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    for norm in norms:
        if norm not in moments:
            continue
        count, total, squares = moments[norm]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = total / count
        variance = (squares / count - mean.square()).clamp_(min=0) * (count / max(count - 1, 1))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    return len(norms)


__all__ = ["NO_BATCHNORM", "reestimate", "reestimate_on"]
