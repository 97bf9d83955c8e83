"""Feature losses that count some positions more than others: where the teacher looks, or where the object is.

    attention:   w = P softmax_P( mean_c |F_t| / T )       L = mean over samples of sum_P w |F_s - F_t|^2 / (C P)
    foreground:  m in [0, 1]                               L = sum m |F_s - F_t|^2 / (C max(1, sum m))

P: positions of the map; |.|^2 sums over the channels. The weights of ``attention`` sum to P, so its scale depends on no
map size; it is the spatial attention of FGD (Yang et al., "Focal and Global Knowledge Distillation for Detectors",
arXiv 2111.11837, section 3.1) with the teacher's attention alone and means instead of sums.

``foreground`` is the imitation mask of FGFI (Wang et al., "Distilling Object Detectors with Fine-grained Feature
Imitation", arXiv 1906.03609, section 3), there C / 2 times as much. Where boxes are known, draw the mask from them and
call the function. Labels of whole images have none: the config then takes the positions where the teacher's mean |F_t|
is at least its average over the map, or among its largest.

Neither has a published weight for means: 5 is that of ``hcl``, a mean of squares too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from edgewise.compress.losses.base import Batch, FeatureLoss, Outputs, same_shape
from edgewise.compress.schedule import Temperature, Value

if TYPE_CHECKING:
    from torch import Tensor, nn

TEMPERATURE = 0.5


def attention_masked_loss(student: Tensor, teacher: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """Scalar loss of maps (N, C, H, W) or tokens (N, L, D) of one shape, in float32.

    Raises:
        ValueError: the features have no positions, or the two shapes differ.
    """
    gap, attention = _gap(student, teacher), _attention(teacher)
    weights = attention.shape[1] * (attention / temperature).softmax(dim=1)
    return (weights * gap).mean()


def foreground_masked_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Scalar loss of maps (N, C, H, W) under ``mask`` (N, 1, H, W), or tokens (N, L, D) under (N, L), in float32. The
    mask is 1 on the foreground and 0 elsewhere, or between; the loss is 0 where it is empty.

    Raises:
        ValueError: the features have no positions, or the shapes don't fit.
    """
    gap = _gap(student, teacher)
    expected = tuple(student.shape[:2]) if student.dim() == 3 else (len(student), 1, *student.shape[2:])
    if tuple(mask.shape) != expected:
        raise ValueError(f"the mask of features {tuple(student.shape)} must be {expected}, got {tuple(mask.shape)}")
    weights = mask.detach().to(gap).flatten(1)
    return (weights * gap).sum() / weights.sum().clamp_min(1.0)


def foreground_mask(teacher: Tensor, *, quantile: float | None = None) -> Tensor:
    """The mask that ``foreground_masked_loss`` takes: 1 where the teacher's mean |F_t| is at least its mean over the
    positions, or at least its ``quantile`` over them; never empty.

    Raises:
        ValueError: the features have no positions.
    """
    attention = _attention(teacher)
    level = attention.mean(1, keepdim=True) if quantile is None else attention.quantile(quantile, 1, keepdim=True)
    # Of a constant map, the mean may round to more than the largest value.
    mask = (attention >= level.minimum(attention.amax(dim=1, keepdim=True))).float()
    return mask if teacher.dim() == 3 else mask.view(len(teacher), 1, *teacher.shape[2:])


class MaskedFeature(FeatureLoss):
    """Feature loss weighted by the teacher's attention, or on its foreground: the mean over the pairs of layers."""

    kind: Literal["masked_feature"] = "masked_feature"
    weight: Value = 5.0
    mode: Literal["attention", "foreground"] = "attention"
    temperature: Temperature = Field(TEMPERATURE, description="attention: the lower, the fewer positions count")
    quantile: float | None = Field(
        None, gt=0, lt=1, description="foreground: the part of the map left out; default, what is below its mean"
    )

    @model_validator(mode="after")
    def _of_its_mode(self) -> MaskedFeature:
        if self.mode == "attention" and self.quantile is not None:
            raise ValueError("quantile belongs to mode: foreground; with attention, set temperature")
        if self.mode == "foreground" and self.temperature != TEMPERATURE:
            raise ValueError("temperature belongs to mode: attention; with foreground, set quantile")
        return self

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        from torch import stack

        pairs = self.aligned(student, teacher, learner)
        if self.mode == "attention":
            temperature = batch.at(self.temperature)
            return stack([attention_masked_loss(*pair, temperature=temperature) for pair in pairs]).mean()
        masks = [foreground_mask(theirs, quantile=self.quantile) for _, theirs in pairs]
        return stack([foreground_masked_loss(*pair, mask) for pair, mask in zip(pairs, masks, strict=True)]).mean()


def _gap(student: Tensor, teacher: Tensor) -> Tensor:
    """(N, P): the mean square over the channels of the difference at each position."""
    ours, theirs = same_shape(student, teacher)
    return (ours - theirs).pow(2).mean(dim=_channels(ours)).flatten(1)


def _attention(teacher: Tensor) -> Tensor:
    """(N, P): the mean size over the channels of the teacher's feature at each position."""
    return teacher.detach().float().abs().mean(dim=_channels(teacher)).flatten(1)


def _channels(feature: Tensor) -> int:
    if feature.dim() not in (3, 4):
        raise ValueError(
            f"a masked feature loss needs maps (N, C, H, W) or tokens (N, L, D), got {tuple(feature.shape)}; "
            "use fitnet for vectors"
        )
    return 1 if feature.dim() == 4 else 2
