"""Distillation of numbers: what a net gives out is the answer itself, K values a sample, in the target's units.

    e(r, y)    = mean over K of (r - y)^2
    regression         = mean over samples of e(r_s, r_t)
    bounded_regression = mean over samples of e(r_s, y) where e(r_s, y) + margin > e(r_t, y), else 0

The bounded form takes the teacher as a bound instead of an aim: a sample counts, and pulls towards its target y, until
the student is better than the teacher there by ``margin`` (in squared units of the target). Chen et al., "Learning
Efficient Object Detection Models with Knowledge Distillation", NeurIPS 2017, "regression with teacher bounds"; they sum
over the four numbers of a box, here it is their mean, so that a margin means the same for any K.

``Outputs.logits`` are these values. There is no softmax, so one output (K = 1) is the rule and ``standardize`` does not
exist here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, Loss, Outputs, same_shape
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def regression_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar loss of values ``student`` (N, K) against ``teacher`` (N, K), in float32.

    Raises:
        ValueError: the two shapes differ.
    """
    ours, theirs = same_shape(student, teacher)
    return (ours - theirs).pow(2).mean()


def bounded_regression_loss(student: Tensor, teacher: Tensor, target: Tensor, *, margin: float = 0.0) -> Tensor:
    """Scalar loss of values ``student`` (N, K) against ``target`` (N, K), or (N,) where K = 1, for the samples where
    they are not yet better than ``teacher`` (N, K) by ``margin``, in float32.

    Raises:
        ValueError: the shapes differ.
    """
    ours, theirs = same_shape(student, teacher)
    if target.dim() == 1 and ours.shape[1:] == (1,):
        target = target[:, None]
    # Unequal shapes would be broadcast to all pairs of samples.
    if target.shape != ours.shape:
        raise ValueError(
            f"bounded regression needs a target for each value, {tuple(ours.shape)}, got {tuple(target.shape)}; "
            "without targets use regression"
        )
    target = target.float()
    error, bound = (ours - target).pow(2).mean(dim=-1), (theirs - target).pow(2).mean(dim=-1)
    # A comparison would hide a teacher that is not finite.
    return (error * (error + margin > bound)).mean() + 0.0 * bound.mean()


class Regression(Loss):
    """Mean squared error between the values of both nets."""

    about_classes: ClassVar[bool] = False
    softens: ClassVar[bool] = False

    kind: Literal["regression"] = "regression"
    weight: Value = 1.0

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return regression_loss(student.logits, teacher.logits)


class BoundedRegression(Loss):
    """Mean squared error with the target, until the student is better than the teacher."""

    about_classes: ClassVar[bool] = False
    softens: ClassVar[bool] = False

    needs_labels: ClassVar[bool] = True

    kind: Literal["bounded_regression"] = "bounded_regression"
    weight: Value = 1.0
    margin: float = Field(
        0.0,
        ge=0,
        description="how much smaller than the teacher's the squared error must get, in squared units of the target",
    )

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return bounded_regression_loss(student.logits, teacher.logits, batch.targets, margin=self.margin)
