from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgewise.compress.config import Quantize
from edgewise.compress.quantization.adaround import adaround, error, polish
from edgewise.compress.quantization.config import AdaRound
from edgewise.compress.quantization.insert import insert_quantizers
from edgewise.compress.quantization.moments import moments
from edgewise.compress.quantization.places import given, owners

SHAPE = (3, 10, 10)


def quadratic(seed: int, channels: int, width: int) -> tuple[torch.Tensor, ...]:
    """(weight, step, E[xx], E[xy]) of strongly correlated inputs, where rounding each weight alone is far from best."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4000, width, generator=generator) @ torch.randn(width, width, generator=generator) + 0.5
    weight = torch.randn(channels, width, generator=generator)
    step = weight.abs().amax(1, keepdim=True) / 3
    y = x @ weight.t()
    return weight, step, (x.t() @ x / len(x))[None], (x.t() @ y / len(x))[None]


def direct_error(weight: np.ndarray, rounded: np.ndarray, xx: np.ndarray) -> np.ndarray:
    """E|(Ŵ - W)x|² of each channel, in float64."""
    delta = (rounded - weight).astype(np.float64)
    return np.einsum("cd,de,ce->c", delta, xx.astype(np.float64), delta)


def every_choice(weight: np.ndarray, step: float) -> np.ndarray:
    """All ways to round one channel up or down."""
    ways = np.array(list(product((0, 1), repeat=len(weight))))
    return np.clip(np.floor(weight / step) + ways, -3, 3) * step


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_nearly_the_best_of_all_choices(seed):
    weight, step, xx, xy = quadratic(seed, 12, 8)
    found = adaround(weight, step, (-3, 3), (xx, xy), AdaRound()).numpy()
    wide, steps, products = weight.numpy(), step.numpy(), xx[0].numpy()
    ours = direct_error(wide, found, products)
    nearest = direct_error(wide, np.clip(np.rint(wide / steps), -3, 3) * steps, products)
    best = []
    for channel, size in enumerate(steps[:, 0]):
        choices = every_choice(wide[channel], size)
        best.append(direct_error(np.repeat(wide[channel][None], len(choices), 0), choices, products).min())
    assert (ours >= np.array(best) * (1 - 1e-4)).all()
    assert (ours <= nearest * (1 + 1e-4)).all()
    assert ours.mean() < 1.3 * np.mean(best) < 0.8 * nearest.mean()


def test_no_single_choice_is_left_to_turn_round():
    weight, step, xx, xy = quadratic(5, 5, 10)
    floor = (weight / step).floor()
    up = polish(floor, torch.zeros_like(floor), step, (-3, 3), (xx, xy)).numpy()
    wide, steps, products = weight.numpy(), step.numpy(), xx[0].numpy()

    def errors(choice: np.ndarray) -> np.ndarray:
        return direct_error(wide, np.clip(floor.numpy() + choice, -3, 3) * steps, products)

    assert set(np.unique(up)) == {0, 1}
    for place in range(10):
        turned = up.copy()
        turned[:, place] = 1 - turned[:, place]
        assert (errors(turned) >= errors(up) * (1 - 1e-3)).all()
    assert errors(up).sum() < 0.5 * errors(np.zeros_like(up)).sum()


def test_it_moves_by_one_step_and_stays_on_the_grid():
    weight, step, xx, xy = quadratic(1, 6, 20)
    found = adaround(weight, step, (-2, 2), (xx, xy), AdaRound(iterations=200))  # some weights lie outside
    codes = found / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-5)
    assert codes.abs().max() <= 2
    grid = (weight / step).clamp(-2, 2)
    assert float((codes - grid).abs().max()) < 1 + 1e-5


def test_the_same_twice_and_no_gradient_left_over():
    weight, step, xx, xy = quadratic(2, 4, 6)
    first, second = (adaround(weight, step, (-3, 3), (xx, xy), AdaRound(iterations=50)) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad


class Net(nn.Module):
    """Every kind of call that a window can be cut from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.grouped = nn.Conv2d(8, 12, (1, 3), groups=4, bias=False)
        self.linear = nn.Linear(12, 6)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.depthwise(x))
        x = torch.relu(self.grouped(x))
        return self.linear(x.mean((2, 3)))


LAYERS = ("conv1", "depthwise", "grouped", "linear")


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(3)
    return Net().eval()


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    generator = np.random.default_rng(0)
    coarse = np.kron(generator.standard_normal((96, 3, 2, 2)), np.ones((5, 5)))  # smooth, as images are
    return (coarse + 0.2 * generator.standard_normal((96, *SHAPE))).astype(np.float32)


def prepared(net: Net, samples: np.ndarray, **settings) -> nn.Module:
    return insert_quantizers(net, samples, Quantize(kind="quantize", ranges="min_max", weight_bits=4, **settings))


@pytest.mark.parametrize("name", LAYERS)
def test_the_error_from_moments_is_that_of_the_layers_outputs(net, samples, name):
    """Other weights in the float layer stand for rounded ones, so that the truth is a plain difference of outputs."""
    layer = getattr(net, name)
    found = moments(net, layer, net, layer, torch.from_numpy(samples).split(40))
    generator = torch.Generator().manual_seed(0)
    other = layer.weight.detach() + 0.1 * torch.randn(layer.weight.shape, generator=generator)
    inputs = []
    handle = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].double()))
    with torch.no_grad():
        net(torch.from_numpy(samples))
        handle.remove()
        if name == "linear":
            delta = F.linear(inputs[0], (other - layer.weight).double())
        else:
            settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
            delta = F.conv2d(inputs[0], (other - layer.weight).double(), None, *settings).movedim(1, -1)
    delta = delta.reshape(-1, len(other)).numpy()
    assert found.count == len(delta)
    for part, expected in ((found.plain(), np.square(delta).mean(0)), (found.centred(), delta.var(0))):
        xx, xy = part
        ours = error(other.flatten(1).double(), xx, xy) - error(layer.weight.detach().flatten(1).double(), xx, xy)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-3)


def layer_error(model: nn.Module, net: Net, samples: np.ndarray, name: str) -> float:
    """The mean square of what the quantized layer answers off the float one, summed over its channels."""
    outputs = []
    handles = [getattr(m, name).register_forward_hook(lambda module, a, out: outputs.append(out)) for m in (model, net)]
    with torch.no_grad():
        for m in (model, net):
            m(torch.from_numpy(samples))
    for handle in handles:
        handle.remove()
    delta = outputs[0] - outputs[1]
    delta = delta if delta.ndim == 2 else delta.movedim(1, -1).reshape(-1, delta.shape[1])
    return float(delta.square().mean(0).sum())


def test_layers_answer_nearer_to_the_float_ones_than_with_nearest_rounding(net, samples):
    nearest, learned = (prepared(net, samples, rounding=rounding) for rounding in ("nearest", "adaround"))
    # The two with 4 bits: nine weights leave little to choose, what has no bias has more to mend.
    for name, most in (("depthwise", 1.0), ("grouped", 0.9)):
        assert layer_error(learned, net, samples, name) < most * layer_error(nearest, net, samples, name), name
    with torch.no_grad():
        x = torch.from_numpy(samples)
        errors = [float((model(x) - net(x)).square().mean()) for model in (nearest, learned)]
    assert errors[1] < errors[0]


def test_nearest_rounding_gives_the_learned_choice_again(net, samples):
    model = prepared(net, samples, rounding="adaround")
    tensors = given(model, torch.from_numpy(samples[:1]))
    moved = 0
    for quantizer, name in owners(model, tensors).items():
        weight = model.get_parameter(name).detach()
        step = quantizer.scale.detach() / quantizer.level_high
        codes = weight / step
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
        torch.testing.assert_close(quantizer(weight).detach(), weight, rtol=1e-6, atol=1e-7)
        original = net.get_parameter(name).detach()
        assert float((codes - (original / step)).abs().max()) < 1 + 1e-3, name
        moved += int(((original / step).round() != codes.round()).sum())
    assert moved > 0


def test_mean_answers_are_those_of_the_float_net(net, samples):
    model = insert_quantizers(net, samples, Quantize(kind="quantize", ranges="min_max", weight_bits=4))
    with torch.no_grad():
        x = torch.from_numpy(samples)
        ours, theirs = model(x).mean(0), net(x).mean(0)
        uncorrected = insert_quantizers(net, samples, Quantize(kind="quantize", ranges="min_max", weight_bits=4))
        uncorrected.linear.bias.copy_(net.linear.bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert float((uncorrected(x).mean(0) - theirs).abs().max()) > 10 * float((ours - theirs).abs().max())


def test_layers_that_cannot_be_reconstructed_are_told():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

        def forward(self, x):
            return self.linear(torch.relu(self.conv(torch.relu(self.conv(x)))).mean((2, 3)))

    torch.manual_seed(0)
    told: list[str] = []
    images = np.random.default_rng(0).standard_normal((8, *SHAPE)).astype(np.float32)
    config = Quantize(kind="quantize", rounding="adaround", adaround=AdaRound(iterations=5))
    insert_quantizers(Shared().eval(), images, config, tell=told.append)
    assert told == ["rounded to the nearest all the same, as their calls can't be reconstructed: conv"]
