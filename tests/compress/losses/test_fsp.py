"""Products of two layers' channels: definition, torchdistill's matrix, projections and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.losses.base import Batch, Outputs, Sizes
from edgewise.compress.losses.fsp import FSP, fsp_loss, fsp_matrix

BATCH = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long), torch.arange(2))


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_matrix(first: Tensor, second: Tensor) -> np.ndarray:  # type: ignore[type-arg]
    """The second map is the smaller one, by a whole factor."""
    one, other = first.double().numpy(), second.double().numpy()
    factor = one.shape[2] // other.shape[2]
    found = np.zeros((len(one), one.shape[1], other.shape[1]))
    for n, i, j in np.ndindex(*found.shape):
        for y, x in np.ndindex(*other.shape[2:]):
            patch = one[n, i, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            found[n, i, j] += patch.mean() * other[n, j, y, x]
    return found / (other.shape[2] * other.shape[3])


@pytest.mark.parametrize("size", [4, 8, 12])
def test_equals_the_definition(size: int) -> None:
    student = drawn(2, 3, size, size, seed=0), drawn(2, 5, 4, 4, seed=1)
    teacher = drawn(2, 3, 8, 8, seed=2), drawn(2, 5, 2, 2, seed=3)
    expected = np.square(slow_matrix(*student) - slow_matrix(*teacher)).mean()
    assert float(fsp_loss(student, teacher)) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(fsp_matrix(*student).numpy(), slow_matrix(*student), rtol=1e-4, atol=1e-6)
    swapped = fsp_matrix(student[1], student[0])
    torch.testing.assert_close(swapped, fsp_matrix(*student).transpose(1, 2))


def test_the_matrix_equals_torchdistills() -> None:
    # torchdistill 1.1.5, FSPLoss.compute_fsp_matrix
    matrix = fsp_matrix(drawn(2, 3, 4, 4, seed=4), drawn(2, 5, 4, 4, seed=5))
    first = [-0.0018145516, -0.4274452925, -0.0717438310, -0.0414495468, 0.0107661095, 0.3257007301]
    assert matrix.flatten()[:6].tolist() == pytest.approx(first, abs=1e-7)
    assert float(matrix.square().mean()) == pytest.approx(0.0548226572573185, rel=1e-5)


def test_blind_to_where_things_are() -> None:
    one, other = drawn(2, 3, 4, 4, seed=6), drawn(2, 5, 4, 4, seed=7)
    teacher = drawn(2, 3, 4, 4, seed=8), drawn(2, 5, 4, 4, seed=9)
    places = torch.randperm(16, generator=torch.Generator().manual_seed(10))
    moved = tuple(feature.flatten(2)[..., places].unflatten(2, (4, 4)) for feature in (one, other))
    assert float(fsp_loss((moved[0], moved[1]), teacher)) == pytest.approx(
        float(fsp_loss((one, other), teacher)), rel=1e-5
    )
    assert float(fsp_loss((moved[0], moved[1]), (one, other))) == pytest.approx(0.0, abs=1e-10)


def test_unequal_channels_and_vectors_are_refused() -> None:
    ours, theirs = (drawn(2, 3, 4, 4, seed=0),) * 2, (drawn(2, 4, 4, 4, seed=0),) * 2
    with pytest.raises(ValueError, match=r"same channels at both layers: student \(2, 3, 3\), teacher \(2, 4, 4\)"):
        fsp_loss(ours, theirs)
    with pytest.raises(ValueError, match="vectors have no positions"):
        fsp_matrix(torch.zeros(2, 3), torch.zeros(2, 3))
    maps = ((3, 4, 4), (5, 2, 2))
    with pytest.raises(ValueError, match="without projection needs equal channels"):
        FSP(project="never").learner(Sizes(maps, ((3, 4, 4), (6, 2, 2)), 10, 100))
    with pytest.raises(ValueError, match="needs two or more, got 1"):
        FSP().learner(Sizes(maps[:1], maps[:1], 10, 100))
    with pytest.raises(ValueError, match="not vectors"):
        FSP().learner(Sizes(((3, 4, 4), (5,)), maps, 10, 100))


def test_config_projects_only_what_differs_and_sums_the_steps() -> None:
    ours = (drawn(2, 3, 8, 8, seed=0), drawn(2, 5, 4, 4, seed=1), drawn(2, 16, 6, seed=2).requires_grad_())
    theirs = (drawn(2, 3, 8, 8, seed=3), drawn(2, 7, 8, 8, seed=4), drawn(2, 6, 4, 4, seed=5).requires_grad_())
    shapes = [tuple(tuple(f.shape[1:]) for f in features) for features in (ours, theirs)]
    learner = FSP().learner(Sizes(shapes[0], shapes[1], 10, 100))
    assert isinstance(learner, nn.ModuleList)
    assert [type(layer) for layer in learner] == [nn.Identity, nn.Conv2d, nn.Identity]
    told = FSP()(Outputs(ours[0], ours), Outputs(theirs[0], theirs), BATCH, learner)
    middle = learner[1](ours[1])
    expected = fsp_loss((ours[0], middle), (theirs[0], theirs[1])) + fsp_loss((middle, ours[2]), (theirs[1], theirs[2]))
    torch.testing.assert_close(told, expected)
    told.backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())
    assert ours[2].grad is not None
    assert theirs[2].grad is None


def test_autocast_keeps_the_products_in_float32() -> None:
    student = drawn(2, 3, 4, 4, seed=0), drawn(2, 5, 4, 4, seed=1)
    teacher = drawn(2, 3, 4, 4, seed=2), drawn(2, 5, 4, 4, seed=3)
    expected = fsp_loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(fsp_loss(student, teacher)) == float(expected)
    half = fsp_loss((student[0].half(), student[1].half()), (teacher[0].half(), teacher[1].half()))
    assert float(half) == pytest.approx(float(expected), rel=1e-2)
