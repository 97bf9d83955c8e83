"""Masked generative distillation: from a student's feature with parts wiped out, a small net makes the teacher's.

    L = mean( (G(M * r(F_s)) - F_t)^2 )           G = 3x3 convolution, ReLU, 3x3 convolution

M wipes out random channels, or positions in all channels. r aligns sizes and channels.

Yang et al., "Masked Generative Distillation", arXiv 2205.01529, section 3. The paper sums over channels and
positions, so that its weight depends on the layer; this is the mean. Its 7e-5 for classification (ResNet-34 to
ResNet-18, last maps of 512 x 7 x 7, channels masked by 0.15) is 7e-5 * 512 * 7 * 7 = 1.75 here, the default;
elsewhere it is alpha * C * H * W. Detection masks positions by 0.5 and more. Kept values are not scaled up,
as published.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, FeatureLoss, Outputs, Sizes, same_shape
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def mgd_loss(student: Tensor, teacher: Tensor, mask: Tensor, generate: Callable[[Tensor], Tensor]) -> Tensor:
    """Scalar loss of maps ``student`` against ``teacher`` (N, C, H, W), in float32. ``mask`` (N, C, 1, 1) or
    (N, 1, H, W): 1 for what is kept, 0 for what is wiped out; ``generate`` makes a map of the same shape.

    Raises:
        ValueError: the features are no maps, or the shapes differ.
    """
    if student.dim() != 4:
        raise ValueError(f"mgd generates maps (N, C, H, W), got {tuple(student.shape)}; use fitnet for vectors")
    generated, theirs = same_shape(generate(student * mask.to(student)), teacher)
    return (generated - theirs).pow(2).mean()


def random_mask(student: Tensor, *, over: Literal["channels", "positions"], ratio: float) -> Tensor:
    """The mask for maps (N, C, H, W): each channel or position is 0 with probability ``ratio``, else 1.

    Drawn on the CPU from torch's own generator: one seed gives one mask on every device, and resumes with a checkpoint.
    """
    from torch import rand

    samples, channels, height, width = student.shape
    shape = (samples, channels, 1, 1) if over == "channels" else (samples, 1, height, width)
    return (rand(shape) >= ratio).to(student)


class MGD(FeatureLoss):
    """Masked generative distillation: the mean over the pairs of layers."""

    kind: Literal["mgd"] = "mgd"
    weight: Value = 1.75
    mask: Literal["channels", "positions"] = Field("channels", description="what is wiped out together")
    ratio: float = Field(0.15, ge=0, lt=1, description="the part that is wiped out")

    def learner(self, sizes: Sizes) -> nn.Module:
        """An alignment and a generator for each pair of layers.

        Raises:
            ValueError: a layer of the teacher gives vectors.
        """
        from torch.nn import Conv2d, ModuleDict, ModuleList, ReLU, Sequential

        from edgewise.compress.adapters import map_shape

        if vectors := [shape for shape in sizes.teacher if len(shape) == 1]:
            raise ValueError(f"mgd generates maps (C, H, W), got vectors {vectors[0]}; use fitnet for them")
        channels = [map_shape(shape)[0] for shape in sizes.teacher]
        makers = [Sequential(Conv2d(c, c, 3, padding=1), ReLU(), Conv2d(c, c, 3, padding=1)) for c in channels]
        return ModuleDict({"align": super().learner(sizes), "generate": ModuleList(makers)})

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        from torch import stack
        from torch.nn import ModuleDict, ModuleList

        from edgewise.compress.adapters import to_map

        assert isinstance(learner, ModuleDict)
        generators = learner["generate"]
        assert isinstance(generators, ModuleList)
        terms = []
        pairs = self.aligned(student, teacher, learner["align"])
        for (ours, theirs), generate in zip(pairs, generators, strict=True):
            ours, theirs = to_map(ours), to_map(theirs)
            mask = random_mask(ours, over=self.mask, ratio=self.ratio)
            terms.append(mgd_loss(ours, theirs, mask, generate))
        return stack(terms).mean()
