"""What is kept of a layer while two nets are walked: sums of squares, and which layout the second net has."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from edgewise.deploy.inspect.base import Float


@dataclass(frozen=True)
class Layer:
    """One layer of both nets. ``sqnr_db``: signal over error, inf when equal, -inf with NaN or infinity in one alone.

    Args:
        name: as in torch, where one of the two has such names.
        kind: ``conv``, ``add``, ``relu`` …
        sqnr_db: 10 log10(sum a² / sum (a - b)²).
        shape: of one sample in the first net.
        max_abs: the largest difference.
        fall_db: how far it is under the worst layer that it reads; None where none of these is compared.
    """

    name: str
    kind: str
    sqnr_db: float
    shape: tuple[int, ...]
    max_abs: float
    fall_db: float | None = None


class Sum:
    """Sums over batches of one layer's squares."""

    def __init__(self) -> None:
        self.signal = self.error = self.max_abs = 0.0
        self.broken, self.fits = False, True
        self.shape: tuple[int, ...] = ()
        self._order: tuple[int, ...] | None = None

    def add(self, left: Float, right: Float) -> None:
        """The same batch of both: (N, …)."""
        if left.size != right.size:
            self.fits = False
            return
        self.shape = left.shape[1:]
        if left.shape != right.shape or self._order is not None:
            right = self._laid_out(left, right)
        signal, other = left.astype(np.float64), right.astype(np.float64)
        usual = np.isfinite(signal)
        if not np.isfinite(other[usual]).all() or not usual.all():
            self.broken = True
            return
        gap = np.abs(signal - other)
        self.signal += float(np.square(signal).sum())
        self.error += float(np.square(gap).sum())
        self.max_abs = max(self.max_abs, float(gap.max(initial=0.0)))

    def layer(self, name: str, kind: str, fall_db: float | None = None) -> Layer:
        """What was summed."""
        worst = math.inf if self.broken else self.max_abs
        return Layer(name, kind, self.sqnr_db, self.shape, worst, fall_db)

    @property
    def sqnr_db(self) -> float:
        """In dB; inf where equal, -inf where not finite, of other sizes, or nothing but zeros in the first net."""
        if self.broken or not self.fits:
            return -math.inf
        if self.error == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.error) if self.signal else -math.inf

    def _laid_out(self, left: Float, right: Float) -> Float:
        """``right`` in the layout of ``left``: channels moved, or the same order of values in other dimensions. Where
        sizes leave several ways the first batch decides, by the smallest error."""
        if self._order is None:
            orders = [order for order in _orders(right.ndim) if right.transpose(order).shape == left.shape]
            squeezed = [order for order in _orders(right.ndim) if _bare(right.transpose(order)) == _bare(left)]
            choices = [*dict.fromkeys([*orders, *squeezed, tuple(range(right.ndim))])]
            self._order = min(choices, key=lambda order: _distance(left, right.transpose(order)))
        return right.transpose(self._order).reshape(left.shape)


def _orders(ndim: int) -> Iterator[tuple[int, ...]]:
    """Ways to order the dimensions; the batch stays first."""
    return ((0, *rest) for rest in permutations(range(1, ndim))) if ndim <= 5 else iter((tuple(range(ndim)),))


def _bare(array: Float) -> tuple[int, ...]:
    return tuple(size for size in array.shape[1:] if size != 1)


def _distance(left: Float, right: Float) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.square(left - right.reshape(left.shape)).sum()
    return float(gap) if np.isfinite(gap) else math.inf
