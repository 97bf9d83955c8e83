"""Counting multiply-accumulates, against formulas by hand, published values and two other counters."""

from __future__ import annotations

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from edgewise.compress.macs import count
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2, ViT

FAMILIES = [
    (CifarResNet(depth=20), (3, 32, 32)),
    (MobileNetV2(stem="imagenet", width_multiplier=0.5), (3, 64, 64)),
    (ViT(dim=32, depth=2, heads=2), (1, 16, 16)),
]


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "params"),
    [
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 9, 9), 8 * 5 * 5 * 3 * 9, 8 * 27 + 8),
        (nn.Conv2d(8, 8, 3, groups=8, bias=False), (8, 6, 6), 8 * 4 * 4 * 9, 72),
        (nn.Conv2d(8, 4, (1, 3), groups=2), (8, 6, 6), 4 * 6 * 4 * 4 * 3, 4 * 4 * 3 + 4),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 5 * 5 * 4 * 6 * 4, 4 * 6 * 4 + 6),
        (nn.Linear(10, 5), (1, 7, 10), 7 * 10 * 5, 55),
        (nn.BatchNorm2d(4), (4, 8, 8), 0, 8),
    ],
)
def test_one_layer_by_hand(layer: nn.Module, shape: tuple[int, ...], macs: int, params: int) -> None:
    cost = count(layer, shape)
    assert (cost.macs, cost.params) == (macs, params)


@pytest.mark.parametrize(
    ("depth", "published", "params"),
    # 41 M and 127 M: arXiv 1512.03385 counts its option A nets so; parameters of its table 6.
    [(20, 41e6, 0.27e6), (56, 127e6, 0.85e6)],
)
def test_cifar_resnet_as_published(depth: int, published: float, params: float) -> None:
    cost = count(build(CifarResNet(depth=depth), (3, 32, 32), 10), (3, 32, 32))
    assert cost.macs == pytest.approx(published, rel=0.015)
    assert cost.params == pytest.approx(params, rel=0.015)


def test_mobilenet_v2_as_published() -> None:
    """300 M multiply-adds and 3.4 M parameters, arXiv 1801.04381 table 4."""
    cost = count(build(MobileNetV2(), (3, 224, 224), 1000), (3, 224, 224))
    assert cost.macs == pytest.approx(300e6, rel=0.01)
    assert cost.params == pytest.approx(3.5e6, rel=0.01)


@pytest.mark.parametrize(("config", "shape"), FAMILIES, ids=lambda value: getattr(value, "kind", ""))
def test_agrees_with_torchs_own_counter(config: CifarResNet, shape: tuple[int, int, int]) -> None:
    model = build(config, shape, 10).eval()
    # Torch doesn't count its fused attention on the CPU; in parts, it does.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as reference, torch.no_grad():
        model(torch.zeros(1, *shape))
    assert count(model, shape).macs * 2 == reference.get_total_flops()


@pytest.mark.parametrize(("config", "shape"), FAMILIES[:2], ids=lambda value: getattr(value, "kind", ""))
def test_agrees_with_torch_pruning_layer_by_layer(config: CifarResNet, shape: tuple[int, int, int]) -> None:
    model = build(config, shape, 10)
    _, params, flops, _ = torch_pruning.utils.count_ops_and_params(model, torch.zeros(1, *shape), layer_wise=True)
    cost = count(model, shape)
    modules = dict(model.named_modules())
    for name, layer in cost.layers.items():
        bias = 0 if modules[name].bias is None else modules[name].bias.numel()  # it adds biases, which are no product
        assert layer.macs == flops[modules[name]] - bias, name
    assert cost.params == params
    assert cost.macs == sum(layer.macs for layer in cost.layers.values())


class _Attention(nn.Module):
    """The same attention three ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.whole = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)  # one row of tokens
        if self.way == "module":
            return self.whole(x, x, x)[0]
        query, key, value = (
            nn.functional.linear(x, self.whole.in_proj_weight).view(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        )
        if self.way == "function":
            return scaled_dot_product_attention(query, key, value)
        return (query @ key.transpose(-1, -2)).softmax(-1) @ value


def test_attention_by_hand() -> None:
    products = 2 * 5 * 5 * 8
    assert count(_Attention("function"), (1, 5, 8)).macs == products
    assert count(_Attention("matmul"), (1, 5, 8)).macs == products
    assert count(_Attention("module"), (1, 5, 8)).macs == products + 4 * 5 * 8 * 8
    assert set(count(_Attention("matmul"), (1, 5, 8)).layers) == {""}


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.drop = nn.Dropout()
        self.drop.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.drop(self.layer(x)))


def test_a_layer_called_twice_counts_twice_and_modes_come_back() -> None:
    model = _Twice()
    assert count(model, (4,)).macs == 2 * 16
    assert count(model, (4,)).params == 20
    assert [module.training for module in model.modules()] == [True, True, False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_wrong_shape_is_a_clear_error() -> None:
    with pytest.raises(ModelError, match=r"can't take an input of shape \(1, 1, 8, 8\)"):
        count(nn.Conv2d(3, 4, 3), (1, 8, 8))
