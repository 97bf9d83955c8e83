"""A model's answers on given samples, and how far they are from another's. Batched, so that memory stays bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgewise.compress.macs import evaluating, shown
from edgewise.errors import ModelError
from edgewise.models.inputs import restored, trimmed
from edgewise.models.tasks.base import Float, Int, Split, TextSplit, accuracy

BATCH = 64
Score = Callable[[Float, Int], Float]
"""One value a sample, of logits (N, K) and targets (N,)."""


@dataclass(frozen=True)
class Samples:
    """Samples of a split that are read when they are needed: ``samples[3:7]`` is (4, C, H, W), or of texts (4, L)."""

    split: Split
    index: Int

    def __len__(self) -> int:
        """How many there are."""
        return len(self.index)

    def __getitem__(self, part: slice) -> NDArray[Any]:
        """Inputs (n, C, H, W), or (n, L)."""
        return self.split.read(self.index[part])

    @property
    def targets(self) -> NDArray[Any]:
        """(N,), or (N, L)."""
        return self.split.targets[self.index]

    @property
    def padding(self) -> int | None:
        """The id of texts' padding."""
        return self.split.padding if isinstance(self.split, TextSplit) else None

    @property
    def ids(self) -> tuple[str, ...]:
        """A stable name for each."""
        return tuple(self.split.ids[place] for place in self.index)


@dataclass(frozen=True)
class Change:
    """Logits beside a reference's: SQNR in dB (inf where they are equal), answers flipped of ``n``, the score's fall in
    percentage points where targets were given."""

    sqnr_db: float
    flips: int
    n: int
    drop_pp: float | None = None


def answers(model: nn.Module, inputs: NDArray[Any] | Samples, batch: int = BATCH) -> Float:
    """Logits (N, K) float32 of inputs (N, C, H, W), or (N, K) or (N, L, K) of texts (N, L), ``batch`` at a time, in
    eval mode; modes are put back. Tokens known to be padding have answers of 0.

    Raises:
        ModelError: no inputs, or the model's answers have another shape.
    """
    if not len(inputs):
        raise ModelError("expected samples (N, C, H, W), got none", where="sensitivity")
    padding = inputs.padding if isinstance(inputs, Samples) else None
    found = []
    with evaluating(model):
        for start in range(0, len(inputs), batch):
            part = inputs[start : start + batch]
            seen = part if padding is None else trimmed(part, padding)
            given = model(shown(model, seen)).float().cpu().numpy()
            if given.ndim == 3 and padding is not None:
                given = restored(given * (seen != padding)[..., None], part.shape[1])
            found.append(given)
    logits: Float = np.concatenate(found)
    if logits.ndim != 2 and not (logits.ndim == 3 and part.ndim == 2):
        raise ModelError(f"expected logits (N, K), got {logits.shape}", where="sensitivity")
    return logits


def change(reference: Float, logits: Float, targets: NDArray[Any] | None = None, score: Score = accuracy) -> Change:
    """How ``logits`` (N, K) differ from ``reference`` (N, K), or both (N, L, K), where one token's other answer is a
    flip; sums in float64. Logits that aren't finite are at -inf dB."""
    signal = reference.astype(np.float64)
    noise = float(np.square(signal - logits).sum())
    power = float(np.square(signal).sum())
    sqnr = math.inf if noise == 0 else 10 * math.log10(power / noise) if power and math.isfinite(noise) else -math.inf
    other = reference.argmax(axis=-1) != logits.argmax(axis=-1)
    flips = int(other.reshape(len(reference), -1).any(axis=1).sum())
    drop = None
    if targets is not None:
        drop = 100 * float(np.mean(score(reference, targets)) - np.mean(score(logits, targets)))
    return Change(sqnr, flips, len(reference), drop)


__all__ = ["BATCH", "Change", "Samples", "Score", "answers", "change"]
