"""Relational distillation: the student keeps the distances and angles between samples that the teacher sees.

    distance:  psi(i,j) = |f_i - f_j| / mu,    mu the mean over pairs that are apart
    angle:     psi(i,j,k) = < e_ij, e_kj >,    e_ij = (f_i - f_j) / |f_i - f_j|
    L = mean of huber(psi_s - psi_t)           over N^2 pairs, over N^3 triples

Park, Kim, Lu, Cho, "Relational Knowledge Distillation", arXiv 1904.05068, sections 3.2.1 and 3.2.2; huber has delta 1.
As in the authors' code, pairs of a sample with itself stay in the mean, with a value of 0. We differ where samples
coincide: theirs clamps the distance at 1e-12, which half precision rounds to 0; here such pairs have value and
gradient 0. The angles of N samples take N^3 numbers, so only the first ``max_samples`` of a batch enter them: order is
shuffled already, and the sub-sample is the same for both nets. Maps and tokens are averaged over their positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.compress.losses.relation import RelationLoss, exact, pooled, products, same_batch, unit
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar loss between the embeddings ``student`` (N, D_s) and ``teacher`` (N, D_t), maps or tokens.

    Raises:
        ValueError: a feature has another form, or the batch sizes differ.
    """
    from torch.nn.functional import smooth_l1_loss

    ours, theirs = same_batch(student, teacher)
    return smooth_l1_loss(_distances(pooled(ours)), _distances(pooled(theirs)))


def rkd_angle_loss(student: Tensor, teacher: Tensor, *, max_samples: int = 64) -> Tensor:
    """Scalar loss between the embeddings ``student`` (N, D_s) and ``teacher`` (N, D_t), maps or tokens.

    Args:
        student: its feature.
        teacher: its feature, never given a gradient.
        max_samples: the angles are those of the first so many samples.

    Raises:
        ValueError: a feature has another form, or the batch sizes differ.
    """
    from torch.nn.functional import smooth_l1_loss

    ours, theirs = same_batch(student, teacher)
    return smooth_l1_loss(_angles(pooled(ours[:max_samples])), _angles(pooled(theirs[:max_samples])))


def _distances(vectors: Tensor) -> Tensor:
    """(N, D) -> (N, N), in units of their mean."""
    from torch import cdist

    with exact(vectors):
        # The form by inner products is faster and loses the distance of neighbours; both have gradient 0 at 0.
        distance = cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    apart = (distance.detach() > 0).sum().clamp_min(1)
    mean = distance.sum() / apart
    return distance / mean.clamp_min(1e-6)


def _angles(vectors: Tensor) -> Tensor:
    """(N, D) -> (N, N, N), at [j, i, k] the cosine at corner j."""
    return products(unit(vectors[None] - vectors[:, None]))


class RKDDistance(RelationLoss):
    """Distances between samples. The weight is the authors' for classification."""

    kind: Literal["rkd_distance"] = "rkd_distance"
    weight: Value = 25.0

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair of layers."""
        return rkd_distance_loss(student, teacher)


class RKDAngle(RelationLoss):
    """Angles between three samples. The weight is the authors' for classification."""

    kind: Literal["rkd_angle"] = "rkd_angle"
    weight: Value = 50.0
    max_samples: int = Field(64, ge=3, description="angles of the first so many samples of a batch: memory grows cubed")

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair of layers."""
        return rkd_angle_loss(student, teacher, max_samples=self.max_samples)
