"""Offline distillation: a frozen teacher, a student, labels, and any of the losses on the same augmented view.

L = w_ce * CE(z_s, y) + sum over losses of weight * loss(student, teacher)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgewise.compress.config import Distill, Fit, Quantize
from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.taps import tapped
from edgewise.compress.train import Epoch, fit
from edgewise.errors import ModelError
from edgewise.models.tasks.base import Split
from edgewise.models.tasks.config import Augment
from edgewise.progress import Tick, silent


def distill(
    student: nn.Module,
    teacher: nn.Module,
    split: Split,
    config: Distill | Quantize,
    *,
    seed: int,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    tick: Tick = silent,
) -> list[Epoch]:
    """Train ``student`` in place. The teacher is put in evaluation mode and its parameters get no gradient.

    Raises:
        ModelError: nothing to learn from, a tapped layer is missing, or the two answer with different shapes.
    """
    if student is teacher:
        raise ModelError("the student is the teacher itself: evaluation mode would freeze it", hint="pass a copy")
    losses = {f"{i}.{loss.kind}" if i else loss.kind: loss for i, loss in enumerate(config.losses)}
    if not losses and config.cross_entropy == 0:
        raise ModelError("there is nothing to learn from: no losses and cross_entropy is 0", where=config.kind)
    names = tuple(dict.fromkeys(name for loss in config.losses for name in loss.taps()))
    run: Fit = config.fit if config.fit is not None else Fit()
    teacher.eval().requires_grad_(False)
    teacher.to(next(student.parameters()).device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    with tapped(student, names) as student_features, tapped(teacher, names) as teacher_features:

        def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            teacher.to(batch.inputs.device)
            with torch.no_grad():
                theirs = Outputs(teacher(batch.inputs), dict(teacher_features))
            ours = Outputs(model(batch.inputs), dict(student_features))
            if ours.logits.shape != theirs.logits.shape:
                raise ModelError(
                    f"the student answers {tuple(ours.logits.shape)}, the teacher {tuple(theirs.logits.shape)}",
                    hint="both must know the same classes",
                )
            terms = {}
            for name, loss in losses.items():
                try:
                    terms[name] = loss.weight * loss(ours, theirs, batch)
                except (ValueError, KeyError) as error:  # maps that don't fit, or a layer that never ran
                    raise ModelError(
                        f"{name} can't be computed: {error}", where="losses", hint="tap other layers, or leave it out"
                    ) from error
            if config.cross_entropy:
                labels = cross_entropy(ours.logits.float(), batch.targets, label_smoothing=run.label_smoothing)
                terms["cross_entropy"] = config.cross_entropy * labels
            return terms

        return fit(student, split, objective, run, seed=seed, augment=augment, checkpoint=checkpoint, tick=tick)
