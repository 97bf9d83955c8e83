"""Samples that are texts, token ids (N, L) padded to one length, as the timed inferences and the answers take them.

A text is run at its own length, rounded up so that few lengths come: padding would cost time and tell nothing. Which
texts are timed follows the data's own lengths. Python >= 3.8, numpy only.
"""

from __future__ import annotations

from typing import Any, List

import numpy as np

from edgewise.deploy.runtimes import TensorSpec
from edgewise.errors import MeasureError

MULTIPLE = 8
GOLDEN = 0.6180339887498949


def lengths(samples: np.ndarray, padding: int) -> np.ndarray:
    """(N,) tokens of each of ``samples`` (N, L) up to its last that isn't padding; 1 at least."""
    real = samples != padding
    return np.where(real.any(axis=1), samples.shape[1] - real[:, ::-1].argmax(axis=1), 1)


def cut(samples: np.ndarray, padding: int, spec: TensorSpec) -> np.ndarray:
    """``samples`` (N, L) without the padding that all of them end in, but up to a multiple of 8; as they are where the
    file's length is fixed."""
    if not open_length(spec):
        return samples
    longest = -(-int(lengths(samples, padding).max()) // MULTIPLE) * MULTIPLE
    return np.ascontiguousarray(samples[:, :longest])


def open_length(spec: TensorSpec) -> bool:
    """Whether an input is texts of any length."""
    return len(spec.shape) == 2 and spec.shape[1] is None


def spread(samples: np.ndarray, padding: int, count: int) -> np.ndarray:
    """(count,) places of samples whose lengths are spread as those of all are, short and long ones in turns."""
    order = np.argsort(lengths(samples, padding), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, count).round().astype(int)]
    # Steps of the golden ratio: any few that follow each other are spread, too.
    turns: np.ndarray = chosen[np.argsort(np.arange(1, count + 1) * GOLDEN % 1)]
    return turns


def of_length(samples: np.ndarray, padding: int, length: int, spec: TensorSpec) -> List[np.ndarray]:
    """Each sample (1, length): its own tokens, cut or repeated, none of them padding.

    Raises:
        MeasureError: the file's length is fixed.
    """
    if not open_length(spec):
        raise MeasureError(
            "expected a file that takes any length, got one that takes %s" % (spec.shape,), where="length"
        )
    real: List[Any] = [row[:count] for row, count in zip(samples, lengths(samples, padding))]
    return [np.resize(row, (1, length)) for row in real]


def whole(answers: np.ndarray, length: int) -> np.ndarray:
    """Answers (N, L', K) for each token as (N, ``length``, K), zeros behind; others as they are."""
    if answers.ndim != 3 or answers.shape[1] == length:
        return answers
    full = np.zeros((len(answers), length, answers.shape[2]), answers.dtype)
    full[:, : answers.shape[1]] = answers
    return full
