"""DIST against numpy's correlations, torchdistill's values and its invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.dist import DIST, dist_loss


def slow_dist(student: np.ndarray, teacher: np.ndarray, temperature: float) -> tuple[float, float]:
    def softmax(rows: np.ndarray) -> np.ndarray:
        powers = np.exp(rows / temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    q, p = softmax(student), softmax(teacher)
    rows = np.mean([1 - np.corrcoef(q[i], p[i])[0, 1] for i in range(len(q))])
    columns = np.mean([1 - np.corrcoef(q[:, k], p[:, k])[0, 1] for k in range(q.shape[1])])
    return temperature**2 * float(rows), temperature**2 * float(columns)


@pytest.mark.parametrize("shape", [(5, 3), (8, 10), (3, 50)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_the_definition(shape: tuple[int, int], temperature: float) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=shape) * 2, random.normal(size=shape) * 2
    rows, columns = slow_dist(student, teacher, temperature)
    loss = dist_loss(torch.tensor(student), torch.tensor(teacher), beta=2.0, gamma=0.5, temperature=temperature)
    assert float(loss) == pytest.approx(2.0 * rows + 0.5 * columns, rel=1e-4)


@pytest.mark.parametrize(
    ("temperature", "rows", "columns", "mixed"),
    [(1.0, 0.9533781, 0.9952333, 2.4043729), (4.0, 15.3421459, 14.6871166, 38.0278511)],
)
def test_equals_torchdistill(temperature: float, rows: float, columns: float, mixed: float) -> None:
    # torchdistill 1.1.5, DISTLoss with (beta, gamma) = (1, 0), (0, 1), (2, 0.5).
    n = torch.arange(60.0)
    student, teacher = (3 * torch.sin(1.7 * n)).reshape(6, 10), (4 * torch.cos(0.9 * n)).reshape(6, 10)
    for (beta, gamma), expected in {(1.0, 0.0): rows, (0.0, 1.0): columns, (2.0, 0.5): mixed}.items():
        loss = dist_loss(student, teacher, beta=beta, gamma=gamma, temperature=temperature)
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_blind_to_probabilities_that_are_stretched_and_shifted() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 8), torch.randn(6, 8)
    flatter = (0.3 * student.softmax(1) + 0.7 / 8).log()
    assert float(dist_loss(flatter, teacher)) == pytest.approx(float(dist_loss(student, teacher)), rel=1e-4)
    each = torch.rand(6, 1)  # a stretch of its own for each row: the rows alone don't see it
    flatter = (each * student.softmax(1) + (1 - each) / 8).log()
    expected = float(dist_loss(student, teacher, gamma=0.0))
    assert float(dist_loss(flatter, teacher, gamma=0.0)) == pytest.approx(expected, rel=1e-4)
    assert float(dist_loss(flatter, flatter + 3.0)) == pytest.approx(0.0, abs=1e-5)


def test_one_sample_has_no_columns() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(1, 6, requires_grad=True), torch.randn(1, 6)
    loss = dist_loss(student, teacher, beta=1.0, gamma=5.0)
    assert float(loss.detach()) == float(dist_loss(student.detach(), teacher, beta=1.0, gamma=0.0))
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert float(student.grad.abs().sum()) > 0


@pytest.mark.parametrize("teacher", [torch.zeros(4, 6), torch.eye(4, 6) * 50, torch.ones(4, 1) * torch.randn(1, 6)])
@pytest.mark.parametrize("student", [torch.zeros(4, 6), torch.eye(4, 6) * 50, torch.ones(4, 1) * torch.randn(1, 6)])
def test_constant_and_certain_answers_have_bounded_gradients(student: torch.Tensor, teacher: torch.Tensor) -> None:
    student = student.clone().requires_grad_()
    loss = dist_loss(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert float(student.grad.abs().max()) < 1e3


def test_gradient_stays_out_of_the_teacher() -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    dist_loss(student, teacher).backward()
    assert student.grad is not None
    assert float(student.grad.abs().sum()) > 0
    assert teacher.grad is None


def test_two_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 3 classes, got 2.*use kd"):
        dist_loss(torch.randn(4, 2), torch.randn(4, 2))


def test_config_hands_its_numbers_on() -> None:
    torch.manual_seed(3)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4))
    told = DIST(beta=0.5, gamma=3.0, temperature=2.0)(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(dist_loss(student, teacher, beta=0.5, gamma=3.0, temperature=2.0))
    assert not DIST().allows_masking()
