"""Probabilistic knowledge transfer: who is near whom in a batch is the same for student and teacher.

    K_ij = (cos(f_i, f_j) + 1) / 2,  P_ij = K_ij / sum_j K_ij                     among the samples of a batch
    L = mean_ij( P^t_ij log( (P^t_ij + eps) / (P^s_ij + eps) ) )

Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", arXiv 1803.10837, section 3.
As in the authors' code, a sample's nearness to itself counts, and the mean is over all N^2 pairs: 1/N of the mean over
samples of each one's divergence, which is why the usual weight is 30000. In a batch twice as large, the same divergence
gives half the loss. The authors' eps is 1e-7; 1e-6 changes the loss in the sixth digit and bounds its gradient lower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, Layers, Loss, Outputs
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def pkt_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Scalar loss of features ``student`` (N, ...) against ``teacher`` (N, ...), in float32. Each sample's feature is
    one vector, maps and tokens flattened; the lengths may differ.

    Raises:
        ValueError: the batch sizes differ, or there is one sample only.
    """
    if len(student) != len(teacher):
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in their samples")
    if len(student) < 2:
        raise ValueError("pkt compares the samples of a batch with each other: it needs at least 2, got 1")
    ours, theirs = _neighbours(student), _neighbours(teacher.detach())
    return (theirs * ((theirs + eps) / (ours + eps)).log()).mean()


class PKT(Loss):
    """Probabilistic knowledge transfer: the mean over the pairs of layers."""

    kind: Literal["pkt"] = "pkt"
    weight: Value = 30000.0
    layers: Layers = "embedding"
    eps: float = Field(1e-6, ge=1e-7, lt=1e-2, description="keeps the logarithm finite where samples are opposite")

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        from torch import stack

        pairs = zip(student.features, teacher.features, strict=True)
        return stack([pkt_loss(ours, theirs, eps=self.eps) for ours, theirs in pairs]).mean()


def _neighbours(feature: Tensor) -> Tensor:
    """(N, ...) -> (N, N): each row says how near the other samples are, and sums to 1."""
    from torch import autocast
    from torch.nn.functional import normalize

    with autocast(feature.device.type, enabled=False):
        unit = normalize(feature.float().flatten(1), dim=1, eps=1e-6)
        # Rounding takes a cosine a little below -1.
        near = ((unit @ unit.T + 1) / 2).clamp_min(0)
        return near / near.sum(dim=1, keepdim=True)
