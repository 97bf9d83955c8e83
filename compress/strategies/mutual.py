"""Deep mutual learning: students of equal standing, no teacher.

    L_k = w_ce * CE(z_k, y) + 1/(K-1) * sum over the other peers l of the losses(student k, teacher l)

Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", arXiv 1706.00384, equations 5 and 6: KL at T=1 between the peers,
each peer's answer a constant for the others. The paper updates one peer after the other, each answering anew
(``in_turn``); from one forward pass for all (``together``) it costs K passes a step and not K^2. In turn, a peer's
BatchNorm statistics see each batch K times: whenever a peer answers it answers in training mode, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from edgewise.compress.config import Mutual
from edgewise.compress.lesson import Lesson, label_loss
from edgewise.compress.losses.base import Batch
from edgewise.compress.schedule import value_at
from edgewise.compress.signals import Signals
from edgewise.compress.strategies.offline import check_classes
from edgewise.compress.taps import tapped
from edgewise.compress.train import Epoch, Running, fit
from edgewise.errors import ModelError
from edgewise.models.tasks.base import Split, shape_of


class Peers(Lesson):
    """All peers together; with ``in_turn`` one optimizer step a peer."""

    def __init__(
        self,
        peers: Sequence[nn.Module],
        signals: Mapping[tuple[int, int], Signals],
        config: Mutual,
        *,
        label_smoothing: float,
        features: Sequence[Mapping[str, Tensor]],
    ) -> None:
        super().__init__(peers[0])
        self.others = nn.ModuleList(peers[1:])
        self.between = nn.ModuleDict({f"{a}<{b}": each for (a, b), each in signals.items()})
        self.config = config
        self.label_smoothing = label_smoothing
        self.features = features
        self.turns = len(peers) if config.update == "in_turn" else 1

    def weights(self, epoch: float, epochs: float) -> dict[str, float]:
        """Those of the recipe, with the labels alone at first where it says so; of a loss, shared among the peers."""
        peers, alone = 1 + len(self.others), epoch < self.config.label_only_epochs
        labels = 1.0 if alone else value_at(self.config.cross_entropy, epoch, epochs)
        found = {}
        for k in range(peers):
            found[f"peer {k + 1}: cross_entropy"] = labels
            for one, each in self.between.items():
                assert isinstance(each, Signals)
                learns, _, teaches = one.partition("<")
                if int(learns) == k:
                    for name, loss in each.losses.items():
                        weight = 0.0 if alone else value_at(loss.weight, epoch, epochs) / (peers - 1)
                        found[f"peer {k + 1}: {name} from {int(teaches) + 1}"] = weight
        return found

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of every peer, or of the one whose turn it is."""
        peers = [self.model, *self.others]
        learns = [self.turn] if self.config.update == "in_turn" else list(range(len(peers)))
        answers = []
        for k, peer in enumerate(peers):
            with torch.set_grad_enabled(k in learns and torch.is_grad_enabled()):
                answers.append(peer(batch.inputs))
        weights = self.weights(batch.epoch, batch.epochs)
        terms = {}
        for k in learns:
            terms[f"peer {k + 1}: cross_entropy"] = label_loss(answers[k], batch, self.label_smoothing)
            for other in range(len(peers)):
                if other == k:
                    continue
                check_classes(answers[k], answers[other])
                each = self.between[f"{k}<{other}"]
                taught = {name: feature.detach() for name, feature in self.features[other].items()}
                found = each(
                    (answers[k], self.features[k]),
                    ([answers[other].detach()], taught),
                    batch,
                    active=[n for n in each.losses if weights[f"peer {k + 1}: {n} from {other + 1}"] > 0],  # type: ignore[union-attr]
                    wrong=self.config.teacher_wrong,
                )
                terms |= {f"peer {k + 1}: {name} from {other + 1}": term for name, term in found.items()}
        return terms


def learn_together(
    student: nn.Module,
    peers: Sequence[nn.Module],
    split: Split,
    config: Mutual,
    **running: Unpack[Running],
) -> list[Epoch]:
    """Train ``student`` and ``peers`` in place, each from the labels and from all others.

    Raises:
        ModelError: there is no peer, two are the same module, or a loss can't be computed.
    """
    nets = [student, *peers]
    if len(nets) < 2 or len({id(net) for net in nets}) < len(nets):
        raise ModelError("mutual learning needs two or more different nets", where="peers")
    torch.manual_seed(running["seed"])  # adapters start at random
    shape, samples = shape_of(split), len(split.ids)
    signals = {
        (k, other): Signals(config.losses, nets[k], nets[other], input_shape=shape, samples=samples)
        for k in range(len(nets))
        for other in range(len(nets))
        if k != other
    }
    with ExitStack() as stack:
        features = []
        for k, net in enumerate(nets):
            wanted = [layer for (a, b), each in signals.items() if a == k for layer in each.student_layers]
            wanted += [layer for (a, b), each in signals.items() if b == k for layer in each.teacher_layers]
            features.append(stack.enter_context(tapped(net, tuple(dict.fromkeys(wanted)))))
        lesson = Peers(nets, signals, config, label_smoothing=config.fit.label_smoothing, features=features)
        return fit(lesson, split, config.fit, **running)
