import numpy as np
import pytest
import torch
from torch import nn

from edgewise.compress.config import Quantize
from edgewise.compress.quantization.batchnorm import reestimate, reestimate_on
from edgewise.compress.quantization.insert import insert_quantizers
from edgewise.errors import ModelError

SHAPE = (3, 8, 8)


class Images:
    """A split in memory, sorted by class as files on a disk are."""

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(0)
        self.targets = np.arange(count) * 4 // count
        self.ids = tuple(map(str, range(count)))
        self.images = generator.standard_normal((count, *SHAPE)).astype(np.float32)
        self.images += 3 * self.targets[:, None, None, None].astype(np.float32)
        self.read_places: list[int] = []

    def read(self, index: np.ndarray) -> np.ndarray:
        self.read_places += list(index)
        return self.images[index]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    second = (nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5, affine=False), nn.ReLU())
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).eval()


def test_statistics_are_numpys_of_the_layers_input():
    model, split = net(), Images(60)
    assert reestimate(model, split, samples=60, batch_size=60) == 2
    with torch.no_grad():
        x = model[0](torch.from_numpy(split.images))
        values = x.double().movedim(1, -1).reshape(-1, 6).numpy()
        np.testing.assert_allclose(model[1].running_mean.numpy(), values.mean(0), rtol=1e-5)
        np.testing.assert_allclose(model[1].running_var.numpy(), values.var(0, ddof=1), rtol=1e-5)
        # With one batch the second sees just what it sees in evaluation, but for Bessel's correction.
        y = model[3](model[2](model[1](x))).double().movedim(1, -1).reshape(-1, 5).numpy()
        np.testing.assert_allclose(model[4].running_mean.numpy(), y.mean(0), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(model[4].running_var.numpy(), y.var(0), rtol=5e-3)


def test_the_first_layers_statistics_do_not_hang_on_the_batches():
    models = [net(), net()]
    reestimate(models[0], Images(64), samples=64, batch_size=64)
    reestimate(models[1], Images(64), samples=64, batch_size=16)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(models[0][1], name), getattr(models[1][1], name), rtol=1e-5, atol=1e-6)


def test_nothing_else_moves_and_modes_come_back():
    model, split = net(), Images(64)
    model[3].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate(model, split, samples=32, batch_size=8)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed <= {f"{n}.{what}" for n in (1, 4) for what in ("running_mean", "running_var", "num_batches_tracked")}
    assert {"1.running_mean", "4.running_var"} <= changed
    assert [m.training for m in model] == [n == 3 for n in range(len(model))]
    assert {m.momentum for m in model if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert len(split.read_places) == len(set(split.read_places)) == 32


def test_every_batch_has_samples_from_the_whole_split():
    split, seen = Images(64), []
    model = net()
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].mean((1, 2, 3))))
    reestimate(model, split, samples=64, batch_size=16)
    assert len(seen) == 4
    means = torch.stack([batch.mean() for batch in seen])
    assert float(means.max() - means.min()) < 0.5  # the classes are 3 apart


def test_a_net_without_batchnorm_is_left_alone_and_told():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert reestimate_on(plain, iter([torch.zeros(2, *SHAPE)])) == 0
    with pytest.raises(ModelError, match="no BatchNorm to measure again"):
        insert_quantizers(plain, Images(8).images, Quantize(kind="quantize", reestimate_batchnorm=True))


def test_it_mends_a_net_whose_statistics_are_of_other_weights():
    model, split = net(), Images(64)
    reestimate(model, split, samples=64, batch_size=64)
    with torch.no_grad():
        good = model(torch.from_numpy(split.images))
        model[1].running_mean.add_(2)
        model[1].running_var.mul_(9)
        config = Quantize(kind="quantize", ranges="min_max", reestimate_batchnorm=True)
        mended = insert_quantizers(model, split.images, config)(torch.from_numpy(split.images))
        plain = insert_quantizers(model, split.images, Quantize(kind="quantize", ranges="min_max"))(
            torch.from_numpy(split.images)
        )
    assert float((mended - good).square().mean()) < 0.05 * float((plain - good).square().mean())
