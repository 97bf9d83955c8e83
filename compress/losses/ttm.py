"""Transformed teacher matching: only the teacher is softened, by a power; the student answers without temperature.

    p~   = p_t^gamma / sum_i p_t,i^gamma  = softmax(gamma * z_t)               p_t = softmax(z_t), gamma = 1 / T
    TTM  = KL(p~ || softmax(z_s))                                              averaged over samples
    WTTM = ( sum_i p_t,i^gamma ) * KL(p~ || softmax(z_s))                      averaged over samples

Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148, sections 3 and 4. The
weight of WTTM is 1 for a teacher that is certain and up to K^(1 - gamma) for one that knows nothing. No T^2: the
student's gradient does not shrink with gamma. Published weights are for that: TTM 45 at gamma 0.1 (VGG13 to VGG8,
CIFAR-100), WTTM 4 at gamma 0.2, beside another loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, LogitLoss, Outputs, same_shape
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def _divergences(student: Tensor, teacher: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Each sample's KL, and the logarithm of its sum of powers: (N,) both."""
    ours, theirs = same_shape(student, teacher)
    powers = gamma * theirs.log_softmax(dim=-1)
    softened = powers.log_softmax(dim=-1)
    divergence = (softened.exp() * (softened - ours.log_softmax(dim=-1))).sum(dim=-1)
    return divergence, powers.logsumexp(dim=-1)


def ttm_loss(student: Tensor, teacher: Tensor, *, gamma: float = 0.1) -> Tensor:
    """Scalar loss of logits ``student`` (N, K) against ``teacher`` (N, K), in float32.

    Raises:
        ValueError: the two shapes differ.
    """
    divergence, _ = _divergences(student, teacher, gamma)
    return divergence.mean()


def wttm_loss(student: Tensor, teacher: Tensor, *, gamma: float = 0.2) -> Tensor:
    """Scalar loss of logits ``student`` (N, K) against ``teacher`` (N, K), in float32: ``ttm_loss`` with more weight on
    the samples that the teacher is unsure of.

    Raises:
        ValueError: the two shapes differ.
    """
    divergence, power_sum = _divergences(student, teacher, gamma)
    return (power_sum.exp() * divergence).mean()


class TTM(LogitLoss):
    """Transformed teacher matching."""

    kind: Literal["ttm"] = "ttm"
    weight: Value = 45.0
    gamma: float = Field(0.1, gt=0, description="power on the teacher's probabilities, 1 / temperature")

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return ttm_loss(*self.logits(student, teacher), gamma=self.gamma)


class WTTM(LogitLoss):
    """Transformed teacher matching, weighted by sample."""

    kind: Literal["wttm"] = "wttm"
    weight: Value = 4.0
    gamma: float = Field(0.2, gt=0, description="power on the teacher's probabilities, 1 / temperature")

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return wttm_loss(*self.logits(student, teacher), gamma=self.gamma)
