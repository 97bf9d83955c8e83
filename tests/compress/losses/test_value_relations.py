"""Relations between values, queries and keys of transformers of different widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgewise.compress.layers import resolve, sizes, trace
from edgewise.compress.losses.base import Batch, Outputs, Pair, Sizes
from edgewise.compress.losses.value_relations import ValueRelations, value_relations_loss
from edgewise.compress.taps import tapped
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import ViT

LENGTHS = (3, 5, 1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padding(length: int) -> Tensor:
    return (torch.arange(length) < torch.tensor(LENGTHS)[:, None]).float()


def slow(student: Tensor, teacher: Tensor, heads: int, lengths: tuple[int, ...]) -> float:
    """In float64, one sample and head at a time, on real tokens alone."""

    def relation(values: np.ndarray) -> np.ndarray:
        powers = np.exp(values @ values.T / np.sqrt(values.shape[1]))
        return powers / powers.sum(1, keepdims=True)

    rows = []
    for n, length in enumerate(lengths):
        parts = [np.split(side[n, :length].double().numpy(), heads, axis=1) for side in (student, teacher)]
        for ours, theirs in zip(*parts, strict=True):
            p, q = relation(theirs), relation(ours)
            rows.extend((p * np.log(p / q)).sum(1))
    return float(np.mean(rows))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_equals_the_definition(heads: int) -> None:
    student, teacher = drawn(3, 5, 8), drawn(3, 5, 12, seed=1)
    assert float(value_relations_loss(student, teacher, heads=heads)) == pytest.approx(
        slow(student, teacher, heads, (5, 5, 5)), rel=1e-5
    )
    assert float(value_relations_loss(student, teacher, heads=heads, mask=padding(5))) == pytest.approx(
        slow(student, teacher, heads, LENGTHS), rel=1e-5
    )


def test_longer_padding_of_any_content_changes_nothing() -> None:
    student, teacher = drawn(3, 5, 8), drawn(3, 5, 12, seed=1)
    expected = value_relations_loss(student, teacher, heads=2, mask=padding(5))
    longer = torch.cat([student, torch.full((3, 4, 8), torch.inf)], dim=1).requires_grad_()
    got = value_relations_loss(longer, torch.cat([teacher, torch.ones(3, 4, 12)], dim=1), heads=2, mask=padding(9))
    torch.testing.assert_close(got, expected)
    got.backward()
    assert longer.grad is not None
    assert longer.grad.isfinite().all()
    assert longer.grad[~padding(9).bool()].abs().sum() == 0


def test_gradient_minimum_and_invariance_to_rotation() -> None:
    student, teacher = drawn(2, 5, 8).requires_grad_(), drawn(2, 5, 8, seed=1).requires_grad_()
    loss = value_relations_loss(student, teacher, heads=2)
    loss.backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert value_relations_loss(teacher, teacher, heads=2).item() == pytest.approx(0.0, abs=1e-6)
    turn = torch.linalg.qr(drawn(4, 4, seed=2)).Q
    turned = (student.detach().unflatten(-1, (2, 4)) @ turn).flatten(-2)
    torch.testing.assert_close(value_relations_loss(turned, teacher, heads=2), loss.detach())
    for constant in (0.0, 1.0):
        flat = torch.full((1, 3, 4), constant, requires_grad=True)
        value_relations_loss(flat, torch.ones(1, 3, 4), heads=2).backward()
        assert flat.grad is not None
        assert flat.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_taken_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (3 * drawn(2, 5, 8)).to(dtype), (3 * drawn(2, 5, 8, seed=1)).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        half = value_relations_loss(student, teacher, heads=2)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, value_relations_loss(student.float(), teacher.float(), heads=2))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="relations need the same tokens"):
        value_relations_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4, 4), heads=2)
    with pytest.raises(ValueError, match="D a multiple of 3 heads"):
        value_relations_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 6), heads=3)
    with pytest.raises(ValueError, match="one loss for each relation"):
        ValueRelations(fused=False, relations=("query", "key"))
    with pytest.raises(ValueError, match="at most once"):
        ValueRelations(relations=("key", "key"))
    with pytest.raises(ModelError, match="tell no numbers of attention heads"):
        ValueRelations().learner(Sizes(((5, 24),), ((5, 48),), classes=2, samples=1))
    with pytest.raises(ModelError, match=r"the student's layer gives \(5, 24\) .* 5 relation heads"):
        ValueRelations(heads=5).learner(Sizes(((5, 24),), ((5, 60),), classes=2, samples=1))
    with pytest.raises(ModelError, match=r"the teacher's layer gives \(8, 4, 4\)"):
        ValueRelations(heads=2).learner(Sizes(((5, 24),), ((8, 4, 4),), classes=2, samples=1))


def test_real_fused_projections_of_two_vits() -> None:
    """The parts of the fused output are what the attention calls query, key and value; other heads don't matter."""
    torch.manual_seed(0)
    shape = (1, 8, 8)
    student = build(ViT(patch=4, dim=12, depth=1, heads=3), shape, 2).eval()
    teacher = build(ViT(patch=4, dim=16, depth=3, heads=2), shape, 2).eval()
    config = ValueRelations(
        layers=(Pair(student="blocks.0.attn.qkv", teacher="blocks.2.attn.qkv"),), relations=("query", "key", "value")
    )
    traces = trace(student, shape), trace(teacher, shape)
    pairs = resolve(config.layers, *traces)
    learner = config.learner(sizes(pairs, *traces, samples=2))
    assert learner.heads == 2
    assert not learner.state_dict()
    x = drawn(2, *shape)
    names = "blocks.0.attn.qkv", "blocks.2.attn.qkv"
    with tapped(student, names[:1]) as ours, tapped(teacher, (names[1], "blocks.2.attn.softmax:input")) as theirs:
        outputs = Outputs(student(x), (ours[names[0]],)), Outputs(teacher(x), (theirs[names[1]],))
    query, key = (theirs[names[1]][..., start : start + 16].unflatten(-1, (2, 8)).transpose(1, 2) for start in (0, 16))
    torch.testing.assert_close(query @ key.transpose(-1, -2) / 8**0.5, theirs["blocks.2.attn.softmax:input"])
    told = config(*outputs, Batch(x, torch.zeros(2, dtype=torch.long), torch.arange(2)), learner)
    each = [
        value_relations_loss(
            outputs[0].features[0][..., 12 * i : 12 * (i + 1)],
            outputs[1].features[0][..., 16 * i : 16 * (i + 1)],
            heads=2,
        )
        for i in range(3)
    ]
    torch.testing.assert_close(told, sum(each) / 3)
    told.backward()
    assert student.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_a_value_layer_alone() -> None:
    config = ValueRelations(fused=False, heads=2)
    learner = config.learner(Sizes(((5, 8),), ((5, 12),), classes=2, samples=3))
    student, teacher = drawn(3, 5, 8), drawn(3, 5, 12, seed=1)
    logits = torch.zeros(3, 2)
    batch = Batch(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), torch.arange(3), mask=padding(5))
    told = config(Outputs(logits, (student,)), Outputs(logits, (teacher,)), batch, learner)
    assert float(told) == pytest.approx(slow(student, teacher, 2, LENGTHS), rel=1e-5)
