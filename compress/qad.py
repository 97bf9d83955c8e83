"""Quantization-aware distillation: fake-quantize, then train against the same net in float.

L = KL(p_float || p_quantized) at T = 1 by default, from a calibrated start (arXiv 2601.20088): the quantized net is
asked to answer as the float one does, not to learn the task again. Without training steps this is post-training
quantization.
"""

from __future__ import annotations

from torch import nn
from typing_extensions import Unpack

from edgewise.compress.config import Quantize
from edgewise.compress.quantize import insert_quantizers
from edgewise.compress.strategies.offline import distill
from edgewise.compress.train import Epoch, Running
from edgewise.models.tasks.base import Float, Split


def quantize(
    model: nn.Module,
    split: Split,
    config: Quantize,
    *,
    calibration: Float,
    **running: Unpack[Running],
) -> tuple[nn.Module, list[Epoch]]:
    """The quantized copy of ``model``, and the history of its training (empty for PTQ).

    ``calibration`` (N, C, H, W) sets the first ranges; ``model`` stays float and is the teacher.

    Raises:
        ModelError: the model can't be quantized, or a loss has nothing to hold on to.
    """
    quantized = insert_quantizers(model, calibration)
    if config.fit is None:
        return quantized, []
    history = distill(quantized, model, split, config, run=config.fit, **running)
    return quantized.eval(), history
