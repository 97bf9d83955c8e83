"""Logit matching: the student's scores are the teacher's, before any softmax.

    L = mean( (z_s - z_t)^2 )        over samples and classes

Ba, Caruana, "Do Deep Nets Really Need to be Deep?", arXiv 1312.6184, section 2. It is what knowledge distillation tends
to at a high temperature, for logits of row mean 0. A softmax is blind to a shift of a row, this loss is not: ``centre``
takes each row's mean away first, for nets whose classifiers differ in their bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, LogitLoss, Outputs, same_shape
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def logit_mse_loss(student: Tensor, teacher: Tensor, *, centre: bool = False) -> Tensor:
    """Scalar loss of logits ``student`` (N, K) against ``teacher`` (N, K), in float32.

    Raises:
        ValueError: the two shapes differ.
    """
    ours, theirs = same_shape(student, teacher)
    gap = ours - theirs
    if centre:
        gap = gap - gap.mean(dim=-1, keepdim=True)
    return gap.pow(2).mean()


class LogitMSE(LogitLoss):
    """Mean squared error of the logits."""

    softens: ClassVar[bool] = False
    through_softmax: ClassVar[bool] = False

    kind: Literal["logit_mse"] = "logit_mse"
    weight: Value = 0.1
    centre: bool = Field(False, description="take each row's mean away first")

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return logit_mse_loss(*self.logits(student, teacher), centre=self.centre)
