"""Nets for 224x224 ImageNet and a BERT-like encoder, as a user would bring them: factories for ``kind: factory``.

State-dict keys are those of the published weights, so that those load without a missing or a spare tensor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.models.mobilenet_v2 import BOTTLENECKS


def _leaky_conv(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.LeakyReLU(0.1)
    )


def _leaky_separable(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in),
        nn.LeakyReLU(0.1),
        nn.Conv2d(channels_in, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.LeakyReLU(0.1),
    )


class MobileNetV1(nn.Module):
    """MobileNetV1 at a quarter of its width (arXiv 1704.04861) with LeakyReLU(0.1)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            _leaky_conv(3, 8, 2),
            _leaky_separable(8, 16, 1),
            _leaky_separable(16, 32, 2),
            _leaky_separable(32, 32, 1),
            _leaky_separable(32, 64, 2),
            _leaky_separable(64, 64, 1),
        )
        self.stage2 = nn.Sequential(_leaky_separable(64, 128, 2), *(_leaky_separable(128, 128, 1) for _ in range(5)))
        self.stage3 = nn.Sequential(_leaky_separable(128, 256, 2), _leaky_separable(256, 256, 1))
        self.avg = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 224, 224) -> logits (N, classes)."""
        x = self.avg(self.stage3(self.stage2(self.stage1(x))))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


class Fire(nn.Module):
    """Squeeze 1x1, then expand by 1x1 and 3x3 side by side and concatenate."""

    def __init__(self, channels_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2 expand, H, W)."""
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.expand1x1(x)), self.relu(self.expand3x3(x))], dim=1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (arXiv 1602.07360), with Caffe's pools, which round their size up."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 2)
        self.relu = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.fire2, self.fire3 = Fire(64, 16, 64), Fire(128, 16, 64)
        self.pool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.fire4, self.fire5 = Fire(128, 32, 128), Fire(256, 32, 128)
        self.pool5 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.fire6, self.fire7 = Fire(256, 48, 192), Fire(384, 48, 192)
        self.fire8, self.fire9 = Fire(384, 64, 256), Fire(512, 64, 256)
        self.conv10 = nn.Conv2d(512, classes, 1)
        self.avg = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 224, 224) -> logits (N, classes)."""
        x = self.pool1(self.relu(self.conv1(x)))
        x = self.pool3(self.fire3(self.fire2(x)))
        x = self.pool5(self.fire5(self.fire4(x)))
        x = self.fire9(self.fire8(self.fire7(self.fire6(x))))
        return torch.flatten(self.avg(self.relu(self.conv10(x))), 1)


class SamePadded(nn.Module):
    """A convolution padded as TensorFlow's SAME does: at stride 2 one zero right and below, none left and above."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.uneven = kernel > 1 and stride == 2
        padding = 0 if self.uneven else kernel // 2
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, groups=groups)
        self.act = nn.ReLU6() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        x = self.act(self.conv(F.pad(x, (0, 1, 0, 1)) if self.uneven else x))
        return x


class Bottleneck(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; added to its input where the shapes agree."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        expand = [SamePadded(channels_in, hidden, 1)] if expansion > 1 else []
        depthwise = SamePadded(hidden, hidden, 3, stride, groups=hidden)
        self.body = nn.Sequential(*expand, depthwise, SamePadded(hidden, channels, 1, act=False))
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        out: Tensor = self.body(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 (arXiv 1801.04381), BatchNorm folded, padded as in TensorFlow."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = SamePadded(3, 32, 3, 2)
        blocks, width = [], 32
        for expansion, channels, repeats, stride in BOTTLENECKS:
            for repeat in range(repeats):
                blocks.append(Bottleneck(width, channels, stride if repeat == 0 else 1, expansion))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = SamePadded(320, 1280, 1)
        self.avg = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 224, 224) -> logits (N, classes)."""
        x = self.avg(self.head(self.blocks(self.stem(x))))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, 1x1 where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out = self.relu(out + self.downsample(x))
        return out


class ResNet18(nn.Module):
    """ResNet-18 (arXiv 1512.03385); its weights are random, so it is for speed alone."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        layers, width = [], 64
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers.append(nn.Sequential(BasicBlock(width, channels, stride), BasicBlock(channels, channels, 1)))
            width = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.avg = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 224, 224) -> logits (N, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avg(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


class SelfAttention(nn.Module):
    """BERT's attention: three projections, softmax of scaled products, a fourth projection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        query, key, value = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.head_dim**-0.5, dim=-1)
        mixed = (weights @ value).transpose(1, 2).reshape(-1, x.shape[1], self.num_heads * self.head_dim)
        out: Tensor = self.out(mixed)
        return out


class EncoderLayer(nn.Module):
    """Attention and a feed-forward net, each added to its input and normalised after (arXiv 1810.04805)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=1e-12)
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        x = self.norm1(x + self.attention(x))
        x = self.norm2(x + self.fc2(self.act(self.fc1(x))))
        return x


class Encoder(nn.Module):
    """A BERT-like encoder on embeddings, with a classifier on the first token; random weights, for speed alone."""

    def __init__(self, dim: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(EncoderLayer(dim, heads) for _ in range(depth)))
        self.classifier = nn.Linear(dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02 * (768 / dim) ** 0.5)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (N, 1, L, D) -> logits (N, classes)."""
        tokens = self.layers(x.flatten(1, 2))
        logits: Tensor = self.classifier(tokens[:, 0])
        return logits


def mobilenet_v1(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """MobileNetV1-0.25; wants ``normalisation: torchvision``."""
    return MobileNetV1(classes)


def squeezenet(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """SqueezeNet 1.1; wants ``normalisation: caffe``."""
    return SqueezeNet(classes)


def mobilenet_v2(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """MobileNetV2 1.0; wants ``normalisation: tensorflow``."""
    return MobileNetV2(classes)


def resnet18(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """ResNet-18, random weights."""
    return ResNet18(classes)


def encoder(
    input_shape: tuple[int, int, int], classes: int, dim: int = 384, depth: int = 6, heads: int = 12
) -> nn.Module:
    """A BERT-like encoder, random weights; ``input_shape`` is (1, L, dim)."""
    return Encoder(dim, depth, heads, classes)
