"""Regression from a teacher, as an aim and as a bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.regression import (
    BoundedRegression,
    Regression,
    bounded_regression_loss,
    regression_loss,
)


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (4, 3)])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_equals_the_definition(shape: tuple[int, int], margin: float) -> None:
    random = np.random.default_rng(0)
    student, teacher, target = (random.normal(size=shape) for _ in range(3))
    plain, bounded = 0.0, 0.0
    for ours, theirs, wanted in zip(student, teacher, target, strict=True):
        plain += sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / shape[1]
        error = sum((a - b) ** 2 for a, b in zip(ours, wanted, strict=True)) / shape[1]
        bound = sum((a - b) ** 2 for a, b in zip(theirs, wanted, strict=True)) / shape[1]
        bounded += error if error + margin > bound else 0.0
    tensors = torch.tensor(student), torch.tensor(teacher), torch.tensor(target)
    assert float(regression_loss(*tensors[:2])) == pytest.approx(plain / shape[0], rel=1e-5)
    assert float(bounded_regression_loss(*tensors, margin=margin)) == pytest.approx(bounded / shape[0], rel=1e-5)


def test_a_sample_better_than_the_teacher_by_the_margin_is_left_alone() -> None:
    target = torch.tensor([0.0, 0.0, 0.0])
    teacher = torch.tensor([[1.0], [1.0], [1.0]], requires_grad=True)  # squared errors of 1
    student = torch.tensor([[2.0], [0.9], [0.5]], requires_grad=True)  # 4, 0.81 and 0.25
    loss = bounded_regression_loss(student, teacher, target, margin=0.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((4 + 0.81) / 3)
    torch.testing.assert_close(student.grad, torch.tensor([[4.0], [1.8], [0.0]]) / 3)
    assert teacher.grad is None


def test_the_aim_is_the_teacher() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(4, 2, requires_grad=True)
    student = (teacher.detach() + 0.5).requires_grad_()
    loss = regression_loss(student, teacher)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.25, rel=1e-5)
    torch.testing.assert_close(student.grad, torch.full((4, 2), 2 * 0.5 / 8))
    assert teacher.grad is None


def test_shapes_that_would_be_broadcast_are_refused() -> None:
    values = torch.zeros(4, 2)
    with pytest.raises(
        ValueError, match=r"a target for each value, \(4, 2\), got \(4,\); without targets use regression"
    ):
        bounded_regression_loss(values, values, torch.zeros(4))
    with pytest.raises(ValueError, match="differ in shape"):
        regression_loss(torch.zeros(4, 1), torch.zeros(4))


def test_half_precision_values_are_compared_in_float32() -> None:
    ours, theirs = torch.full((2, 1), 300.0).half(), torch.full((2, 1), -300.0).half()
    assert float(regression_loss(ours, theirs)) == 360000.0
    assert float(bounded_regression_loss(ours, theirs, torch.tensor([-300.0, -300.0]).half())) == 360000.0


def test_configs_hand_values_and_targets_on() -> None:
    torch.manual_seed(1)
    student, teacher, target = torch.randn(4, 1), torch.randn(4, 1), torch.randn(4)
    batch = Batch(torch.zeros(4, 1, 2, 2), target, torch.arange(4))
    told = Regression()(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(regression_loss(student, teacher))
    told = BoundedRegression(margin=0.1)(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(bounded_regression_loss(student, teacher, target, margin=0.1))
    assert BoundedRegression.needs_labels
    assert not Regression.needs_labels
    assert not Regression().allows_masking()
    assert not BoundedRegression().allows_masking()
    with pytest.raises(ValidationError, match="margin"):
        BoundedRegression(margin=-1.0)
