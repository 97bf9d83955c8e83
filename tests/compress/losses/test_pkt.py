"""Probabilistic knowledge transfer against a slow restatement, torchdistill's value and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.pkt import PKT, pkt_loss


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_neighbours(feature: Tensor) -> list[list[float]]:
    rows = feature.double().flatten(1).tolist()
    table = []
    for ours in rows:
        near = []
        for theirs in rows:
            cosine = sum(a * b for a, b in zip(ours, theirs, strict=True)) / (math.hypot(*ours) * math.hypot(*theirs))
            near.append((cosine + 1) / 2)
        table.append([value / sum(near) for value in near])
    return table


@pytest.mark.parametrize("samples", [2, 9])
def test_equals_the_definition(samples: int) -> None:
    student, teacher = drawn(0, samples, 7), drawn(1, samples, 3, 2, 2)
    expected = 0.0
    for ours, theirs in zip(slow_neighbours(student), slow_neighbours(teacher), strict=True):
        expected += sum(p * math.log((p + 1e-6) / (q + 1e-6)) for p, q in zip(theirs, ours, strict=True))
    assert float(pkt_loss(student, teacher)) == pytest.approx(expected / samples**2, rel=1e-3, abs=1e-7)


def test_equals_torchdistill() -> None:
    # PKTLoss of torchdistill 1.1.5 on the same two draws, with its eps and with ours.
    student, teacher = drawn(2, 8, 10), drawn(3, 8, 16)
    assert float(pkt_loss(student, teacher, eps=1e-7)) == pytest.approx(0.009729670360684395, rel=2e-5)
    assert float(pkt_loss(student, teacher)) == pytest.approx(0.009729614481329918, rel=2e-5)


def test_blind_to_the_scale_of_each_sample_and_to_rotation() -> None:
    feature = drawn(4, 6, 5)
    rotation = torch.linalg.qr(drawn(5, 5, 5))[0]
    other = (feature @ rotation) * drawn(6, 6, 1).exp()
    assert float(pkt_loss(other, feature)) == pytest.approx(0.0, abs=1e-7)


def test_gradient_stays_out_of_the_teacher() -> None:
    student, teacher = drawn(7, 6, 5).requires_grad_(), drawn(8, 6, 9).requires_grad_()
    pkt_loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


@pytest.mark.parametrize(
    "student",
    [torch.zeros(4, 3), torch.ones(4, 3), torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])],
    ids=["zero", "equal", "opposite"],
)
def test_gradient_is_finite_for_degenerate_samples(student: Tensor) -> None:
    student = student.clone().requires_grad_()
    loss = pkt_loss(student, drawn(9, 4, 6))
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_autocast_does_not_reach_the_cosines() -> None:
    student, teacher = drawn(10, 16, 32), drawn(11, 16, 32)
    expected = float(pkt_loss(student, teacher))
    with torch.autocast("cpu", torch.bfloat16):
        assert float(pkt_loss(student, teacher)) == expected


def test_one_sample_has_no_neighbours() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        pkt_loss(torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match="differ in their samples"):
        pkt_loss(torch.ones(3, 4), torch.ones(2, 4))


def test_config_takes_the_mean_over_its_layers() -> None:
    ours, theirs = (drawn(12, 4, 5), drawn(13, 4, 3, 2, 2)), (drawn(14, 4, 9), drawn(15, 4, 4, 3))
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4))
    config = PKT(layers=("a", "b"), eps=1e-5)
    told = config(Outputs(torch.zeros(4, 3), ours), Outputs(torch.zeros(4, 3), theirs), batch, None)
    expected = sum(float(pkt_loss(*pair, eps=1e-5)) for pair in zip(ours, theirs, strict=True)) / 2
    assert float(told) == pytest.approx(expected, rel=1e-6)
