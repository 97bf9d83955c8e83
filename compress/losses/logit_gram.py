"""Relations between logits: which samples of a batch get alike answers, and which classes rise and fall together.

    Q = z with each row brought to length 1, (N, K)
    batch:    |Q_s Q_s' - Q_t Q_t'|^2 / N^2        between samples: cosines of their logits
    classes:  |Q_s' Q_s - Q_t' Q_t|^2 / N^2        between classes
    both:     their sum

The Gram matrices of logits in "Multi-Level Logit Distillation" (CVPR 2023; there of probabilities at a temperature,
which is ``mlkd``), of unit rows as in similarity-preserving distillation (arXiv 1907.09682). Published sums grow with
the batch; divided by N^2 both forms keep their size, since either Gram's norm lies between N / sqrt(min(N, K)) and N.
Blind to each sample's scale of logits, and the batch form to a rotation of the classes. ``standardize`` makes it blind
to their mean as well: cosines become correlations. A batch of one has no relations between samples: 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, LogitLoss, Outputs, same_shape
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn

Over = Literal["batch", "classes", "both"]


def logit_gram_loss(student: Tensor, teacher: Tensor, *, over: Over = "both") -> Tensor:
    """Scalar loss of logits ``student`` (N, K) against ``teacher`` (N, K), in float32; needs N^2 (``batch``) or K^2
    (``classes``) numbers of memory.

    Raises:
        ValueError: the two shapes differ.
    """
    import torch
    from torch.nn.functional import normalize

    ours, theirs = same_shape(student, teacher)
    # Products of matrices would be taken in half precision.
    with torch.autocast(ours.device.type, enabled=False):
        # Rows shorter than that stay short, so that a classifier that starts at zero gets no gradient of its inverse.
        ours, theirs = normalize(ours, dim=-1, eps=1e-3), normalize(theirs, dim=-1, eps=1e-3)
        total = ours.new_zeros(())
        if over in ("batch", "both"):
            total = total + (ours @ ours.T - theirs @ theirs.T).pow(2).sum()
        if over in ("classes", "both"):
            total = total + (ours.T @ ours - theirs.T @ theirs).pow(2).sum()
    return total / len(ours) ** 2


class LogitGram(LogitLoss):
    """Gram matrices of the logits, between samples, between classes, or both."""

    softens: ClassVar[bool] = False
    through_softmax: ClassVar[bool] = False

    kind: Literal["logit_gram"] = "logit_gram"
    weight: Value = 1.0
    over: Over = Field("both", description="relations between the batch's samples, between classes, or both")

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return logit_gram_loss(*self.logits(student, teacher), over=self.over)
