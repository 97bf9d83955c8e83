"""Hints against the definition; the regressor that learns them, and the two stages of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.losses.base import Batch, Outputs, Sizes
from edgewise.compress.losses.fitnet import FitNet, fitnet_loss


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (2, 5, 4), (1, 7)])
def test_equals_the_definition(shape: tuple[int, ...]) -> None:
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    ours, theirs = student.double().flatten().tolist(), teacher.double().flatten().tolist()
    expected = sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(ours)
    assert float(fitnet_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_the_mean_is_twice_the_papers_sum_over_the_size() -> None:
    student, teacher = drawn(2, 4, 3, 5, 5), drawn(3, 4, 3, 5, 5)
    paper = torch.stack([(ours - theirs).norm() ** 2 / 2 for ours, theirs in zip(student, teacher, strict=True)]).mean()
    assert float(fitnet_loss(student, teacher)) == pytest.approx(2 * float(paper) / (3 * 5 * 5), rel=1e-5)


def test_gradient_is_the_known_one_and_stays_out_of_the_teacher() -> None:
    student, teacher = drawn(4, 2, 3, 2, 2).requires_grad_(), drawn(5, 2, 3, 2, 2).requires_grad_()
    fitnet_loss(student, teacher).backward()
    torch.testing.assert_close(student.grad, 2 / 24 * (student - teacher).detach())
    assert teacher.grad is None
    assert fitnet_loss(student, student).item() == 0.0


def test_a_shape_that_differs_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        fitnet_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5))


def test_the_regressor_can_learn_a_teacher_that_is_a_linear_map_of_the_student() -> None:
    torch.manual_seed(0)
    student, mix = drawn(6, 16, 4, 4, 4), drawn(7, 9, 4)
    teacher = nn.functional.avg_pool2d(torch.einsum("dc,nchw->ndhw", mix, student), 2)
    config = FitNet()
    learner = config.learner(Sizes(((4, 4, 4),), ((9, 2, 2),), classes=3, samples=16))
    batch = Batch(torch.zeros(16, 1, 2, 2), torch.zeros(16, dtype=torch.long), torch.arange(16))
    ours, theirs = (Outputs(torch.zeros(16, 3), (feature,)) for feature in (student, teacher))
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = config(ours, theirs, batch, learner)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-4 * teacher.pow(2).mean().item()


def test_there_is_a_regressor_unless_asked_otherwise() -> None:
    sizes = Sizes(((4, 4, 4),), ((4, 4, 4),), classes=3, samples=16)
    assert [tuple(p.shape) for p in FitNet().learner(sizes).parameters()] == [(4, 4, 1, 1), (4,), (4,)]
    assert not list(FitNet(project="where_needed").learner(sizes).parameters())


def test_a_hint_alone_leaves_the_layers_above_it_untouched() -> None:
    torch.manual_seed(0)
    below, above = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)
    middle = below(drawn(8, 2, 1, 4, 4))
    logits = above(middle.mean((2, 3)))
    config = FitNet()
    learner = config.learner(Sizes(((4, 4, 4),), ((6, 4, 4),), classes=3, samples=2))
    batch = Batch(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long), torch.arange(2))
    teacher = Outputs(torch.zeros(2, 3), (drawn(9, 2, 6, 4, 4),))
    config(Outputs(logits, (middle,)), teacher, batch, learner).backward()
    # None, not 0: weight decay and momentum leave them alone too.
    assert all(parameter.grad is None for parameter in above.parameters())
    assert all(parameter.grad is not None for parameter in (*below.parameters(), *learner.parameters()))
