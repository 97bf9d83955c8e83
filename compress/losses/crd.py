"""Contrastive representation distillation: of many samples' memories, the student's feature is told from all but its
own sample's memory of the teacher's, and the teacher's likewise.

    h(a, m) = x / (x + K/M),   x = exp(a . m / tau) / Z          embeddings a, memories m of unit length
    L = mean_i [ -log h(s_i, t_i) - sum_k log(1 - h(s_i, t_k)) ]  and the same with student and teacher exchanged, added

Tian, Krishnan, Isola, "Contrastive Representation Distillation", arXiv 1910.10699, section 3 and the memory of its
supplement. K negatives are drawn from M samples; memories follow their embeddings with a momentum; Z is fixed by the
first batch, as in the authors' code. Theirs draws negatives of other classes; here they are any other samples, and no
labels are needed. The logarithms are taken without the exponentials, which overflow in half precision.

The memories take ``2 * M * dim * 4`` bytes and are checkpointed; more than ``max_bytes`` is refused. Processes would
not see each other's updates, so several are refused too.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgewise.compress.losses.base import Batch, Layers, Loss, Outputs, Sizes
from edgewise.compress.losses.relation import exact
from edgewise.compress.schedule import Value

if TYPE_CHECKING:
    from torch import Tensor, nn


def crd_loss(
    student: Tensor,
    teacher: Tensor,
    student_memory: Tensor,
    teacher_memory: Tensor,
    drawn: Tensor,
    *,
    temperature: float = 0.07,
    log_z: tuple[float, float] | Tensor = (0.0, 0.0),
) -> Tensor:
    """Scalar loss of embeddings against memories, in float32.

    Args:
        student: (N, D), of unit length.
        teacher: (N, D), likewise. It gets a gradient where it needs one, because its embedding is learnt: detach the
            teacher's feature before that.
        student_memory: (M, D), one for each training sample.
        teacher_memory: (M, D).
        drawn: (N, 1 + K) positions in the memories, each sample's own first.
        temperature: tau.
        log_z: logarithms of Z for the student's scores and the teacher's.

    Raises:
        ValueError: shapes don't fit, or nothing was drawn to compare with.
    """
    same = student.shape == teacher.shape and student_memory.shape == teacher_memory.shape
    if not same or student.shape[1:] != student_memory.shape[1:] or drawn.shape[:1] != student.shape[:1]:
        raise ValueError(
            f"expected embeddings (N, D), memories (M, D) and draws (N, 1 + K), got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}, {tuple(student_memory.shape)} and {tuple(teacher_memory.shape)}, "
            f"{tuple(drawn.shape)}"
        )
    if drawn.shape[1] < 2:
        raise ValueError("crd needs at least one negative")
    scores = crd_scores(student, teacher, student_memory, teacher_memory, drawn, temperature=temperature)
    # log K/M: a negative is drawn with probability 1/M, K times.
    noise = math.log((drawn.shape[1] - 1) / len(student_memory))
    return _told_apart(scores[0] - log_z[0], noise) + _told_apart(scores[1] - log_z[1], noise)


def crd_scores(
    student: Tensor,
    teacher: Tensor,
    student_memory: Tensor,
    teacher_memory: Tensor,
    drawn: Tensor,
    *,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """(N, 1 + K) of the student's embeddings with the teacher's memories, and the other way round, by tau."""
    with exact(student):
        # All products and then a choice: M <= (1 + K) D in practice, and the chosen memories would be N times more.
        ours = student.float() @ teacher_memory.t() / temperature
        theirs = teacher.float() @ student_memory.t() / temperature
    return ours.gather(1, drawn), theirs.gather(1, drawn)


def _told_apart(scores: Tensor, noise: float) -> Tensor:
    """-log h of the first column and -log(1 - h) of the others, where h = sigmoid(score - noise)."""
    from torch.nn.functional import softplus

    gap = scores - noise
    return (softplus(-gap[:, 0]) + softplus(gap[:, 1:]).sum(dim=1)).mean()


class CRD(Loss):
    """Contrast of embeddings with a memory of all training samples."""

    kind: Literal["crd"] = "crd"
    weight: Value = 0.8
    layers: Layers = "embedding"
    dim: int = Field(128, ge=2, description="of the embeddings")
    negatives: int = Field(16384, ge=1, description="other samples drawn for each, with replacement")
    temperature: float = Field(0.07, gt=0, description="tau")
    momentum: float = Field(0.5, ge=0, lt=1, description="how much of a memory stays when its sample is seen again")
    max_bytes: int = Field(2**30, ge=1, description="the two memories may take so much")

    def learner(self, sizes: Sizes) -> nn.Module:
        """Two embeddings and two memories for each pair of layers.

        Raises:
            ValueError: the memories would be too large, there is nothing to draw from, or there are several processes.
        """
        from torch import nn

        from edgewise.compress.contrast import Contrast

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the process group itself is made later
            raise ValueError("crd keeps its memories in one process, and the updates of others would be lost: use one")
        if sizes.samples < 2:
            raise ValueError(f"crd draws other samples, and there are {sizes.samples}")
        needed = 2 * sizes.samples * self.dim * 4 * len(sizes.student)
        if needed > self.max_bytes:
            raise ValueError(
                f"crd's memories of {sizes.samples} samples by {self.dim} need {needed} bytes, and max_bytes is "
                f"{self.max_bytes}: lower dim, or raise max_bytes"
            )
        widths = [
            tuple(shape[1] if len(shape) == 2 else shape[0] for shape in pair)
            for pair in zip(sizes.student, sizes.teacher, strict=True)
        ]
        return nn.ModuleList(Contrast(ours, theirs, self.dim, sizes.samples) for ours, theirs in widths)

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The sum over the pairs of layers. The memories move on by it.

        Raises:
            ValueError: samples are mixed, or a position is none of the training split's.
        """
        from torch.nn import ModuleList

        assert isinstance(learner, ModuleList)
        if batch.partners is not None:
            raise ValueError("crd remembers single samples, and these are mixed: switch mixup and cutmix off")
        pairs = zip(learner, student.features, teacher.features, strict=True)
        terms = [self._term(contrast, ours, theirs, batch.index) for contrast, ours, theirs in pairs]
        return sum(terms[1:], start=terms[0])

    def _term(self, learner: nn.Module, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        from edgewise.compress.contrast import Contrast

        assert isinstance(learner, Contrast)
        samples = len(learner.student_memory)
        if not 0 <= int(index.min()) <= int(index.max()) < samples:
            raise ValueError(
                f"crd has memories of {samples} samples, and the batch has positions {int(index.min())} to "
                f"{int(index.max())}"
            )
        ours, theirs = learner.embed(student, teacher)
        memories = learner.student_memory, learner.teacher_memory
        drawn = learner.draw(index, self.negatives)
        if learner.unscaled:
            learner.scale(crd_scores(ours, theirs, *memories, drawn, temperature=self.temperature))
        loss = crd_loss(ours, theirs, *memories, drawn, temperature=self.temperature, log_z=learner.log_z)
        learner.remember(ours, theirs, index, self.momentum)
        return loss
