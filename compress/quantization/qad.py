"""Post-training quantization, quantization-aware training and quantization-aware distillation: one start, three ends.

All begin as the calibrated net. Without ``fit`` it is left so (PTQ). With ``fit`` it is trained: on labels alone where
there are no losses (QAT), otherwise against a net in float (QAD),

    L = KL(p_float || p_quantized) at T = 1 by default, from a calibrated start (arXiv 2601.20088):

the quantized net is asked to answer as the float one does, not to learn the task again.

BatchNorm is folded before quantizers go in, as in the files that are shipped, so its statistics are part of the
weights; they can be measured again before, on training samples. A BatchNorm that can't be folded, because it follows no
layer of its own, normalises by its stored statistics in training too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Unpack

from edgewise.compress.config import Quantize
from edgewise.compress.quantization.batchnorm import NO_BATCHNORM, reestimate
from edgewise.compress.quantization.insert import insert_quantizers
from edgewise.compress.quantization.places import all_quantizers
from edgewise.compress.strategies.offline import distill
from edgewise.compress.train import Epoch, Running
from edgewise.errors import ModelError
from edgewise.models.tasks.base import Float, Split, TextSplit
from edgewise.progress import silent


def quantize(
    model: nn.Module,
    split: Split,
    config: Quantize,
    *,
    calibration: Float,
    teacher: nn.Module | None = None,
    tell: Callable[[str], None] = lambda line: None,
    **running: Unpack[Running],
) -> tuple[nn.Module, list[Epoch]]:
    """The quantized copy of ``model``, and the history of its training (empty for PTQ).

    Args:
        model: in float; it stays so.
        split: to train on, and to measure BatchNorm on.
        config: how.
        calibration: (N, C, H, W), or ids (N, L) of texts; sets the first ranges.
        teacher: in float; ``model`` itself where left out.
        tell: told in words of what could not be done for single layers, and of the layers that losses paired.
        running: what every training run is told.

    Raises:
        ModelError: the model can't be quantized, or a loss has nothing to hold on to.
    """
    teacher = teacher or model
    start, config = settled(model, split, config)
    padding = split.padding if isinstance(split, TextSplit) else None
    told: dict[str, Any] = {"tell": tell, "tick": running.get("tick", silent)}
    quantized = insert_quantizers(start, calibration, config, padding=padding, **told)
    if config.fit is None:
        return quantized, []
    if not config.train_ranges:
        for quantizer in all_quantizers(quantized):
            quantizer.requires_grad_(False)
    with stored_statistics(quantized):
        history = distill(quantized, teacher, split, config, run=config.fit, tell=tell, **running)
    return quantized.eval(), history


def settled(model: nn.Module, split: Split, config: Quantize) -> tuple[nn.Module, Quantize]:
    """What is quantized and how, after ``reestimate_batchnorm``: a copy with its BatchNorm measured on ``split``, or
    ``model`` itself where the config asks for none.

    Raises:
        ModelError: there is no BatchNorm to measure.
    """
    if not config.reestimate_batchnorm:
        return model, config
    model = copy.deepcopy(model)
    if not reestimate(model, split):
        raise ModelError(NO_BATCHNORM, where="quantize.reestimate_batchnorm")
    return model, config.model_copy(update={"reestimate_batchnorm": False})


@contextmanager
def stored_statistics(model: nn.Module) -> Iterator[None]:
    """Every BatchNorm of ``model`` is in evaluation mode whenever it runs, while the block lasts."""

    def settle(module: nn.Module, args: Any) -> None:
        module.eval()

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    handles = [norm.register_forward_pre_hook(settle) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


__all__ = ["quantize", "settled", "stored_statistics"]
