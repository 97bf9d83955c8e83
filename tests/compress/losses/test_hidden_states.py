"""Losses between token states, against slow restatements; padding must not count."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgewise.compress.losses.base import Batch, Outputs, Sizes
from edgewise.compress.losses.hidden_cosine import HiddenCosine, hidden_cosine_loss
from edgewise.compress.losses.hidden_states import HiddenStates, hidden_states_loss

LOSSES = [hidden_states_loss, hidden_cosine_loss]
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(count: int, mask: Tensor | None = None) -> Batch:
    return Batch(torch.zeros(count, 1), torch.zeros(count, dtype=torch.long), torch.arange(count), mask=mask)


def slow_states(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    terms = [
        (float(a) - float(b)) ** 2
        for ours, theirs, here in zip(student, teacher, mask, strict=True)
        for h, g, real in zip(ours, theirs, here, strict=True)
        if real
        for a, b in zip(h, g, strict=True)
    ]
    return sum(terms) / len(terms)


def slow_cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> float:
    terms = []
    for n, row in enumerate(mask.tolist()):
        for place, real in enumerate(row):
            h, g = student[n, place].double().tolist(), teacher[n, place].double().tolist()
            if real:
                dot = sum(a * b for a, b in zip(h, g, strict=True))
                terms.append(1 - dot / (math.hypot(*h) * math.hypot(*g)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("loss", "slow"), [(hidden_states_loss, slow_states), (hidden_cosine_loss, slow_cosine)])
def test_equals_the_definition(loss: Callable[..., Tensor], slow: Callable[..., float]) -> None:
    student, teacher = drawn(3, 5, 4), drawn(3, 5, 4, seed=1)
    assert float(loss(student, teacher, mask=MASK)) == pytest.approx(slow(student, teacher, MASK), rel=1e-5)
    ones = torch.ones(3, 5)
    assert float(loss(student, teacher)) == pytest.approx(slow(student, teacher, ones), rel=1e-5)
    assert float(loss(student, teacher, mask=ones)) == float(loss(student, teacher))
    assert float(loss(student[:1, :1], teacher[:1, :1])) == pytest.approx(
        slow(student[:1, :1], teacher[:1, :1], ones[:1, :1]), rel=1e-5
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_longer_padding_of_any_content_changes_nothing(loss: Callable[..., Tensor]) -> None:
    student, teacher = drawn(3, 5, 4).requires_grad_(), drawn(3, 5, 4, seed=1)
    expected = loss(student, teacher, mask=MASK)
    (wanted,) = torch.autograd.grad(expected, student)
    wild = torch.full((3, 2, 4), torch.inf)
    longer = torch.cat([student.detach(), wild], dim=1).requires_grad_()
    got = loss(longer, torch.cat([teacher, -wild], dim=1), mask=torch.cat([MASK, torch.zeros(3, 2)], dim=1))
    (gradient,) = torch.autograd.grad(got, longer)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient[:, :5], wanted)
    assert gradient[:, 5:].abs().sum() == 0
    assert wanted[~MASK.bool()].abs().sum() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_reaches_the_student_alone_and_is_finite(loss: Callable[..., Tensor]) -> None:
    student, teacher = drawn(2, 3, 4).requires_grad_(), drawn(2, 3, 4, seed=1).requires_grad_()
    loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    zero = torch.zeros(2, 3, 4, requires_grad=True)
    loss(zero, torch.zeros(2, 3, 4)).backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()
    assert loss(student, teacher, mask=torch.zeros(2, 3)).item() == 0.0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    student, teacher = drawn(2, 3, 4).to(dtype), drawn(2, 3, 4, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        half = loss(student * 100, teacher * 100)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(loss(100 * student.float(), 100 * teacher.float())), rel=1e-2)


def test_minimum_and_invariances() -> None:
    tokens = drawn(2, 6, 4)
    order = [3, 0, 5, 1, 2, 4]
    for loss in LOSSES:
        assert float(loss(tokens, tokens)) == pytest.approx(0.0, abs=1e-6)
        other = drawn(2, 6, 4, seed=2)
        torch.testing.assert_close(loss(tokens[:, order], other[:, order]), loss(tokens, other))
    assert float(hidden_cosine_loss(-3 * tokens, tokens)) == pytest.approx(2.0)
    lengths = drawn(2, 6, 1).exp()
    other = drawn(2, 6, 4, seed=2)
    torch.testing.assert_close(hidden_cosine_loss(lengths * tokens, other), hidden_cosine_loss(tokens, other))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and teacher \(2, 3, 5\) differ"):
        hidden_states_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"expected a mask of \(2, 3\) \(samples, tokens\), got \(2, 4\)"):
        hidden_cosine_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), mask=torch.ones(2, 4))


@pytest.mark.parametrize("config", [HiddenStates(), HiddenCosine()])
def test_widths_that_differ_get_a_learnt_projection(config: HiddenStates | HiddenCosine) -> None:
    learner = config.learner(Sizes(((5, 4), (4,)), ((5, 6), (4,)), classes=2, samples=3))
    assert [tuple(p.shape) for p in learner.parameters()] == [(6, 4)]
    student = (drawn(3, 5, 4), drawn(3, 4))
    teacher = (drawn(3, 5, 6, seed=1), drawn(3, 4, seed=1))
    logits = torch.zeros(3, 2)
    told = config(Outputs(logits, student), Outputs(logits, teacher), batch_of(3, MASK), learner)
    told.backward()
    (weight,) = learner.parameters()
    assert weight.grad is not None
    pure = hidden_states_loss if isinstance(config, HiddenStates) else hidden_cosine_loss
    expected = (pure(student[0] @ weight.T, teacher[0], mask=MASK) + pure(student[1], teacher[1])) / 2
    torch.testing.assert_close(told, expected)


def test_padded_tokens_are_never_turned_into_maps() -> None:
    config = HiddenStates()
    learner = config.learner(Sizes(((4, 3),), ((9, 3),), classes=2, samples=1))
    ours, theirs = Outputs(torch.zeros(1, 2), (drawn(1, 4, 3),)), Outputs(torch.zeros(1, 2), (drawn(1, 9, 3),))
    assert float(config(ours, theirs, batch_of(1), learner)) > 0
    with pytest.raises(ValueError, match="padded tokens were turned into maps"):
        config(ours, theirs, batch_of(1, torch.ones(1, 4)), learner)
