"""Distillation of independent yes/no answers: each label has a sigmoid of its own, so a softmax over them is wrong.

    L = T^2 * sum_k BCE( sigmoid(z_s,k / T), sigmoid(z_t,k / T) )        averaged over samples

Hinton's loss (arXiv 1503.02531) with Bernoulli distributions for the categorical one. It is a cross-entropy: its
gradient, T * (sigmoid(z_s / T) - sigmoid(z_t / T)) / N, is the divergence's and vanishes where the student answers like
the teacher, but its value there is T^2 times the teacher's entropy, not 0. T^2 keeps the gradient's size when T
changes. One label (K = 1) is fine. The labels themselves are not read; ``standardize`` is for softmaxes and does not
exist here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from edgewise.compress.losses.base import Batch, Loss, Outputs, same_shape
from edgewise.compress.schedule import Temperature, Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def multi_label_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Scalar loss of logits ``student`` (N, K) against ``teacher`` (N, K), one sigmoid each, in float32.

    Raises:
        ValueError: the two shapes differ.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    ours, theirs = same_shape(student, teacher)
    answers = (theirs / temperature).sigmoid()
    each = binary_cross_entropy_with_logits(ours / temperature, answers, reduction="none")
    return each.sum(dim=-1).mean() * temperature**2


class MultiLabel(Loss):
    """Distillation where a sample may have any number of labels."""

    about_classes: ClassVar[bool] = False
    softens: ClassVar[bool] = False

    kind: Literal["multi_label"] = "multi_label"
    weight: Value = 1.0
    temperature: Temperature = 1.0

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return multi_label_loss(student.logits, teacher.logits, temperature=batch.at(self.temperature))
