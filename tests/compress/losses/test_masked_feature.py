"""Masked feature losses against a slow restatement; what the masks let through, and where they fall back."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from edgewise.compress.losses.base import Batch, Outputs, Sizes
from edgewise.compress.losses.masked_feature import (
    MaskedFeature,
    attention_masked_loss,
    foreground_mask,
    foreground_masked_loss,
)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_attention_loss(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    samples, channels, height, width = student.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    for ours, theirs in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        size = [sum(abs(theirs[c][i][j]) for c in range(channels)) / channels for i, j in places]
        powers = [math.exp(value / temperature) for value in size]
        for (i, j), power in zip(places, powers, strict=True):
            weight = height * width * power / sum(powers)
            gap = sum((ours[c][i][j] - theirs[c][i][j]) ** 2 for c in range(channels))
            total += weight * gap / (channels * height * width)
    return total / samples


@pytest.mark.parametrize("temperature", [0.1, 0.5, 5.0])
@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (1, 2, 3, 3)])
def test_attention_equals_the_definition(temperature: float, shape: tuple[int, ...]) -> None:
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    expected = slow_attention_loss(student, teacher, temperature)
    assert float(attention_masked_loss(student, teacher, temperature=temperature)) == pytest.approx(expected, rel=1e-5)


def test_attention_weighs_a_constant_gap_by_one_whatever_the_map() -> None:
    for size in (1, 3, 8):
        teacher = drawn(2, 2, 4, size, size)
        assert float(attention_masked_loss(teacher + 0.5, teacher)) == pytest.approx(0.25, rel=1e-5)


def test_attention_of_a_flat_teacher_is_the_mean_squared_error() -> None:
    student, teacher = drawn(3, 2, 4, 5, 5), torch.full((2, 4, 5, 5), -0.7)
    assert float(attention_masked_loss(student, teacher)) == pytest.approx(float((student - teacher).pow(2).mean()))


@pytest.mark.parametrize("soft", [False, True])
def test_foreground_equals_the_definition(soft: bool) -> None:
    student, teacher, mask = drawn(4, 3, 4, 5, 2), drawn(5, 3, 4, 5, 2), drawn(6, 3, 1, 5, 2).sigmoid()
    mask = mask if soft else (mask > 0.5).float()
    total, count = 0.0, 0.0
    for n in range(3):
        for i in range(5):
            for j in range(2):
                weight = float(mask[n, 0, i, j])
                count += weight
                total += weight * sum(float(student[n, c, i, j] - teacher[n, c, i, j]) ** 2 for c in range(4)) / 4
    assert float(foreground_masked_loss(student, teacher, mask)) == pytest.approx(total / max(count, 1.0), rel=1e-5)


def test_a_full_mask_is_the_mean_squared_error_and_an_empty_one_is_zero() -> None:
    student, teacher = drawn(7, 2, 4, 3, 3).requires_grad_(), drawn(8, 2, 4, 3, 3).requires_grad_()
    full = foreground_masked_loss(student, teacher, torch.ones(2, 1, 3, 3))
    assert full.item() == pytest.approx((student - teacher).pow(2).mean().item(), rel=1e-6)
    empty = foreground_masked_loss(student, teacher, torch.zeros(2, 1, 3, 3))
    assert empty.item() == 0.0
    (full + empty).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert teacher.grad is None


def test_what_lies_outside_the_mask_does_not_matter() -> None:
    student, teacher, mask = drawn(9, 2, 4, 3, 3), drawn(10, 2, 4, 3, 3), torch.zeros(2, 1, 3, 3)
    mask[:, :, 1, 1] = 1
    expected = float((student - teacher)[:, :, 1, 1].pow(2).mean())
    assert float(foreground_masked_loss(student, teacher, mask)) == pytest.approx(expected, rel=1e-5)


def test_the_foreground_is_where_the_teacher_is_active() -> None:
    teacher = torch.ones(1, 2, 4, 4)
    teacher[:, :, 1:3, 1:3] = -5.0
    expected = torch.zeros(1, 1, 4, 4)
    expected[:, :, 1:3, 1:3] = 1
    assert torch.equal(foreground_mask(teacher), expected)
    ranked = torch.arange(16.0).view(1, 1, 4, 4)
    assert foreground_mask(ranked, quantile=0.8).flatten().tolist() == [0.0] * 12 + [1.0] * 4


@pytest.mark.parametrize("quantile", [None, 0.9])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 7.3])
def test_a_constant_teacher_is_all_foreground(quantile: float | None, value: float) -> None:
    for size in (1, 3, 7):
        assert float(foreground_mask(torch.full((2, 3, size, size), value), quantile=quantile).mean()) == 1.0


def test_tokens_are_weighed_like_the_map_they_came_from() -> None:
    maps = drawn(11, 2, 3, 4, 4), drawn(12, 2, 3, 4, 4)
    tokens = tuple(feature.flatten(2).transpose(1, 2) for feature in maps)
    assert float(attention_masked_loss(*tokens)) == pytest.approx(float(attention_masked_loss(*maps)), rel=1e-6)
    told = foreground_masked_loss(*tokens, foreground_mask(tokens[1]))
    assert float(told) == pytest.approx(float(foreground_masked_loss(*maps, foreground_mask(maps[1]))), rel=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    vector, feature = torch.zeros(2, 8), torch.zeros(2, 3, 4, 4)
    for refused in (
        lambda: attention_masked_loss(vector, vector),
        lambda: foreground_masked_loss(vector, vector, torch.zeros(2, 1)),
        lambda: foreground_mask(vector),
    ):
        with pytest.raises(ValueError, match="use fitnet for vectors"):
            refused()
    with pytest.raises(ValueError, match=r"must be \(2, 1, 4, 4\), got \(2, 4, 4\)"):
        foreground_masked_loss(feature, feature, torch.zeros(2, 4, 4))
    with pytest.raises(ValidationError, match="quantile belongs to"):
        MaskedFeature(quantile=0.5)
    with pytest.raises(ValidationError, match="temperature belongs to"):
        MaskedFeature(mode="foreground", temperature=2.0)


@pytest.mark.parametrize("config", [MaskedFeature(temperature=2.0), MaskedFeature(mode="foreground", quantile=0.7)])
def test_config_takes_the_mean_over_its_layers(config: MaskedFeature) -> None:
    ours, theirs = (drawn(13, 2, 3, 8, 8), drawn(14, 2, 5, 4)), (drawn(15, 2, 3, 4, 4), drawn(16, 2, 5, 4))
    learner = config.learner(Sizes(((3, 8, 8), (5, 4)), ((3, 4, 4), (5, 4)), classes=3, samples=2))
    batch = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long), torch.arange(2))
    told = config(Outputs(torch.zeros(2, 3), ours), Outputs(torch.zeros(2, 3), theirs), batch, learner)
    pairs = ((torch.nn.functional.avg_pool2d(ours[0], 2), theirs[0]), (ours[1], theirs[1]))
    if config.mode == "attention":
        terms = [attention_masked_loss(*pair, temperature=2.0) for pair in pairs]
    else:
        terms = [foreground_masked_loss(*pair, foreground_mask(pair[1], quantile=0.7)) for pair in pairs]
    assert float(told) == pytest.approx(float(sum(terms)) / 2, rel=1e-5)
    assert type(config).model_validate(config.model_dump()) == config
