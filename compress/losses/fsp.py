"""Flow of the solution procedure: how features of one layer go with features of the next.

    G(x)_ij = 1 / (H W) * sum_hw F1_i F2_j        (C_1, C_2), of two layers of one net
    L = mean( (G_s - G_t)^2 )                     over samples and entries

Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation", CVPR 2017, section 3, equations 1 and 2. The paper sums over
the entries; the mean (RepDistiller's, whose weight of 50 is the default) keeps the weight free of the widths. Of two
maps of different size the larger is average-pooled (torchdistill takes the maximum). ``layers`` are the layers along
the net: each makes a matrix with the one after it, so n layers make n - 1. Where student and teacher differ in channels
at a layer, the student's are projected by a learnt 1x1 convolution. The paper trains on this loss first and on labels
afterwards; here that is a schedule of the weight.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, Layers, Loss, Outputs, Sizes
from edgewise.compress.losses.relation import exact
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def fsp_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Scalar loss between two layers of the student and two of the teacher, in order.

    Args:
        student: maps (N, C_1, H, W) and (N, C_2, h, w), or tokens (N, L, D) of a square grid.
        teacher: likewise, with the same channels; its sizes may be others. Never given a gradient.

    Raises:
        ValueError: a feature is no map, the batch sizes differ, or the channels do.
    """
    ours, theirs = fsp_matrix(*student), fsp_matrix(*(feature.detach() for feature in teacher))
    if ours.shape != theirs.shape:
        raise ValueError(
            "FSP matrices are compared entry by entry, so both nets need the same channels at both layers: "
            f"student {tuple(ours.shape)}, teacher {tuple(theirs.shape)} (N, C_1, C_2); "
            "let the loss project the student's (project: where_needed), or name layers that agree"
        )
    return (ours - theirs).pow(2).mean()


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Maps (N, C_1, H, W) and (N, C_2, h, w) -> (N, C_1, C_2) in float32, the larger map average-pooled.

    Raises:
        ValueError: a feature is neither a map nor a token sequence, or the batch sizes differ.
    """
    from torch.nn.functional import adaptive_avg_pool2d

    from edgewise.compress.adapters import to_map

    if first.dim() not in (3, 4) or second.dim() not in (3, 4) or len(first) != len(second):
        raise ValueError(
            "FSP needs two maps (N, C, H, W) of one batch, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}; vectors have no positions to sum over: use rkd or cc"
        )
    maps = to_map(first.float()), to_map(second.float())
    size = min(maps[0].shape[2], maps[1].shape[2]), min(maps[0].shape[3], maps[1].shape[3])
    with exact(first):
        one, other = (adaptive_avg_pool2d(feature, size).flatten(2) for feature in maps)
        return one @ other.transpose(1, 2) / one.shape[2]


class FSP(Loss):
    """Products of channels of consecutive layers."""

    kind: Literal["fsp"] = "fsp"
    weight: Value = 50.0
    layers: Layers = "auto"
    project: Literal["where_needed", "never"] = Field(
        "where_needed", description="a learnt 1x1 convolution of the student where channels differ, or a refusal there"
    )

    def learner(self, sizes: Sizes) -> nn.Module:
        """One projection for each layer; nothing learnt where the channels agree.

        Raises:
            ValueError: fewer than two layers, a layer without positions, or channels that differ and must not be
                projected.
        """
        from torch import nn

        from edgewise.compress.adapters import map_shape

        if len(sizes.student) < 2:
            raise ValueError(
                f"fsp compares a layer with the next one and needs two or more, got {len(sizes.student)}: name layers"
            )
        if any(len(shape) < 2 for shape in (*sizes.student, *sizes.teacher)):
            raise ValueError("fsp needs maps (C, H, W) or tokens at every layer, not vectors: use rkd or cc for those")
        layers = nn.ModuleList()
        for ours, theirs in zip(sizes.student, sizes.teacher, strict=True):
            channels_in, channels = map_shape(ours)[0], map_shape(theirs)[0]
            if channels_in == channels:
                layers.append(nn.Identity())
            elif self.project == "never":
                raise ValueError(
                    f"fsp without projection needs equal channels, got student {ours} and teacher {theirs} "
                    "(without N): name layers that agree, or set project: where_needed"
                )
            else:
                layers.append(nn.Conv2d(channels_in, channels, 1, bias=False))
        return layers

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The sum over the pairs of consecutive layers."""
        from torch.nn import ModuleList

        from edgewise.compress.adapters import to_map

        assert isinstance(learner, ModuleList)
        projected = zip(learner, student.features, strict=True)
        ours: list[Tensor] = [project(to_map(feature)) for project, feature in projected]
        steps = zip(pairwise(ours), pairwise(teacher.features), strict=True)
        terms = [fsp_loss(one, other) for one, other in steps]
        return sum(terms[1:], start=terms[0])
