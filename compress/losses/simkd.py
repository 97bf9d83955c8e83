"""SimKD: the student answers with its teacher's classifier, and learns nothing but the features that go into it.

    L = mean( (P(F_s) - F_t)^2 )                  over samples, channels and positions of the last maps

P, three convolutions with the teacher's channels divided by ``factor`` inside, becomes a part of the student, and so
does a frozen copy of the teacher's classifier: see ``edgewise.compress.simkd``. Both stay at inference, and cost there.

Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", arXiv 2203.14001, section 3. It is meant to be
the only term: without labels and without logits. Of maps that differ in size the larger is average-pooled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, Layers, Loss, Outputs, Pair, same_shape
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgewise.compress.simkd import ReusedClassifier


def simkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar loss of the projected map ``student`` (N, C, H, W) against the last map ``teacher`` (N, C, h, w).

    Raises:
        ValueError: a feature is no map, or samples or channels differ in number.
    """
    from torch.nn.functional import adaptive_avg_pool2d

    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            "simkd needs maps (N, C, H, W) of the same channels, "
            f"got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    ours, theirs = same_shape(*(adaptive_avg_pool2d(feature.float(), size) for feature in (student, teacher)))
    return (ours - theirs).pow(2).mean()


class SimKD(Loss):
    """Features for the teacher's classifier. ``edit`` changes the student before training, and is saved with it."""

    kind: Literal["simkd"] = "simkd"
    weight: Value = 1.0
    factor: int = Field(2, ge=1, description="the projector's channels inside are the teacher's divided by this")
    pool: str = Field("pool", description="the student's average pool before its classifier")
    classifier: str | None = Field(None, description="the student's; none: the linear layer that gives its logits")
    teacher_pool: str = Field("pool", description="the teacher's average pool before its classifier")
    teacher_classifier: str | None = Field(None, description="the teacher's; none: likewise")

    def wanted_layers(self) -> Layers:
        """What the projector gives, and what goes into the teacher's pool."""
        return (Pair(student=f"{self.pool}.0", teacher=f"{self.teacher_pool}:input"),)

    def edit(self, student: nn.Module, teacher: nn.Module, input_shape: tuple[int, ...]) -> ReusedClassifier:
        """Put the projector and the teacher's classifier into ``student``, in place.

        Args:
            student: takes (N, *input_shape).
            teacher: likewise; stays as it is.
            input_shape: (C, H, W).

        Returns:
            What to save with the student, so that it comes back.

        Raises:
            ModelError: a layer is missing, or a net doesn't end in an average pool and one linear layer.
        """
        from edgewise.compress.simkd import reuse_classifier

        return reuse_classifier(
            student,
            teacher,
            input_shape,
            factor=self.factor,
            pool=self.pool,
            classifier=self.classifier,
            teacher_pool=self.teacher_pool,
            teacher_classifier=self.teacher_classifier,
        )

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss."""
        return simkd_loss(student.features[0], teacher.features[0])
