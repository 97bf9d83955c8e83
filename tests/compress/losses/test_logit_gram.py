"""Grams of logits against sums over pairs, and what they are blind to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.logit_gram import LogitGram, logit_gram_loss


def slow_grams(student: np.ndarray, teacher: np.ndarray) -> tuple[float, float]:
    q, p = (np.stack([row / np.linalg.norm(row) for row in logits]) for logits in (student, teacher))
    count, width = q.shape
    between_samples = sum((q[i] @ q[j] - p[i] @ p[j]) ** 2 for i in range(count) for j in range(count))
    between_classes = sum((q[:, k] @ q[:, m] - p[:, k] @ p[:, m]) ** 2 for k in range(width) for m in range(width))
    return between_samples / count**2, between_classes / count**2


@pytest.mark.parametrize("shape", [(1, 3), (5, 2), (6, 10)])
def test_equals_the_definition(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=shape) * 3, random.normal(size=shape) * 3
    samples, classes = slow_grams(student, teacher)
    tensors = torch.tensor(student), torch.tensor(teacher)
    assert float(logit_gram_loss(*tensors, over="batch")) == pytest.approx(samples, rel=1e-4, abs=1e-10)
    assert float(logit_gram_loss(*tensors, over="classes")) == pytest.approx(classes, rel=1e-4)
    assert float(logit_gram_loss(*tensors)) == pytest.approx(samples + classes, rel=1e-4)


def test_blind_to_each_samples_scale_and_between_samples_to_a_rotation() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4))
    scaled = student * (torch.rand(6, 1) + 0.5)
    assert float(logit_gram_loss(scaled, teacher)) == pytest.approx(float(logit_gram_loss(student, teacher)), rel=1e-4)
    turned = logit_gram_loss(student @ rotation, teacher, over="batch")
    assert float(turned) == pytest.approx(float(logit_gram_loss(student, teacher, over="batch")), rel=1e-4)
    assert float(logit_gram_loss(3.0 * teacher, teacher)) == pytest.approx(0.0, abs=1e-10)


def test_the_size_does_not_grow_with_the_batch() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    again = logit_gram_loss(student.repeat(5, 1), teacher.repeat(5, 1))
    assert float(again) == pytest.approx(float(logit_gram_loss(student, teacher)), rel=1e-4)


@pytest.mark.parametrize("over", ["batch", "classes", "both"])
@pytest.mark.parametrize("student", [torch.zeros(4, 5), torch.ones(4, 5), torch.ones(4, 1) * torch.randn(1, 5)])
def test_zero_and_equal_rows_have_bounded_gradients(student: torch.Tensor, over: str) -> None:
    student, teacher = student.clone().requires_grad_(), torch.randn(4, 5, requires_grad=True)
    logit_gram_loss(student, teacher, over=over).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert float(student.grad.abs().max()) < 1e4
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_matrices_stay_in_float32_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(16, 10) * 4, torch.randn(16, 10) * 4
    expected = float(logit_gram_loss(student, teacher))
    with torch.autocast("cpu", dtype=dtype):
        assert float(logit_gram_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_config_hands_its_choice_on() -> None:
    torch.manual_seed(3)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4))
    told = LogitGram(over="classes")(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(logit_gram_loss(student, teacher, over="classes"))
    assert not LogitGram().allows_masking()
