"""scikit-learn's digits: 1,797 images of 8x8 pixels, inside the library, so no download. Torch-free."""

from __future__ import annotations

import numpy as np

from edgewise.models.tasks.arrays import Pixels
from edgewise.models.tasks.base import Task
from edgewise.models.tasks.config import Digits

PERIOD = ("test", "train", "train", "test", "train", "val", "train", "train", "test")
"""Which split the k-th image of a class goes to, k modulo 9: a third to test, a ninth to val. No random numbers."""


def load_digits(config: Digits) -> Task:
    """Input (1, 8, 8), pixels 0..16 -> -1..1; about 1,000 train, 200 val and 600 test images, alike in classes."""
    from sklearn.datasets import load_digits as sklearn_digits

    data = sklearn_digits()
    targets = data.target.astype(np.int64)
    pixels = data.images.astype(np.uint8)[:, None]
    occurrence = np.empty(len(targets), np.int64)
    for digit in range(10):
        places = np.flatnonzero(targets == digit)
        occurrence[places] = np.arange(len(places))
    names = np.array(PERIOD)[occurrence % len(PERIOD)]
    splits = {}
    for name in ("train", "val", "test"):
        places = np.flatnonzero(names == name)
        ids = tuple(f"digits-{place:04d}" for place in places)
        splits[name] = Pixels(ids, targets[places], pixels[places], mean=(0.5,), std=(0.5,), white=16)
    return Task("digits", tuple(map(str, range(10))), (1, 8, 8), splits, config.augment)
