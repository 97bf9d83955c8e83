"""Correlation congruence: the correlations between a batch's embeddings follow the teacher's.

    L = |K_s - K_t|^2 / N^2                           K (N, N), of embeddings f of unit length
    bilinear:  K_ij = f_i . f_j
    gaussian:  K_ij = exp(-2 gamma) * sum_{p=0..P} (2 gamma)^p / p! * (f_i . f_j)^p    ~ exp(-gamma |f_i - f_j|^2)

Peng et al., "Correlation Congruence for Knowledge Distillation", arXiv 1904.01802, section 3. The series is the
Gaussian kernel only where |f| = 1, so embeddings are brought to unit length here; torchdistill does not, and takes the
norm without its square. The "CC" of RepDistiller (products of neighbours' gaps) is another loss. Maps and tokens are
averaged over their positions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.compress.losses.relation import RelationLoss, pooled, products, same_batch, unit
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor

Kernel = Literal["gaussian", "bilinear"]


def cc_loss(
    student: Tensor, teacher: Tensor, *, kernel: Kernel = "gaussian", gamma: float = 0.4, order: int = 2
) -> Tensor:
    """Scalar loss between the embeddings ``student`` (N, D_s) and ``teacher`` (N, D_t), maps or tokens.

    Args:
        student: its feature.
        teacher: its feature, never given a gradient.
        kernel: how two embeddings are correlated.
        gamma: of the Gaussian kernel.
        order: where its series ends.

    Raises:
        ValueError: a feature has another form, or the batch sizes differ.
    """
    ours, theirs = same_batch(student, teacher)
    gap = correlations(ours, kernel=kernel, gamma=gamma, order=order)
    gap = gap - correlations(theirs, kernel=kernel, gamma=gamma, order=order)
    return gap.pow(2).mean()


def correlations(feature: Tensor, *, kernel: Kernel = "gaussian", gamma: float = 0.4, order: int = 2) -> Tensor:
    """(N, D) -> (N, N), the kernel of each two embeddings."""
    cosine = products(unit(pooled(feature)))
    if kernel == "bilinear":
        return cosine
    powers = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(1, order + 1)]
    return math.exp(-2 * gamma) * sum(powers, start=cosine.new_ones(()))


class CC(RelationLoss):
    """Correlations of embeddings. The published weights are 0.003 to 0.02, and on unit embeddings they weigh little."""

    kind: Literal["cc"] = "cc"
    weight: Value = 0.02
    kernel: Kernel = "gaussian"
    gamma: float = Field(0.4, gt=0, description="of the Gaussian kernel")
    order: int = Field(2, ge=1, le=10, description="the last power of its series")

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair of layers."""
        return cc_loss(student, teacher, kernel=self.kernel, gamma=self.gamma, order=self.order)
