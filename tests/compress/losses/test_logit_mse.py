"""Logit matching against a slow restatement."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.losses.logit_mse import LogitMSE, logit_mse_loss


@pytest.mark.parametrize("shape", [(1, 2), (5, 10)])
@pytest.mark.parametrize("centre", [False, True])
def test_equals_the_definition(shape: tuple[int, int], centre: bool) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=shape) * 3, random.normal(size=shape) * 3
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        less, lesser = (ours.mean(), theirs.mean()) if centre else (0.0, 0.0)
        total += sum(((a - less) - (b - lesser)) ** 2 for a, b in zip(ours, theirs, strict=True))
    loss = logit_mse_loss(torch.tensor(student), torch.tensor(teacher), centre=centre)
    assert float(loss) == pytest.approx(total / student.size, rel=1e-5)
    assert loss.dtype == torch.float32


def test_only_the_centred_form_is_blind_to_a_shift() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6)
    assert float(logit_mse_loss(logits + 2.0, logits)) == pytest.approx(4.0, rel=1e-5)
    assert float(logit_mse_loss(logits + 2.0, logits, centre=True)) == pytest.approx(0.0, abs=1e-10)


def test_gradient_is_the_known_one_and_stays_out_of_the_teacher() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    logit_mse_loss(student, teacher).backward()
    torch.testing.assert_close(student.grad, (2 / 12 * (student - teacher)).detach())
    assert teacher.grad is None


def test_half_precision_does_not_overflow() -> None:
    loss = logit_mse_loss(torch.full((2, 3), 3e4).half(), torch.full((2, 3), -3e4).half())
    assert float(loss) == pytest.approx(3.6e9, rel=1e-2)


def test_config_hands_its_settings_on_and_refuses_one_output() -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), torch.arange(4))
    told = LogitMSE(centre=True)(Outputs(student), Outputs(teacher), batch, None)
    assert float(told) == float(logit_mse_loss(student, teacher, centre=True))
    with pytest.raises(ValueError, match="at least 2 classes, got 1; use the loss regression"):
        LogitMSE()(Outputs(student[:, :1]), Outputs(teacher[:, :1]), batch, None)


def test_a_class_can_not_be_masked_out_of_it() -> None:
    assert not LogitMSE().allows_masking()
