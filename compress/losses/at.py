"""Attention transfer: where the teacher looks, the student looks.

    Q(F) = vec( mean_c F_c^2 )
    code:   mean( (Q_s/|Q_s| - Q_t/|Q_t|)^2 )               over samples and positions
    paper:  mean over samples of | Q_s/|Q_s| - Q_t/|Q_t| |  (equation 2, times 2 / beta)

Zagoruyko, Komodakis, "Paying More Attention to Attention", arXiv 1612.03928, section 3.1. The authors' code is not
their equation: it squares the norm and divides by the positions too, and their weight of 1000 is meant for that. Both
are here. The larger map is average-pooled to the smaller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, Layers, Loss, Outputs
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def attention_map(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> (N, h*w), each row of unit length: channel energy, average-pooled to ``size`` (h, w)."""
    from torch.nn.functional import adaptive_avg_pool2d, normalize

    energy = feature.float().pow(2).mean(dim=1, keepdim=True)
    return normalize(adaptive_avg_pool2d(energy, size).flatten(1), dim=1, eps=1e-6)


def at_loss(student: Tensor, teacher: Tensor, *, mode: Literal["code", "paper"] = "code") -> Tensor:
    """Scalar loss between the maps ``student`` (N, C_s, H_s, W_s) and ``teacher`` (N, C_t, H_t, W_t), or tokens
    (N, L, D) of a square grid.

    Raises:
        ValueError: a tap is no map, or the batch sizes differ.
    """
    from edgewise.compress.adapters import to_map

    if student.dim() not in (3, 4) or teacher.dim() not in (3, 4) or len(student) != len(teacher):
        raise ValueError(
            "attention transfer needs maps (N, C, H, W) of one batch, "
            f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    ours, theirs = to_map(student), to_map(teacher.detach())
    size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
    gap = attention_map(ours, size) - attention_map(theirs, size)
    if mode == "code":
        return gap.pow(2).mean()
    # The square root has no gradient at 0.
    return gap.pow(2).sum(dim=1).clamp_min(1e-12).sqrt().mean()


class AT(Loss):
    """Spatial attention of pairs of layers."""

    kind: Literal["at"] = "at"
    weight: Value = 1000.0
    layers: Layers = "auto"
    mode: Literal["code", "paper"] = Field("code", description="mean square of the gap, or its norm")

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The sum over the pairs of layers."""
        pairs = zip(student.features, teacher.features, strict=True)
        terms = [at_loss(ours, theirs, mode=self.mode) for ours, theirs in pairs]
        return sum(terms[1:], start=terms[0])
