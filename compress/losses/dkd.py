"""Decoupled knowledge distillation: how sure the teacher is of the label, and how it ranks the other classes, apart.

    TCKD = T^2 * KL( (p_t,y , 1 - p_t,y) || (p_s,y , 1 - p_s,y) )      p = softmax(z / T), y the label
    NCKD = T^2 * KL( q_t || q_s )                                      q = softmax(z / T) over the classes other than y
    L    = alpha * TCKD + beta * NCKD                                  averaged over samples

Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679, equation 7. Hinton's loss is TCKD + (1 - p_t,y) *
NCKD: it hides the second part where the teacher is sure. The best beta differs from pair to pair (2 to 8 in the paper).

The authors sum probabilities, push the label's logit down by 1000 and take logarithms; here the label's class is left
out and log(1 - p_y) is a difference of two logsumexp, which stays exact where p_y rounds to 1. With two classes NCKD is
0 whatever the nets say: refused. Over their first 20 of 240 epochs the authors let the weight grow: ``weight: {kind:
warmup, value: 1, epochs: 20}``. With ``standardize`` they multiply alpha and beta by 9 and set T to 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, LogitLoss, Outputs, class_labels, same_shape
from edgewise.compress.schedule import Temperature, Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def other_classes(logits: Tensor, target: Tensor) -> Tensor:
    """``logits`` (N, K) without each row's class ``target`` (N,): (N, K-1), in order."""
    from torch import arange

    columns = arange(logits.shape[-1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, columns + (columns >= target[:, None]).long())


def dkd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """Scalar loss of logits ``student`` (N, K) against ``teacher`` (N, K) with labels ``target`` (N,), in float32.

    Raises:
        ValueError: the two shapes differ, there are fewer than 3 classes, or the labels are no class numbers.
    """
    ours, theirs = same_shape(student, teacher)
    if ours.shape[-1] < 3:
        raise ValueError(
            f"decoupled distillation needs at least 3 classes, got {ours.shape[-1]}: there would be nothing to rank "
            "beside the label; use kd"
        )
    target = class_labels(target, ours)
    ours, theirs = ours / temperature, theirs / temperature
    sure_ours, rest_ours, others_ours = _parts(ours, target)
    sure_theirs, rest_theirs, others_theirs = _parts(theirs, target)
    tckd = sure_theirs.exp() * (sure_theirs - sure_ours) + rest_theirs.exp() * (rest_theirs - rest_ours)
    nckd = (others_theirs.exp() * (others_theirs - others_ours)).sum(dim=-1)
    return (alpha * tckd + beta * nckd).mean() * temperature**2


def _parts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p_y (N,), log(1 - p_y) (N,) and the others' log-softmax among themselves (N, K-1)."""
    others = other_classes(logits, target)
    everything, rest = logits.logsumexp(dim=-1), others.logsumexp(dim=-1)
    label = logits.gather(1, target[:, None]).squeeze(1)
    return label - everything, rest - everything, others - rest[:, None]


class DKD(LogitLoss):
    """Decoupled logit distillation."""

    least_classes: ClassVar[int] = 3
    needs_labels: ClassVar[bool] = True

    kind: Literal["dkd"] = "dkd"
    weight: Value = 1.0
    alpha: Value = Field(1.0, description="weight of the label against all others")
    beta: Value = Field(8.0, description="weight of the other classes among themselves")
    temperature: Temperature = 4.0

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return dkd_loss(
            *self.logits(student, teacher),
            batch.targets,
            alpha=batch.at(self.alpha),
            beta=batch.at(self.beta),
            temperature=batch.at(self.temperature),
        )
