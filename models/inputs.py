"""What one sample looks like, told by its shape alone: every room that needs example inputs gets them here.

(C, H, W) is an image: float32 (N, C, H, W). (L, V) is a text: up to L tokens, each one of V; int64 ids (N, L), and any
shorter length will do. Numpy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]


def is_text(shape: Shape) -> bool:
    """True for (L, V): inputs are token ids."""
    return len(shape) == 2


def dtype_of(shape: Shape) -> str:
    """``int64`` for token ids, else ``float32``."""
    return "int64" if is_text(shape) else "float32"


def blank(shape: Shape, batch: int) -> NDArray[Any]:
    """``batch`` inputs of one value: images of zeros, or L times an id from the middle, for tokenizers pad with one of
    their first ids, or with one that was added behind the last."""
    if is_text(shape):
        return np.full((batch, shape[0]), shape[1] // 2, np.int64)
    return np.zeros((batch, *shape), np.float32)


def drawn(shape: Shape, batch: int, seed: int) -> NDArray[Any]:
    """``batch`` inputs drawn from ``seed``: normal pixels, or ids that are all alike likely, padding among them."""
    generator = np.random.default_rng(seed)
    if is_text(shape):
        return generator.integers(shape[1], size=(batch, shape[0]))
    return generator.standard_normal((batch, *shape), dtype=np.float32)


def dims_in_words(shape: Shape) -> str:
    """``(N, L)`` of ids or ``(N, C, H, W)``, with the numbers that are known, for errors."""
    return f"(N, {shape[0]}) ids below {shape[1]}" if is_text(shape) else f"(N, {', '.join(map(str, shape))})"


def form_of(samples: NDArray[Any]) -> Shape:
    """The form of samples (N, C, H, W), or (N, L) as far as ids tell it: V is then one more than the largest."""
    if np.issubdtype(samples.dtype, np.integer):
        return samples.shape[1], int(samples.max()) + 1
    return tuple(samples.shape[1:])


def trimmed(tokens: NDArray[np.int64], padding: int, multiple: int = 8) -> NDArray[np.int64]:
    """``tokens`` (N, L) without the columns at the end that are padding in every row, but up to a ``multiple``: what is
    left out is time saved, and few different lengths are few different shapes."""
    columns = np.flatnonzero((tokens != padding).any(axis=0))
    longest = int(columns[-1]) + 1 if len(columns) else 1
    return np.ascontiguousarray(tokens[:, : min(tokens.shape[1], -(-longest // multiple) * multiple)])


def restored(answers: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """What a net gave for ``trimmed`` texts, with zeros for the tokens that were left out: of each token (N, L', K) ->
    (N, ``length``, K); of each text (N, K) as it is."""
    if answers.ndim != 3:
        return answers
    return np.pad(answers, ((0, 0), (0, length - answers.shape[1]), (0, 0)))
