"""Hidden states: the student's tokens, projected to the teacher's width, equal the teacher's.

    L = sum over real tokens of |W h_s - h_t|^2 / (real tokens * D)

Jiao et al., "TinyBERT", arXiv 1909.10351, section 3.1 (hidden states, embeddings). The paper's code
averages over padding too, and has one projection for all layers; here padding is left out, and each pair of layers has
its own W, without a bias, only where widths differ. The mean over pairs of layers is taken, where the paper adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from edgewise.compress.losses.base import Batch, FeatureLoss, Outputs, same_shape
from edgewise.compress.losses.tokens import flat_tokens, mask_of, real_tokens
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def hidden_states_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Scalar loss between tokens ``student`` and ``teacher``, both (N, L, D); or vectors (N, D), or maps (N, C, H, W).

    Args:
        student: the student's, already of the teacher's width.
        teacher: the teacher's.
        mask: (N, L), 1 at real tokens; None: all are real.

    Raises:
        ValueError: the shapes differ, or the mask's doesn't fit.
    """
    ours, theirs = (flat_tokens(side) for side in same_shape(student, teacher))
    real = real_tokens(mask, ours)
    # Filled before the difference: padding may hold anything, infinities too.
    gap = ours.masked_fill(~real[..., None], 0.0) - theirs.masked_fill(~real[..., None], 0.0)
    return gap.pow(2).sum() / (real.sum().clamp_min(1) * ours.shape[-1])


class HiddenStates(FeatureLoss):
    """Mean squared error of hidden states or embeddings, over real tokens."""

    reads_mask: ClassVar[bool] = True

    kind: Literal["hidden_states"] = "hidden_states"
    weight: Value = 1.0

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The mean over the pairs of layers."""
        from torch import stack

        pairs = self.aligned(student, teacher, learner)
        return stack([hidden_states_loss(*pair, mask=mask_of(pair[0], batch.mask)) for pair in pairs]).mean()
