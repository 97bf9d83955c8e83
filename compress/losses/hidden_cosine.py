"""Cosine of hidden states: the student's tokens point where the teacher's do.

    L = 1 - mean over real tokens of cos(W h_s, h_t)

Sanh et al., "DistilBERT", arXiv 1910.01108, section 2 (the cosine embedding loss of the last hidden state). There the
widths are equal; here a learnt W without bias stands between widths that differ. Lengths of vectors play no part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, FeatureLoss, Layers, Outputs, same_shape
from edgewise.compress.losses.tokens import flat_tokens, mask_of, real_tokens
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def hidden_cosine_loss(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Scalar loss, 0 to 2, between tokens ``student`` and ``teacher``, both (N, L, D); or vectors (N, D), or maps
    (N, C, H, W). A vector of zeros has cosine 0.

    Args:
        student: the student's, already of the teacher's width.
        teacher: the teacher's.
        mask: (N, L), 1 at real tokens; None: all are real.

    Raises:
        ValueError: the shapes differ, or the mask's doesn't fit.
    """
    from torch.nn.functional import normalize

    ours, theirs = (flat_tokens(side) for side in same_shape(student, teacher))
    real = real_tokens(mask, ours)
    ours, theirs = (side.masked_fill(~real[..., None], 0.0) for side in (ours, theirs))
    cosine = (normalize(ours, dim=-1, eps=1e-6) * normalize(theirs, dim=-1, eps=1e-6)).sum(dim=-1)
    return (1 - cosine).masked_fill(~real, 0.0).sum() / real.sum().clamp_min(1)


class HiddenCosine(FeatureLoss):
    """One minus the cosine of hidden states, over real tokens."""

    reads_mask: ClassVar[bool] = True

    kind: Literal["hidden_cosine"] = "hidden_cosine"
    weight: Value = 1.0
    layers: Annotated[Layers, Field(description="which layers teach which: auto, last, embedding, names, or a map")] = (
        "last"
    )

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The mean over the pairs of layers."""
        from torch import stack

        pairs = self.aligned(student, teacher, learner)
        return stack([hidden_cosine_loss(*pair, mask=mask_of(pair[0], batch.mask)) for pair in pairs]).mean()
