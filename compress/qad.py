"""Quantization-aware distillation: fake-quantize, then train against the same net in float.

L = KL(p_float || p_quantized) at T = 1 by default, from a calibrated start (arXiv 2601.20088): the quantized net is
asked to answer as the float one does, not to learn the task again. Without training steps this is post-training
quantization.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edgewise.compress.config import Quantize
from edgewise.compress.quantize import insert_quantizers
from edgewise.compress.strategies.offline import distill
from edgewise.compress.train import Epoch, Validate
from edgewise.models.tasks.base import Float, Split
from edgewise.models.tasks.config import Augment
from edgewise.progress import Tick, silent


def quantize(
    model: nn.Module,
    split: Split,
    config: Quantize,
    *,
    calibration: Float,
    seed: int,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    validate: Validate | None = None,
    tick: Tick = silent,
) -> tuple[nn.Module, list[Epoch]]:
    """The quantized copy of ``model``, and the history of its training (empty for PTQ).

    ``calibration`` (N, C, H, W) sets the first ranges; ``model`` stays float and is the teacher.

    Raises:
        ModelError: the model can't be quantized, or a loss has nothing to hold on to.
    """
    quantized = insert_quantizers(model, calibration)
    if config.fit is None:
        return quantized, []
    history = distill(
        quantized,
        model,
        split,
        config,
        run=config.fit,
        seed=seed,
        augment=augment,
        checkpoint=checkpoint,
        validate=validate,
        tick=tick,
    )
    return quantized.eval(), history
