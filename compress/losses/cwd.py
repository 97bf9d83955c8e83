"""Channel-wise distillation: in each channel, the student is active where the teacher is.

    L = T^2 / (C N) * sum_{n,c} KL( softmax_HW(F_t[n,c] / T) || softmax_HW(F_s[n,c] / T) )

Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", arXiv 2011.13256, section 3.
T = 4 and the weight of 50 for features are those of the authors' segmentation code. Each channel is compared with one
channel of the teacher, so unequal channels are projected first. Of tokens, the softmax is over the tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgewise.compress.losses.base import Batch, FeatureLoss, Outputs, same_shape
from edgewise.compress.schedule import Temperature, Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def cwd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Scalar loss of maps (N, C, H, W) or tokens (N, L, D) of one shape, in float32.

    Raises:
        ValueError: the two shapes differ, or there are fewer than two positions.
    """
    ours, theirs = same_shape(student, teacher)
    positions = {3: ours.shape[1], 4: ours.shape[2:].numel()}.get(ours.dim(), 0)
    if positions < 2:
        raise ValueError(
            "cwd compares two or more positions of maps (N, C, H, W) or tokens (N, L, D), "
            f"got {tuple(ours.shape)}; use fitnet"
        )
    if ours.dim() == 3:
        ours, theirs = ours.transpose(1, 2), theirs.transpose(1, 2)
    ours, theirs = ((feature.flatten(2) / temperature).log_softmax(dim=2) for feature in (ours, theirs))
    return (theirs.exp() * (theirs - ours)).sum(dim=2).mean() * temperature**2


class CWD(FeatureLoss):
    """Channel-wise distillation: the mean over the pairs of layers."""

    kind: Literal["cwd"] = "cwd"
    weight: Value = 50.0
    temperature: Temperature = 4.0

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        from torch import stack

        temperature = batch.at(self.temperature)
        pairs = self.aligned(student, teacher, learner)
        return stack([cwd_loss(*pair, temperature=temperature) for pair in pairs]).mean()
