"""What losses between samples share: features as vectors, unit vectors with a gradient at zero, float32 under autocast.

A relation compares how a net places the samples of one batch to each other, so student and teacher may have different
widths and sizes; only the number of samples must agree. A batch of one has no relations: the loss is 0.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from edgewise.compress.losses.base import Batch, Layers, Loss, Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn


class RelationLoss(Loss):
    """The base of losses between relations of samples."""

    layers: Layers = "embedding"

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The sum over the pairs of layers."""
        pairs = zip(student.features, teacher.features, strict=True)
        terms = [self.between(ours, theirs) for ours, theirs in pairs]
        return sum(terms[1:], start=terms[0])

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss between two features of one batch: (N, D), (N, L, D) or (N, C, H, W), each its own."""
        raise TypeError(f"{self.kind} does not say how it is computed")


def same_batch(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, the teacher cut from the graph.

    Raises:
        ValueError: a feature is no vector, map or token sequence, or the batch sizes differ.
    """
    if not {student.dim(), teacher.dim()} <= {2, 3, 4} or len(student) != len(teacher):
        raise ValueError(
            "relations need vectors (N, D), tokens (N, L, D) or maps (N, C, H, W) of one batch, "
            f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    return student.float(), teacher.detach().float()


def pooled(feature: Tensor) -> Tensor:
    """(N, D) as it is; maps (N, C, H, W) averaged over positions, tokens (N, L, D) over the sequence."""
    if feature.dim() == 4:
        return feature.mean(dim=(2, 3))
    return feature.mean(dim=1) if feature.dim() == 3 else feature


def unit(vectors: Tensor) -> Tensor:
    """Along the last axis to length 1. What is 1e-6 times shorter than the longest becomes 0, with gradient 0."""
    from torch import where
    from torch.linalg import vector_norm

    if not vectors.numel():
        return vectors
    length = vector_norm(vectors, dim=-1, keepdim=True)
    # Dividing by a clamped length would send gradients of 1 / eps through a pair of duplicates.
    # What is not finite is never taken for short: it must show.
    short = length.isfinite() & (length <= 1e-6 * length.detach().max())
    return where(short, 0.0, vectors) / where(short, 1.0, length)


def exact(tensor: Tensor) -> AbstractContextManager[object]:
    """A block without autocast, which would do matrix products of float32 in half precision."""
    from torch import autocast

    return autocast(tensor.device.type, enabled=False)


def products(vectors: Tensor) -> Tensor:
    """(..., N, D) -> (..., N, N), all inner products, in float32 also where autocast is on."""
    with exact(vectors):
        return vectors @ vectors.transpose(-1, -2)
