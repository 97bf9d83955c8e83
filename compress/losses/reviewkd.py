"""Knowledge review: deep features of the student are fused into its shallow ones, and the result is the teacher's.

    from deep to shallow:  U_i = ABF_i(F_s,i, U_{i+1});   L = sum_i HCL(U_i, F_t,i)

ABF, attention-based fusion: both inputs to the same channels and size, each times a map of weights in (0, 1) that is
learnt from the two, then added; a 3x3 convolution gives the teacher's channels. HCL is ``hcl_loss``.

Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", arXiv 2104.09044, sections 3.2 and 3.3. The authors
warm the weight up over 20 of 240 epochs (``weight: {kind: warmup, ...}``) and read the teacher before its last
activation. Their code takes the pooled embedding as one more level: name it last in ``layers``; vectors count as maps
of 1x1. Where student and teacher maps differ in size, the larger is average-pooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt, field_validator

from edgewise.compress.losses.base import Batch, Layers, Loss, Outputs, Sizes
from edgewise.compress.losses.hcl import hcl_loss
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def reviewkd_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], *, bins: tuple[int, ...] = (4, 2, 1)) -> Tensor:
    """Scalar loss between the fused maps of the student and the maps of the teacher, in float32: as many of each, and
    each pair of one shape (N, C, H, W).

    Raises:
        ValueError: there is nothing to compare, or shapes differ.
    """
    if not student or len(student) != len(teacher):
        raise ValueError(f"reviewkd needs as many fused maps as the teacher has, got {len(student)} and {len(teacher)}")
    terms = [hcl_loss(ours, theirs, bins=bins) for ours, theirs in zip(student, teacher, strict=True)]
    return sum(terms[1:], start=terms[0])


class ReviewKD(Loss):
    """Fused maps of the student against the teacher's."""

    kind: Literal["reviewkd"] = "reviewkd"
    weight: Value = 5.0
    layers: Layers = "auto"
    bins: tuple[PositiveInt, ...] = Field((4, 2, 1), description="bins to a side, finest first; each weighs half")
    channels: int = Field(512, ge=1, description="inside the fusion, at most; fewer where the deepest layer has fewer")

    @field_validator("bins")
    @classmethod
    def _finest_first(cls, bins: tuple[int, ...]) -> tuple[int, ...]:
        if list(bins) != sorted(set(bins), reverse=True):
            raise ValueError(f"expected each of the bins once, finest first, got {list(bins)}")
        return bins

    def learner(self, sizes: Sizes) -> nn.Module:
        """The fusion blocks, one for each pair of layers."""
        from edgewise.compress.fusion import Fusion

        return Fusion(sizes.student, sizes.teacher, self.channels)

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The sum over the layers."""
        from edgewise.compress.fusion import Fusion

        assert isinstance(learner, Fusion)
        return reviewkd_loss(*learner(student.features, teacher.features), bins=self.bins)
