"""Sigmoid distillation against a slow restatement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.multi_label import MultiLabel, multi_label_loss


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (3, 20)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_equals_the_definition(shape: tuple[int, int], temperature: float) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=shape) * 3, random.normal(size=shape) * 3
    total = 0.0
    for z_s, z_t in zip(student.ravel(), teacher.ravel(), strict=True):
        q, p = sigmoid(z_s / temperature), sigmoid(z_t / temperature)
        total -= p * math.log(q) + (1 - p) * math.log(1 - q)
    loss = multi_label_loss(torch.tensor(student), torch.tensor(teacher), temperature=temperature)
    assert float(loss) == pytest.approx(temperature**2 * total / shape[0], rel=1e-5)


def test_gradient_is_the_known_one_and_stays_out_of_the_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    multi_label_loss(student, teacher, temperature=2.0).backward()
    expected = 2.0 / 5 * ((student / 2).sigmoid() - (teacher / 2).sigmoid())
    torch.testing.assert_close(student.grad, expected.detach())
    assert teacher.grad is None


def test_labels_do_not_compete() -> None:
    # A shift of all logits means nothing to a softmax; here every answer changes.
    torch.manual_seed(1)
    logits = torch.randn(4, 5)
    least = float(multi_label_loss(logits, logits))
    assert float(multi_label_loss(logits + 2.0, logits)) > least + 0.1
    assert float(multi_label_loss(logits[:, :2], logits[:, :2])) < least


def test_certain_answers_in_half_precision_stay_finite() -> None:
    student = torch.tensor([[6e4, -6e4]], dtype=torch.float16, requires_grad=True)
    loss = multi_label_loss(student, torch.tensor([[-6e4, 6e4]], dtype=torch.float16))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.2e5, rel=1e-2)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_config_takes_one_label_and_hands_the_temperature_on() -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(4, 1), torch.randn(4, 1)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, 1), torch.arange(4))
    told = MultiLabel(temperature=2.0)(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(multi_label_loss(student, teacher, temperature=2.0))
    assert not MultiLabel().allows_masking()
    with pytest.raises(ValueError, match="differ in shape"):
        MultiLabel()(Outputs(student), Outputs(teacher[:, 0]), batch, None)
