"""A folder of images, ``<train|val|test>/<class>/<image>``, read when needed. Torch-free."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgewise.errors import DataError
from edgewise.models.tasks.arrays import check_per_channel, spread
from edgewise.models.tasks.base import Float, Int, Task
from edgewise.models.tasks.config import ImageFolder

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Files:
    """A split on disk; ``ids`` are paths relative to ``root``, with forward slashes."""

    root: Path
    ids: tuple[str, ...]
    targets: Int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def read(self, index: Int) -> Float:
        """Normalised inputs (len(index), 3, size, size).

        Raises:
            DataError: a file is not a whole image.
        """
        out = np.empty((len(index), self.size, self.size, 3), np.float32)
        for row, place in enumerate(index):
            out[row] = _open(self.root / self.ids[place], self.size)
        out /= 255
        out -= np.asarray(self.mean, np.float32)
        out /= np.asarray(self.std, np.float32)
        return np.ascontiguousarray(out.transpose(0, 3, 1, 2))


def load_image_folder(config: ImageFolder) -> Task:
    """Classes are the folder names under ``train``, sorted; images are made RGB.

    Raises:
        DataError: a split or class folder is missing or empty, a link leads out of the folder, or ``val_size`` is set
            beside a val folder or leaves too few training images.
    """
    root = config.path
    if not root.is_dir():
        raise DataError("no such folder", where=str(root), hint="check the path; it is relative to the recipe")
    for name, values in (("mean", config.mean), ("std", config.std)):
        check_per_channel(name, values, 3, str(root))
    present = [name for name in ("train", "val", "test") if name != "val" or (root / name).is_dir()]
    if config.val_size and "val" in present:
        raise DataError("val_size is set, but there is a val folder", where=str(root), hint="leave val_size out")
    found = {name: list_images(root, name) for name in present}
    classes = tuple(sorted(found["train"]))
    splits: dict[str, Files] = {}
    for name, by_class in found.items():
        unknown = sorted(set(by_class) - set(classes))
        if unknown:
            raise DataError(
                f"classes that train does not have: {', '.join(unknown[:5])}",
                where=str(root / name),
                hint="rename them",
            )
        pairs = [(image, classes.index(label)) for label in sorted(by_class) for image in by_class[label]]
        ids = tuple(image for image, _ in pairs)
        targets = np.array([target for _, target in pairs], np.int64)
        splits[name] = Files(root, ids, targets, config.size, config.mean, config.std)
    if config.val_size:
        splits["train"], splits["val"] = _hold_out(splits["train"], config.val_size)
    return Task(root.resolve().name, classes, (3, config.size, config.size), splits, config.augment)


def _hold_out(train: Files, count: int) -> tuple[Files, Files]:
    """Training and validation images: the latter at fixed places, each class by its share."""
    total = len(train.ids)
    if count > total - 2:
        raise DataError(f"val_size {count} leaves too little of {total} training images", where=str(train.root))
    held_out = spread(train.targets, count)
    left, val = (
        replace(train, ids=tuple(train.ids[place] for place in places), targets=train.targets[places])
        for places in (np.setdiff1d(np.arange(total), held_out), held_out)
    )
    return left, val


def list_images(root: Path, split: str) -> dict[str, list[str]]:
    """Class -> sorted image paths relative to ``root``; hidden files and other kinds of files are passed over.

    Raises:
        DataError: the split or a class in it is empty, or a link leads out of ``root``.
    """
    inside = root.resolve()
    folder = root / split
    if not folder.is_dir():
        there = sorted(entry.name for entry in root.iterdir())
        raise DataError(f"no folder {split} in it, but: {', '.join(there[:8]) or 'nothing'}", where=str(root))
    _check_link(folder, inside)
    found: dict[str, list[str]] = {}
    for label in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        _check_link(label, inside)
        images = []
        for parent, folders, files in os.walk(label):
            for name in folders + files:
                path = Path(parent, name)
                _check_link(path, inside)
                if name in folders and path.is_symlink():
                    raise DataError("a linked folder inside a class", where=str(path), hint="put the images there")
            images += [Path(parent, name).relative_to(root).as_posix() for name in files if _is_image(name)]
        if not images:
            raise DataError("no image in this class", where=str(label), hint=f"kinds: {' '.join(sorted(SUFFIXES))}")
        found[label.name] = sorted(images)
    if not found:
        raise DataError("no class folders in it", where=str(folder), hint=f"expected {split}/<class>/<image>")
    return found


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _check_link(path: Path, inside: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(inside):
        raise DataError(
            f"a link that leads out of the folder, to {path.resolve()}", where=str(path), hint="copy the images instead"
        )


def _open(path: Path, size: int) -> Float:
    """(size, size, 3), 0..255: the short side resized to ``size``, then the centre."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Pillow warns of images so large that decoding them may exhaust the memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                rgb = image.convert("RGB")
    except Exception as cause:  # arbitrary bytes: decoders fail in many ways
        raise DataError(f"not a whole image: {cause}", where=str(path), hint="replace or remove this file") from cause
    scale = size / min(rgb.size)
    width, height = (max(size, round(side * scale)) for side in rgb.size)
    rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(rgb.crop((left, top, left + size, top + size)), np.float32)
