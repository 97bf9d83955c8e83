import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.compress.config import Quantize
from edgewise.compress.fold import fold_batchnorm
from edgewise.compress.quantization.equalize import equalize
from edgewise.compress.quantization.insert import insert_quantizers
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2

SHAPE = (3, 12, 12)


def uneven(model: nn.Module) -> nn.Module:
    """Channels of very different size, as depthwise nets have after folding."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                sizes = torch.exp(2 * torch.randn(module.weight.shape[0], generator=generator))
                module.weight.mul_(sizes.reshape(-1, *[1] * (module.weight.ndim - 1)) / sizes.mean())
    return model.eval()


def chain(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), activation, nn.Conv2d(8, 8, 3, padding=1, groups=8), activation),
        *(nn.Conv2d(8, 12, 1), activation, nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, groups=4), activation),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )


def answers(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(np.random.default_rng(1).standard_normal((8, *SHAPE)).astype(np.float32)))


def input_range(layer: nn.Module) -> np.ndarray:
    """The largest weight that reads each input channel, by loops."""
    weight, groups = layer.weight.detach().numpy(), getattr(layer, "groups", 1)
    found = np.zeros(weight.shape[1] * groups)
    for out in range(weight.shape[0]):
        group = out // (weight.shape[0] // groups)
        for place in range(weight.shape[1]):
            channel = group * weight.shape[1] + place
            found[channel] = max(found[channel], np.abs(weight[out, place]).max())
    return found


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.Identity()], ids=str)
def test_answers_stay_and_ranges_meet(activation):
    model = uneven(chain(activation))
    before = answers(model)
    done = equalize(model, SHAPE)
    assert done.pairs == (("0", "2"), ("2", "4"), ("4", "7"), ("7", "11"))
    assert not done.skipped
    torch.testing.assert_close(answers(model), before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    layers = dict(model.named_children())
    for first, second in done.pairs:
        ours = np.abs(layers[first].weight.detach().flatten(1).numpy()).max(1)
        np.testing.assert_allclose(ours, input_range(layers[second]), rtol=0.02)


def test_what_clips_is_skipped_and_told():
    model = uneven(chain(nn.ReLU6()))
    before = copy.deepcopy(model.state_dict())
    done = equalize(model, SHAPE)
    assert not done.pairs
    assert done.skipped[0] == "0: hardtanh lets no scale pass"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ModelError, match=r"no two layers can be evened out: .*hardtanh"):
        insert_quantizers(model, answers_input(), Quantize(kind="quantize", equalize=True))


def answers_input() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((8, *SHAPE)).astype(np.float32)


def test_a_residual_net_evens_out_inside_its_blocks_alone():
    torch.manual_seed(0)
    model = build(CifarResNet(depth=8, width=8), SHAPE, 5).eval()
    fold_batchnorm(model, SHAPE)
    before = answers(uneven(model))
    done = equalize(model, SHAPE)
    assert done.pairs == tuple((f"layer{n}.0.conv1", f"layer{n}.0.conv2") for n in (1, 2, 3))
    assert any(line.startswith("conv1: read by several") for line in done.skipped)
    torch.testing.assert_close(answers(model), before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))


def test_relu6_of_a_real_family_is_told_layer_by_layer():
    model = build(MobileNetV2(width_multiplier=0.1, stem="cifar"), SHAPE, 5).eval()
    fold_batchnorm(model, SHAPE)
    before = answers(model)
    done = equalize(model, SHAPE)
    assert sum("hardtanh" in line for line in done.skipped) > 10
    torch.testing.assert_close(answers(model), before, rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.shared = shared

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        y = self.conv2(x)
        return (y + (x if self.shared else 0)).relu() if self.shared else self.conv2(torch.relu(y))


@pytest.mark.parametrize("shared", [True, False])
def test_a_tensor_or_a_layer_used_twice_is_left_alone(shared):
    torch.manual_seed(0)
    model = uneven(Twice(shared))
    before = answers(model)
    done = equalize(model, SHAPE)
    assert not done.pairs
    assert done.skipped
    assert torch.equal(answers(model), before)


def test_a_dead_channel_stays_dead():
    model = uneven(chain(nn.ReLU()))
    with torch.no_grad():
        model[0].weight[3] = 0
        model[4].weight[:, 5] = 0
    before = answers(model)
    equalize(model, SHAPE)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    torch.testing.assert_close(answers(model), before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))


def test_linear_layers_over_tokens():
    torch.manual_seed(0)
    model = uneven(nn.Sequential(nn.Flatten(2), nn.Linear(144, 20), nn.ReLU(), nn.Linear(20, 7), nn.Flatten()))
    before = answers(model)
    assert equalize(model, SHAPE).pairs == (("1", "3"),)
    torch.testing.assert_close(answers(model), before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
