"""Hinton's loss against a slow restatement, its known gradient and its invariances."""

from __future__ import annotations

import math

import pytest
import torch

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.kd import KD, kd_loss


def slow_kd(student: list[list[float]], teacher: list[list[float]], temperature: float) -> float:
    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(value / temperature) for value in row]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(softmax(theirs), softmax(ours), strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 20.0])
@pytest.mark.parametrize("shape", [(5, 10), (1, 2), (3, 100)])
def test_equals_the_definition(temperature: float, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(shape) * 3, torch.randn(shape) * 3
    expected = slow_kd(student.double().tolist(), teacher.double().tolist(), temperature)
    assert float(kd_loss(student, teacher, temperature=temperature)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 2.6127069), (4.0, 5.1774249)])
def test_equals_torchdistill(temperature: float, expected: float) -> None:
    # torchdistill 1.1.5, KDLoss(alpha=0), times T^2, which it leaves out where there is no hard term.
    n = torch.arange(60.0)
    student, teacher = (3 * torch.sin(1.7 * n)).reshape(6, 10), (4 * torch.cos(0.9 * n)).reshape(6, 10)
    assert float(kd_loss(student, teacher, temperature=temperature)) == pytest.approx(expected, rel=1e-5)


def test_gradient_is_the_known_one_and_stays_out_of_the_teacher() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(6, 10, requires_grad=True), torch.randn(6, 10, requires_grad=True)
    kd_loss(student, teacher, temperature=4.0).backward()
    expected = 4.0 / 6 * ((student / 4).softmax(1) - (teacher / 4).softmax(1))
    torch.testing.assert_close(student.grad, expected.detach())
    assert teacher.grad is None


def test_high_temperature_matches_centred_logits() -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(6, 10, requires_grad=True), torch.randn(6, 10)
    kd_loss(student, teacher, temperature=1000.0).backward()
    gap = student.detach() - teacher
    torch.testing.assert_close(student.grad, (gap - gap.mean(1, keepdim=True)) / 60, rtol=1e-2, atol=2e-4)


def test_is_zero_for_equal_answers_and_blind_to_a_shift() -> None:
    torch.manual_seed(3)
    logits = torch.randn(4, 7)
    assert float(kd_loss(logits, logits, temperature=3.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(kd_loss(logits + 5.0, logits, temperature=3.0)) == pytest.approx(0.0, abs=1e-5)


def test_more_classes_do_not_dilute_it() -> None:
    torch.manual_seed(4)
    student, teacher = torch.randn(4, 7), torch.randn(4, 7)
    padding = torch.full((4, 93), -1e4)
    wide = kd_loss(torch.cat([student, padding], 1), torch.cat([teacher, padding], 1), temperature=2.0)
    assert float(wide) == pytest.approx(float(kd_loss(student, teacher, temperature=2.0)), rel=1e-6)


def test_half_precision_logits_are_compared_in_float32() -> None:
    torch.manual_seed(5)
    student, teacher = torch.randn(8, 10) * 8, torch.randn(8, 10) * 8
    half = kd_loss(student.half(), teacher.half(), temperature=1.0)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(kd_loss(student, teacher, temperature=1.0)), rel=1e-2)


def test_far_apart_answers_stay_finite() -> None:
    student = torch.tensor([[6e4, -6e4, 0.0]], requires_grad=True)
    loss = kd_loss(student, torch.tensor([[-6e4, 6e4, 0.0]]), temperature=1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"student \(2, 3\) and teacher \(2, 4\) differ"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 4), temperature=1.0)


def test_config_hands_the_logits_and_the_temperature_of_the_moment_on() -> None:
    torch.manual_seed(6)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4), epoch=5.0, epochs=10.0)
    told = KD(temperature=2.0)(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(kd_loss(student, teacher, temperature=2.0))
    cooling = KD.model_validate({"temperature": {"kind": "linear", "start": 10.0, "end": 1.0}})
    told = cooling(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(kd_loss(student, teacher, temperature=5.5))
