"""Normalised distillation against a slow restatement, and where its two parts pull."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.nkd import NKD, nkd_loss


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def slow_nkd(student: np.ndarray, teacher: np.ndarray, target: np.ndarray, gamma: float, temperature: float) -> float:
    total = 0.0
    for ours, theirs, y in zip(student, teacher, target, strict=True):
        total -= softmax(theirs)[y] * math.log(softmax(ours)[y])
        q, p = (softmax(np.delete(row, y) / temperature) for row in (ours, theirs))
        total -= gamma * temperature**2 * sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    return total / len(target)


@pytest.mark.parametrize("shape", [(1, 3), (6, 10)])
@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (0.4, 3.0), (0.0, 1.0)])
def test_equals_the_definition(shape: tuple[int, int], gamma: float, temperature: float) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=shape) * 2, random.normal(size=shape) * 2
    target = random.integers(0, shape[1], shape[0])
    tensors = torch.tensor(student), torch.tensor(teacher), torch.tensor(target)
    expected = slow_nkd(student, teacher, target, gamma, temperature)
    assert float(nkd_loss(*tensors, gamma=gamma, temperature=temperature)) == pytest.approx(expected, rel=1e-5)


def test_gradient_is_the_known_one_and_stays_out_of_the_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    nkd_loss(student, teacher, torch.tensor([2]), gamma=1.5, temperature=2.0).backward()
    p, q = teacher.detach().softmax(1), student.detach().softmax(1)
    expected = p[0, 2] * (q - torch.tensor([[0.0, 0, 1, 0]]))
    others = [0, 1, 3]
    gap = (student.detach()[:, others] / 2).softmax(1) - (teacher.detach()[:, others] / 2).softmax(1)
    expected[:, others] += 1.5 * 2.0 * gap
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None


def test_the_other_classes_are_at_rest_where_they_equal_the_teachers() -> None:
    torch.manual_seed(1)
    teacher = torch.randn(4, 6)
    target = torch.arange(4)
    student = teacher.clone().requires_grad_()
    both = nkd_loss(student, teacher, target, gamma=2.0)
    (both - nkd_loss(student, teacher, target, gamma=0.0)).backward()
    torch.testing.assert_close(student.grad, torch.zeros(4, 6), atol=1e-6, rtol=0)


def test_far_apart_answers_stay_finite() -> None:
    student = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    loss = nkd_loss(student, torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_degenerate_uses_are_refused() -> None:
    logits = torch.randn(4, 5)
    with pytest.raises(ValueError, match=r"at least 3 classes, got 2.*use kd"):
        nkd_loss(logits[:, :2], logits[:, :2], torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, got 0\.\.7"):
        nkd_loss(logits, logits, torch.tensor([0, 1, 7, 2]))


def test_config_needs_labels_and_hands_its_numbers_on() -> None:
    torch.manual_seed(2)
    student, teacher, target = torch.randn(4, 5), torch.randn(4, 5), torch.randint(5, (4,))
    batch = Batch(torch.zeros(4, 1, 2, 2), target, torch.arange(4))
    told = NKD(gamma=0.5, temperature=2.0)(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(nkd_loss(student, teacher, target, gamma=0.5, temperature=2.0))
    assert NKD.needs_labels
