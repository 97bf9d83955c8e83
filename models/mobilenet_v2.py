"""MobileNetV2, Sandler et al., "Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381, table 2.

State-dict keys (``features.0.0 … features.18.1 classifier.1``) are those of torchvision's checkpoints, so those load.
The dropout before the classifier is left out: it would make a step depend on the random state besides the data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TAPS = ("features.3", "features.6", "features.13", "features.17")
"""Modules whose outputs (N, C, H, W) feature losses can tap: the last bottleneck of each map size."""

# expansion, channels, repeats, stride; table 2 of the paper
BOTTLENECKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor``, at least ``divisor``, and never less than 90 % of ``channels``."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation; added to the input where the shapes agree."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_bn_relu(channels_in, hidden, kernel=1))
        layers += [
            _conv_bn_relu(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """(N, C, H, W) -> logits (N, classes). The CIFAR stem halves the map three times, the ImageNet stem five times."""

    def __init__(self, width_multiplier: float, cifar_stem: bool, channels: int, classes: int) -> None:
        super().__init__()
        width = round_channels(32 * width_multiplier)
        # Wider nets widen the last layer too, narrower ones keep it: §3.2 of the paper.
        last = round_channels(1280 * max(1.0, width_multiplier))
        layers: list[nn.Module] = [_conv_bn_relu(channels, width, stride=1 if cifar_stem else 2)]
        for stage, (expansion, base, repeats, stride) in enumerate(BOTTLENECKS):
            out = round_channels(base * width_multiplier)
            if cifar_stem and stage == 1:
                stride = 1
            for repeat in range(repeats):
                layers.append(InvertedResidual(width, out, stride if repeat == 0 else 1, expansion))
                width = out
        layers.append(_conv_bn_relu(width, last, kernel=1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(last, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        x = self.pool(self.features(x))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def _conv_bn_relu(channels_in: int, channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
    )
