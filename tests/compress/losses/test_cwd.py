"""Channel-wise distillation against a slow restatement, its known gradient and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgewise.compress.losses.base import Batch, Outputs, Sizes
from edgewise.compress.losses.cwd import CWD, cwd_loss
from edgewise.compress.schedule import Linear


def drawn(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_cwd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(value / temperature) for value in values]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for sample in range(student.shape[0]):
        for channel in range(student.shape[1]):
            ours = softmax(student[sample, channel].double().flatten().tolist())
            theirs = softmax(teacher[sample, channel].double().flatten().tolist())
            total += sum(p * math.log(p / q) for p, q in zip(theirs, ours, strict=True))
    return temperature**2 * total / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (1, 1, 1, 2)])
def test_equals_the_definition(temperature: float, shape: tuple[int, ...]) -> None:
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    expected = slow_cwd(student, teacher, temperature)
    assert float(cwd_loss(student, teacher, temperature=temperature)) == pytest.approx(expected, rel=1e-4)


def test_tokens_are_compared_over_the_tokens() -> None:
    student, teacher = drawn(2, 2, 3, 4, 4), drawn(3, 2, 3, 4, 4)
    tokens = [feature.flatten(2).transpose(1, 2) for feature in (student, teacher)]
    assert float(cwd_loss(*tokens)) == pytest.approx(float(cwd_loss(student, teacher)), rel=1e-6)


def test_gradient_is_the_known_one_and_stays_out_of_the_teacher() -> None:
    student, teacher = drawn(4, 2, 3, 4, 4).requires_grad_(), drawn(5, 2, 3, 4, 4).requires_grad_()
    cwd_loss(student, teacher, temperature=4.0).backward()
    gap = (student / 4).flatten(2).softmax(2) - (teacher / 4).flatten(2).softmax(2)
    torch.testing.assert_close(student.grad, 4.0 / (2 * 3) * gap.detach().view_as(student))
    assert teacher.grad is None


def test_is_zero_for_equal_maps_and_blind_to_a_shift_of_each_channel() -> None:
    feature = drawn(6, 2, 3, 4, 4)
    assert float(cwd_loss(feature, feature)) == pytest.approx(0.0, abs=1e-6)
    assert float(cwd_loss(feature + drawn(7, 2, 3, 1, 1), feature)) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 1, 1), (2, 1, 8)])
def test_one_position_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="use fitnet"):
        cwd_loss(torch.zeros(shape), torch.zeros(shape))


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        cwd_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))


def test_config_follows_its_temperature() -> None:
    student, teacher = drawn(8, 2, 3, 4, 4), drawn(9, 2, 3, 4, 4)
    config = CWD(temperature=Linear(kind="linear", start=5.0, end=1.0))
    learner = config.learner(Sizes(((3, 4, 4),), ((3, 4, 4),), classes=3, samples=2))
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long), torch.arange(2), epoch=5.0, epochs=10.0)
    told = config(Outputs(torch.zeros(2, 3), (student,)), Outputs(torch.zeros(2, 3), (teacher,)), batch, learner)
    assert float(told) == pytest.approx(float(cwd_loss(student, teacher, temperature=3.0)), rel=1e-6)
