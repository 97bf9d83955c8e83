"""Attention transfer: where the teacher looks, the student looks.

    Q(F) = vec( mean_c F_c^2 ),   L = sum over layers of mean( (Q_s/|Q_s| - Q_t/|Q_t|)^2 )

Zagoruyko, Komodakis, "Paying More Attention to Attention", arXiv 1612.03928, section 3.1.
The paper writes an unsquared norm (equation 2); the authors' code, and so this file, takes the mean square over
samples and positions, for which their weight of 1000 is meant. The larger map is average-pooled to the smaller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from edgewise.compress.losses.base import Batch, Outputs


def attention_map(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> (N, h*w), each row of unit length: channel energy, average-pooled to ``size`` (h, w)."""
    from torch.nn.functional import adaptive_avg_pool2d, normalize

    energy = feature.float().pow(2).mean(dim=1, keepdim=True)
    return normalize(adaptive_avg_pool2d(energy, size).flatten(1), dim=1, eps=1e-6)


def attention_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar loss between the feature maps (N, C_s, H_s, W_s) and (N, C_t, H_t, W_t).

    Raises:
        ValueError: a tap is not a map of four dimensions, or the batch sizes differ.
    """
    if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher):
        raise ValueError(
            "attention transfer needs maps (N, C, H, W) of one batch, "
            f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return (attention_map(student, size) - attention_map(teacher, size)).pow(2).mean()


class AttentionTransfer(Config):
    """Spatial attention of chosen layers; layer names must exist in student and teacher alike."""

    kind: Literal["attention_transfer"]
    weight: float = Field(1000.0, ge=0)
    layers: tuple[str, ...] = Field(min_length=1, description="module names, the same in both nets: layer1, layer2, …")

    def taps(self) -> tuple[str, ...]:
        """Layers whose outputs the loss needs, beside the logits."""
        return self.layers

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The unweighted loss, summed over layers."""
        terms = [attention_transfer_loss(student.features[name], teacher.features[name]) for name in self.layers]
        return sum(terms[1:], start=terms[0])
