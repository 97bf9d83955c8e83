"""What every probe offers, and what it is opened from."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewise.deploy.inspect.points import Point

Float = NDArray[np.float32]


class Probe(Protocol):
    """A net that tells what its layers compute.

    ``label`` says what is run, ``input_shape`` (C, H, W) or (L,) with None for an open size, ``token_ids`` whether its
    inputs are such, ``precision`` the coarsest arithmetic in it: float32, float16, bfloat16 or int8.
    """

    label: str
    input_shape: tuple[int | None, ...]
    token_ids: bool
    precision: str
    points: tuple[Point, ...]

    def expose(self, wanted: Collection[int]) -> None:
        """Name the points whose values ``run`` is to give."""

    def run(self, inputs: NDArray[Any]) -> tuple[Float, dict[int, Float]]:
        """(N, C, H, W), or token ids (N, L) -> the answers (N, ...) of the file as it is shipped, and the exposed
        points' values."""

    def close(self) -> None:
        """Give the memory back."""


def dequantized(
    array: NDArray[Any], scale: NDArray[Any] | float, zero_point: NDArray[Any] | int, axis: int = 0
) -> Float:
    """Integers as the numbers they stand for; one scale, or one for each place along ``axis``."""
    step, zero = np.asarray(scale, np.float32), np.asarray(zero_point, np.float32)
    if step.size > 1:
        shape = [-1 if place == axis else 1 for place in range(array.ndim)]
        step, zero = step.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
    found: Float = ((array.astype(np.float32) - zero) * step).astype(np.float32)
    return found
