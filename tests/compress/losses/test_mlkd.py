"""Multi-level distillation against a slow restatement of its three terms and of what it leaves out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.kd import kd_loss
from edgewise.compress.losses.mlkd import MLKD, mlkd_loss


def softmax(rows: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(rows / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def slow_terms(
    student: np.ndarray, teacher: np.ndarray, temperature: float, samples: set[int], classes: set[int]
) -> tuple[float, float, float]:
    """The three terms over the kept samples and classes, by loops over pairs."""
    q, p = softmax(student, temperature), softmax(teacher, temperature)
    count, width = q.shape
    divergence = sum(p[i, k] * math.log(p[i, k] / q[i, k]) for i in samples for k in range(width))
    alike = sum((q[i] @ q[j] - p[i] @ p[j]) ** 2 for i in samples for j in range(count))
    together = sum((q[:, k] @ q[:, m] - p[:, k] @ p[:, m]) ** 2 for k in classes for m in range(width))
    return temperature**2 * divergence / count, alike / count, together / width


@pytest.mark.parametrize("shape", [(1, 3), (5, 2), (6, 10)])
def test_equals_the_definition(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=shape) * 3, random.normal(size=shape) * 3
    everything = set(range(shape[0])), set(range(shape[1]))
    expected = 0.0
    for temperature in (1.0, 2.5, 4.0):
        divergence, alike, together = slow_terms(student, teacher, temperature, *everything)
        expected += 1.5 * divergence + 2.0 * alike + 0.5 * together
    weights = {"instance": 1.5, "batch": 2.0, "classes": 0.5}
    loss = mlkd_loss(torch.tensor(student), torch.tensor(teacher), temperatures=(1.0, 2.5, 4.0), **weights)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_the_least_sure_are_picked_sample_by_sample_and_class_by_class() -> None:
    random = np.random.default_rng(1)
    student, teacher = random.normal(size=(6, 4)) * 2, random.normal(size=(6, 4)) * 2
    p = softmax(teacher, 1.0)
    samples = set(np.argsort(p.max(axis=1))[:3].tolist())
    classes = set(np.argsort(p.sum(axis=0))[:2].tolist())
    expected = sum(slow_terms(student, teacher, 2.0, samples, classes))
    loss = mlkd_loss(torch.tensor(student), torch.tensor(teacher), temperatures=(2.0,), least_sure=0.5)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    # Not the constant factor that a mask on an average is.
    everything = sum(slow_terms(student, teacher, 2.0, set(range(6)), set(range(4))))
    assert float(loss) != pytest.approx(0.5 * everything, rel=1e-2)


def test_without_the_grams_it_is_hintons_loss_at_each_temperature() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    expected = sum(float(kd_loss(student, teacher, temperature=t)) for t in (2.0, 3.0, 4.0, 5.0, 6.0))
    assert float(mlkd_loss(student, teacher, batch=0.0, classes=0.0)) == pytest.approx(expected, rel=1e-5)


def test_is_zero_for_equal_answers_and_blind_to_a_shift() -> None:
    torch.manual_seed(1)
    teacher = torch.randn(4, 5, requires_grad=True)
    student = (teacher.detach() + 4.0).requires_grad_()
    loss = mlkd_loss(student, teacher)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)
    torch.testing.assert_close(student.grad, torch.zeros(4, 5), atol=1e-5, rtol=0)
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_matrices_stay_in_float32_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(16, 10) * 4, torch.randn(16, 10) * 4
    expected = float(mlkd_loss(student, teacher, instance=0.0))
    with torch.autocast("cpu", dtype=dtype):
        assert float(mlkd_loss(student, teacher, instance=0.0)) == pytest.approx(expected, rel=1e-5)


def test_an_empty_list_of_temperatures_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one temperature"):
        mlkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperatures=())
    with pytest.raises(ValidationError, match="temperatures"):
        MLKD(temperatures=())
    with pytest.raises(ValidationError, match="above 0"):
        MLKD(temperatures=(0.0,))


def test_config_hands_its_numbers_on() -> None:
    torch.manual_seed(3)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4), epoch=1.0, epochs=2.0)
    numbers = {
        "instance": 0.5,
        "batch": {"kind": "warmup", "value": 2.0, "epochs": 2},
        "classes": 3.0,
        "least_sure": 0.5,
    }
    config = MLKD.model_validate({"temperatures": [2.0, 4.0], **numbers})
    told = config(Outputs(student), Outputs(teacher), batch, None)
    numbers["batch"] = 1.0
    assert float(told) == float(mlkd_loss(student, teacher, temperatures=(2.0, 4.0), **numbers))
