"""Fused features: the fusion step by step, which layers reach which, sizes, tokens, vectors, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgewise.compress.fusion import Fusion, FusionBlock
from edgewise.compress.losses.base import Batch, Outputs, Sizes
from edgewise.compress.losses.hcl import hcl_loss
from edgewise.compress.losses.reviewkd import ReviewKD, reviewkd_loss

STUDENT = ((4, 8, 8), (6, 4, 4), (5, 2, 2))
TEACHER = ((7, 8, 8), (9, 4, 4), (11, 2, 2))
BATCH = Batch(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.long), torch.arange(3))


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(shapes: tuple[tuple[int, ...], ...], seed: int, count: int = 3) -> tuple[Tensor, ...]:
    return tuple(drawn(count, *shape, seed=seed + place) for place, shape in enumerate(shapes))


def learner(student: tuple[tuple[int, ...], ...] = STUDENT, teacher: tuple[tuple[int, ...], ...] = TEACHER) -> Fusion:
    torch.manual_seed(0)
    made = ReviewKD().learner(Sizes(student, teacher, 10, 100))
    assert isinstance(made, Fusion)
    return made


def slow_block(block: FusionBlock, feature: Tensor, below: Tensor) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """In eval mode with fresh statistics, where BatchNorm only divides by sqrt(1 + eps)."""
    norm = np.sqrt(1 + 1e-5)
    weights = {name: value.detach().double().numpy() for name, value in block.named_parameters()}
    x = np.einsum("oi,nihw->nohw", weights["reduce.0.weight"][:, :, 0, 0], feature.double().numpy()) / norm
    rows = np.arange(x.shape[2]) * below.shape[2] // x.shape[2]
    y = below.double().numpy()[:, :, rows][:, :, :, rows]
    told = np.einsum("oi,nihw->nohw", weights["attend.0.weight"][:, :, 0, 0], np.concatenate([x, y], axis=1))
    gates = 1 / (1 + np.exp(-(told + weights["attend.0.bias"][None, :, None, None])))
    fused = x * gates[:, :1] + y * gates[:, 1:]
    padded = np.pad(fused, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(x), len(weights["expand.0.weight"]), *x.shape[2:]))
    for dy, dx in np.ndindex(3, 3):
        shifted = padded[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]
        out += np.einsum("oi,nihw->nohw", weights["expand.0.weight"][:, :, dy, dx], shifted)
    return fused, out / norm


def test_a_block_is_the_papers_fusion() -> None:
    torch.manual_seed(1)
    block = FusionBlock(4, 5, 7, from_below=True).eval()
    feature, below = drawn(2, 4, 8, 8, seed=0), drawn(2, 5, 4, 4, seed=1)
    for told, expected in zip(block(feature, below), slow_block(block, feature, below), strict=True):
        np.testing.assert_allclose(told.detach().numpy(), expected, rtol=1e-3, atol=1e-5)


def test_the_loss_is_the_sum_of_hcl_over_levels() -> None:
    ours, theirs = features(TEACHER, 0), features(TEACHER, 10)
    expected = sum(float(hcl_loss(a, b)) for a, b in zip(ours, theirs, strict=True))
    assert float(reviewkd_loss(ours, theirs)) == pytest.approx(expected, rel=1e-6)
    assert float(reviewkd_loss(ours, ours)) == 0.0
    plain = sum(float((a - b).square().mean()) for a, b in zip(ours, theirs, strict=True))
    assert float(reviewkd_loss(ours, theirs, bins=())) == pytest.approx(plain, rel=1e-6)
    with pytest.raises(ValueError, match="as many fused maps as the teacher has, got 0 and 0"):
        reviewkd_loss((), ())


def test_deep_features_reach_shallow_levels_and_not_the_other_way() -> None:
    fusion = learner().eval()
    ours, theirs = list(features(STUDENT, 0)), features(TEACHER, 10)
    before, _ = fusion(ours, theirs)
    ours[0] = ours[0] + 1
    shallow, _ = fusion(ours, theirs)
    assert [torch.equal(a, b) for a, b in zip(before, shallow, strict=True)] == [False, True, True]
    ours = list(features(STUDENT, 0))
    ours[2] = ours[2] + 1
    deep, _ = fusion(ours, theirs)
    assert [torch.equal(a, b) for a, b in zip(before, deep, strict=True)] == [False, False, False]


def test_gradient_reaches_the_student_and_the_blocks_but_not_the_teacher() -> None:
    fusion = learner()
    ours = tuple(feature.requires_grad_() for feature in features(STUDENT, 0))
    theirs = tuple(feature.requires_grad_() for feature in features(TEACHER, 10))
    ReviewKD()(Outputs(ours[0], ours), Outputs(theirs[0], theirs), BATCH, fusion).backward()
    assert all(feature.grad is not None and bool(feature.grad.abs().sum() > 0) for feature in ours)
    assert all(parameter.grad is not None for parameter in fusion.parameters())
    assert all(feature.grad is None for feature in theirs)


def test_sizes_tokens_and_vectors_are_brought_together() -> None:
    student, teacher = ((4, 8, 8), (17, 6), (5,)), ((7, 16, 16), (9, 2, 2), (11,))
    ours, theirs = learner(student, teacher)(features(student, 0), features(teacher, 10))
    assert [tuple(f.shape) for f in ours] == [(3, 7, 8, 8), (3, 9, 2, 2), (3, 11, 1, 1)]
    assert [f.shape for f in theirs] == [f.shape for f in ours]


def test_width_inside_is_bounded_and_bins_are_checked() -> None:
    assert learner().blocks[0].reduce[0].out_channels == 5
    narrow = ReviewKD(channels=2).learner(Sizes(STUDENT, TEACHER, 10, 100))
    assert narrow.get_submodule("blocks.0.reduce.0").out_channels == 2
    with pytest.raises(ValueError, match="finest first"):
        ReviewKD(bins=(1, 2, 4))


def test_one_sample_works_where_batchnorm_has_positions() -> None:
    ours, theirs = features(STUDENT, 0, count=1), features(TEACHER, 10, count=1)
    told = ReviewKD()(Outputs(ours[0], ours), Outputs(theirs[0], theirs), BATCH, learner())
    assert bool(told.detach().isfinite())
    vectors = learner(((4, 8, 8), (5,)), ((7, 8, 8), (11,)))
    with pytest.raises(ValueError, match="a batch of 1 has a single value"):
        vectors((drawn(1, 4, 8, 8, seed=0), drawn(1, 5, seed=1)), (drawn(1, 7, 8, 8, seed=2), drawn(1, 11, seed=3)))


def test_autocast_gives_a_finite_float32() -> None:
    ours, theirs = features(STUDENT, 0), features(TEACHER, 10)
    exact = float(ReviewKD()(Outputs(ours[0], ours), Outputs(theirs[0], theirs), BATCH, learner()).detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        told = ReviewKD()(Outputs(ours[0], ours), Outputs(theirs[0], theirs), BATCH, learner())
    assert told.dtype == torch.float32
    assert float(told.detach()) == pytest.approx(exact, rel=0.02)
