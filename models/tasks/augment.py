"""Crops and flips whose draws depend on (seed, epoch, sample) alone, so that batching, resuming and the number of
processes change nothing. Torch-free."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgewise.models.tasks.base import Float, Int
from edgewise.models.tasks.config import Augment


def augment(batch: Float, index: Int, total: int, config: Augment, seed: int, epoch: int) -> Float:
    """A changed copy of ``batch`` (N, C, H, W), or ``batch`` itself where nothing is asked for.

    Args:
        batch: normalised inputs; the padding of a crop is 0 here, the mean colour.
        index: (N,) positions in the training split.
        total: samples in the training split.
        config: what to do.
        seed: of the run.
        epoch: counted from 0.
    """
    if not config.crop and not config.flip:
        return batch
    shifts, flips = _draws(seed, epoch, total, config.crop)
    height, width = batch.shape[2:]
    if config.crop:
        pad = config.crop
        padded = np.pad(batch, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = sliding_window_view(padded, (height, width), axis=(2, 3))
        top, left = shifts[index].T
        batch = windows[np.arange(len(batch)), :, top, left]
    if config.flip:
        batch = np.where(flips[index][:, None, None, None], batch[..., ::-1], batch)
    return batch


@lru_cache(maxsize=2)
def _draws(seed: int, epoch: int, total: int, crop: int) -> tuple[Int, NDArray[np.bool_]]:
    """For each sample of the epoch: (total, 2) offsets in 0..2 * crop, and (total,) whether to flip."""
    generator = np.random.default_rng([seed, epoch])
    flips = generator.random(total) < 0.5
    return generator.integers(0, 2 * crop + 1, size=(total, 2)), flips
