"""Attention matrices: each of the student's tokens looks where the teacher's does.

    scores_mse, probabilities_mse:  sum over real i, j of (A_s[i,j] - A_t[i,j])^2 / (heads * real pairs)
    scores_kl, probabilities_kl:    mean over heads and real i of KL( P_t[i] || P_s[i] )

Scores are q k / sqrt(d) before the softmax, probabilities come out of it. Jiao et al., "TinyBERT", arXiv 1909.10351,
section 3.1 (scores, mean squared error; the default); Wang et al., "MiniLM", arXiv 2002.10957, section 3.1 (KL of the
last layers). TinyBERT's code zeroes padded columns but averages over padded rows as well; here padding is out as a row
and as a column, so that a longer padding changes nothing. A tap's name tells which it is: for a softmax module ``name``
gives probabilities, ``name:input`` scores. The mean over pairs of layers is taken, where TinyBERT adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, LayerMap, Layers, Loss, Outputs
from edgewise.compress.losses.tokens import real_tokens, row_divergence
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn

Mode = Literal["scores_mse", "scores_kl", "probabilities_mse", "probabilities_kl"]
Heads = Literal["same", "mean"]

_EPS = 1e-6


def attention_matrices_loss(
    student: Tensor, teacher: Tensor, *, mode: Mode = "scores_mse", heads: Heads = "same", mask: Tensor | None = None
) -> Tensor:
    """Scalar loss between attention ``student`` (N, heads_s, L, L) and ``teacher`` (N, heads_t, L, L).

    Args:
        student: scores or probabilities, as ``mode`` says.
        teacher: the same of the teacher.
        mode: what is given, and how it is compared.
        heads: ``same``: head i learns from head i; ``mean``: the mean of all heads from the mean of all heads.
        mask: (N, L), 1 at real tokens; None: all are real.

    Raises:
        ValueError: no attention matrices, other samples or tokens, other heads with ``same``, a mask that doesn't fit,
            or negative "probabilities".
    """
    ours, theirs = student.float(), teacher.detach().float()
    square = (
        ours.dim() == theirs.dim() == 4 and ours.shape[-1] == ours.shape[-2] == theirs.shape[-1] == theirs.shape[-2]
    )
    if not square or len(ours) != len(theirs):
        raise ValueError(
            "expected attention (N, heads, L, L) over the same tokens, "
            f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    if heads == "same" and ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"the student has {ours.shape[1]} heads and the teacher {theirs.shape[1]}; "
            "use heads: mean, or value_relations"
        )
    real = real_tokens(mask, ours, dim=2)
    either = ~(real[:, None, :, None] & real[:, None, None, :])
    ours, theirs = ours.masked_fill(either, 0.0), theirs.masked_fill(either, 0.0)
    if mode.startswith("probabilities") and bool((theirs < 0).any()):
        raise ValueError(
            "the teacher's probabilities are negative: these are scores; use a scores mode, or tap the softmax"
        )
    if heads == "mean":
        ours, theirs = ours.mean(dim=1, keepdim=True), theirs.mean(dim=1, keepdim=True)
    if mode.endswith("mse"):
        pairs = real.sum(dim=1).pow(2).sum().clamp_min(1)
        return (ours - theirs).pow(2).sum() / (ours.shape[1] * pairs)
    if mode == "probabilities_kl":
        # The constant keeps a gradient where the student has come down to 0; the softmax makes each row sum to 1 again.
        ours, theirs = (ours + _EPS).log(), (theirs + _EPS).log()
    return row_divergence(ours, theirs, real)


class AttentionMatrices(Loss):
    """Attention of pairs of layers, before or after the softmax."""

    reads_mask: ClassVar[bool] = True

    kind: Literal["attention_matrices"] = "attention_matrices"
    weight: Value = 1.0
    layers: Annotated[
        Layers, Field(description="layers that give attention (N, heads, L, L); softmax:input for scores, softmax else")
    ] = LayerMap(student="blocks.*.attn.softmax:input", teacher="blocks.*.attn.softmax:input")
    mode: Mode = Field("scores_mse", description="what the layers give, and how it is compared")
    heads: Heads = Field("same", description="head by head, or the mean of all heads where their numbers differ")

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The mean over the pairs of layers."""
        from torch import stack

        pairs = zip(student.features, teacher.features, strict=True)
        terms = [attention_matrices_loss(*pair, mode=self.mode, heads=self.heads, mask=batch.mask) for pair in pairs]
        return stack(terms).mean()
