"""What the losses between token sequences share: which tokens are real, and means over those only.

Padding must not change a loss: masked positions are set to a constant before anything is computed, and sums are divided
by the number of real tokens (or pairs of them), never by the padded length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Far below any score, and finite: a row without any real token gives a number, which is then left out.
MASKED = -1e9


def real_tokens(mask: Tensor | None, tokens: Tensor, dim: int = 1) -> Tensor:
    """Boolean (N, L) for ``tokens``, whose dimension ``dim`` has L places; all true without a mask.

    Raises:
        ValueError: the mask has another shape.
    """
    shape = (tokens.shape[0], tokens.shape[dim])
    if mask is None:
        return tokens.new_ones(shape).bool()
    if tuple(mask.shape) != shape:
        raise ValueError(f"expected a mask of {shape} (samples, tokens), got {tuple(mask.shape)}")
    return mask.to(tokens.device).bool()


def flat_tokens(feature: Tensor) -> Tensor:
    """(N, L, D) from tokens, from a map (N, C, H, W), its places being tokens, or from vectors (N, D), each a token."""
    if feature.dim() == 4:
        return feature.flatten(2).transpose(1, 2)
    return feature.unsqueeze(1) if feature.dim() == 2 else feature


def mask_of(feature: Tensor, mask: Tensor | None) -> Tensor | None:
    """The part of a batch's mask that concerns a feature: none of it where there is one vector a sample.

    Raises:
        ValueError: the feature is a map, or has been made one.
    """
    if mask is not None and feature.dim() == 4:
        raise ValueError("padded tokens were turned into maps; pair layers with equally many tokens")
    return None if feature.dim() == 2 else mask


def row_divergence(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the last dimension, mean over heads and real rows.

    Args:
        student: scores (N, heads, L, L) in float32.
        teacher: scores of the same shape.
        real: (N, L), the places that exist, both as rows and as columns.
    """
    columns = ~real[:, None, None, :]
    ours = student.masked_fill(columns, MASKED).log_softmax(dim=-1)
    theirs = teacher.masked_fill(columns, MASKED).log_softmax(dim=-1)
    rows = (theirs.exp() * (theirs - ours)).sum(dim=-1)
    return rows.masked_fill(~real[:, None, :], 0.0).sum() / (student.shape[1] * real.sum().clamp_min(1))
