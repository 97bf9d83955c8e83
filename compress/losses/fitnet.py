"""FitNets' hints: a feature of the student, through a learnt regressor, equals the teacher's.

    L = mean( (r(F_s) - F_t)^2 )                  over samples, channels and positions

Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550, equation 3. The paper takes half the sum over
channels and positions, C H W / 2 times as much; the mean, and the weight of 100 that goes with it, are those of the
common one-stage code. The regressor r is a 1x1 convolution with BatchNorm (linear for tokens and vectors) after pooling
the larger map to the smaller; without BatchNorm, the weight of 100 explodes at a learning rate of 0.1. It has no ReLU,
unlike the paper's: a ReLU can't reach a teacher's feature that is negative somewhere.

One stage: this loss as a term beside the others. Two stages, as in the paper: two ``distill`` stages of a recipe, the
first with ``cross_entropy: 0`` and only this loss, on one middle layer. Layers above it get no gradient there, and stay
as they are; the second stage starts from the student of the first, with the logit loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgewise.compress.losses.base import FeatureLoss, same_shape
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor


def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar loss of a feature ``student`` against ``teacher`` of the same shape, any of (N, C, H, W), (N, L, D) and
    (N, D), in float32.

    Raises:
        ValueError: the two shapes differ.
    """
    ours, theirs = same_shape(student, teacher)
    return (ours - theirs).pow(2).mean()


class FitNet(FeatureLoss):
    """Hints: the mean over the pairs of layers."""

    norm: ClassVar[bool] = True

    kind: Literal["fitnet"] = "fitnet"
    weight: Value = 100.0
    project: Literal["where_needed", "always"] = Field(
        "always", description="the regressor: always as published, or where the channels differ"
    )

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The unweighted loss of one pair."""
        return fitnet_loss(student, teacher)
