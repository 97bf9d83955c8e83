"""Several teachers: their answers averaged where the loss looks at them, features from the first."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.config import Distill, Ensemble, Fit, Sgd, Source
from edgewise.compress.losses import AT, KD, FitNet
from edgewise.compress.signals import combined
from edgewise.compress.strategies.offline import KEPT, distill
from edgewise.errors import ModelError
from edgewise.models.config import CifarResNet

Net = Callable[..., nn.Module]
STILL = Fit(epochs=1, batch_size=48, optimizer=Sgd(lr=1e-30, momentum=0, weight_decay=0))


def together(mean: str = "probabilities", weights: tuple[float, ...] | None = None) -> Ensemble:
    other = Source(model=CifarResNet(), weights=Path("other.safetensors"))
    return Ensemble.model_validate({"teachers": (other,), "mean": mean, "weights": weights})


def told(run: Fit = STILL, **config: Any) -> Distill:
    return Distill(kind="distill", fit=run, **config)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shares", [(1 / 3, 1 / 3, 1 / 3), (0.7, 0.2, 0.1)])
def test_at_its_temperature_the_answer_is_the_mean(temperature: float, shares: tuple[float, ...]) -> None:
    answers = [5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    exact = [answer.double().numpy() for answer in answers]
    found = combined(answers, "probabilities", shares, temperature)
    expected = sum(share * softmax(logits / temperature) for share, logits in zip(shares, exact, strict=True))
    np.testing.assert_allclose(softmax(found.double().numpy() / temperature), expected, rtol=1e-5, atol=1e-7)
    logits = combined(answers, "logits", shares, temperature)
    expected = sum(share * answer for share, answer in zip(shares, exact, strict=True))
    np.testing.assert_allclose(logits.double().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_sure_and_extreme_answers_stay_finite() -> None:
    answers = [torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-1e4, 1e4, 0.0]])]
    found = combined(answers, "probabilities", (0.5, 0.5), 1.0)
    torch.testing.assert_close(found.softmax(1), torch.tensor([[0.5, 0.5, 0.0]]))


def test_each_loss_averages_at_its_own_temperature(split: Any, net: Net) -> None:
    student, teachers = net(0, norm=False), (net(1, norm=False), net(2, norm=False))
    losses = (KD(temperature=1.0), KD(temperature=6.0))
    config = told(losses=losses, ensemble=together(weights=(3.0, 1.0)))
    epoch = distill(student, teachers, split, config, seed=3)[0]
    with torch.no_grad():
        ours, *theirs = (one(torch.from_numpy(split.images)).double().numpy() for one in (student, *teachers))
    for name, temperature in (("kd", 1.0), ("kd-2", 6.0)):
        p = 0.75 * softmax(theirs[0] / temperature) + 0.25 * softmax(theirs[1] / temperature)
        value = temperature**2 * float((p * np.log(p / softmax(ours / temperature))).sum(axis=1).mean())
        assert epoch.unweighted[name] == pytest.approx(value, rel=1e-4)


def test_two_equal_teachers_are_one(split: Any, net: Net) -> None:
    teacher = net(1)
    run = Fit(epochs=2, batch_size=16, optimizer=Sgd(lr=0.05))
    one, two = net(0), net(0)
    distill(one, teacher, split, told(run), seed=3)
    distill(two, (teacher, copy.deepcopy(teacher)), split, told(run, ensemble=together()), seed=3)
    for (name, left), right in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6, msg=name)


def test_features_come_from_the_first(split: Any, net: Net, bits: Any) -> None:
    first, run = net(1, width=6), Fit(epochs=1, batch_size=16, optimizer=Sgd(lr=0.01))
    config = told(run, losses=(FitNet(layers=("2",), weight=1.0), AT(layers=("2",))))
    students = [net(0) for _ in range(3)]
    for student, teachers in zip(students, (first, (first, net(2)), (net(2), first)), strict=True):
        distill(student, teachers, split, config, seed=3)
    assert bits(students[0]) == bits(students[1])
    assert bits(students[0]) != bits(students[2])


class Constant(nn.Module):
    """The same answer to everything."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logits.expand(len(inputs), -1)


def test_whether_they_err_is_asked_of_all_together(split: Any, net: Net) -> None:
    """The first alone says class 0, the two together class 2."""
    teachers = (Constant(1.0, -3.0, 0.9), Constant(-9.0, -9.0, 9.0))
    config = told(losses=(KD(temperature=1.0),), ensemble=together(), teacher_wrong="drop")
    student = net(0, norm=False)
    epoch = distill(student, teachers, split, config, seed=3)[0]
    right = split.targets == 2
    assert epoch.unweighted[KEPT] == pytest.approx(right.mean())
    with torch.no_grad():
        ours = softmax(student(torch.from_numpy(split.images[right])).double().numpy())
    p = sum(0.5 * softmax(teacher.logits.double().numpy()[None]) for teacher in teachers)
    value = float((p * np.log(p / ours)).sum()) / 48  # dropped samples weigh nothing
    assert epoch.unweighted["kd"] == pytest.approx(value, rel=1e-4)


def test_weights_that_fit_no_teachers_are_refused(split: Any, net: Net) -> None:
    with pytest.raises(ModelError, match="2 weights for 3 teachers"):
        distill(net(0), (net(1), net(2), net(3)), split, told(ensemble=together(weights=(1.0, 2.0))), seed=3)
