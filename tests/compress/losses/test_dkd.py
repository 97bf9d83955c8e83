"""Decoupled distillation against a slow restatement, its identity with Hinton's loss, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.dkd import DKD, dkd_loss, other_classes
from edgewise.compress.losses.kd import kd_loss


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def divergence(first: np.ndarray, second: np.ndarray) -> float:
    return float(sum(p * math.log(p / q) for p, q in zip(first, second, strict=True)))


def slow_parts(student: np.ndarray, teacher: np.ndarray, target: np.ndarray, temperature: float) -> tuple[float, float]:
    label = others = 0.0
    for ours, theirs, y in zip(student / temperature, teacher / temperature, target, strict=True):
        q, p = softmax(ours), softmax(theirs)
        label += divergence(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        others += divergence(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
    return temperature**2 * label / len(target), temperature**2 * others / len(target)


@pytest.mark.parametrize("shape", [(1, 3), (6, 10), (4, 100)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_the_definition(shape: tuple[int, int], temperature: float) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=shape) * 2, random.normal(size=shape) * 2
    target = random.integers(0, shape[1], shape[0])
    label, others = slow_parts(student, teacher, target, temperature)
    tensors = torch.tensor(student), torch.tensor(teacher), torch.tensor(target)
    loss = dkd_loss(*tensors, alpha=0.7, beta=3.0, temperature=temperature)
    assert float(loss) == pytest.approx(0.7 * label + 3.0 * others, rel=1e-4)


def test_hintons_loss_is_the_sum_with_the_teachers_doubt_as_weight() -> None:
    torch.manual_seed(0)
    for _ in range(8):
        student, teacher, target = torch.randn(1, 6) * 2, torch.randn(1, 6) * 2, torch.randint(6, (1,))
        label = dkd_loss(student, teacher, target, alpha=1.0, beta=0.0, temperature=2.0)
        others = dkd_loss(student, teacher, target, alpha=0.0, beta=1.0, temperature=2.0)
        doubt = 1 - (teacher / 2).softmax(1)[0, target[0]]
        assert float(label + doubt * others) == pytest.approx(
            float(kd_loss(student, teacher, temperature=2.0)), rel=1e-4
        )


def test_gradient_reaches_the_student_alone_and_vanishes_at_the_teacher() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    target = torch.randint(7, (5,))
    dkd_loss(student, teacher, target).backward()
    assert student.grad is not None
    assert float(student.grad.abs().sum()) > 0.01
    assert teacher.grad is None
    same = teacher.detach().clone().requires_grad_()
    loss = dkd_loss(same + 3.0, teacher, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)
    torch.testing.assert_close(same.grad, torch.zeros(5, 7), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [60.0, 1e4])
def test_a_teacher_that_is_certain_gives_finite_numbers(size: float) -> None:
    teacher = torch.zeros(2, 4)
    teacher[:, 0] = size
    student = (-teacher).requires_grad_()
    loss = dkd_loss(student, teacher, torch.zeros(2, dtype=torch.long), temperature=1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_the_doubt_of_a_certain_teacher_is_not_rounded_away() -> None:
    # p_y rounds to 1, and the plain definition divides 0 by 0.
    logits = torch.tensor([[60.0, 0.0, 0.0]])
    loss = dkd_loss(logits, torch.tensor([[60.0, 1.0, 0.0]]), torch.tensor([0]), alpha=1.0, beta=1.0, temperature=1.0)
    p = 1 / (1 + math.exp(-1))
    assert float(loss) == pytest.approx(p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)), rel=1e-4)


def test_the_label_is_left_out_in_order() -> None:
    logits = torch.arange(12.0).reshape(3, 4)
    left = other_classes(logits, torch.tensor([0, 3, 1]))
    assert left.tolist() == [[1, 2, 3], [4, 5, 6], [8, 10, 11]]


def test_half_precision_logits_are_compared_in_float32() -> None:
    torch.manual_seed(2)
    student, teacher, target = torch.randn(8, 10) * 6, torch.randn(8, 10) * 6, torch.randint(10, (8,))
    half = dkd_loss(student.half(), teacher.half(), target)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(dkd_loss(student, teacher, target)), rel=1e-2)


def test_degenerate_uses_are_refused() -> None:
    logits = torch.randn(4, 5)
    with pytest.raises(ValueError, match=r"at least 3 classes, got 2.*use kd"):
        dkd_loss(logits[:, :2], logits[:, :2], torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"one class number a sample.*without labels use kd"):
        dkd_loss(logits, logits, torch.rand(4, 5))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, got -1"):
        dkd_loss(logits, logits, torch.tensor([0, 1, -1, 2]))


def test_config_needs_labels_and_hands_scheduled_numbers_on() -> None:
    torch.manual_seed(3)
    student, teacher, target = torch.randn(4, 5), torch.randn(4, 5), torch.randint(5, (4,))
    batch = Batch(torch.zeros(4, 1, 2, 2), target, torch.arange(4), epoch=2.0, epochs=4.0)
    config = DKD.model_validate({"alpha": 0.5, "beta": {"kind": "linear", "start": 0, "end": 8}, "temperature": 2})
    told = config(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(dkd_loss(student, teacher, target, alpha=0.5, beta=4.0, temperature=2.0))
    assert DKD.needs_labels
    with pytest.raises(ValueError, match="dkd needs at least 3 classes, got 2; use kd or logit_mse"):
        DKD()(Outputs(student[:, :2]), Outputs(teacher[:, :2]), batch, None)


def test_classes_may_be_masked_out() -> None:
    torch.manual_seed(4)
    student, teacher, target = torch.randn(4, 5), torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    wide = [torch.cat([logits, torch.full((4, 3), -1e4)], 1) for logits in (student, teacher)]
    assert float(dkd_loss(*wide, target)) == pytest.approx(float(dkd_loss(student, teacher, target)), rel=1e-5)
    masked = torch.full((4, 5), -1e4)  # the teacher put all others above the label
    masked[:, 0] = 1.0
    assert torch.isfinite(dkd_loss(masked, masked + torch.randn(4, 5), target))
