"""Knowledge distillation: the student's softened answers follow the teacher's.

    L = T^2 * KL( softmax(z_t / T) || softmax(z_s / T) )        summed over classes, averaged over samples

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgewise.compress.losses.base import Batch, LogitLoss, Outputs, same_shape
from edgewise.compress.schedule import Temperature, Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def kd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Scalar loss of logits ``student`` (N, K) against ``teacher`` (N, K), in float32.

    Raises:
        ValueError: the two shapes differ.
    """
    ours, theirs = same_shape(student, teacher)
    ours, theirs = (ours / temperature).log_softmax(dim=-1), (theirs / temperature).log_softmax(dim=-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(dim=-1).mean()
    # Gradients of softened logits shrink as 1/T^2; this keeps the balance with cross-entropy when T changes.
    return divergence * temperature**2


class KD(LogitLoss):
    """Logit distillation with temperature."""

    kind: Literal["kd"] = "kd"
    weight: Value = 0.9
    temperature: Temperature = 4.0

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return kd_loss(*self.logits(student, teacher), temperature=batch.at(self.temperature))
