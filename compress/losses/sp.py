"""Similarity-preserving distillation: samples that the teacher finds alike, the student finds alike.

    G = F F^T with F (N, C*H*W), each row divided by its length;   L = |G_s - G_t|^2 / N^2

Tung, Mori, "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682, section 3.1, equations 2 to 4. Maps and
tokens are flattened, not pooled. Rows are divided by their Euclidean length, as there; torchdistill's SPKDLoss divides
them by the sum of their magnitudes, which is another loss. A sample whose features are all 0 has a row of 0 and no
gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgewise.compress.losses.base import Layers
from edgewise.compress.losses.relation import RelationLoss, products, same_batch, unit
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar loss between ``student`` and ``teacher``, each (N, C, H, W), (N, L, D) or (N, D) of its own size.

    Raises:
        ValueError: a feature has another form, or the batch sizes differ.
    """
    ours, theirs = same_batch(student, teacher)
    return (unit(products(ours.flatten(1))) - unit(products(theirs.flatten(1)))).pow(2).mean()


class SP(RelationLoss):
    """Similarities of samples in the last maps."""

    kind: Literal["sp"] = "sp"
    weight: Value = 3000.0
    layers: Layers = "last"

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair of layers."""
        return sp_loss(student, teacher)
