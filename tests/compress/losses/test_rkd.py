"""Distances and angles between samples: definitions, known values, similarity transforms, duplicates, memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.rkd import RKDAngle, RKDDistance, rkd_angle_loss, rkd_distance_loss

BATCH = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4))


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def huber(gap: float) -> float:
    return 0.5 * gap * gap if abs(gap) < 1 else abs(gap) - 0.5


def slow_distance(student: Tensor, teacher: Tensor) -> float:
    def relations(feature: Tensor) -> list[float]:
        rows = feature.double().numpy()
        all_pairs = [float(np.sqrt(((a - b) ** 2).sum())) for a in rows for b in rows]
        apart = [distance for distance in all_pairs if distance > 0]
        return [distance * len(apart) / sum(apart) for distance in all_pairs]

    pairs = list(zip(relations(student), relations(teacher), strict=True))
    return sum(huber(a - b) for a, b in pairs) / len(pairs)


def slow_angle(student: Tensor, teacher: Tensor) -> float:
    def relations(feature: Tensor) -> list[float]:
        rows = feature.double().numpy()
        found = []
        for i, j, k in itertools.product(range(len(rows)), repeat=3):
            one, other = rows[i] - rows[j], rows[k] - rows[j]
            lengths = np.linalg.norm(one) * np.linalg.norm(other)
            found.append(float(one @ other / lengths) if lengths else 0.0)
        return found

    triples = list(zip(relations(student), relations(teacher), strict=True))
    return sum(huber(a - b) for a, b in triples) / len(triples)


@pytest.mark.parametrize(("count", "ours", "theirs"), [(6, 5, 9), (2, 3, 3), (12, 1, 40)])
def test_equal_the_definitions(count: int, ours: int, theirs: int) -> None:
    student, teacher = drawn(count, ours, seed=2), drawn(count, theirs, seed=3) * 7
    assert float(rkd_distance_loss(student, teacher)) == pytest.approx(slow_distance(student, teacher), rel=1e-4)
    assert float(rkd_angle_loss(student, teacher)) == pytest.approx(slow_angle(student, teacher), rel=1e-4, abs=1e-7)


def test_equal_torchdistill() -> None:
    # torchdistill 1.1.5, RKDLoss(reduction="mean"), compute_rkd_distance_loss and compute_rkd_angle_loss
    student, teacher = drawn(6, 5, seed=0), drawn(6, 9, seed=1)
    assert float(rkd_distance_loss(student, teacher)) == pytest.approx(0.034686919301748276, rel=1e-5)
    assert float(rkd_angle_loss(student, teacher)) == pytest.approx(0.04844546318054199, rel=1e-5)


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
def test_blind_to_rotation_shift_and_scale(loss) -> None:  # type: ignore[no-untyped-def]
    student, teacher = drawn(8, 6, seed=4), drawn(8, 10, seed=5)
    rotation = torch.linalg.qr(drawn(6, 6, seed=6))[0]
    moved = 30 * student @ rotation + drawn(6, seed=7)
    assert float(loss(moved, teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-4)
    assert float(loss(moved, student)) == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
def test_duplicates_push_nothing_between_themselves(loss) -> None:  # type: ignore[no-untyped-def]
    teacher = drawn(4, 6, seed=8).requires_grad_()
    same = torch.ones(4, 5, requires_grad=True)
    loss(same, teacher).backward()
    assert same.grad is not None
    assert torch.equal(same.grad, torch.zeros(4, 5))
    assert teacher.grad is None

    some = drawn(4, 5, seed=9)
    some[1] = some[0]
    some.requires_grad_()
    loss(some, teacher).backward()
    assert some.grad is not None
    # Finite, and not of the size of one over a tiny distance.
    assert 0 < float(some.grad.abs().max()) < 10


def test_maps_and_tokens_are_averaged() -> None:
    maps, tokens = drawn(5, 4, 3, 2, seed=11), drawn(5, 7, 6, seed=12)
    for loss in (rkd_distance_loss, rkd_angle_loss):
        assert float(loss(maps, tokens)) == pytest.approx(float(loss(maps.mean((2, 3)), tokens.mean(1))), rel=1e-6)


def test_a_batch_of_one_has_no_relations() -> None:
    for loss in (rkd_distance_loss, rkd_angle_loss):
        student = drawn(1, 5, seed=13).requires_grad_()
        told = loss(student, drawn(1, 3, seed=14))
        told.backward()
        assert float(told.detach()) == 0.0
        assert student.grad is not None
        assert torch.equal(student.grad, torch.zeros(1, 5))


def test_angles_of_a_large_batch_are_those_of_its_first_samples() -> None:
    student, teacher = drawn(200, 5, seed=15), drawn(200, 9, seed=16)
    assert float(rkd_angle_loss(student, teacher, max_samples=10)) == float(rkd_angle_loss(student[:10], teacher[:10]))
    assert float(rkd_angle_loss(student, teacher)) == float(rkd_angle_loss(student[:64], teacher[:64]))


def test_autocast_changes_nothing() -> None:
    student, teacher = drawn(6, 5, seed=0), drawn(6, 9, seed=1)
    for loss in (rkd_distance_loss, rkd_angle_loss):
        expected = loss(student, teacher)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert float(loss(student, teacher)) == float(expected)
        assert float(loss(student.half(), teacher.half())) == pytest.approx(float(expected), rel=1e-2)


def test_batches_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of one batch, got student \(2, 3\) and teacher \(3, 3\)"):
        rkd_distance_loss(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="relations need vectors"):
        rkd_angle_loss(torch.zeros(2), torch.zeros(2))


def test_configs_sum_their_layers() -> None:
    student, teacher = drawn(4, 5, seed=17), drawn(4, 9, seed=18)
    ours, theirs = Outputs(student, (student, student)), Outputs(teacher, (teacher, teacher))
    assert float(RKDDistance()(ours, theirs, BATCH, None)) == 2 * float(rkd_distance_loss(student, teacher))
    three = RKDAngle(max_samples=3)
    assert float(three(ours, theirs, BATCH, None)) == 2 * float(rkd_angle_loss(student[:3], teacher[:3]))
    assert RKDDistance().wanted_layers() == RKDAngle().wanted_layers() == "embedding"
