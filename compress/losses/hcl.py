"""Pyramid-pooled feature loss: the student's map equals the teacher's at full size and at coarser and coarser ones.

    L = sum_k 2^-k MSE( pool_k(F_s), pool_k(F_t) ) / sum_k 2^-k       k = 0: the map itself; k = 1, 2, ...: the bins

pool_k averages the map into b_k x b_k bins; bins that are not smaller than the map are left out, and don't count.

Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", arXiv 2104.09044, section 3, there called
hierarchical context loss; 4, 2, 1 and the halving weights are those of the authors' code. The bins 1, 2, 3, 6 of
pyramid scene parsing (arXiv 1612.01105) are 6, 3, 2, 1 here: finest first, because the weights halve in that order.
Without bins it is the plain mean squared error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt, field_validator

from edgewise.compress.losses.base import FeatureLoss, same_shape
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor


def hcl_loss(student: Tensor, teacher: Tensor, *, bins: tuple[int, ...] = (4, 2, 1)) -> Tensor:
    """Scalar loss of maps (N, C, H, W) of one shape, or tokens (N, L, D) of a square grid, in float32.

    Raises:
        ValueError: the features are no maps, or the two shapes differ.
    """
    from torch.nn.functional import adaptive_avg_pool2d, mse_loss

    from edgewise.compress.adapters import to_map

    if student.dim() not in (3, 4):
        raise ValueError(f"hcl pools maps (N, C, H, W), got {tuple(student.shape)}; use fitnet for vectors")
    ours, theirs = (to_map(feature) for feature in same_shape(student, teacher))
    sizes = [size for size in bins if size < min(ours.shape[2:])]
    total = mse_loss(ours, theirs)
    for level, size in enumerate(sizes, start=1):
        total = total + mse_loss(adaptive_avg_pool2d(ours, size), adaptive_avg_pool2d(theirs, size)) / 2**level
    # 1 + 1/2 + ... + 1/2^n
    return total / (2 - 0.5 ** len(sizes))


class HCL(FeatureLoss):
    """Pyramid-pooled feature loss: the mean over the pairs of layers."""

    kind: Literal["hcl"] = "hcl"
    weight: Value = 5.0
    bins: tuple[PositiveInt, ...] = Field((4, 2, 1), description="bins to a side, finest first; each weighs half")

    @field_validator("bins")
    @classmethod
    def _finest_first(cls, bins: tuple[int, ...]) -> tuple[int, ...]:
        if list(bins) != sorted(set(bins), reverse=True):
            raise ValueError(f"expected each of the bins once, finest first, got {list(bins)}")
        return bins

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The unweighted loss of one pair."""
        return hcl_loss(student, teacher, bins=self.bins)
