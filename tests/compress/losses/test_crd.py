"""Contrast with a memory: definition, torchdistill's values, how the memories move, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from edgewise.compress.contrast import Contrast
from edgewise.compress.losses.base import Batch, Outputs, Sizes
from edgewise.compress.losses.crd import CRD, crd_loss, crd_scores

SIZES = Sizes(((5,),), ((9,),), 10, 20)
SMALL = CRD(dim=6, negatives=7)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int) -> Tensor:
    return normalize(drawn(*shape, seed=seed), dim=1)


def batch(index: list[int], partners: Tensor | None = None) -> Batch:
    count = len(index)
    return Batch(torch.zeros(count, 1, 2, 2), torch.zeros(count, dtype=torch.long), torch.tensor(index), partners)


def learner(config: CRD = SMALL, sizes: Sizes = SIZES) -> nn.ModuleList:
    torch.manual_seed(0)
    made = config.learner(sizes)
    assert isinstance(made, nn.ModuleList)
    return made


def told(config: CRD, memory: nn.ModuleList, student: Tensor, teacher: Tensor, index: list[int]) -> Tensor:
    return config(Outputs(student, (student,)), Outputs(teacher, (teacher,)), batch(index), memory)


def slow_crd(
    sides: list[tuple[Tensor, Tensor]], positions: list[list[int]], temperature: float, z: tuple[float, float]
) -> float:
    total = 0.0
    for (embeddings, memory), scale in zip(sides, z, strict=True):
        noise = (len(positions[0]) - 1) / len(memory)
        for row, places in zip(embeddings.double().tolist(), positions, strict=True):
            for rank, place in enumerate(places):
                product = sum(a * b for a, b in zip(row, memory[place].double().tolist(), strict=True))
                x = math.exp(product / temperature) / scale
                h = x / (x + noise)
                total -= math.log(h if rank == 0 else 1 - h) / len(positions)
    return total


@pytest.mark.parametrize(("count", "negatives", "samples"), [(4, 7, 20), (1, 1, 2), (3, 30, 5)])
def test_equals_the_definition(count: int, negatives: int, samples: int) -> None:
    student, teacher = unit(count, 6, seed=0), unit(count, 6, seed=1)
    one, other = unit(samples, 6, seed=2), unit(samples, 6, seed=3)
    positions = torch.randint(0, samples, (count, 1 + negatives), generator=torch.Generator().manual_seed(4))
    expected = slow_crd([(student, other), (teacher, one)], positions.tolist(), 0.2, (50.0, 70.0))
    loss = crd_loss(student, teacher, one, other, positions, temperature=0.2, log_z=(math.log(50.0), math.log(70.0)))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_one_step_equals_torchdistills() -> None:
    # torchdistill 1.1.5, CRDLoss.contrast_memory and compute_contrast_loss, first batch, eps 1e-7
    contrast = Contrast(5, 9, 6, 20)
    contrast.student_memory, contrast.teacher_memory = unit(20, 6, seed=8), unit(20, 6, seed=9)
    student, teacher, index = unit(4, 6, seed=10), unit(4, 6, seed=11), torch.tensor([3, 0, 19, 7])
    negatives = torch.randint(0, 20, (4, 7), generator=torch.Generator().manual_seed(12))
    positions = torch.cat([index[:, None], negatives], dim=1)
    memories = contrast.student_memory, contrast.teacher_memory
    contrast.scale(crd_scores(student, teacher, *memories, positions, temperature=0.07))
    assert contrast.log_z.exp().tolist() == pytest.approx([13739.8642578125, 293741.1875], rel=1e-4)
    loss = crd_loss(student, teacher, *memories, positions, log_z=contrast.log_z)
    assert float(loss) == pytest.approx(23.018611907958984, rel=1e-4)
    contrast.remember(student, teacher, index, 0.5)
    assert contrast.student_memory[3, :3].tolist() == pytest.approx([-0.43009019, -0.31785810, -0.32264605], abs=1e-6)
    assert contrast.teacher_memory[19, :3].tolist() == pytest.approx([-0.07168267, 0.49695796, -0.44917727], abs=1e-6)


def test_the_right_memory_is_the_minimum() -> None:
    memory = unit(50, 6, seed=0)
    index = torch.arange(4)
    positions = Contrast(5, 9, 6, 50).draw(index, 16)
    right = crd_loss(memory[:4], memory[:4], memory, memory, positions, log_z=(math.log(50.0),) * 2)
    wrong = crd_loss(memory[4:8], memory[4:8], memory, memory, positions, log_z=(math.log(50.0),) * 2)
    assert float(right) < float(wrong)


def test_negatives_are_other_samples_and_the_seed_repeats_them() -> None:
    contrast = Contrast(5, 9, 6, 5)
    index = torch.tensor([0, 4, 2])
    torch.manual_seed(3)
    first = contrast.draw(index, 400)
    torch.manual_seed(3)
    assert torch.equal(first, contrast.draw(index, 400))
    assert torch.equal(first[:, 0], index)
    for own, others in zip(index.tolist(), first[:, 1:].tolist(), strict=True):
        assert set(others) == set(range(5)) - {own}


def test_gradient_reaches_student_and_embeddings_and_memories_move_only_where_seen() -> None:
    memory = learner()
    contrast = memory[0]
    assert isinstance(contrast, Contrast)
    before = contrast.student_memory.clone()
    student, teacher = drawn(4, 5, seed=5).requires_grad_(), drawn(4, 9, seed=6).requires_grad_()
    told(SMALL, memory, student, teacher, [3, 0, 19, 7]).backward()
    assert student.grad is not None
    assert bool(student.grad.abs().sum() > 0)
    assert teacher.grad is None
    assert all(parameter.grad is not None for parameter in memory.parameters())
    moved = (contrast.student_memory != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == [0, 3, 7, 19]
    torch.testing.assert_close(contrast.student_memory.norm(dim=1), torch.ones(20))
    fixed = contrast.log_z.clone()
    told(SMALL, memory, 3 * drawn(4, 5, seed=7), drawn(4, 9, seed=8), [1, 2, 3, 4])
    assert torch.equal(contrast.log_z, fixed)


def test_a_resumed_memory_goes_on_as_if_nothing_had_happened() -> None:
    first, second = learner(), learner()
    student, teacher = drawn(4, 5, seed=5), drawn(4, 9, seed=6)
    told(SMALL, first, student, teacher, [3, 0, 19, 7])
    second.load_state_dict(first.state_dict())
    answers = []
    for memory in (first, second):
        torch.manual_seed(9)
        answers.append(float(told(SMALL, memory, student, teacher, [3, 1, 2, 7]).detach()))
    assert answers[0] == answers[1]
    assert {name.split(".")[-1] for name, _ in first.named_buffers()} == {"student_memory", "teacher_memory", "log_z"}


def test_maps_tokens_one_sample_two_classes_and_autocast() -> None:
    memory = learner(SMALL, Sizes(((5, 4, 4),), ((7, 9),), 2, 20))
    student, teacher = drawn(1, 5, 4, 4, seed=5).requires_grad_(), drawn(1, 7, 9, seed=6)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = told(SMALL, memory, student, teacher, [3])
        loss.backward()
        assert loss.dtype == torch.float32
        assert bool(loss.detach().isfinite())
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    zero = torch.zeros(2, 5, 4, 4, requires_grad=True)
    told(SMALL, memory, zero, torch.zeros(2, 7, 9), [0, 1]).backward()
    assert zero.grad is not None
    assert bool(zero.grad.isfinite().all())


def test_what_cant_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1000 samples by 128 need 1024000 bytes, and max_bytes is 1000000"):
        CRD(max_bytes=10**6).learner(Sizes(((5,),), ((9,),), 10, 1000))
    with pytest.raises(ValueError, match="draws other samples, and there are 1"):
        SMALL.learner(Sizes(((5,),), ((9,),), 10, 1))
    student, teacher = drawn(2, 5, seed=0), drawn(2, 9, seed=1)
    with pytest.raises(ValueError, match="memories of 20 samples, and the batch has positions 3 to 20"):
        told(SMALL, learner(), student, teacher, [3, 20])
    mixed = batch([0, 1], partners=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="switch mixup and cutmix off"):
        SMALL(Outputs(student, (student,)), Outputs(teacher, (teacher,)), mixed, learner())
    with pytest.raises(ValueError, match="expected embeddings"):
        crd_loss(student, teacher, student, teacher, torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one negative"):
        crd_loss(student, student, student, student, torch.zeros(2, 1, dtype=torch.long))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="updates of others would be lost"):
        SMALL.learner(SIZES)
