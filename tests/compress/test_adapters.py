"""Features of different nets brought into one shape: maps, tokens, vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from edgewise.compress.adapters import Align, grid, map_shape, to_map
from edgewise.errors import ModelError

MAP, SMALL, WIDE = (8, 6, 6), (8, 3, 3), (12, 3, 3)
TOKENS, WITH_CLASS, NARROW = (9, 8), (10, 8), (9, 5)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", range(1, 20))
def test_every_square_is_a_grid_with_and_without_a_class_token(side: int) -> None:
    assert grid(side * side) == (side, 0)
    # Next to a square, only 1 + 0 would be one too.
    assert grid(side * side + 1) == (side, 1)


@pytest.mark.parametrize("tokens", [3, 6, 7, 8, 11, 15, 18, 198])
def test_what_is_no_square_is_refused(tokens: int) -> None:
    with pytest.raises(ModelError, match=f"{tokens} tokens are no square grid"):
        grid(tokens)


def test_tokens_of_a_map_become_that_map() -> None:
    feature = drawn(0, 2, 5, 4, 4)
    patches = feature.flatten(2).transpose(1, 2)
    assert torch.equal(to_map(patches), feature)
    assert torch.equal(to_map(torch.cat([drawn(1, 2, 1, 5), patches], dim=1)), feature)
    assert to_map(feature) is feature


@pytest.mark.parametrize("shape", [MAP, TOKENS, WITH_CLASS, (17, 3)])
def test_the_shape_is_told_before_there_is_a_feature(shape: tuple[int, ...]) -> None:
    assert tuple(to_map(torch.zeros(2, *shape)).shape[1:]) == map_shape(shape)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (MAP, MAP, MAP),
        (MAP, WIDE, WIDE),  # CNN -> CNN, the student's map larger
        (SMALL, (12, 6, 6), WIDE),  # and smaller
        ((8, 6, 3), (8, 3, 6), (8, 3, 3)),
        (MAP, WITH_CLASS, SMALL),  # CNN from ViT
        (WITH_CLASS, (12, 6, 6), WIDE),  # ViT from CNN
        (TOKENS, WITH_CLASS, SMALL),  # ViT with another number of tokens
        (NARROW, TOKENS, TOKENS),
        ((11, 5), (11, 8), (11, 8)),  # no grid, but as many
        ((16,), (64,), (64,)),
    ],
)
def test_both_come_out_in_one_shape(
    student: tuple[int, ...], teacher: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    for samples in (1, 3):
        ours, theirs = Align(student, teacher)(torch.randn(samples, *student), torch.randn(samples, *teacher))
        assert tuple(ours.shape) == tuple(theirs.shape) == (samples, *expected)


@pytest.mark.parametrize("shape", [MAP, TOKENS, (16,)])
def test_what_fits_is_left_as_it_is(shape: tuple[int, ...]) -> None:
    align = Align(shape, shape)
    ours, theirs = drawn(2, 2, *shape), drawn(3, 2, *shape)
    given = align(ours, theirs)
    assert not list(align.parameters())
    assert torch.equal(given[0], ours)
    assert torch.equal(given[1], theirs)
    assert len(list(Align(shape, shape, always=True).parameters())) == 1


def test_pooling_alone_learns_nothing_and_averages() -> None:
    align = Align(MAP, SMALL)
    ours = drawn(4, 2, *MAP)
    assert not list(align.parameters())
    torch.testing.assert_close(align(ours, drawn(5, 2, *SMALL))[0], ours.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)))


def test_only_the_student_is_projected_and_only_it_gets_a_gradient() -> None:
    torch.manual_seed(0)
    align = Align(MAP, (12, 4, 4))
    ours, theirs = drawn(6, 2, *MAP).requires_grad_(), drawn(7, 2, 12, 4, 4).requires_grad_()
    student, teacher = align(ours, theirs)
    assert torch.equal(teacher, theirs)
    assert isinstance(align.project, nn.Conv2d)
    mix = align.project.weight.detach()[:, :, 0, 0]
    torch.testing.assert_close(student, torch.einsum("dc,nchw->ndhw", mix, adaptive_avg_pool2d(ours, 4)))
    (student * teacher).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is None
    assert [tuple(parameter.shape) for parameter in align.parameters() if parameter.grad is not None] == [(12, 8, 1, 1)]


def test_projection_of_tokens_and_vectors_is_linear_without_bias() -> None:
    for student, teacher in [(NARROW, TOKENS), ((5,), (8,))]:
        align = Align(student, teacher)
        ours = drawn(8, 2, *student)
        assert isinstance(align.project, nn.Linear)
        torch.testing.assert_close(align(ours, drawn(9, 2, *teacher))[0], ours @ align.project.weight.T)


@pytest.mark.parametrize(("student", "teacher"), [((8,), MAP), (MAP, (8,)), (TOKENS, (8,))])
def test_a_vector_has_no_positions_to_compare(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="vector can't be held against a map") as error:
        Align(student, teacher)
    assert error.value.hint


def test_tokens_that_are_no_grid_are_refused_where_a_map_is_needed() -> None:
    with pytest.raises(ModelError, match="no square grid"):
        Align((11, 8), MAP)
