import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from edgewise.compress.config import Fit, Quantize, Sgd
from edgewise.compress.losses.kd import KD
from edgewise.compress.quantization.config import AdaRound
from edgewise.compress.quantization.insert import insert_quantizers
from edgewise.compress.quantization.places import all_quantizers
from edgewise.compress.quantization.qad import quantize
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet
from edgewise.models.tasks.config import Digits
from edgewise.models.tasks.digits import load_digits

FIT = Fit(epochs=2, batch_size=64, optimizer=Sgd(lr=0.01, weight_decay=0))


@pytest.fixture(scope="module")
def task():
    return load_digits(Digits())


@pytest.fixture(scope="module")
def net(task) -> nn.Module:
    """Trained a little, so that there is something to lose."""
    torch.manual_seed(0)
    model = build(CifarResNet(depth=8, width=8), task.input_shape, 10)
    split = task.splits["train"]
    x, y = torch.from_numpy(split.read(np.arange(len(split.ids)))), torch.from_numpy(split.targets).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for start in range(0, 1280, 64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[start : start + 64]), y[start : start + 64]).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def calibration(task) -> np.ndarray:
    return task.splits["train"].read(np.arange(0, 640, 10))


def logits(model: nn.Module, task) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(task.splits["test"].read(np.arange(len(task.splits["test"].ids)))))


def divergence(model: nn.Module, net: nn.Module, task) -> float:
    p, q = (logits(m, task).double().log_softmax(1) for m in (net, model))
    return float((p.exp() * (p - q)).sum(1).mean())


def config(**settings) -> Quantize:
    return Quantize(kind="quantize", weight_bits=4, ranges="min_max", **settings)


@pytest.fixture(scope="module")
def ptq(net, task, calibration) -> nn.Module:
    model, history = quantize(net, task.splits["train"], config(), calibration=calibration, seed=0)
    assert history == []
    return model


def test_ptq_is_insertion_alone(ptq, net, task, calibration):
    assert torch.equal(logits(ptq, task), logits(insert_quantizers(net, calibration, config()), task))


def test_qad_comes_nearer_to_the_float_net_from_the_same_start(ptq, net, task, calibration):
    before = copy.deepcopy(net.state_dict())
    model, history = quantize(net, task.splits["train"], config(fit=FIT), calibration=calibration, seed=0)
    assert [set(epoch.terms) for epoch in history] == [{"kd"}] * 2
    assert divergence(model, net, task) < 0.7 * divergence(ptq, net, task)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not model.training


def test_qat_learns_the_labels_alone(net, task, calibration):
    settings = config(fit=FIT, losses=(), cross_entropy=1.0)
    model, history = quantize(net, task.splits["train"], settings, calibration=calibration, seed=0)
    assert [set(epoch.terms) for epoch in history] == [{"cross_entropy"}] * 2
    assert history[-1].loss < history[0].loss
    hits = logits(model, task).argmax(1).numpy() == task.splits["test"].targets
    assert hits.mean() > 0.8


def ranges(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for q in all_quantizers(model) for p in q.parameters() if p.is_floating_point()]


@pytest.mark.parametrize("train_ranges", [True, False])
def test_ranges_learn_or_stay(train_ranges, ptq, net, task, calibration):
    settings = config(fit=FIT, train_ranges=train_ranges)
    model, _ = quantize(net, task.splits["train"], settings, calibration=calibration, seed=0)
    moved = [not torch.allclose(a, b, rtol=1e-5, atol=0) for a, b in zip(ranges(ptq), ranges(model), strict=True)]
    assert any(moved) == train_ranges
    # Biases learn either way; weights beside them.
    assert not torch.equal(ptq.get_parameter("conv1.weight"), model.get_parameter("conv1.weight"))


def test_another_teacher_is_followed(net, task, calibration):
    class Says(nn.Module):
        """Sure of class 3 whatever it sees."""

        def forward(self, x):
            return torch.eye(10)[3].mul(9).expand(len(x), 10)

    settings = config(fit=FIT, teacher="recipe", losses=(KD(weight=1.0, temperature=1.0),))
    model, _ = quantize(net, task.splits["train"], settings, calibration=calibration, teacher=Says(), seed=0)
    assert (logits(model, task).argmax(1) == 3).float().mean() > 0.8


class Before(nn.Module):
    """A BatchNorm that follows no layer, so that it can't be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.linear = nn.BatchNorm2d(1), nn.Conv2d(1, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(self.norm(x))).mean((2, 3)))


def test_a_batchnorm_that_is_left_keeps_its_statistics(task, calibration):
    torch.manual_seed(0)
    model = Before().eval()
    with torch.no_grad():
        model.norm.running_mean.fill_(0.3)
        model.norm.running_var.fill_(2.0)
    quantized, history = quantize(
        model, task.splits["train"], Quantize(kind="quantize", fit=FIT), calibration=calibration, seed=0
    )
    assert float(quantized.norm.running_mean) == pytest.approx(0.3)
    assert float(quantized.norm.running_var) == 2.0
    assert history[0].loss < 0.1  # normalised as the teacher does; by its own batches it would start far away
    assert not quantized.norm._forward_pre_hooks


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"percentile": 99.0}, "percentile: it is not read with ranges"),
        ({"percentile": 40.0, "ranges": "percentile"}, "greater than 50"),
        ({"adaround": AdaRound()}, "adaround: it is not read with rounding: nearest"),
        ({"teacher": "recipe"}, "teacher: without fit nothing is trained"),
        ({"train_ranges": False}, "train_ranges: without fit nothing is trained"),
        ({"losses": ()}, "nothing to learn from"),
        ({"losses": (), "cross_entropy": 1.0}, "cross_entropy: without fit nothing is trained"),
        ({"losses": (KD(temperature=4.0),)}, "losses: without fit nothing is trained"),
        ({"label_only_epochs": 1.0}, "label_only_epochs: without fit nothing is trained"),
        ({"teacher_wrong": "drop"}, "teacher_wrong: without fit nothing is trained"),
        ({"weight_bits": 2}, "8 or 4"),
        ({"losses": (), "fit": FIT}, "there is nothing to learn from"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        Quantize(kind="quantize", **settings)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (
            np.zeros((0, 1, 8, 8), np.float32),
            r"samples \(N, C, H, W\), got float32 \(0, 1, 8, 8\)",
        ),
        (np.zeros(8, np.float32), r"got float32 \(8,\)"),
        (np.ones((4, 1, 8, 8), np.float64), "expected calibration samples of float32, got float64"),
        (np.full((4, 1, 8, 8), np.nan, np.float32), "NaN or infinity"),
        (np.full((4, 1, 8, 8), 0.5, np.float32), "every value of the 4 calibration samples is 0.5"),
        (np.eye(8, dtype=np.float32)[None, None].repeat(3, 1), r"can't take calibration samples of shape \(3, 8, 8\)"),
        (np.eye(8, dtype=np.float32), r"can't take calibration samples of shape \(8,\)"),
    ],
)
def test_samples_that_no_range_can_be_taken_from_are_told(samples, words, net):
    with pytest.raises(ModelError, match=words):
        insert_quantizers(net, samples)
