"""What a training run learns. The loop knows how to step; a lesson knows what the step is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgewise.compress.losses.base import Batch
from edgewise.errors import ModelError
from edgewise.models.tasks.base import IGNORED, UNLABELLED


class Lesson(nn.Module):
    """Everything that is trained together: the model and what it needs to learn (adapters, peers, memories).

    The loop optimises what requires a gradient in it and checkpoints all of it. Teachers that stay as they are belong
    outside: hold them in a tuple, which torch does not look into.
    """

    turns = 1
    """Optimizer steps on each batch; ``turn`` counts them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.turn = 0

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms, unweighted."""
        raise TypeError(f"{type(self).__name__} does not say what it learns")

    def weights(self, epoch: float, epochs: float) -> dict[str, float]:
        """The weight of each term at ``epoch`` (with its fraction) of ``epochs``; 1 where a term is not named."""
        return {}

    def after_step(self) -> None:
        """What follows an optimizer step, such as a teacher that trails the model."""

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        index: Tensor,
        partners: Tensor | None,
        share: Tensor | None,
        mask: Tensor | None,
        when: tuple[float, float, int],
    ) -> dict[str, Tensor]:
        """``terms``, through the one door that data parallelism watches: plain tensors, not a Batch."""
        epoch, epochs, view = when
        return self.terms(Batch(inputs, targets, index, partners, share, mask, epoch, epochs, view))


class Labels(Lesson):
    """The labels alone."""

    def __init__(self, model: nn.Module, label_smoothing: float) -> None:
        super().__init__(model)
        self.label_smoothing = label_smoothing

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """One term."""
        return {"cross_entropy": label_loss(self.model(batch.inputs), batch, self.label_smoothing)}


def label_loss(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """What the labels ask, in float32: cross-entropy of logits (N, K), or of (N, L, K) over the tokens that have a
    label; of values (N, 1) and targets that are numbers the mean squared error. Of mixed samples, each label counts by
    its share.

    Raises:
        ModelError: a sample has no label, the answers don't fit the targets, or numbers were to be smoothed.
    """
    logits = logits.float()
    check_labelled(batch.targets, "the labels", "cross_entropy")
    if batch.targets.is_floating_point():
        if label_smoothing:
            raise ModelError(
                "labels that are numbers can't be smoothed", where="fit.label_smoothing", hint="set it to 0"
            )
        rows = [_squares(logits, targets) for targets in (batch.targets, batch.partners) if targets is not None]
    else:
        if logits.dim() == 3:
            known = batch.targets != IGNORED
            if not known.any():
                return logits.sum() * 0.0
            return cross_entropy(logits[known], batch.targets[known], label_smoothing=label_smoothing)
        if batch.partners is None or batch.share is None:
            return cross_entropy(logits, batch.targets, label_smoothing=label_smoothing)
        rows = [
            cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
            for targets in (batch.targets, batch.partners)
        ]
    if batch.share is None:
        return rows[0].mean()
    return (batch.share * rows[0] + (1 - batch.share) * rows[1]).mean()


def as_learnt(targets: NDArray[Any]) -> NDArray[Any]:
    """Targets of a task as losses take them: class indices int64, numbers of a regression float32."""
    return np.ascontiguousarray(targets, np.float32 if np.issubdtype(targets.dtype, np.floating) else np.int64)


def check_labelled(targets: Tensor, who: str, where: str) -> None:
    """Nothing, where every sample has a label. ``who`` reads them otherwise, in the recipe at ``where``.

    Raises:
        ModelError: one has none.
    """
    if (targets.isnan() if targets.is_floating_point() else targets == UNLABELLED).any():
        raise ModelError(
            f"there are samples without a label, and {who} would read it",
            where=where,
            hint="learn from the teacher's answers alone (cross_entropy: 0), or give the labels",
        )


def _squares(values: Tensor, targets: Tensor) -> Tensor:
    """(N,) squared errors of values (N, 1)."""
    if values.shape != (len(targets), 1):
        raise ModelError(
            f"expected one number a sample, ({len(targets)}, 1), got {tuple(values.shape)}",
            hint="a task that regresses has one name in classes",
        )
    return (values.squeeze(1) - targets).pow(2)
