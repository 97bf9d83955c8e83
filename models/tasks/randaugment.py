"""RandAugment: ``ops`` of 14 operations on each image, drawn evenly with replacement, all of strength ``magnitude``.

Cubuk, Zoph, Shlens, Le, "RandAugment: Practical automated data augmentation with a reduced search space",
arXiv 1909.13719, section 3; the ranges are AutoAugment's (arXiv 1805.09501, table 6), magnitude 10 their end.

Where we differ: colour, contrast, brightness and sharpness move away from the image as it is, up or down by a coin,
where the authors go from 0.1 to 1.9 and so do nothing at magnitude 5 (torchvision does as we do); posterize keeps
8 bits at 0 and 4 at 10; and what geometry leaves empty gets the mean colour, as the padding of a crop does. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError
from edgewise.models.tasks.arrays import check_per_channel
from edgewise.models.tasks.base import Float, Int, PixelSplit, Split
from edgewise.models.tasks.config import RandAugment

if TYPE_CHECKING:
    from PIL.Image import Image

Scale = tuple[Float, Float]
Fill = int | tuple[int, ...]
# A kind of draws of its own, see augment.py.
OPERATIONS = 3
AUTOAUGMENT_SHIFT = 150 / 331  # of a side: AutoAugment moves by up to 150 of 331 pixels


def pixel_scale(split: Split, channels: int) -> Scale:
    """Mean and std (C or 1, 1, 1) with which inputs become pixels again, inputs * std + mean being in 0..1.

    Raises:
        DataError: the split does not offer them, or the images are neither grey nor RGB.
    """
    if channels not in (1, 3):
        raise DataError(
            f"RandAugment changes images of 1 or 3 channels, got {channels}",
            where="task.augment.randaugment",
            hint="leave randaugment out",
        )
    if not isinstance(split, PixelSplit):
        raise DataError(
            f"RandAugment works on pixels, but {type(split).__name__} does not say how its inputs become pixels",
            where="task.augment.randaugment",
            hint="give the split mean and std, inputs being (pixels / 255 - mean) / std; or leave randaugment out",
        )
    mean, std = tuple(split.mean), tuple(split.std)
    for name, values in (("mean", mean), ("std", std)):
        check_per_channel(name, values, channels, "task.augment.randaugment")
    return np.asarray(mean, np.float32).reshape(-1, 1, 1), np.asarray(std, np.float32).reshape(-1, 1, 1)


def randaugment(
    batch: Float, index: Int, total: int, config: RandAugment, scale: Scale, seed: int, number: int
) -> Float:
    """A changed copy of the normalised ``batch`` (N, C, H, W), rounded to 8 bits a pixel on the way.

    Args:
        batch: inputs as the split reads them.
        index: (N,) positions in the split.
        total: samples in the split.
        config: how many operations, how strong.
        scale: see ``pixel_scale``.
        seed: of the run.
        number: of the view.
    """
    from PIL import Image

    mean, std = scale
    pixels = np.clip(np.rint((batch * std + mean) * 255), 0, 255).astype(np.uint8)
    colour = np.clip(np.rint(np.broadcast_to(mean.ravel(), batch.shape[1]) * 255), 0, 255).astype(int).tolist()
    grey = batch.shape[1] == 1
    fill: Fill = colour[0] if grey else tuple(colour)
    chosen, signs = _draws(seed, number, total, config.ops)
    out = np.empty(pixels.shape, np.uint8)
    strength = config.magnitude / 10
    for row, place in enumerate(index):
        image = Image.fromarray(pixels[row, 0] if grey else np.ascontiguousarray(pixels[row].transpose(1, 2, 0)))
        for operation, sign in zip(chosen[place].tolist(), signs[place].tolist(), strict=True):
            image = CHOICES[operation](image, strength * sign, fill)
        changed = np.asarray(image)
        out[row] = changed if grey else changed.transpose(2, 0, 1)
    scaled: Float = out.astype(np.float32) / np.float32(255)
    return (scaled - mean) / std


def _identity(image: Image, level: float, fill: Fill) -> Image:
    return image


def _autocontrast(image: Image, level: float, fill: Fill) -> Image:
    from PIL import ImageOps

    return ImageOps.autocontrast(image)


def _equalize(image: Image, level: float, fill: Fill) -> Image:
    from PIL import ImageOps

    return ImageOps.equalize(image)


def _rotate(image: Image, level: float, fill: Fill) -> Image:
    return image.rotate(30 * level, fillcolor=fill)


def _solarize(image: Image, level: float, fill: Fill) -> Image:
    from PIL import ImageOps

    return ImageOps.solarize(image, round(256 * (1 - abs(level))))


def _posterize(image: Image, level: float, fill: Fill) -> Image:
    from PIL import ImageOps

    return ImageOps.posterize(image, 8 - round(4 * abs(level)))


def _color(image: Image, level: float, fill: Fill) -> Image:
    from PIL import ImageEnhance

    return ImageEnhance.Color(image).enhance(1 + 0.9 * level)


def _contrast(image: Image, level: float, fill: Fill) -> Image:
    from PIL import ImageEnhance

    return ImageEnhance.Contrast(image).enhance(1 + 0.9 * level)


def _brightness(image: Image, level: float, fill: Fill) -> Image:
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(image).enhance(1 + 0.9 * level)


def _sharpness(image: Image, level: float, fill: Fill) -> Image:
    from PIL import ImageEnhance

    return ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level)


def _shear_x(image: Image, level: float, fill: Fill) -> Image:
    return _affine(image, (1, 0.3 * level, 0, 0, 1, 0), fill)


def _shear_y(image: Image, level: float, fill: Fill) -> Image:
    return _affine(image, (1, 0, 0, 0.3 * level, 1, 0), fill)


def _translate_x(image: Image, level: float, fill: Fill) -> Image:
    return _affine(image, (1, 0, AUTOAUGMENT_SHIFT * level * image.width, 0, 1, 0), fill)


def _translate_y(image: Image, level: float, fill: Fill) -> Image:
    return _affine(image, (1, 0, 0, 0, 1, AUTOAUGMENT_SHIFT * level * image.height), fill)


def _affine(image: Image, matrix: tuple[float, ...], fill: Fill) -> Image:
    from PIL import Image as Images

    return image.transform(image.size, Images.Transform.AFFINE, matrix, fillcolor=fill)


Operation = Callable[["Image", float, Fill], "Image"]
# A level is the strength 0..1 with a sign, which operations without a direction leave out.
BY_NAME: dict[str, Operation] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _color,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
CHOICES = tuple(BY_NAME.values())


@lru_cache(maxsize=2)
def _draws(seed: int, number: int, total: int, ops: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """For each sample of the view, both (total, ops): which operations, and their signs, -1 or 1."""
    generator = np.random.default_rng([seed, number, OPERATIONS])
    chosen = generator.integers(0, len(CHOICES), (total, ops), np.int8)
    signs = 2 * generator.integers(0, 2, (total, ops), np.int8) - 1
    return chosen, signs.astype(np.int8)
