"""Deep features fused into shallow ones (arXiv 2104.09044 §3.2). Trained with the student, left out at export."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from edgewise.compress.adapters import Shape, map_shape, to_map


def as_map(feature: Tensor) -> Tensor:
    """A map (N, C, H, W) as it is, tokens (N, L, D) as their grid, a vector (N, D) as a map of 1x1."""
    return feature[:, :, None, None] if feature.dim() == 2 else to_map(feature)


class FusionBlock(nn.Module):
    """One level: its own map, and what comes from the level below, to one map; then to the teacher's channels.

    ``from_below`` is False at the deepest level, which has only its own map.
    """

    def __init__(self, channels_in: int, inner: int, channels: int, *, from_below: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels_in, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.attend = nn.Sequential(nn.Conv2d(2 * inner, 2, 1), nn.Sigmoid()) if from_below else None
        self.expand = nn.Sequential(nn.Conv2d(inner, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, feature: Tensor, below: Tensor | None) -> tuple[Tensor, Tensor]:
        """(N, C_in, H, W) and (N, inner, h, w) -> fused (N, inner, H, W) for the next level, and (N, C, H, W)."""
        fused: Tensor = self.reduce(feature)
        if self.attend is not None and below is not None:
            below = interpolate(below, size=fused.shape[2:], mode="nearest")
            own, other = self.attend(torch.cat([fused, below], dim=1)).split(1, dim=1)
            fused = fused * own + below * other
        return fused, self.expand(fused)


class Fusion(nn.Module):
    """(features of the student, of the teacher) -> fused maps and the teacher's, pairwise of one shape.

    Args:
        student: shapes without N, from the first layer to the deepest.
        teacher: likewise, of the layers paired with those.
        most: channels inside; fewer where the student's deepest layer has fewer.
    """

    def __init__(self, student: Sequence[Shape], teacher: Sequence[Shape], most: int) -> None:
        super().__init__()
        widths = [_channels(shape) for shape in student]
        inner = min(most, widths[-1])
        last = len(widths) - 1
        self.blocks = nn.ModuleList(
            FusionBlock(width, inner, _channels(shape), from_below=level < last)
            for level, (width, shape) in enumerate(zip(widths, teacher, strict=True))
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Shallow first; of maps of different size the larger is average-pooled. The teacher's have no gradient.

        Raises:
            ValueError: BatchNorm would see a single value.
        """
        ours = [as_map(feature) for feature in student]
        if self.training and any(feature.shape[0] * feature.shape[2:].numel() == 1 for feature in ours):
            raise ValueError(
                "reviewkd normalises over samples and positions, and a batch of 1 has a single value in a layer of "
                "1x1: use larger batches, or leave that layer out"
            )
        fused: list[Tensor] = []
        below: Tensor | None = None
        for block, feature in zip(reversed(self.blocks), reversed(ours), strict=True):
            below, out = block(feature, below)
            fused.insert(0, out)
        pairs = [_one_size(one, as_map(other.detach())) for one, other in zip(fused, teacher, strict=True)]
        return [one for one, _ in pairs], [other for _, other in pairs]


def _channels(shape: Shape) -> int:
    return shape[0] if len(shape) == 1 else map_shape(shape)[0]


def _one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return adaptive_avg_pool2d(student, size), adaptive_avg_pool2d(teacher, size)
