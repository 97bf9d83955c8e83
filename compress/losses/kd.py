"""Knowledge distillation: the student's softened answers follow the teacher's.

    L = T^2 * KL( softmax(z_t / T) || softmax(z_s / T) )        summed over classes, averaged over samples

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from edgewise.compress.losses.base import Batch, Outputs


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Scalar loss of ``student_logits`` (N, K) against ``teacher_logits`` (N, K), in float32.

    Raises:
        ValueError: the two shapes differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ"
        )
    student = (student_logits.float() / temperature).log_softmax(dim=1)
    teacher = (teacher_logits.float() / temperature).log_softmax(dim=1)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=1).mean()
    # Gradients of softened logits shrink as 1/T^2; this keeps the balance with cross-entropy when T changes.
    return divergence * temperature**2


class KD(Config):
    """Logit distillation with temperature."""

    kind: Literal["kd"] = "kd"
    weight: float = Field(0.9, ge=0)
    temperature: float = Field(4.0, gt=0)

    def taps(self) -> tuple[str, ...]:
        """Layers whose outputs the loss needs, beside the logits."""
        return ()

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The unweighted loss."""
        return kd_loss(student.logits, teacher.logits, temperature=self.temperature)
