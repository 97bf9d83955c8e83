"""Tiny data and nets for the strategies, and what stops a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn


@dataclass(frozen=True)
class Blobs:
    """Three classes of noisy 1x8x8 patterns."""

    targets: np.ndarray
    images: np.ndarray

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"blob-{i}" for i in range(len(self.targets)))

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.images[index]


@pytest.fixture
def split() -> Blobs:
    """48 samples: three batches of 16."""
    random = np.random.default_rng(0)
    patterns = random.normal(size=(3, 1, 8, 8))
    targets = random.integers(0, 3, 48)
    images = patterns[targets] + random.normal(size=(48, 1, 8, 8))
    return Blobs(targets.astype(np.int64), images.astype(np.float32))


@pytest.fixture
def net() -> Callable[..., nn.Module]:
    """``net(seed, width=4, classes=3, norm=True)``; layer "2" gives a map of ``width`` channels."""

    def make(seed: int, width: int = 4, classes: int = 3, norm: bool = True) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * width, classes),
        )

    return make


@pytest.fixture
def killed() -> Callable[[int], Callable[[int, int, str], None]]:
    """``killed(at)``: a tick that kills the run after so many steps."""

    def at(step: int) -> Callable[[int, int, str], None]:
        def tick(done: int, total: int, note: str) -> None:
            if done == step:
                raise KeyboardInterrupt

        return tick

    return at


@pytest.fixture
def bits() -> Callable[[nn.Module], dict[str, bytes]]:
    """Every tensor of a net, as bytes by name."""
    return lambda model: {
        name: value.detach().contiguous().numpy().tobytes() for name, value in model.state_dict().items()
    }
