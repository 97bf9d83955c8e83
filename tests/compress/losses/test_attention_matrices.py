"""Attention transfer between transformers: scores and probabilities, masks, heads."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from edgewise.compress.layers import resolve, trace
from edgewise.compress.losses.attention_matrices import AttentionMatrices, Mode, attention_matrices_loss
from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.taps import tapped
from edgewise.models.build import build
from edgewise.models.config import ViT

MODES: tuple[Mode, ...] = get_args(Mode)
LENGTHS = (3, 5, 1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padding(length: int) -> Tensor:
    return (torch.arange(length) < torch.tensor(LENGTHS)[:, None]).long()


def given(mode: Mode, length: int = 5, heads: int = 2, seed: int = 0) -> Tensor:
    """Scores of a net that masks padded columns as nets do, or what its softmax makes of them."""
    scores = 2 * drawn(3, heads, 5, 5, seed=seed)
    scores = torch.nn.functional.pad(scores, (0, length - 5, 0, length - 5), value=7.0 + seed)
    scores = scores - 1e4 * (1 - padding(length)[:, None, None, :])
    return scores if mode.startswith("scores") else scores.softmax(-1)


def slow(mode: Mode, student: Tensor, teacher: Tensor) -> float:
    """Sample by sample, on the real corner of each matrix."""
    total, count = 0.0, 0
    for n, length in enumerate(LENGTHS):
        for head in range(student.shape[1]):
            ours = student[n, head, :length, :length].double().tolist()
            theirs = teacher[n, head, :length, :length].double().tolist()
            for p_row, q_row in zip(theirs, ours, strict=True):
                if mode.endswith("mse"):
                    total += sum((p - q) ** 2 for p, q in zip(p_row, q_row, strict=True))
                    count += length
                    continue
                if mode == "scores_kl":
                    p_row, q_row = ([math.exp(value) for value in row] for row in (p_row, q_row))
                p_row, q_row = ([value / sum(row) for value in row] for row in (p_row, q_row))
                total += sum(p * math.log(p / q) for p, q in zip(p_row, q_row, strict=True))
                count += 1
    return total / count


@pytest.mark.parametrize("mode", MODES)
def test_equals_the_definition_and_does_not_feel_longer_padding(mode: Mode) -> None:
    student, teacher = given(mode), given(mode, seed=1)
    expected = slow(mode, student, teacher)
    assert float(attention_matrices_loss(student, teacher, mode=mode, mask=padding(5))) == pytest.approx(
        expected, rel=1e-3 if mode == "probabilities_kl" else 1e-5
    )
    for length in (6, 9):
        longer = attention_matrices_loss(
            given(mode, length), given(mode, length, seed=1), mode=mode, mask=padding(length)
        )
        short = attention_matrices_loss(student, teacher, mode=mode, mask=padding(5))
        torch.testing.assert_close(longer, short, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_and_minimum(mode: Mode) -> None:
    student, teacher = given(mode).requires_grad_(), given(mode, seed=1).requires_grad_()
    attention_matrices_loss(student, teacher, mode=mode, mask=padding(5)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0
    rows = padding(5).bool()
    pairs = (rows[:, None, :, None] & rows[:, None, None, :]).expand(3, 2, 5, 5)
    assert student.grad[~pairs].abs().sum() == 0
    assert teacher.grad is None
    assert attention_matrices_loss(teacher, teacher, mode=mode).item() == pytest.approx(0.0, abs=1e-6)
    zeros = torch.zeros(1, 2, 1, 1, requires_grad=True)
    attention_matrices_loss(zeros, torch.zeros(1, 2, 1, 1), mode=mode).backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(mode: Mode, dtype: torch.dtype) -> None:
    student, teacher = given(mode).to(dtype), given(mode, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        half = attention_matrices_loss(student, teacher, mode=mode, mask=padding(5))
    assert half.dtype == torch.float32
    full = attention_matrices_loss(student.float(), teacher.float(), mode=mode, mask=padding(5))
    torch.testing.assert_close(half, full)


def test_a_shift_of_scores_is_seen_by_mse_and_not_by_kl() -> None:
    student, teacher = drawn(1, 2, 4, 4), drawn(1, 2, 4, 4, seed=1)
    shifted = student + drawn(1, 2, 4, 1, seed=2)
    for mode in ("scores_kl", "scores_mse"):
        same = torch.isclose(
            attention_matrices_loss(shifted, teacher, mode=mode), attention_matrices_loss(student, teacher, mode=mode)
        )
        assert bool(same) == (mode == "scores_kl")


def test_kl_of_scores_is_kl_of_their_softmax() -> None:
    student, teacher = drawn(2, 2, 4, 4), drawn(2, 2, 4, 4, seed=1)
    torch.testing.assert_close(
        attention_matrices_loss(student.softmax(-1), teacher.softmax(-1), mode="probabilities_kl"),
        attention_matrices_loss(student, teacher, mode="scores_kl"),
        rtol=1e-3,
        atol=0,
    )


def test_other_numbers_of_heads() -> None:
    student, teacher = drawn(2, 2, 4, 4), drawn(2, 6, 4, 4, seed=1)
    with pytest.raises(ValueError, match="2 heads and the teacher 6; use heads: mean"):
        attention_matrices_loss(student, teacher)
    means = attention_matrices_loss(student.mean(1, keepdim=True), teacher.mean(1, keepdim=True))
    torch.testing.assert_close(attention_matrices_loss(student, teacher, heads="mean"), means)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"got student \(2, 2, 4, 4\) and teacher \(2, 2, 5, 5\)"):
        attention_matrices_loss(torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 5, 5))
    with pytest.raises(ValueError, match="expected attention"):
        attention_matrices_loss(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"a mask of \(2, 4\)"):
        attention_matrices_loss(torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4), mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="negative: these are scores"):
        attention_matrices_loss(drawn(2, 2, 4, 4), drawn(2, 2, 4, 4), mode="probabilities_kl")


def test_real_attention_of_two_vits() -> None:
    torch.manual_seed(0)
    shape = (1, 8, 8)
    student = build(ViT(patch=4, dim=8, depth=2, heads=2), shape, 3).eval()
    teacher = build(ViT(patch=4, dim=16, depth=4, heads=2), shape, 3).eval()
    config = AttentionMatrices()
    pairs = resolve(config.layers, trace(student, shape), trace(teacher, shape))
    assert [pair.teacher for pair in pairs] == ["blocks.1.attn.softmax:input", "blocks.3.attn.softmax:input"]
    x = drawn(2, *shape)
    with (
        tapped(student, tuple(pair.student for pair in pairs)) as ours,
        tapped(teacher, tuple(pair.teacher for pair in pairs)) as theirs,
    ):
        outputs = Outputs(student(x), tuple(ours.values())), Outputs(teacher(x), tuple(theirs.values()))
    batch = Batch(x, torch.zeros(2, dtype=torch.long), torch.arange(2))
    told = config(*outputs, batch, None)
    each = [attention_matrices_loss(*pair) for pair in zip(outputs[0].features, outputs[1].features, strict=True)]
    torch.testing.assert_close(told, (each[0] + each[1]) / 2)
    told.backward()
    assert student.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
