"""Variational information distillation against Gaussian likelihoods, torchdistill's value, and what it learns."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.losses.base import Batch, Outputs, Sizes
from edgewise.compress.losses.vid import VID, vid_loss


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (2, 5, 4), (1, 4)])
def test_equals_the_negative_log_likelihood_up_to_its_constant(shape: tuple[int, ...]) -> None:
    mean, teacher, variance = drawn(0, *shape), drawn(1, *shape), drawn(2, 4).exp()
    axis = 1 if len(shape) == 4 else -1
    total = 0.0
    for means, values, spread in zip(
        mean.double().unbind(axis), teacher.double().unbind(axis), variance.double().tolist(), strict=True
    ):
        for mu, value in zip(means.flatten().tolist(), values.flatten().tolist(), strict=True):
            total -= math.log(NormalDist(mu, math.sqrt(spread)).pdf(value)) + 0.5 * math.log(2 * math.pi)
    assert float(vid_loss(mean, teacher, variance)) == pytest.approx(total / mean.numel(), rel=1e-5)


def test_equals_torchdistill() -> None:
    # VIDLoss of torchdistill 1.1.5 on the same draws.
    told = vid_loss(drawn(0, 4, 6, 5, 5), drawn(1, 4, 6, 5, 5), drawn(4, 6).exp())
    assert float(told) == pytest.approx(1.4759190082550049, rel=1e-5)


def test_the_best_variance_is_the_mean_square_of_each_channels_gap() -> None:
    mean, teacher = drawn(3, 8, 3, 4, 4), drawn(4, 8, 3, 4, 4) * torch.tensor([0.5, 1, 3])[:, None, None]
    best = (mean - teacher).pow(2).mean((0, 2, 3)).requires_grad_()
    least = vid_loss(mean, teacher, best)
    least.backward()
    torch.testing.assert_close(best.grad, torch.zeros(3), atol=1e-6, rtol=0)
    assert all(vid_loss(mean, teacher, best * factor).item() > least.item() for factor in (0.8, 1.25))


def test_gradient_stays_out_of_the_teacher() -> None:
    mean, teacher = drawn(5, 2, 3, 4, 4).requires_grad_(), drawn(6, 2, 3, 4, 4).requires_grad_()
    vid_loss(mean, teacher, torch.ones(3)).backward()
    torch.testing.assert_close(mean.grad, (mean - teacher).detach() / mean.numel())
    assert teacher.grad is None


def test_a_variance_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"each of 3 channels, got \(4,\)"):
        vid_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.ones(4))
    with pytest.raises(ValueError, match="differ in shape"):
        vid_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 2), torch.ones(3))


def test_learner_starts_at_the_asked_variance_and_learns_all_it_has() -> None:
    torch.manual_seed(0)
    config = VID(initial_variance=2.0)
    sizes = Sizes(((4, 8, 8), (5,), (17, 4)), ((6, 4, 4), (7,), (17, 6)), classes=3, samples=8)
    learner = config.learner(sizes)
    raw = learner["variance"]
    for parameter in raw:
        torch.testing.assert_close(nn.functional.softplus(parameter) + 1e-5, torch.full_like(parameter, 2.0))
    names = {name for name, _ in learner.named_parameters()}
    assert {"variance.0", "variance.1", "variance.2"} <= names
    # Three layers of the mean for each pair, no bias, and the variances: all of it saved with the learner.
    assert len(names) == 3 * 3 + 3 == len(learner.state_dict())

    ours = [drawn(seed, 8, *shape).requires_grad_() for seed, shape in enumerate(sizes.student)]
    theirs = tuple(drawn(seed, 8, *shape) for seed, shape in enumerate(sizes.teacher, start=10))
    batch = Batch(torch.zeros(8, 1, 2, 2), torch.zeros(8, dtype=torch.long), torch.arange(8))
    student, teacher = Outputs(torch.zeros(8, 3), tuple(ours)), Outputs(torch.zeros(8, 3), theirs)
    config(student, teacher, batch, learner).backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())
    assert all(feature.grad is not None for feature in ours)

    optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
    first = config(student, teacher, batch, learner).item()
    for _ in range(60):
        optimizer.zero_grad()
        config(student, teacher, batch, learner).backward()
        optimizer.step()
    assert config(student, teacher, batch, learner).item() < first
    # The teacher's features have variance 1 or less: the learnt ones have come down from 2.
    assert all((nn.functional.softplus(parameter) + 1e-5).mean().item() < 1.5 for parameter in raw)
