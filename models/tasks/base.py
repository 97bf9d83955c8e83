"""What a task is: splits with sample ids, preprocessing, a metric. Numpy only: the bench reads tasks without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgewise.models.inputs import Shape
from edgewise.models.tasks.config import Augment

Float = NDArray[np.float32]
Int = NDArray[np.int64]

Kind = Literal["classify", "tag", "regress"]
IGNORED = -100
"""The target of a token that is no word's first piece: nothing is learnt or scored there."""
UNLABELLED = -1
"""The target of a sample whose label is not known: a teacher may answer it, no loss may read it."""


class Split(Protocol):
    """One split of a task. ``read`` preprocesses and never augments."""

    @property
    def ids(self) -> tuple[str, ...]:
        """A stable name for each sample: two models' answers are paired by it."""

    @property
    def targets(self) -> NDArray[Any]:
        """(N,) class indices; of a task that tags, (N, L) with ``IGNORED`` where there is nothing to say; of one that
        regresses, (N,) float32."""

    def read(self, index: Int) -> NDArray[Any]:
        """Preprocessed inputs (len(index), C, H, W) float32, or token ids (len(index), L) int64."""


@runtime_checkable
class TextSplit(Split, Protocol):
    """A split of texts: padded to one length, and how much of each is real."""

    @property
    def padding(self) -> int:
        """The id of the padding token."""

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are: every id is below."""

    @property
    def lengths(self) -> Int:
        """(N,) real tokens of each sample; what follows them is padding."""

    def encoded(self, tokenizer: Path) -> TextSplit:
        """The same samples in the same order, as another net's tokenizer (a folder or a ``tokenizer.json``) reads
        them."""


@runtime_checkable
class DrawnSplit(Split, Protocol):
    """A split that draws what a view shows, inputs and targets: words to guess."""

    def draw(self, index: Int, seed: int, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Inputs and targets of the samples at ``index`` as the view ``number`` of a run of ``seed`` shows them."""


def shape_of(split: Split) -> Shape:
    """(C, H, W) of a split's images, or (L, V) of its texts."""
    sample: Shape = split.read(np.zeros(1, np.int64)).shape[1:]
    return (*sample, split.vocabulary) if isinstance(split, TextSplit) else sample


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

    ``splits`` holds ``train`` and ``test``, and ``val`` where there is one; of texts perhaps ``transfer``, samples that
    a teacher answers, labels known or not. ``score(outputs (N, K), targets (N,))`` gives one value a sample, so that
    scores can be paired; the metric is its mean. ``slices``: by name, what kind each test sample is of, N words such as
    the weather, so that a budget can ask for every kind; classes need no saying.

    ``input_shape``: (C, H, W), or (L, V) of texts, see :mod:`edgewise.models.inputs`. ``kind``: the nets answer with
    logits (N, K), with logits for each token (N, L, K), or with a number (N, 1), which has one name in ``classes``.
    ``others``: by name, metrics of a whole split that are no mean over samples (F1, correlations), told beside it.
    ``notes``: what the user should know of the data, a line each. ``carried``: files that a device needs to prepare
    inputs, by the name they get beside the samples.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: Shape
    splits: Mapping[str, Split]
    augment: Augment = field(default_factory=Augment)
    metric: str = "accuracy"
    score: Callable[[Float, Int], Float] = accuracy
    slices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    kind: Kind = "classify"
    others: Mapping[str, Callable[[Float, NDArray[Any]], float]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    carried: Mapping[str, Path] = field(default_factory=dict)
