"""ResNet for small images, He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385 §4.2.

Three stages of ``(depth - 2) / 6`` blocks of two 3x3 convolutions; where a stage halves the map and doubles the
channels, the shortcut subsamples and pads with zero channels (option A), so it has no parameters. State-dict keys
(``conv1 bn1 layer1..3 linear``) are those of the CIFAR checkpoints in circulation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TAPS = ("layer1", "layer2", "layer3")
"""Modules whose outputs (N, C, H, W) feature losses can tap: each stage, after its last ReLU."""


class PaddedShortcut(nn.Module):
    """Option A: every ``stride``-th position, ``before`` zero channels in front and ``after`` behind.

    (N, C, H, W) -> (N, before + C + after, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample, then pad."""
        # A 1x1 pool takes the same pixels as x[:, :, ::2, ::2], and stays INT8 where runtimes leave a strided slice in
        # float: ResNet-20 in LiteRT INT8 0.39 against 0.48 ms, in ONNX Runtime and OpenVINO the same to 2 %.
        x = nn.functional.max_pool2d(x, kernel_size=1, stride=self.stride)
        return nn.functional.pad(x, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"before={self.before}, after={self.after}, stride={self.stride}"


class BasicBlock(nn.Module):
    """conv-bn-relu-conv-bn, plus the shortcut, then relu."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            zeros = channels - channels_in
            self.shortcut = PaddedShortcut(zeros // 2, zeros - zeros // 2, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        out: Tensor = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.relu2(out + self.shortcut(x))
        return out


class CifarResNet(nn.Module):
    """(N, C, H, W) -> logits (N, classes). Depth 6n + 2: 20, 32, 44, 56, 110, and the small 8 and 14."""

    def __init__(self, depth: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return logits


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
