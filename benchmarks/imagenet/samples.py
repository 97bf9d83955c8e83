"""The labelled ImageNet samples as a task: 1000 images, one a class, 224x224.

They are most likely training images: they tell how far a file falls under its float parent, not how good a net is.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgewise.models.tasks import Task

# (mean, std) of pixels scaled to 0..1; Caffe's nets take 0..255 minus a mean, TensorFlow's -1..1.
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "torchvision": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": ((123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3),
    "tensorflow": ((0.5,) * 3, (0.5,) * 3),
}
SHAPE = (3, 224, 224)


@dataclass(frozen=True)
class Images:
    """JPEGs of one split; ``read`` decodes and normalises, in RGB."""

    ids: tuple[str, ...]
    targets: NDArray[np.int64]
    jpegs: tuple[bytes, ...]
    mean: Sequence[float]
    std: Sequence[float]

    def read(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """(len(index), 3, 224, 224) float32."""
        out = np.empty((len(index), *SHAPE), np.float32)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        for place, number in enumerate(index):
            with Image.open(io.BytesIO(self.jpegs[number])) as image:
                pixels = np.asarray(image.convert("RGB"), np.float32) / 255
            out[place] = ((pixels - mean) / std).transpose(2, 0, 1)
        return out


def imagenet(path: str, normalisation: str = "torchvision", calibration: int = 128, limit: int = 1000) -> Task:
    """``train`` holds the images for calibration, spread over all; ``test`` holds ``limit`` images, those among them.

    Args:
        path: the archive: ``jpeg`` (all files behind each other), ``length``, ``label``, ``name``.
        normalisation: torchvision, caffe or tensorflow, as the net was trained.
        calibration: images for calibration.
        limit: test images, spread over all.
    """
    mean, std = NORMALISATION[normalisation]
    with np.load(Path(path), allow_pickle=False) as file:
        data, ends, labels = file["jpeg"], np.cumsum(file["length"]), file["label"].astype(np.int64)
        classes = tuple(f"{number} {name}" for number, name in enumerate(file["name"]))
    jpegs = tuple(data[start:end].tobytes() for start, end in zip([0, *ends[:-1]], ends, strict=True))

    def split(count: int) -> Images:
        chosen = spread(len(labels), count)
        return Images(
            tuple(f"{number}" for number in chosen), labels[chosen], tuple(jpegs[n] for n in chosen), mean, std
        )

    return Task("imagenet-samples", classes, SHAPE, {"train": split(calibration), "test": split(limit)})


def spread(samples: int, count: int) -> NDArray[np.int64]:
    """``count`` different places, as even as can be."""
    return np.unique(np.linspace(0, samples - 1, min(count, samples)).round().astype(np.int64))


@dataclass(frozen=True)
class Noise:
    """Normal numbers, each sample from its own seed, with labels that alternate: for speed alone."""

    ids: tuple[str, ...]
    targets: NDArray[np.int64]
    shape: tuple[int, int, int]

    def read(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """(len(index), C, H, W) float32."""
        samples = [np.random.default_rng(int(n)).standard_normal(self.shape, dtype=np.float32) for n in index]
        return np.stack(samples)


def noise(shape: Sequence[int], classes: int = 2, samples: int = 64) -> Task:
    """A task without meaning, of any shape (C, H, W): for nets whose weights are random."""
    c, h, w = shape
    ids = tuple(f"noise-{number}" for number in range(samples))
    split = Noise(ids, np.arange(samples, dtype=np.int64) % classes, (c, h, w))
    return Task("noise", tuple(map(str, range(classes))), (c, h, w), {"train": split, "test": split})
