"""Peers: no gradient from one to the other, steps as in the paper, a killed run loses nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.compress.config import Fit, Mutual, Sgd
from edgewise.compress.losses import KD, FitNet
from edgewise.compress.losses.base import Batch
from edgewise.compress.signals import Signals
from edgewise.compress.strategies.mutual import Peers, learn_together
from edgewise.compress.taps import tapped
from edgewise.compress.train import fit, labels_only
from edgewise.errors import ModelError
from edgewise.models.config import CifarResNet
from edgewise.models.tasks.config import Augment

Net = Callable[..., nn.Module]
PLAIN = Sgd(lr=0.1, momentum=0, weight_decay=0)


def told(run: Fit | None = None, peers: int = 1, **config: Any) -> Mutual:
    run = run or Fit(epochs=2, batch_size=16, optimizer=Sgd(lr=0.05))
    return Mutual(kind="mutual", peers=(CifarResNet(),) * peers, fit=run, **config)


def kl(ours: Tensor, theirs: Tensor) -> Tensor:
    return F.kl_div(ours.log_softmax(1), theirs.detach().softmax(1), reduction="batchmean")


@pytest.mark.parametrize("update", ["together", "in_turn"])
def test_no_gradient_goes_from_one_to_the_other(split: Any, net: Net, update: str) -> None:
    one, two = net(0), net(1, width=6)
    config = told(losses=(KD(), FitNet(layers=("2",))), update=update)
    shapes: dict[str, Any] = {"input_shape": (1, 8, 8), "samples": 48}
    signals = {
        (0, 1): Signals(config.losses, one, two, **shapes),
        (1, 0): Signals(config.losses, two, one, **shapes),
    }
    batch = Batch(torch.from_numpy(split.images), torch.from_numpy(split.targets), torch.arange(48))
    with tapped(one, ("2",)) as ours, tapped(two, ("2",)) as theirs:
        lesson = Peers([one, two], signals, config, label_smoothing=0.0, features=[ours, theirs])
        assert lesson.turns == (2 if update == "in_turn" else 1)
        for turn, (learns, teaches) in enumerate(((one, two), (two, one))):
            lesson.turn = turn
            lesson.zero_grad(set_to_none=True)
            terms = [v for name, v in lesson.terms(batch).items() if name.startswith(f"peer {turn + 1}")]
            assert len(terms) == 3
            torch.stack(terms).sum().backward()
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learns[4].parameters())
            assert all(p.grad is None for p in teaches.parameters())


def test_together_one_step_equals_a_step_written_by_hand(split: Any, net: Net) -> None:
    nets = [net(0), net(1, width=6), net(2)]
    by_hand = [copy.deepcopy(one) for one in nets]
    run = Fit(epochs=1, batch_size=48, optimizer=PLAIN)
    config = told(run, 2, cross_entropy=0.8, losses=(KD(weight=0.6, temperature=1.0),))
    epoch = learn_together(nets[0], nets[1:], split, config, seed=3)[0]
    inputs, targets = torch.from_numpy(split.images), torch.from_numpy(split.targets)
    answers = [one(inputs) for one in by_hand]
    total = 0.0
    for k, one in enumerate(by_hand):
        labels = F.cross_entropy(answers[k], targets)
        others = [kl(answers[k], answers[other]) for other in range(3) if other != k]
        loss = 0.8 * labels + 0.6 * (others[0] + others[1]) / 2
        total += float(loss.detach())
        with torch.no_grad():
            for p, g in zip(one.parameters(), torch.autograd.grad(loss, list(one.parameters())), strict=True):
                p -= 0.1 * g
    assert epoch.loss == pytest.approx(total, rel=1e-5)
    for ours, expected in zip(nets, by_hand, strict=True):
        for (name, p), q in zip(ours.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


def test_in_turn_the_second_hears_the_first_ones_new_answer(split: Any, net: Net) -> None:
    nets = [net(0), net(1, width=6)]
    by_hand = [copy.deepcopy(one) for one in nets]
    run = Fit(epochs=1, batch_size=48, optimizer=PLAIN)
    config = told(run, losses=(KD(weight=1.0, temperature=1.0),), update="in_turn")
    epoch = learn_together(nets[0], nets[1:], split, config, seed=3)[0]
    inputs, targets = torch.from_numpy(split.images), torch.from_numpy(split.targets)
    stale = by_hand[0](inputs)
    for k, one in enumerate(by_hand):
        answers = [each(inputs) for each in by_hand]  # after the one before has stepped
        divergence = kl(answers[k], answers[1 - k])
        if k == 1:
            old = float(kl(answers[1], stale).detach())
            assert epoch.unweighted["peer 2: kd from 1"] != pytest.approx(old, rel=1e-3)
        assert epoch.unweighted[f"peer {k + 1}: kd from {2 - k}"] == pytest.approx(float(divergence.detach()), rel=1e-5)
        loss = F.cross_entropy(answers[k], targets) + divergence
        with torch.no_grad():
            for p, g in zip(one.parameters(), torch.autograd.grad(loss, list(one.parameters())), strict=True):
                p -= 0.1 * g
    for ours, expected in zip(nets, by_hand, strict=True):
        for (name, p), q in zip(ours.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("update", ["together", "in_turn"])
@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_killed_run_ends_with_the_same_bits(
    split: Any, net: Net, bits: Any, killed: Any, tmp_path: Path, update: str, stop_at: int
) -> None:
    run = Fit(epochs=2, batch_size=16, optimizer=Sgd(lr=0.02), checkpoint_every=1)
    config, augment = told(run, losses=(KD(), FitNet(layers=("2",), weight=1.0)), update=update), Augment(crop=1)
    whole, resumed, file = [net(0), net(1, width=6)], [net(98), net(99, width=6)], tmp_path / "checkpoint.safetensors"
    told_all: dict[str, Any] = {"seed": 3, "augment": augment}
    history = learn_together(whole[0], whole[1:], split, config, **told_all)
    with pytest.raises(KeyboardInterrupt):
        learn_together(net(0), [net(1, width=6)], split, config, **told_all, checkpoint=file, tick=killed(stop_at))
    assert file.exists()
    assert learn_together(resumed[0], resumed[1:], split, config, **told_all, checkpoint=file) == history
    assert [bits(one) for one in resumed] == [bits(one) for one in whole]
    assert list(resumed[0].state_dict()) == list(net(0).state_dict())


def test_labels_alone_at_first(split: Any, net: Net, bits: Any, killed: Any) -> None:
    run = Fit(epochs=2, batch_size=16, optimizer=PLAIN, schedule="constant")
    one, two, alone = net(0), net(1), net(1)
    config = told(run, cross_entropy=0.5, label_only_epochs=1)
    with pytest.raises(KeyboardInterrupt):
        learn_together(one, [two], split, config, seed=3, tick=killed(3))
    fit(labels_only(alone), split, run.model_copy(update={"epochs": 1}), seed=3)
    assert bits(two) == bits(alone)
    history = learn_together(net(0), [net(1)], split, config, seed=3)
    assert sorted(history[0].terms) == ["peer 1: cross_entropy", "peer 2: cross_entropy"]
    assert len(history[1].terms) == 4
    assert history[1].terms["peer 1: cross_entropy"] == 0.5 * history[1].unweighted["peer 1: cross_entropy"]


def test_a_peer_that_errs_is_not_heard(split: Any, net: Net) -> None:
    one, two = net(0, norm=False), net(1, norm=False)
    run = Fit(epochs=1, batch_size=48, optimizer=Sgd(lr=1e-30))
    epoch = learn_together(one, [two], split, told(run, teacher_wrong="drop"), seed=3)[0]
    with torch.no_grad():
        ours, theirs = one(torch.from_numpy(split.images)), two(torch.from_numpy(split.images))
    right = theirs.argmax(1) == torch.from_numpy(split.targets)
    assert 0 < right.sum() < 48
    expected = float(kl(ours[right], theirs[right]) * right.sum() / 48)
    assert epoch.unweighted["peer 1: kd from 2"] == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_done_is_refused(split: Any, net: Net) -> None:
    one = net(0)
    with pytest.raises(ModelError, match="two or more different nets"):
        learn_together(one, [one], split, told(), seed=3)
    with pytest.raises(ModelError, match="two or more different nets"):
        learn_together(one, [], split, told(), seed=3)
    with pytest.raises(ModelError, match="know the same classes"):
        learn_together(one, [net(1, classes=4)], split, told(), seed=3)
    with pytest.raises(ValidationError, match="balance"):
        told(balance="gradient")
