"""Logit standardization: the z-score itself, and as an option of every loss that goes through logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgewise.compress.losses.base import Batch, LogitLoss, Loss, Outputs, standardized
from edgewise.compress.losses.dist import DIST
from edgewise.compress.losses.dkd import DKD
from edgewise.compress.losses.kd import KD
from edgewise.compress.losses.logit_gram import LogitGram
from edgewise.compress.losses.logit_mse import LogitMSE
from edgewise.compress.losses.mlkd import MLKD
from edgewise.compress.losses.multi_label import MultiLabel
from edgewise.compress.losses.nkd import NKD
from edgewise.compress.losses.regression import BoundedRegression, Regression
from edgewise.compress.losses.ttm import TTM, WTTM

CONFIGS = [KD, LogitMSE, DKD, NKD, DIST, MLKD, TTM, WTTM, LogitGram]


def told(config: Loss, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    count = len(student)
    batch = Batch(torch.zeros(count, 1, 2, 2), torch.arange(count) % student.shape[1], torch.arange(count))
    return config(Outputs(student), Outputs(teacher), batch, None)


def test_rows_are_z_scores_with_the_unbiased_deviation() -> None:
    logits = np.random.default_rng(0).normal(3.0, 5.0, (4, 7))
    expected = [
        [(value - row.mean()) / math.sqrt(((row - row.mean()) ** 2).sum() / 6) for value in row] for row in logits
    ]
    torch.testing.assert_close(standardized(torch.tensor(logits)), torch.tensor(np.array(expected)))


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.7272853), (4.0, 0.8482069)])
def test_kd_equals_torchdistill(temperature: float, expected: float) -> None:
    # torchdistill 1.1.5, LogitStdKDLoss(alpha=0), times T^2, which it leaves out where there is no hard term.
    n = torch.arange(60.0)
    student, teacher = (3 * torch.sin(1.7 * n)).reshape(6, 10), (4 * torch.cos(0.9 * n)).reshape(6, 10)
    loss = told(KD(temperature=temperature, standardize=True), student, teacher)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_blind_to_each_rows_scale_and_shift(config: type[LogitLoss]) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 8) * 2, torch.randn(6, 8) * 3
    scale, shift = torch.rand(6, 1) * 4 + 0.5, torch.randn(6, 1) * 5
    loss = told(config(standardize=True), student, teacher)
    moved = told(config(standardize=True), scale * student + shift, teacher / scale - shift)
    assert float(moved) == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("config", CONFIGS)
def test_two_classes_are_refused_with_the_way_out(config: type[LogitLoss]) -> None:
    way = "use kd or logit_mse" if config.least_classes > 2 else "leave standardize out"
    with pytest.raises(ValueError, match=f"standardize needs at least 3 classes, got 2; {way}"):
        told(config(standardize=True), torch.randn(4, 2), torch.randn(4, 2))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_classifier_that_starts_at_zero_gets_a_bounded_gradient(config: type[LogitLoss]) -> None:
    torch.manual_seed(1)
    student = torch.full((8, 10), 0.1, requires_grad=True)
    told(config(standardize=True), student, torch.randn(8, 10) * 4).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert float(student.grad.abs().max()) < 1e5


@pytest.mark.parametrize("config", [MultiLabel, Regression, BoundedRegression])
def test_what_is_no_softmax_has_no_such_option(config: type[Loss]) -> None:
    with pytest.raises(ValidationError, match="standardize"):
        config.model_validate({"standardize": True})
