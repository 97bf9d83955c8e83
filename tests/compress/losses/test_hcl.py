"""The pyramid against block means taken by hand, torchdistill's values, and its edge cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from edgewise.compress.losses.base import Batch, Outputs, Sizes
from edgewise.compress.losses.hcl import HCL, hcl_loss


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_pooled(feature: np.ndarray, bins: int) -> np.ndarray:
    height, width = feature.shape[2:]
    pooled = np.zeros((*feature.shape[:2], bins, bins))
    for i in range(bins):
        for j in range(bins):
            top, bottom = i * height // bins, -(-(i + 1) * height // bins)
            left, right = j * width // bins, -(-(j + 1) * width // bins)
            pooled[:, :, i, j] = feature[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return pooled


def slow_hcl(student: Tensor, teacher: Tensor, bins: tuple[int, ...]) -> float:
    ours, theirs = student.double().numpy(), teacher.double().numpy()
    terms, weights = [((ours - theirs) ** 2).mean()], [1.0]
    for size in bins:
        if size < min(ours.shape[2:]):
            terms.append(((slow_pooled(ours, size) - slow_pooled(theirs, size)) ** 2).mean())
            weights.append(weights[-1] / 2)
    return float(np.dot(terms, weights) / sum(weights))


@pytest.mark.parametrize("bins", [(4, 2, 1), (6, 3, 2, 1), (3,), ()])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 7, 9), (3, 1, 3, 5), (2, 4, 1, 1)])
def test_equals_the_definition(bins: tuple[int, ...], shape: tuple[int, ...]) -> None:
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    assert float(hcl_loss(student, teacher, bins=bins)) == pytest.approx(slow_hcl(student, teacher, bins), rel=1e-5)


@pytest.mark.parametrize(
    ("size", "bins", "expected"),
    [
        (8, (4, 2, 1), 1.2534857988357544),
        (8, (6, 3, 2, 1), 1.2224880456924438),
        (8, (1, 2, 3, 6), 1.1134648323059082),
        (3, (4, 2, 1), 1.8779250383377075),
    ],
)
def test_equals_torchdistill(size: int, bins: tuple[int, ...], expected: float) -> None:
    # HierarchicalContextLoss of torchdistill 1.1.5 on the same two draws.
    student, teacher = (drawn(seed, 2, 3, 8, 8)[..., :size, :size] for seed in (5, 6))
    assert float(hcl_loss(student, teacher, bins=bins)) == pytest.approx(expected, rel=1e-5)


def test_weights_sum_to_one() -> None:
    # A constant gap is the same at every size, so that any average of them is that gap.
    feature = drawn(2, 2, 3, 8, 8)
    for bins in [(), (4,), (4, 2, 1), (6, 3, 2, 1)]:
        assert float(hcl_loss(feature + 0.5, feature, bins=bins)) == pytest.approx(0.25, rel=1e-5)


def test_bins_as_large_as_the_map_are_left_out() -> None:
    student, teacher = drawn(3, 2, 3, 4, 4), drawn(4, 2, 3, 4, 4)
    assert float(hcl_loss(student, teacher, bins=(6, 4, 2))) == float(hcl_loss(student, teacher, bins=(2,)))


def test_tokens_are_the_map_they_came_from() -> None:
    student, teacher = drawn(5, 2, 3, 4, 4), drawn(6, 2, 3, 4, 4)
    ours, theirs = (torch.cat([drawn(7, 2, 1, 3), m.flatten(2).transpose(1, 2)], dim=1) for m in (student, teacher))
    assert float(hcl_loss(ours, theirs)) == pytest.approx(float(hcl_loss(student, teacher)), rel=1e-6)


def test_gradient_stays_out_of_the_teacher_and_the_minimum_is_zero() -> None:
    student, teacher = drawn(8, 2, 3, 8, 8).requires_grad_(), drawn(9, 2, 3, 8, 8).requires_grad_()
    hcl_loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    assert teacher.grad is None
    assert hcl_loss(teacher, teacher).item() == 0.0


def test_what_can_not_be_pooled_is_refused() -> None:
    with pytest.raises(ValueError, match="use fitnet for vectors"):
        hcl_loss(torch.zeros(2, 8), torch.zeros(2, 8))
    with pytest.raises(ValueError, match="differ in shape"):
        hcl_loss(torch.zeros(2, 8, 4, 4), torch.zeros(2, 4, 4, 4))


@pytest.mark.parametrize("bins", [(1, 2, 4), (4, 4, 1), (2, 0)])
def test_bins_out_of_order_are_refused(bins: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="bins"):
        HCL(bins=bins)


def test_config_takes_the_mean_over_its_layers_with_its_bins() -> None:
    ours, theirs = (drawn(10, 2, 3, 8, 8), drawn(11, 2, 3, 4, 4)), (drawn(12, 2, 3, 8, 8), drawn(13, 2, 3, 4, 4))
    config = HCL(bins=(3, 1))
    learner = config.learner(Sizes(((3, 8, 8), (3, 4, 4)), ((3, 8, 8), (3, 4, 4)), classes=3, samples=2))
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long), torch.arange(2))
    told = config(Outputs(torch.zeros(2, 3), ours), Outputs(torch.zeros(2, 3), theirs), batch, learner)
    expected = sum(slow_hcl(*pair, bins=(3, 1)) for pair in zip(ours, theirs, strict=True)) / 2
    assert float(told) == pytest.approx(expected, rel=1e-5)
