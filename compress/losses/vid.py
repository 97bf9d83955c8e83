"""Variational information distillation: the student's feature says what the teacher's is, and how surely.

    L = mean( (F_t - mu(F_s))^2 / (2 s_c^2) + log s_c )        over samples, channels and positions
    s_c^2 = softplus(a_c) + 1e-5

the negative log-likelihood of the teacher's feature under a Gaussian whose mean is a learnt net of the student's and
whose variance is learnt for each channel, up to a constant. It may be negative.

Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", arXiv 1904.05835,
section 2. The paper sums over channels and positions; the mean, the net of three 1x1 convolutions with ReLU
between and the initial variance of 5 are those of the common code, with weight 1. The variances are parameters of the
learner: in a plain list they would never be trained.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, Layers, Loss, Outputs, Sizes, same_shape
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn

EPS = 1e-5


def vid_loss(student: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Scalar loss of the mean ``student`` that is predicted for ``teacher``, of one shape: (N, C, H, W), (N, L, D) or
    (N, D), in float32. ``variance`` (C,) or (D,), above 0.

    Raises:
        ValueError: the shapes don't fit.
    """
    ours, theirs = same_shape(student, teacher)
    channels = ours.shape[1 if ours.dim() == 4 else -1]
    if tuple(variance.shape) != (channels,):
        raise ValueError(f"expected a variance for each of {channels} channels, got {tuple(variance.shape)}")
    spread = variance.float().view(-1, 1, 1) if ours.dim() == 4 else variance.float()
    return 0.5 * ((theirs - ours).pow(2) / spread + spread.log()).mean()


class VID(Loss):
    """Variational information distillation: the mean over the pairs of layers."""

    kind: Literal["vid"] = "vid"
    weight: Value = 1.0
    layers: Layers = "auto"
    initial_variance: float = Field(5.0, gt=1e-3, le=100, description="of each channel, before training")

    def learner(self, sizes: Sizes) -> nn.Module:
        """For each pair of layers, the net that predicts the mean and the raw variance of each channel."""
        from torch import full
        from torch.nn import Conv2d, Linear, Module, ModuleDict, ModuleList, Parameter, ParameterList, ReLU, Sequential

        from edgewise.compress.adapters import Align, map_shape

        means, variances = ModuleList(), ParameterList()
        # The inverse of softplus.
        raw = math.log(math.expm1(self.initial_variance - EPS))
        for ours, theirs in zip(sizes.student, sizes.teacher, strict=True):
            align = Align(ours, theirs)
            channels_in, channels = (map_shape(ours)[0], map_shape(theirs)[0]) if align.maps else (ours[-1], theirs[-1])
            layer = partial(Conv2d, kernel_size=1, bias=False) if align.maps else partial(Linear, bias=False)
            last: Module = layer(channels, channels)
            align.project = Sequential(layer(channels_in, channels), ReLU(), layer(channels, channels), ReLU(), last)
            means.append(align)
            variances.append(Parameter(full((channels,), raw)))
        return ModuleDict({"mean": means, "variance": variances})

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        from torch import stack
        from torch.nn import ModuleDict, ModuleList, ParameterList
        from torch.nn.functional import softplus

        assert isinstance(learner, ModuleDict)
        means, variances = learner["mean"], learner["variance"]
        assert isinstance(means, ModuleList)
        assert isinstance(variances, ParameterList)
        terms = []
        for mean, raw, ours, theirs in zip(means, variances, student.features, teacher.features, strict=True):
            predicted, known = mean(ours, theirs)
            terms.append(vid_loss(predicted, known, softplus(raw.float()) + EPS))
        return stack(terms).mean()
