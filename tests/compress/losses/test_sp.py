"""Similarities of samples: definition, orthogonal transforms and scale, samples without features."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.sp import SP, sp_loss


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_sp(student: Tensor, teacher: Tensor, order: int = 2) -> float:
    def similarities(feature: Tensor) -> list[list[float]]:
        rows = [row.double().numpy().ravel() for row in feature]
        gram = [[float(np.dot(a, b)) for b in rows] for a in rows]
        return [[value / float(np.linalg.norm(line, order)) for value in line] for line in gram]

    pairs = zip(chain(*similarities(student)), chain(*similarities(teacher)), strict=True)
    return sum((a - b) ** 2 for a, b in pairs) / len(student) ** 2


@pytest.mark.parametrize(
    ("ours", "theirs"), [((6, 4, 3, 3), (6, 7, 2, 2)), ((2, 3), (2, 5, 4)), ((16, 8, 4, 4), (16, 64))]
)
def test_equals_the_definition(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = drawn(*ours, seed=0), drawn(*theirs, seed=1) * 5
    assert float(sp_loss(student, teacher)) == pytest.approx(slow_sp(student, teacher), rel=1e-4)


def test_torchdistill_divides_rows_by_another_norm() -> None:
    # torchdistill 1.1.5, SPKDLoss(reduction="batchmean"): the sum of magnitudes where the paper has the length
    student, teacher = drawn(6, 4, 3, 3, seed=2), drawn(6, 7, 2, 2, seed=3)
    assert slow_sp(student, teacher, order=1) == pytest.approx(0.021247901022434235, rel=1e-5)
    assert float(sp_loss(student, teacher)) == pytest.approx(slow_sp(student, teacher), rel=1e-5)


def test_blind_to_rotation_and_scale() -> None:
    student, teacher = drawn(8, 6, seed=4), drawn(8, 10, seed=5)
    rotation = torch.linalg.qr(drawn(6, 6, seed=6))[0]
    for scale in (1e-4, 1.0, 1e4):
        moved = scale * student @ rotation
        assert float(sp_loss(moved, teacher)) == pytest.approx(float(sp_loss(student, teacher)), rel=1e-4)
        assert float(sp_loss(moved, student)) == pytest.approx(0.0, abs=1e-8)


def test_gradient_reaches_the_student_alone_and_a_dead_sample_stays_calm() -> None:
    student, teacher = drawn(4, 3, 2, 2, seed=7), drawn(4, 5, 2, 2, seed=8).requires_grad_()
    student[2] = 0
    student.requires_grad_()
    sp_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert 0 < float(student.grad.abs().max()) < 10
    dead = torch.zeros(4, 3, requires_grad=True)
    sp_loss(dead, teacher).backward()
    assert dead.grad is not None
    assert torch.equal(dead.grad, torch.zeros(4, 3))


def test_autocast_changes_nothing_and_one_sample_has_no_relations() -> None:
    student, teacher = drawn(6, 5, seed=9), drawn(6, 9, seed=10)
    expected = float(sp_loss(student, teacher))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(sp_loss(student, teacher)) == expected
    assert float(sp_loss(student[:1], teacher[:1])) == pytest.approx(0.0, abs=1e-12)


def test_config_hands_its_features_on() -> None:
    student, teacher = drawn(4, 3, 2, 2, seed=11), drawn(4, 5, 2, 2, seed=12)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4))
    told = SP()(Outputs(student, (student,)), Outputs(teacher, (teacher,)), batch, None)
    assert float(told) == float(sp_loss(student, teacher))
    assert SP().wanted_layers() == "last"
