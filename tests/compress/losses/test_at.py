"""Attention transfer against a slow restatement, torchdistill's values and the invariances of its maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from edgewise.compress.losses.at import AT, at_loss
from edgewise.compress.losses.base import Batch, Outputs
from edgewise.errors import ModelError


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_maps(feature: Tensor) -> np.ndarray:
    rows = []
    for sample in feature.double().numpy():
        energy = np.zeros(sample.shape[1:])
        for channel in sample:
            energy += channel**2 / len(sample)
        rows.append((energy / np.linalg.norm(energy)).ravel())
    return np.stack(rows)


@pytest.mark.parametrize("samples", [1, 3])
def test_equals_the_definition(samples: int) -> None:
    student, teacher = drawn(0, samples, 8, 5, 4), drawn(1, samples, 16, 5, 4)
    gap = slow_maps(student) - slow_maps(teacher)
    assert float(at_loss(student, teacher)) == pytest.approx((gap**2).mean(), rel=1e-5)
    assert float(at_loss(student, teacher, mode="paper")) == pytest.approx(np.linalg.norm(gap, axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize(("mode", "expected"), [("code", 0.01754903979599476), ("paper", 0.6580619812011719)])
def test_equals_torchdistill(mode: str, expected: float) -> None:
    # ATLoss of torchdistill 1.1.5 on the same two draws.
    assert float(at_loss(drawn(0, 4, 6, 5, 5), drawn(1, 4, 6, 5, 5), mode=mode)) == pytest.approx(expected, rel=1e-5)


def test_the_paper_takes_the_root_of_what_the_code_divides_by_the_positions() -> None:
    student, teacher = drawn(2, 5, 4, 4, 4), drawn(3, 5, 4, 4, 4)
    alone = [float(at_loss(student[i : i + 1], teacher[i : i + 1])) for i in range(5)]
    expected = sum(math.sqrt(4 * 4 * value) for value in alone) / 5
    assert float(at_loss(student, teacher, mode="paper")) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_blind_to_channel_order_sign_and_scale(mode: str) -> None:
    feature = drawn(4, 2, 6, 4, 4)
    other = -3.0 * feature[:, torch.tensor([3, 1, 0, 5, 2, 4])]
    assert float(at_loss(other, feature, mode=mode)) == pytest.approx(0.0, abs=2e-6)


def test_the_larger_map_is_pooled_to_the_smaller() -> None:
    student, teacher = drawn(5, 2, 4, 4, 4), drawn(6, 2, 8, 8, 8)
    pooled = teacher.pow(2).mean(1, keepdim=True).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).sqrt()
    assert float(at_loss(student, teacher)) == pytest.approx(float(at_loss(student, pooled)), rel=1e-4)


def test_tokens_are_the_map_they_came_from_and_the_class_token_does_not_count() -> None:
    student, teacher = drawn(7, 2, 6, 4, 4), drawn(8, 2, 9, 4, 4)
    tokens = torch.cat([drawn(9, 2, 1, 9), teacher.flatten(2).transpose(1, 2)], dim=1)
    assert float(at_loss(student, tokens)) == pytest.approx(float(at_loss(student, teacher)), rel=1e-6)


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("case", ["dead", "equal"])
def test_gradient_is_finite_for_a_dead_map_and_for_an_equal_one(mode: str, case: str) -> None:
    teacher = drawn(10, 2, 4, 3, 3).requires_grad_()
    student = (torch.zeros(2, 4, 3, 3) if case == "dead" else teacher.detach().clone()).requires_grad_()
    at_loss(student, teacher, mode=mode).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert teacher.grad is None


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"maps \(N, C, H, W\)"):
        at_loss(torch.zeros(2, 8), torch.zeros(2, 8))
    with pytest.raises(ValueError, match="of one batch"):
        at_loss(torch.zeros(2, 8, 2, 2), torch.zeros(3, 8, 2, 2))
    with pytest.raises(ModelError, match="no square grid"):
        at_loss(torch.zeros(2, 7, 4), torch.zeros(2, 7, 4))
    with pytest.raises(ValidationError, match="mode"):
        AT(mode="both")


def test_config_sums_over_its_layers() -> None:
    ours, theirs = (tuple(drawn(seed + i, 2, 4, 4, 4) for i in (0, 1)) for seed in (11, 13))
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long), torch.arange(2))
    config = AT(layers=("layer1", "layer2"), mode="paper")
    told = config(Outputs(torch.zeros(2, 3), ours), Outputs(torch.zeros(2, 3), theirs), batch, None)
    expected = sum(float(at_loss(*pair, mode="paper")) for pair in zip(ours, theirs, strict=True))
    assert float(told) == pytest.approx(expected, rel=1e-6)
    assert config.wanted_layers() == ("layer1", "layer2")
