"""What a task is: splits with sample ids, preprocessing, a metric. Numpy only: the bench reads tasks without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgewise.models.tasks.config import Augment

Float = NDArray[np.float32]
Int = NDArray[np.int64]


class Split(Protocol):
    """One split of a task. ``read`` preprocesses and never augments."""

    @property
    def ids(self) -> tuple[str, ...]:
        """A stable name for each sample: two models' answers are paired by it."""

    @property
    def targets(self) -> Int:
        """(N,) class indices."""

    def read(self, index: Int) -> Float:
        """Preprocessed inputs (len(index), C, H, W)."""


@runtime_checkable
class PixelSplit(Split, Protocol):
    """A split whose inputs are (pixels / 255 - mean) / std, which RandAugment must know to work on pixels."""

    @property
    def mean(self) -> Sequence[float]:
        """One value a channel, or one for all; of pixels scaled to 0..1."""

    @property
    def std(self) -> Sequence[float]:
        """As ``mean``."""


def accuracy(outputs: Float, targets: Int) -> Float:
    """1.0 where the largest of ``outputs`` (N, K) stands at ``targets`` (N,), else 0.0: one value a sample."""
    hits: Float = (outputs.argmax(axis=1) == targets).astype(np.float32)
    return hits


@dataclass(frozen=True)
class Task:
    """Data, preprocessing, metric.

    ``splits`` holds ``train`` and ``test``, and ``val`` where there is one. ``score(outputs (N, K), targets (N,))``
    gives one value a sample, so that scores can be paired; the metric is its mean. ``slices``: by name, what kind each
    test sample is of, N words such as the weather, so that a budget can ask for every kind; classes need no saying.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    splits: Mapping[str, Split]
    augment: Augment = field(default_factory=Augment)
    metric: str = "accuracy"
    score: Callable[[Float, Int], Float] = accuracy
    slices: Mapping[str, Sequence[str]] = field(default_factory=dict)
