"""How closely one set of answers follows another: signal to noise, answers flipped, largest difference. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import MeasureError


@dataclass(frozen=True)
class Parity:
    """``other`` against ``reference`` over ``n`` samples. ``sqnr_db`` is inf where they are equal; ``flips`` None where
    an answer is one number, which has nothing to flip."""

    n: int
    sqnr_db: float
    flips: int | None
    max_abs: float


def sqnr_db(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """10 log10(sum reference² / sum (reference - other)²), in float64; inf when equal, -inf for a reference of zeros.

    Raises:
        MeasureError: other shapes, nothing to compare, or NaN or infinity in either.
    """
    signal, noise = _pair(reference, other)
    error = float(np.square(signal - noise).sum())
    power = float(np.square(signal).sum())
    if error == 0:
        return float("inf")
    return 10 * float(np.log10(power / error)) if power else float("-inf")


def flips(reference: NDArray[Any], other: NDArray[Any]) -> int:
    """How many of the N samples have another largest output. Both (N, K).

    Raises:
        MeasureError: other shapes, not (N, K), nothing to compare, or NaN or infinity in either.
    """
    left, right = _pair(reference, other)
    if left.ndim != 2:
        raise MeasureError(f"expected outputs (N, K), got {left.shape}", where="parity")
    return int((left.argmax(axis=1) != right.argmax(axis=1)).sum())


def compare(reference: NDArray[Any], other: NDArray[Any], judged: NDArray[np.bool_] | None = None) -> Parity:
    """All of it at once.

    Args:
        reference: (N, K); or (N, L, K), an answer for each of L tokens: a sample flips where one of its tokens does.
        other: the same.
        judged: (N, L), the tokens that count, of answers (N, L, K); all by default.

    Raises:
        MeasureError: as ``flips``.
    """
    left, right = _pair(reference, other)
    count = len(left)
    if left.ndim != 3:
        found = flips(left, right) if left.ndim != 2 or left.shape[1] > 1 else None
    else:
        tokens = np.ones(left.shape[:2], bool) if judged is None else judged
        differ = (left.argmax(axis=2) != right.argmax(axis=2)) & tokens
        found = int(differ.any(axis=1).sum())
        left, right = left[tokens], right[tokens]
    return Parity(count, sqnr_db(left, right), found, float(np.abs(left - right).max()))


def _pair(reference: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    if left.shape != right.shape or not left.size:
        raise MeasureError(f"expected two arrays of one shape, got {left.shape} and {right.shape}", where="parity")
    for name, array in (("reference", left), ("other", right)):
        bad = int(array.size - np.isfinite(array).sum())
        if bad:
            raise MeasureError(f"{bad} of {array.size} values of the {name} are NaN or infinite", where="parity")
    return left, right
