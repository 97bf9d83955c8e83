"""DIST: the student's probabilities need not equal the teacher's, only correlate with them.

    L = beta  * T^2 * (1 - mean over samples of r(p_s row, p_t row))         p = softmax(z / T), r Pearson's correlation
      + gamma * T^2 * (1 - mean over classes of r(p_s column, p_t column))

Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536, equations 8 and 9. Made for teachers
so much better than the student that an exact match asks too much: probabilities may be stretched and shifted freely.

A column is a class over the batch, so batches of some tens are meant. One sample has no columns to correlate: that part
is then 0. With two classes every row correlates with +1 or -1: refused. Values that hardly vary (to a thousandth of the
largest) count as uncorrelated; the known code divides by their norm + 1e-8, and a student whose classifier starts at
zero gets gradients of 1e8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, LogitLoss, Outputs, same_shape
from edgewise.compress.schedule import Temperature, Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def correlation(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along ``dim`` of two (N, K): (K,) or (N,)."""
    return (_unit(first, dim) * _unit(second, dim)).sum(dim=dim)


def _unit(values: Tensor, dim: int) -> Tensor:
    """``values`` with mean 0 and length 1 along ``dim``; what hardly varies stays short."""
    from torch.nn.functional import normalize

    # Brought to a largest value of 1 first, because a rare class's probabilities are tiny and squared.
    values = values / values.detach().abs().amax(dim=dim, keepdim=True).clamp_min(1e-12)
    centred = values - values.mean(dim=dim, keepdim=True)
    return normalize(centred, dim=dim, eps=1e-3 * values.shape[dim] ** 0.5)


def dist_loss(
    student: Tensor, teacher: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Scalar loss of logits ``student`` (N, K) against ``teacher`` (N, K), in float32.

    Raises:
        ValueError: the two shapes differ, or there are fewer than 3 classes.
    """
    ours, theirs = same_shape(student, teacher)
    if ours.shape[-1] < 3:
        raise ValueError(
            f"dist needs at least 3 classes, got {ours.shape[-1]}: two probabilities always correlate with +1 or -1; "
            "use kd"
        )
    ours, theirs = (ours / temperature).softmax(dim=-1), (theirs / temperature).softmax(dim=-1)
    loss = beta * (1 - correlation(ours, theirs, dim=1).mean())
    if len(ours) > 1:
        loss = loss + gamma * (1 - correlation(ours, theirs, dim=0).mean())
    return loss * temperature**2


class DIST(LogitLoss):
    """Correlation of probabilities, within samples and within classes."""

    least_classes: ClassVar[int] = 3
    # A class left out would still count in the means that a correlation takes.
    through_softmax: ClassVar[bool] = False

    kind: Literal["dist"] = "dist"
    weight: Value = 2.0
    beta: Value = Field(1.0, description="weight of the correlation over the classes of a sample")
    gamma: Value = Field(1.0, description="weight of the correlation over the samples of a class")
    temperature: Temperature = 1.0

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return dist_loss(
            *self.logits(student, teacher),
            beta=batch.at(self.beta),
            gamma=batch.at(self.gamma),
            temperature=batch.at(self.temperature),
        )
