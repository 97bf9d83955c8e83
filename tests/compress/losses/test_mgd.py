"""Masked generative distillation: the loss, what the mask wipes out, its randomness, and its generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.losses.base import Batch, Outputs, Sizes
from edgewise.compress.losses.mgd import MGD, mgd_loss, random_mask

BATCH = Batch(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long), torch.arange(2))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_convolved(feature: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    padded = np.pad(feature, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = feature.shape[2:]
    out = np.zeros((len(feature), len(weight), height, width)) + bias[:, None, None]
    for i in range(3):
        for j in range(3):
            out += np.einsum("oc,nchw->nohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
    return out


def test_equals_the_definition() -> None:
    torch.manual_seed(0)
    generate = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    student, teacher = drawn(0, 2, 3, 4, 5), drawn(1, 2, 3, 4, 5)
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 1]])[:, :, None, None]
    hidden = np.maximum(slow_convolved((student * mask).double().numpy(), generate[0]), 0)
    expected = ((slow_convolved(hidden, generate[2]) - teacher.double().numpy()) ** 2).mean()
    assert mgd_loss(student, teacher, mask, generate).item() == pytest.approx(expected, rel=1e-5)


def test_the_published_weight_is_the_default_one_over_the_size() -> None:
    # Published: the sum of squares over N, times 7e-5, on maps of 512 x 7 x 7.
    student, teacher = drawn(2, 2, 512, 7, 7), drawn(3, 2, 512, 7, 7)
    published = 7e-5 * (student - teacher).pow(2).sum() / 2
    ours = mgd_loss(student, teacher, torch.ones(2, 512, 1, 1), lambda feature: feature)
    assert MGD().weight * float(ours) == pytest.approx(float(published), rel=5e-3)


def test_what_is_wiped_out_gives_the_student_no_gradient() -> None:
    student, teacher = drawn(4, 2, 3, 4, 4).requires_grad_(), drawn(5, 2, 3, 4, 4).requires_grad_()
    mask = torch.ones(2, 3, 1, 1)
    mask[:, 1] = 0
    mgd_loss(student, teacher, mask, nn.Conv2d(3, 3, 3, padding=1)).backward()
    assert student.grad is not None
    assert float(student.grad[:, 1].abs().max()) == 0.0
    assert float(student.grad[:, 0].abs().min()) > 0.0
    assert teacher.grad is None
    assert mgd_loss(student, student, torch.ones(2, 3, 1, 1), nn.Identity()).item() == 0.0


@pytest.mark.parametrize(("over", "shape"), [("channels", (40, 50, 1, 1)), ("positions", (40, 1, 8, 8))])
def test_the_mask_is_of_ones_and_zeros_in_the_asked_part(over: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mask = random_mask(torch.zeros(40, 50, 8, 8), over=over, ratio=0.15)
    assert tuple(mask.shape) == shape
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    # 2000 draws or more: three standard deviations are 0.024.
    assert float(mask.mean()) == pytest.approx(0.85, abs=0.024)
    assert float(random_mask(torch.zeros(40, 50, 8, 8), over=over, ratio=0.0).min()) == 1.0


def test_the_mask_is_torchs_own_randomness() -> None:
    config = MGD(mask="positions", ratio=0.5)
    learner = config.learner(Sizes(((3, 8, 8),), ((3, 8, 8),), classes=3, samples=2))
    student, teacher = (Outputs(torch.zeros(2, 3), (drawn(seed, 2, 3, 8, 8),)) for seed in (6, 7))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = (config(student, teacher, BATCH, learner).item() for _ in range(2))
    torch.set_rng_state(state)
    assert config(student, teacher, BATCH, learner).item() == first
    assert first != second


def test_learner_aligns_and_generates_and_all_of_it_learns() -> None:
    config = MGD()
    # A CNN's 4x8x8 from a ViT's 16 patches and a class token; and a ViT's tokens from tokens.
    sizes = Sizes(((4, 8, 8), (17, 4)), ((17, 6), (17, 6)), classes=3, samples=2)
    learner = config.learner(sizes)
    ours = drawn(8, 2, 4, 8, 8).requires_grad_(), drawn(9, 2, 17, 4).requires_grad_()
    theirs = drawn(10, 2, 17, 6), drawn(11, 2, 17, 6)
    torch.manual_seed(0)
    config(Outputs(torch.zeros(2, 3), ours), Outputs(torch.zeros(2, 3), theirs), BATCH, learner).backward()
    assert len(list(learner.parameters())) == 2 + 2 * 4
    assert all(parameter.grad is not None for parameter in learner.parameters())
    assert all(feature.grad is not None for feature in ours)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="use fitnet"):
        mgd_loss(torch.zeros(2, 8), torch.zeros(2, 8), torch.zeros(2, 8), nn.Identity())
    with pytest.raises(ValueError, match="use fitnet"):
        MGD(layers="embedding").learner(Sizes(((8,),), ((8,),), classes=3, samples=2))


def test_a_generator_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        mgd_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 1, 1), nn.Conv2d(3, 3, 3))
