"""Multi-level logit distillation: answers at several temperatures, likeness of samples, likeness of classes.

    L = sum over T of   instance * T^2 * KL(P_t || P_s)                        averaged over samples
                      + batch    * |P_s P_s' - P_t P_t'|^2 / N                 P = softmax(z / T), (N, K)
                      + classes  * |P_s' P_s - P_t' P_t|^2 / K

Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, section 3. The Grams' sums grow with the batch: where its
size changes, their weights need another look.

Where we differ from the authors' code. It trains on a weakly and a strongly augmented view at once; here the terms act
on the one batch, and augmentation is the trainer's. It wants to keep only the half of the samples (and of the classes)
that the teacher is least sure of, but multiplies an already averaged number with that mask, which is a factor of about
1/2 and selects nothing. ``least_sure`` selects: the KL of the other samples counts 0, as do the other samples' rows of
the batch Gram and the other classes' rows of the class Gram; sums are still divided by all of N and K. Its default
keeps everything. With ``standardize`` all three terms see z-scored logits; theirs standardizes for the KL alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, LogitLoss, Outputs, same_shape
from edgewise.compress.schedule import Temperature, Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def mlkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    instance: float = 1.0,
    batch: float = 1.0,
    classes: float = 1.0,
    least_sure: float = 1.0,
) -> Tensor:
    """Scalar loss of logits ``student`` (N, K) against ``teacher`` (N, K), in float32; needs N^2 + K^2 numbers of
    memory.

    Raises:
        ValueError: the two shapes differ, or ``temperatures`` is empty.
    """
    import torch

    ours, theirs = same_shape(student, teacher)
    if not temperatures:
        raise ValueError("needs at least one temperature")
    answers = theirs.softmax(dim=-1)
    samples_kept = _lowest(answers.amax(dim=1), least_sure)
    classes_kept = _lowest(answers.sum(dim=0), least_sure)
    total = ours.new_zeros(())
    # Products of matrices would be taken in half precision.
    with torch.autocast(ours.device.type, enabled=False):
        for temperature in temperatures:
            log_p, log_q = (theirs / temperature).log_softmax(dim=-1), (ours / temperature).log_softmax(dim=-1)
            p, q = log_p.exp(), log_q.exp()
            divergence = (p * (log_p - log_q)).sum(dim=-1) * samples_kept
            alike = (q @ q.T - p @ p.T).pow(2).sum(dim=-1) * samples_kept
            together = (q.T @ q - p.T @ p).pow(2).sum(dim=-1) * classes_kept
            total = (
                total + instance * temperature**2 * divergence.mean() + batch * alike.mean() + classes * together.mean()
            )
    return total


def _lowest(values: Tensor, part: float) -> Tensor:
    """1 where a value is in the lowest ``part`` of them, else 0."""
    if part >= 1:
        return values.new_ones(values.shape)
    return (values <= values.quantile(part)).to(values.dtype)


class MLKD(LogitLoss):
    """Logit distillation at several temperatures, with Grams over the batch and over the classes."""

    kind: Literal["mlkd"] = "mlkd"
    weight: Value = 1.0
    temperatures: tuple[Temperature, ...] = Field((2.0, 3.0, 4.0, 5.0, 6.0), min_length=1)
    instance: Value = Field(1.0, description="weight of the divergence of each sample")
    batch: Value = Field(1.0, description="weight of the Gram matrix between samples")
    classes: Value = Field(1.0, description="weight of the Gram matrix between classes")
    least_sure: float = Field(
        1.0,
        gt=0,
        le=1,
        description="part of the samples, and of the classes, to learn from: those the teacher is least sure of",
    )

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return mlkd_loss(
            *self.logits(student, teacher),
            temperatures=[batch.at(temperature) for temperature in self.temperatures],
            instance=batch.at(self.instance),
            batch=batch.at(self.batch),
            classes=batch.at(self.classes),
            least_sure=self.least_sure,
        )
