"""Transformed teacher matching, plain and weighted, against a slow restatement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.kd import kd_loss
from edgewise.compress.losses.ttm import TTM, WTTM, ttm_loss, wttm_loss


def slow_ttm(student: np.ndarray, teacher: np.ndarray, gamma: float) -> tuple[float, float]:
    plain = weighted = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        q = np.exp(ours) / np.exp(ours).sum()
        powers = (np.exp(theirs) / np.exp(theirs).sum()) ** gamma
        soft = powers / powers.sum()
        divergence = sum(a * math.log(a / b) for a, b in zip(soft, q, strict=True))
        plain += divergence
        weighted += powers.sum() * divergence
    return plain / len(student), weighted / len(student)


@pytest.mark.parametrize("shape", [(1, 2), (6, 10)])
@pytest.mark.parametrize("gamma", [0.1, 0.2, 1.0])
def test_equals_the_definition(shape: tuple[int, int], gamma: float) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=shape) * 2, random.normal(size=shape) * 2
    plain, weighted = slow_ttm(student, teacher, gamma)
    tensors = torch.tensor(student), torch.tensor(teacher)
    assert float(ttm_loss(*tensors, gamma=gamma)) == pytest.approx(plain, rel=1e-5)
    assert float(wttm_loss(*tensors, gamma=gamma)) == pytest.approx(weighted, rel=1e-5)


def test_power_one_is_hintons_loss_at_temperature_one() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    expected = float(kd_loss(student, teacher, temperature=1.0))
    assert float(ttm_loss(student, teacher, gamma=1.0)) == pytest.approx(expected, rel=1e-5)
    assert float(wttm_loss(student, teacher, gamma=1.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [ttm_loss, wttm_loss])
def test_the_minimum_is_the_softened_teacher_and_the_gradient_is_the_students_alone(loss) -> None:
    torch.manual_seed(1)
    teacher = torch.randn(4, 5, requires_grad=True)
    student = (0.2 * teacher.detach() + 3.0).requires_grad_()
    least = loss(student, teacher, gamma=0.2)
    least.backward()
    assert float(least.detach()) == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(student.grad, torch.zeros(4, 5), atol=1e-6, rtol=0)
    assert teacher.grad is None


def test_a_sure_teacher_weighs_one_and_an_ignorant_one_the_most() -> None:
    student = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    sure, ignorant = torch.tensor([[500.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)
    for teacher, weight in ((sure, 1.0), (ignorant, 4**0.8)):
        ratio = wttm_loss(student, teacher, gamma=0.2) / ttm_loss(student, teacher, gamma=0.2)
        assert float(ratio) == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("loss", [ttm_loss, wttm_loss])
def test_far_apart_answers_stay_finite(loss) -> None:
    student = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    value = loss(student, torch.tensor([[1e4, -1e4, 0.0]]), gamma=0.1)
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_configs_hand_the_power_on_and_refuse_zero() -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4))
    told = TTM(gamma=0.3)(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(ttm_loss(student, teacher, gamma=0.3))
    told = WTTM(gamma=0.3)(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(wttm_loss(student, teacher, gamma=0.3))
    for config in (TTM, WTTM):
        with pytest.raises(ValidationError, match="gamma"):
            config(gamma=0.0)
