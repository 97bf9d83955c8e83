"""Normalised knowledge distillation: the teacher weighs the label, the other classes are compared on their own.

    L = - p_t,y log p_s,y - gamma * T^2 * sum_{i != y} q_t,i log q_s,i        averaged over samples

p = softmax(z), without temperature; q = softmax(z / T) over the classes other than the label y. Yang et al., "From
Knowledge Distillation to Self-Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", arXiv
2303.13005, section 3. The cross-entropy with the label that the paper adds is the trainer's own term here.

Both parts are cross-entropies, as published: at the student that answers like the teacher the second is at its least,
which is an entropy, not 0; the first goes on pulling towards the label. With two classes the second part, and with it
gamma and T, is always 0: refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, LogitLoss, Outputs, class_labels, same_shape
from edgewise.compress.losses.dkd import other_classes
from edgewise.compress.schedule import Temperature, Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def nkd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, *, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """Scalar loss of logits ``student`` (N, K) against ``teacher`` (N, K) with labels ``target`` (N,), in float32.

    Raises:
        ValueError: the two shapes differ, there are fewer than 3 classes, or the labels are no class numbers.
    """
    ours, theirs = same_shape(student, teacher)
    if ours.shape[-1] < 3:
        raise ValueError(
            f"normalised distillation needs at least 3 classes, got {ours.shape[-1]}: there would be nothing to "
            "compare beside the label; use kd"
        )
    target = class_labels(target, ours)
    column = target[:, None]
    label = ours.log_softmax(dim=-1).gather(1, column) * theirs.softmax(dim=-1).gather(1, column)
    others_ours = (other_classes(ours, target) / temperature).log_softmax(dim=-1)
    others_theirs = (other_classes(theirs, target) / temperature).softmax(dim=-1)
    others = (others_theirs * others_ours).sum(dim=-1)
    return -label.mean() - gamma * temperature**2 * others.mean()


class NKD(LogitLoss):
    """Normalised logit distillation."""

    least_classes: ClassVar[int] = 3
    needs_labels: ClassVar[bool] = True

    kind: Literal["nkd"] = "nkd"
    weight: Value = 1.0
    gamma: Value = Field(1.5, description="weight of the other classes")
    temperature: Temperature = Field(1.0, description="of the other classes; the label's part has none")

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return nkd_loss(
            *self.logits(student, teacher),
            batch.targets,
            gamma=batch.at(self.gamma),
            temperature=batch.at(self.temperature),
        )
