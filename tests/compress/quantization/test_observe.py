import numpy as np
import pytest
import torch
from torch import nn

from edgewise.compress.config import Quantize
from edgewise.compress.quantization.insert import insert_quantizers
from edgewise.compress.quantization.observe import batches, observe
from edgewise.compress.quantization.places import all_quantizers, given, owners
from edgewise.errors import ModelError

SHAPE = (3, 12, 12)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return self.linear(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    images = np.random.default_rng(0).standard_normal((80, *SHAPE)).astype(np.float32)
    images[70] *= 6  # one sample that reaches far
    return images


def activations(net: Net, samples: np.ndarray) -> list[np.ndarray]:
    """What each activation quantizer is given, in order: the input, after both ReLUs, the mean."""
    with torch.no_grad():
        x = torch.from_numpy(samples)
        first = torch.relu(net.conv1(x))
        second = torch.relu(net.conv2(first))
        return [t.numpy().astype(np.float64) for t in (x, first, second, second.mean((2, 3)))]


def activation_quantizers(model: nn.Module, samples: np.ndarray) -> list[nn.Module]:
    tensors = given(model, torch.from_numpy(samples[:1]))
    weights = owners(model, tensors)
    return [quantizer for quantizer in tensors if quantizer not in weights]


@pytest.mark.parametrize("method", ["mean_min_max", "min_max", "percentile"])
def test_ranges_are_those_of_the_float_activations(net, samples, method):
    config = Quantize(kind="quantize", ranges=method, percentile=99.5 if method == "percentile" else None)
    found = activation_quantizers(insert_quantizers(net, samples, config), samples)
    seen = activations(net, samples)
    # NNCF may quantize only one side of the mean.
    assert len(found) in (3, 4)
    for quantizer, values in zip(found[:3], seen, strict=False):
        magnitudes = np.abs(values)
        expected = {
            "mean_min_max": magnitudes.reshape(len(samples), -1).max(1).mean(),
            "min_max": magnitudes.max(),
            "percentile": np.percentile(magnitudes, 99.5, method="inverted_cdf"),
        }[method]
        assert float(quantizer.scale.detach()) == pytest.approx(expected, abs=magnitudes.max() / 2000)
        assert quantizer.signed == bool(values.min() < 0)


def test_a_value_below_zero_in_any_sample_makes_a_range_signed(net):
    images = np.abs(np.random.default_rng(1).standard_normal((40, *SHAPE))).astype(np.float32)
    config = Quantize(kind="quantize", ranges="min_max")
    assert not activation_quantizers(insert_quantizers(net, images, config), images)[0].signed
    images[33, 0, 0, 0] = -0.5  # NNCF itself is shown the first sample alone
    assert activation_quantizers(insert_quantizers(net, images, config), images)[0].signed


def test_observing_leaves_the_model_as_it_is(net, samples):
    model = insert_quantizers(net, samples[:8])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        answers = model(torch.from_numpy(samples[:8]))
        observe(model, samples)
        assert torch.equal(model(torch.from_numpy(samples[:8])), answers)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(quantizer.is_enabled_quantization() for quantizer in all_quantizers(model))


def test_memory_does_not_grow_with_the_samples(net, samples):
    model = insert_quantizers(net, samples[:8])
    largest = []
    model.register_forward_pre_hook(lambda module, args: largest.append(len(args[0])))

    def state(count: int) -> int:
        many = np.concatenate([samples] * 8)[:count]
        return sum(histogram.counts.nbytes for histogram in observe(model, many).values())

    few, many = state(64), state(640)
    assert max(largest) <= 32
    assert many <= len(all_quantizers(model)) * 2**14 * 8
    assert many <= 2 * few


def test_large_images_go_through_in_small_batches():
    images = np.zeros((5, 3, 1000, 1000), np.float32)
    parts = [len(batch) for batch in batches(images, torch.device("cpu"))]
    assert sum(parts) == 5
    assert max(parts) * images[0].nbytes <= 2**24


def test_an_activation_that_is_not_finite_is_told(net, samples):
    broken = Net().eval()
    with torch.no_grad():
        broken.load_state_dict(net.state_dict())
        broken.conv2.weight.mul_(1e38)
    with pytest.raises(ModelError, match="NaN or infinit"):
        insert_quantizers(broken, samples, Quantize(kind="quantize", ranges="mse"))
