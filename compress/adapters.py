"""What stands between features of different nets: maps and tokens turned into each other, sizes pooled, channels
projected. Adapters are trained with the student and left out when it is exported."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from edgewise.errors import ModelError

Shape = tuple[int, ...]


def grid(tokens: int) -> tuple[int, int]:
    """(side, extra): the square grid of patch tokens, and the class tokens before them (0 or 1).

    Raises:
        ModelError: neither ``tokens`` nor one less is a square.
    """
    for extra in (0, 1):
        side = math.isqrt(tokens - extra)
        if side and side * side == tokens - extra:
            return side, extra
    raise ModelError(
        f"{tokens} tokens are no square grid, with or without a class token",
        where="losses.layers",
        hint="pair layers with equally many tokens, or use a loss between embeddings",
    )


def to_map(feature: Tensor) -> Tensor:
    """Tokens (N, L, D) -> map (N, D, H, W), the class token left out; a map (N, C, H, W) stays as it is."""
    if feature.dim() == 4:
        return feature
    side, extra = grid(feature.shape[1])
    return feature[:, extra:].transpose(1, 2).reshape(len(feature), -1, side, side)


def map_shape(shape: Shape) -> Shape:
    """The shape that ``to_map`` gives, without N.

    Raises:
        ModelError: it is a vector, or tokens that are no square grid.
    """
    if len(shape) == 3:
        return shape
    if len(shape) == 1:
        raise ModelError(
            f"a vector of {shape[0]} numbers is no map",
            where="losses.layers",
            hint="name layers whose output is a map (N, C, H, W) or tokens (N, L, D)",
        )
    side, _ = grid(shape[0])
    return shape[1], side, side


class Align(nn.Module):
    """(student feature, teacher feature) -> the same two in one shape; built from their shapes without N.

    Vectors (D,) and equally many tokens (L, D) keep their form; anything else becomes maps (C, H, W), the larger one
    average-pooled to the smaller. Where channels differ (or ``always``), a learnt projection without bias gives the
    student the teacher's; the teacher's values are never projected. With ``norm`` a BatchNorm follows the projection of
    a map: a heavy weight and a high learning rate can make a bare one explode.

    Raises:
        ModelError: a vector meets a map, or a token sequence is no grid.
    """

    def __init__(self, student: Shape, teacher: Shape, *, always: bool = False, norm: bool = False) -> None:
        super().__init__()
        same_form = len(student) == len(teacher)
        self.maps = not (same_form and (len(student) == 1 or (len(student) == 2 and student[0] == teacher[0])))
        if self.maps:
            if 1 in (len(student), len(teacher)):
                raise ModelError(
                    f"a vector can't be held against a map: student {student}, teacher {teacher} (without N)",
                    where="losses.layers",
                    hint="pair layers of the same form",
                )
            student, teacher = map_shape(student), map_shape(teacher)
            self.size = (min(student[1], teacher[1]), min(student[2], teacher[2]))
            channels_in, channels = student[0], teacher[0]
        else:
            channels_in, channels = student[-1], teacher[-1]
        self.project: nn.Module = nn.Identity()
        if always or channels_in != channels:
            self.project = (
                nn.Conv2d(channels_in, channels, 1, bias=False)
                if self.maps
                else nn.Linear(channels_in, channels, bias=False)
            )
            if norm and self.maps:
                self.project = nn.Sequential(self.project, nn.BatchNorm2d(channels))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one shape; the teacher without gradient."""
        teacher = teacher.detach()
        if self.maps:
            student, teacher = (adaptive_avg_pool2d(to_map(feature), self.size) for feature in (student, teacher))
        return self.project(student), teacher
