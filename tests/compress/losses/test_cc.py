"""Correlations of embeddings: definition, torchdistill's values, how near the series is to the Gaussian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.cc import CC, Kernel, cc_loss, correlations


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_cc(student: Tensor, teacher: Tensor, kernel: Kernel, gamma: float, order: int) -> float:
    def correlation(one: np.ndarray, other: np.ndarray) -> float:  # type: ignore[type-arg]
        cosine = float(one @ other) / float(np.linalg.norm(one) * np.linalg.norm(other))
        if kernel == "bilinear":
            return cosine
        powers = [(2 * gamma * cosine) ** p / math.factorial(p) for p in range(order + 1)]
        return sum(powers) / math.exp(2 * gamma)

    ours, theirs = student.double().numpy(), teacher.double().numpy()
    places = [(i, j) for i in range(len(ours)) for j in range(len(ours))]
    gaps = [correlation(ours[i], ours[j]) - correlation(theirs[i], theirs[j]) for i, j in places]
    return sum(gap**2 for gap in gaps) / len(places)


@pytest.mark.parametrize("kernel", ["gaussian", "bilinear"])
@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.1, 1), (1.0, 5)])
def test_equals_the_definition(kernel: Kernel, gamma: float, order: int) -> None:
    student, teacher = drawn(7, 5, seed=2), drawn(7, 9, seed=3) * 5
    told = cc_loss(student, teacher, kernel=kernel, gamma=gamma, order=order)
    assert float(told) == pytest.approx(slow_cc(student, teacher, kernel, gamma, order), rel=1e-4)


def test_equals_torchdistill() -> None:
    # torchdistill 1.1.5, CCKDLoss(reduction="none") on embeddings of unit length, its norm squared and divided by N^2
    student, teacher = drawn(6, 5, seed=0), drawn(6, 9, seed=1)
    assert float(cc_loss(student, teacher, kernel="bilinear")) == pytest.approx(0.22276794820072768, rel=1e-5)
    assert float(cc_loss(student, teacher)) == pytest.approx(0.024635752599611038, rel=1e-5)


def test_the_series_is_near_the_gaussian_kernel_on_unit_vectors() -> None:
    vectors = torch.nn.functional.normalize(drawn(64, 3, seed=4), dim=1)
    exact = (-0.4 * torch.cdist(vectors, vectors).pow(2)).exp()
    assert float((correlations(vectors) - exact).abs().max()) < 0.05
    assert float((correlations(vectors, order=8) - exact).abs().max()) < 1e-5


def test_blind_to_rotation_and_to_each_samples_scale() -> None:
    student, teacher = drawn(8, 6, seed=5), drawn(8, 10, seed=6)
    rotation = torch.linalg.qr(drawn(6, 6, seed=7))[0]
    moved = student @ rotation * (1 + drawn(8, 1, seed=8).abs())
    assert float(cc_loss(moved, teacher)) == pytest.approx(float(cc_loss(student, teacher)), rel=1e-4)
    assert float(cc_loss(moved, student)) == pytest.approx(0.0, abs=1e-9)


def test_gradient_reaches_the_student_alone_and_is_finite_without_features() -> None:
    teacher = drawn(4, 5, seed=9).requires_grad_()
    for student in (drawn(4, 3, seed=10), torch.zeros(4, 3), torch.ones(4, 3)):
        student.requires_grad_()
        cc_loss(student, teacher).backward()
        assert student.grad is not None
        assert bool(student.grad.isfinite().all())
    assert teacher.grad is None


def test_maps_tokens_autocast_and_one_sample() -> None:
    maps, tokens = drawn(5, 4, 3, 2, seed=11), drawn(5, 7, 6, seed=12)
    expected = float(cc_loss(maps.mean((2, 3)), tokens.mean(1)))
    assert float(cc_loss(maps, tokens)) == pytest.approx(expected, rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(cc_loss(maps, tokens)) == pytest.approx(expected, rel=1e-6)
    assert float(cc_loss(maps[:1], tokens[:1])) == pytest.approx(0.0, abs=1e-12)


def test_config_hands_its_numbers_on() -> None:
    student, teacher = drawn(4, 3, seed=13), drawn(4, 5, seed=14)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4))
    told = CC(gamma=0.2, order=3)(Outputs(student, (student,)), Outputs(teacher, (teacher,)), batch, None)
    assert float(told) == float(cc_loss(student, teacher, gamma=0.2, order=3))
    assert CC().wanted_layers() == "embedding"
