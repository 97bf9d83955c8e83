"""What a training run learns. The loop knows how to step; a lesson knows what the step is worth."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgewise.compress.losses.base import Batch


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
        when: tuple[float, float, int],
    ) -> dict[str, Tensor]:
        """``terms``, through the one door that data parallelism watches: plain tensors, not a Batch."""
        epoch, epochs, view = when
        return self.terms(Batch(inputs, targets, index, partners, share, epoch=epoch, epochs=epochs, view=view))


class Labels(Lesson):
    """Cross-entropy with the labels."""

    def __init__(self, model: nn.Module, label_smoothing: float) -> None:
        super().__init__(model)
        self.label_smoothing = label_smoothing

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """One term."""
        return {"cross_entropy": label_loss(self.model(batch.inputs), batch, self.label_smoothing)}


def label_loss(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """Cross-entropy of ``logits`` (N, K) in float32; of mixed samples, each label by its share."""
    logits = logits.float()
    if batch.partners is None or batch.share is None:
        return cross_entropy(logits, batch.targets, label_smoothing=label_smoothing)
    own = cross_entropy(logits, batch.targets, label_smoothing=label_smoothing, reduction="none")
    other = cross_entropy(logits, batch.partners, label_smoothing=label_smoothing, reduction="none")
    return (batch.share * own + (1 - batch.share) * other).mean()
