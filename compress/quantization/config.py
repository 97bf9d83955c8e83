"""Settings of the quantization methods that have more than one. Torch-free."""

from __future__ import annotations

from pydantic import Field

from edgewise.config import Config


class AdaRound(Config):
    """Learn for each weight whether to round up or down, one layer after the other (arXiv 2004.10568)."""

    iterations: int = Field(500, ge=1, description="steps of Adam a layer")
    lr: float = Field(0.01, gt=0)
    samples: int = Field(256, ge=1, description="the most calibration samples that a layer's answers are learnt from")
    regularization: float = Field(0.01, gt=0, description="weight of the term that drives each choice to up or down")


__all__ = ["AdaRound"]
