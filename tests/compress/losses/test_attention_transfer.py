"""Attention transfer against a slow restatement and the invariances of its maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.compress.losses.attention_transfer import AttentionTransfer, attention_transfer_loss
from edgewise.compress.losses.base import Batch, Outputs


def slow_map(feature: np.ndarray) -> np.ndarray:
    rows = []
    for sample in feature:
        energy = np.zeros(sample.shape[1:])
        for channel in sample:
            energy += channel**2 / len(sample)
        rows.append((energy / np.linalg.norm(energy)).ravel())
    return np.stack(rows)


def test_equals_the_definition() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 8, 5, 4).double(), torch.randn(3, 16, 5, 4).double()
    expected = ((slow_map(student.numpy()) - slow_map(teacher.numpy())) ** 2).mean()
    assert float(attention_transfer_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_blind_to_channel_order_sign_and_scale() -> None:
    feature = torch.randn(2, 6, 4, 4)
    other = -3.0 * feature[:, torch.randperm(6)]
    assert float(attention_transfer_loss(other, feature)) == pytest.approx(0.0, abs=1e-10)


def test_the_larger_map_is_pooled_to_the_smaller() -> None:
    student, teacher = torch.randn(2, 4, 4, 4), torch.randn(2, 8, 8, 8)
    pooled = teacher.pow(2).mean(1, keepdim=True).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).sqrt()
    expected = attention_transfer_loss(student, pooled)
    assert float(attention_transfer_loss(student, teacher)) == pytest.approx(float(expected), rel=1e-4)


def test_gradient_is_finite_for_a_dead_map() -> None:
    student = torch.zeros(2, 4, 3, 3, requires_grad=True)
    attention_transfer_loss(student, torch.randn(2, 4, 3, 3)).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"maps \(N, C, H, W\)"):
        attention_transfer_loss(torch.zeros(2, 8), torch.zeros(2, 8))


def test_config_sums_over_its_layers() -> None:
    maps = {name: (torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)) for name in ("layer1", "layer2")}
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long), torch.arange(2))
    config = AttentionTransfer(kind="attention_transfer", layers=("layer1", "layer2"))
    logits = torch.zeros(2, 3)
    student = Outputs(logits, {name: pair[0] for name, pair in maps.items()})
    teacher = Outputs(logits, {name: pair[1] for name, pair in maps.items()})
    expected = sum(float(attention_transfer_loss(*pair)) for pair in maps.values())
    assert float(config(student, teacher, batch)) == pytest.approx(expected, rel=1e-6)
    assert config.taps() == ("layer1", "layer2")
