"""Published parameter counts, another implementation's answers, real weights, and what a family refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.errors import ModelError
from edgewise.models import cifar_resnet, mobilenet_v2
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2, ViT
from edgewise.models.tasks.config import Arrays
from edgewise.models.tasks.load import load_task
from edgewise.models.weights import load_weights

CIFAR = (3, 32, 32)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "shape", "classes", "parameters"),
    [
        # option-A ResNets as published with the checkpoints in circulation, in line with arXiv 1512.03385 table 6
        (CifarResNet(depth=20), CIFAR, 10, 269_722),
        (CifarResNet(depth=32), CIFAR, 10, 464_154),
        (CifarResNet(depth=44), CIFAR, 10, 658_586),
        (CifarResNet(depth=56), CIFAR, 10, 853_018),
        (CifarResNet(depth=110), CIFAR, 10, 1_727_962),
        (MobileNetV2(), (3, 224, 224), 1000, 3_504_872),  # torchvision's documentation
        (ViT(patch=16, dim=192, depth=12, heads=3, mlp_ratio=4), (3, 224, 224), 1000, 5_717_416),  # timm's vit_tiny
        (ViT(patch=16, dim=384, depth=12, heads=6, mlp_ratio=4), (3, 224, 224), 1000, 22_050_664),  # timm's vit_small
    ],
)
def test_parameter_counts_are_the_published_ones(
    config: Any, shape: tuple[int, int, int], classes: int, parameters: int
) -> None:
    with torch.device("meta"):
        assert count(build(config, shape, classes)) == parameters


@pytest.mark.parametrize(("width", "millions"), [(1.4, 6.06), (1.0, 3.47), (0.75, 2.61), (0.5, 1.95), (0.35, 1.66)])
def test_mobilenet_widths_round_as_published(width: float, millions: float) -> None:
    """The table of the authors' release (tensorflow/models, mobilenet_v2), which leaves BatchNorm out."""
    with torch.device("meta"):
        model = build(MobileNetV2(width_multiplier=width), (3, 224, 224), 1000)
    norms = sum(count(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert round((count(model) - norms) / 1e6, 2) == millions


def test_mobilenet_keys_are_torchvisions() -> None:
    with torch.device("meta"):
        keys = list(build(MobileNetV2(), (3, 224, 224), 1000).state_dict())
    assert len(keys) == 314
    some = {
        "features.0.0.weight",
        "features.1.conv.0.0.weight",
        "features.1.conv.2.running_var",
        "features.2.conv.1.1.num_batches_tracked",
        "features.17.conv.3.bias",
        "features.18.1.weight",
        "classifier.1.bias",
    }
    assert some <= set(keys)


@pytest.mark.parametrize("channels", [3, 8.4, 11.2, 16, 22.4, 24, 44.8, 1280, 1792])
def test_rounding_keeps_nine_tenths(channels: float) -> None:
    rounded = mobilenet_v2.round_channels(channels)
    assert rounded % 8 == 0
    assert rounded >= max(8, 0.9 * channels)
    assert rounded < channels + 8


@pytest.mark.parametrize(
    ("config", "shape", "taps"),
    [
        (CifarResNet(depth=8), CIFAR, {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8)}),
        (CifarResNet(depth=8, width=5), (1, 9, 11), {"layer1": (5, 9, 11), "layer3": (20, 3, 3)}),
        (
            MobileNetV2(width_multiplier=0.35, stem="cifar"),
            CIFAR,
            {"features.3": (8, 32, 32), "features.17": (112, 4, 4)},
        ),
        (MobileNetV2(width_multiplier=0.35), (3, 64, 64), {"features.3": (8, 16, 16), "features.17": (112, 2, 2)}),
        (ViT(dim=16, depth=2), CIFAR, {"blocks.1": (65, 16), "blocks.0.attn.softmax": (4, 65, 65)}),
    ],
)
def test_taps_and_logits_have_the_documented_shapes(
    config: Any, shape: tuple[int, int, int], taps: dict[str, tuple[int, ...]]
) -> None:
    model = build(config, shape, 7)
    seen: dict[str, tuple[int, ...]] = {}
    for name in taps:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _m, _i, out, n=name: seen.update({n: tuple(out.shape)}))
    assert model(torch.randn(2, *shape)).shape == (2, 7)
    assert seen == {name: (2, *tail) for name, tail in taps.items()}


def test_the_named_taps_are_feature_maps() -> None:
    for module, config in ((cifar_resnet, CifarResNet(depth=8)), (mobilenet_v2, MobileNetV2(stem="cifar"))):
        model = build(config, CIFAR, 10)
        shapes: list[torch.Size] = []
        for name in module.TAPS:
            model.get_submodule(name).register_forward_hook(lambda _m, _i, out, to=shapes: to.append(out.shape[2:]))
        model(torch.randn(2, *CIFAR))
        assert len(shapes) == len(set(shapes)) == len(module.TAPS)  # one for each map size


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 5)])
def test_the_shortcut_is_a_strided_slice_padded_with_zeros(size: tuple[int, int]) -> None:
    x = torch.randn(2, 4, *size, requires_grad=True)
    out = cifar_resnet.PaddedShortcut(before=2, after=3, stride=2)(x)
    expected = torch.zeros(2, 9, (size[0] + 1) // 2, (size[1] + 1) // 2)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    assert torch.equal(out, expected)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == expected[:, 2:6].numel()
    assert x.grad[:, :, ::2, ::2].min() == 1


def resnet_by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The checkpoints' net, restated from the paper over the bare state dict."""

    def conv_bn(x: Tensor, conv: str, bn: str, stride: int) -> Tensor:
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, var = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
        scale = state[f"{bn}.weight"] / torch.sqrt(var + 1e-5)
        return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{bn}.bias"][:, None, None]

    x = conv_bn(x, "conv1", "bn1", 1).clamp(min=0)
    for stage in (1, 2, 3):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            out = conv_bn(x, f"{name}.conv1", f"{name}.bn1", stride).clamp(min=0)
            out = conv_bn(out, f"{name}.conv2", f"{name}.bn2", 1)
            if stride == 2:
                zeros = torch.zeros(len(x), x.shape[1] // 2, *out.shape[2:])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
            x = (out + x).clamp(min=0)
            block += 1
    return x.mean(dim=(2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_real_resnet_weights_give_what_the_restatement_gives(real_data: Callable[[str], Path], depth: int) -> None:
    path = real_data(f"cifar10_resnets/resnet{depth}.pth")
    model = build(CifarResNet.model_validate({"depth": depth}), CIFAR, 10)
    load_weights(model, path)
    x = torch.randn(3, *CIFAR)
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), resnet_by_hand(torch.load(path, weights_only=True), x), atol=1e-4)


def test_real_resnet_answers_real_images(real_data: Callable[[str], Path]) -> None:
    """81.0 % on the whole test set, JPEG as it comes; 1,500 images, alike in classes, have a standard error of 1 %."""
    task = load_task(
        Arrays(
            path=real_data("cifar10_jpeg.npz"), train_limit=10, test_limit=1500, mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
    )
    model = build(CifarResNet(depth=20), task.input_shape, len(task.classes))
    load_weights(model, real_data("cifar10_resnets/resnet20.pth"))
    test = task.splits["test"]
    model.eval()
    with torch.inference_mode():
        parts = [model(torch.from_numpy(test.read(index))).numpy() for index in np.array_split(np.arange(1500), 5)]
    assert task.score(np.concatenate(parts), test.targets).mean() == pytest.approx(0.810, abs=0.03)


def test_a_vit_block_is_torchs_encoder_layer() -> None:
    model = build(ViT(dim=24, depth=1, heads=3), CIFAR, 10)
    block: Any = model.get_submodule("blocks.0")
    theirs = nn.TransformerEncoderLayer(
        24,
        3,
        dim_feedforward=48,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=True,
    )
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": block.attn.qkv.weight,
            "self_attn.in_proj_bias": block.attn.qkv.bias,
            **{f"self_attn.out_proj.{k}": v for k, v in block.attn.proj.state_dict().items()},
            **{f"linear1.{k}": v for k, v in block.mlp.fc1.state_dict().items()},
            **{f"linear2.{k}": v for k, v in block.mlp.fc2.state_dict().items()},
            **{f"norm1.{k}": v for k, v in block.norm1.state_dict().items()},
            **{f"norm2.{k}": v for k, v in block.norm2.state_dict().items()},
        }
    )
    x = torch.randn(2, 65, 24)
    assert torch.allclose(block(x), theirs(x), atol=1e-5)


def test_a_vit_forgets_the_order_of_patches_without_positions() -> None:
    model = build(ViT(dim=16, depth=2, patch=16), CIFAR, 5)
    x = torch.randn(1, *CIFAR)
    swapped = torch.cat([x[..., 16:], x[..., :16]], dim=-1)
    assert not torch.allclose(model(x), model(swapped), atol=1e-6)
    model.pos_embed.data.zero_()  # type: ignore[operator]
    assert torch.allclose(model(x), model(swapped), atol=1e-6)


@pytest.mark.parametrize("config", [CifarResNet(depth=8), MobileNetV2(stem="cifar"), ViT(depth=2)])
def test_fresh_weights_come_from_the_seed_and_every_one_learns(config: Any) -> None:
    torch.manual_seed(3)
    first = build(config, CIFAR, 10)
    torch.manual_seed(3)
    second = build(config, CIFAR, 10)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    out = first(torch.randn(4, *CIFAR))
    assert out.std() < 10  # the signal neither dies nor explodes at the start
    loss = F.cross_entropy(out, torch.tensor([0, 1, 2, 3]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in first.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


@pytest.mark.parametrize(
    "config", [CifarResNet(depth=8), MobileNetV2(stem="cifar", width_multiplier=0.35), ViT(depth=1)]
)
def test_fx_traces_every_family(config: Any) -> None:
    model = build(config, CIFAR, 10).eval()
    x = torch.randn(2, *CIFAR)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_no_activation_module_is_shared() -> None:
    """Quantizers and taps hang on modules: one module at two places would be one quantizer for both."""
    for config in (CifarResNet(depth=8), MobileNetV2(stem="cifar"), ViT(depth=2)):
        model = build(config, CIFAR, 10)
        calls: list[nn.Module] = []
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(lambda module, _i, _o, to=calls: to.append(module))
        model(torch.randn(2, *CIFAR))
        assert len(calls) == len(set(calls))


@pytest.mark.parametrize(
    ("config", "shape", "classes", "says"),
    [
        (CifarResNet(), CIFAR, 1, "at least 2 classes, got 1"),
        (CifarResNet(), (3, 2, 32), 10, "at least 4x4, got 2x32"),
        (CifarResNet(), (32,), 10, r"must be \(C, H, W\)"),
        (CifarResNet(), (32, 32), 10, "reads images, and the task gives texts of up to 32 tokens\n  next: .*bert"),
        (CifarResNet(), (0, 32, 32), 10, "all at least 1"),
        (MobileNetV2(), (3, 16, 16), 10, "at least 32x32, got 16x16\n  next: stem: cifar"),
        (MobileNetV2(stem="cifar"), (3, 4, 4), 10, "at least 8x8"),
        (ViT(patch=5), (3, 32, 48), 10, "patch 5 does not divide the image of 32x48\n  next: .*1, 2, 4, 8, 16"),
        (ViT(dim=65), CIFAR, 10, "heads 4 does not divide dim 65"),
    ],
)
def test_impossible_shapes_are_refused(config: Any, shape: Any, classes: int, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        build(config, shape, classes)
