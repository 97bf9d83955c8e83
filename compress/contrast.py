"""What contrastive distillation learns beside the student (arXiv 1910.10699): two embeddings, and a memory of each for
every training sample. Left out at export."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from edgewise.compress.losses.relation import pooled

MEMORIES = ("student", "teacher")


class Contrast(nn.Module):
    """Embeds both features on the unit sphere, remembers them by sample, and draws the negatives.

    Args:
        student: channels of the student's feature.
        teacher: channels of the teacher's.
        dim: of the embeddings.
        samples: how many there are to remember.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    log_z: Tensor

    def __init__(self, student: int, teacher: int, dim: int, samples: int) -> None:
        super().__init__()
        self.embed_student = nn.Linear(student, dim)
        self.embed_teacher = nn.Linear(teacher, dim)
        for name in MEMORIES:
            self.register_buffer(f"{name}_memory", normalize(torch.randn(samples, dim), dim=1))
        # The scale of the scores of each side, fixed by the first batch; infinite until then.
        self.register_buffer("log_z", torch.full((2,), math.inf))

    def embed(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Features of any form -> embeddings (N, dim) of unit length; the teacher's net gets no gradient."""
        ours = self.embed_student(pooled(student.float()))
        theirs = self.embed_teacher(pooled(teacher.detach().float()))
        return normalize(ours.float(), dim=1, eps=1e-6), normalize(theirs.float(), dim=1, eps=1e-6)

    def draw(self, index: Tensor, negatives: int) -> Tensor:
        """(N,) positions -> (N, 1 + negatives): each sample's own, then others' at random, with replacement.

        Drawn on the CPU from torch's own generator: one seed gives the same on every device, and resumes.
        """
        samples = len(self.student_memory)
        steps = torch.randint(1, samples, (len(index), negatives)).to(index.device)
        return torch.cat([index[:, None], (index[:, None] + steps) % samples], dim=1)

    @property
    def unscaled(self) -> bool:
        """True before the first batch."""
        return bool(self.log_z.isinf().any())

    @torch.no_grad()
    def scale(self, scores: tuple[Tensor, Tensor]) -> None:
        """Fix ``log_z`` by these scores (N, K): samples times their mean exponential."""
        samples = len(self.student_memory)
        self.log_z = torch.stack([s.flatten().logsumexp(0) + math.log(samples / s.numel()) for s in scores])

    @torch.no_grad()
    def remember(self, student: Tensor, teacher: Tensor, index: Tensor, momentum: float) -> None:
        """Move the memories of the samples ``index`` (N,) to their embeddings, by ``1 - momentum``."""
        for name, new in zip(MEMORIES, (student, teacher), strict=True):
            memory = self.get_buffer(f"{name}_memory")
            moved = momentum * memory[index] + (1 - momentum) * new.detach()
            # A new tensor: the backward pass still needs the old one.
            setattr(self, f"{name}_memory", memory.index_copy(0, index, normalize(moved, dim=1, eps=1e-6)))
