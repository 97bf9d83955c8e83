"""Images in one ``.npz``: raw uint8 arrays, or packed JPEG decoded once. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError
from edgewise.models.tasks.base import Float, Int, Split, Task
from edgewise.models.tasks.config import Arrays

Bytes = NDArray[np.uint8]
SLICE = "slice_"  # before the name of what kind each test image is of


@dataclass(frozen=True)
class Pixels:
    """A split in memory: ``pixels`` (N, C, H, W) uint8; ``read`` gives (pixels / white - mean) / std."""

    ids: tuple[str, ...]
    targets: Int
    pixels: Bytes
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: int = 255

    def read(self, index: Int) -> Float:
        """Normalised inputs (len(index), C, H, W)."""
        mean = np.asarray(self.mean, np.float32).reshape(-1, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(-1, 1, 1)
        images = self.pixels[index].astype(np.float32)
        images *= 1 / (self.white * std)
        images -= mean / std
        return images


@dataclass(frozen=True)
class _Packed:
    """One split in the file, nothing decoded yet. ``pixels`` is (N, C, H, W), or None for JPEG."""

    targets: Int
    pixels: Bytes | None
    jpeg: Bytes
    ends: Int

    def take(self, index: Int, where: str) -> Bytes:
        """(len(index), C, H, W)."""
        if self.pixels is not None:
            return np.ascontiguousarray(self.pixels[index])
        return _decode(self.jpeg, self.ends, index, where)


def load_arrays(config: Arrays) -> Task:
    """Keys ``x_<split> y_<split>``, or ``jpeg_<split> length_<split> y_<split>``, for train, test and perhaps val;
    ``class_names`` and ``slice_<name>``, a word or number a test image, if there.

    Raises:
        DataError: the file or a key is missing, or what is in it can't be used.
    """
    where = str(config.path)
    packed, class_names, slices = _read(config.path)
    if config.val_size and "val" in packed:
        raise DataError("val_size is set, but the file has its own val split", where=where, hint="leave val_size out")
    classes = class_names or tuple(map(str, range(int(packed["train"].targets.max()) + 1)))
    _check_labels(packed, classes, bool(class_names), where)
    parts = _choose(config, packed, where)

    splits: dict[str, Split] = {}
    shape: tuple[int, ...] = ()
    for name, (source, index) in parts.items():
        pixels = packed[source].take(index, f"{where} ({source})")
        shape = shape or pixels.shape[1:]
        if pixels.shape[1:] != shape:
            raise DataError(f"{name} images are {pixels.shape[1:]}, train images are {shape} (C, H, W)", where=where)
        _check_normalisation(config, shape[0], where)
        ids = tuple(f"{source}-{place:05d}" for place in index)
        splits[name] = Pixels(ids, packed[source].targets[index], pixels, config.mean, config.std)
    channels, height, width = shape
    kinds = {name: tuple(map(str, values[parts["test"][1]])) for name, values in slices.items()}
    return Task(config.path.stem, classes, (channels, height, width), splits, config.augment, slices=kinds)


def spread(targets: NDArray[Any], count: int) -> Int:
    """``count`` fixed positions of ``targets`` (N,), evenly spaced when sorted by class: each class keeps its share.

    Positions evenly spaced in the file's own order would all be one class where labels repeat with the same period.
    """
    by_class = np.argsort(targets, kind="stable")
    places = (2 * np.arange(count, dtype=np.int64) + 1) * len(targets) // (2 * count)
    return np.sort(by_class[places])


def _read(path: Path) -> tuple[dict[str, _Packed], tuple[str, ...], dict[str, NDArray[Any]]]:
    where = str(path)
    try:
        # Opened here, because numpy leaves a file open where it is not a whole archive.
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError("expected a .npz archive, got a single array", where=where)
            keys = list(file.files)
            splits = {name: _split(file, keys, name, where) for name in ("train", "test")}
            if any(key in keys for key in ("x_val", "jpeg_val")):
                splits["val"] = _split(file, keys, "val", where)
            names = tuple(map(str, file["class_names"])) if "class_names" in keys else ()
            slices = {key.removeprefix(SLICE): file[key] for key in keys if key.startswith(SLICE)}
    except FileNotFoundError:
        raise DataError("no such file", where=where, hint="check the path; it is relative to the recipe") from None
    except DataError:
        raise
    except Exception as cause:  # arbitrary bytes: zip, zlib and numpy fail in many ways
        # numpy says so where an array of Python objects, that is a pickle, would have to be read
        what = "holds Python objects, which are not read" if "allow_pickle" in str(cause) else f"can't be read: {cause}"
        raise DataError(
            what, where=where, hint="write it with numpy.savez(path, x_train=…, y_train=…), arrays of uint8"
        ) from cause
    for name, values in slices.items():
        if values.shape != splits["test"].targets.shape or values.dtype.kind not in "iuU":
            raise DataError(
                f"{SLICE}{name}: expected a word or a whole number for each of {len(splits['test'].targets)} test "
                f"images, got {values.shape} of {values.dtype}",
                where=where,
            )
    return splits, names, slices


def _split(file: Any, keys: list[str], name: str, where: str) -> _Packed:
    jpeg = f"jpeg_{name}" in keys
    wanted = [f"jpeg_{name}", f"length_{name}"] if jpeg else [f"x_{name}"]
    absent = [key for key in [*wanted, f"y_{name}"] if key not in keys]
    if absent:
        raise DataError(
            f"no {' and no '.join(absent)} in the file, which has: {', '.join(keys) or 'nothing'}",
            where=where,
            hint=f"give x_{name} and y_{name}, or jpeg_{name}, length_{name} and y_{name}",
        )
    where = f"{where} ({name})"
    targets = _labels(file[f"y_{name}"], where)
    if not len(targets):
        raise DataError("the split is empty", where=where)
    if jpeg:
        data, lengths = file[f"jpeg_{name}"], file[f"length_{name}"]
        _check_jpeg(data, lengths, where)
        packed = _Packed(targets, None, data, np.cumsum(lengths, dtype=np.int64))
        images = len(lengths)
    else:
        pixels = _to_nchw(file[f"x_{name}"], where)
        packed = _Packed(targets, pixels, np.zeros(0, np.uint8), np.zeros(0, np.int64))
        images = len(pixels)
    if images != len(targets):
        raise DataError(f"{images} images, but {len(targets)} labels", where=where)
    return packed


def _labels(labels: NDArray[Any], where: str) -> Int:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # as Keras ships CIFAR
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"expected labels (N,) of whole numbers, got {labels.shape} of {labels.dtype}",
            where=where,
            hint="give class indices, not one-hot rows",
        )
    return labels.astype(np.int64)


def _to_nchw(images: NDArray[Any], where: str) -> Bytes:
    """(N, H, W), (N, H, W, C) or (N, C, H, W), with C 1 or 3 -> (N, C, H, W)."""
    if images.dtype != np.uint8:
        raise DataError(
            f"expected images of uint8 (0..255), got {images.dtype}",
            where=where,
            hint="store the pixels as they are; scaling and normalising is the task's work (mean, std)",
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4:
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if first == last:
            what = "both axis 1 and axis 3" if first else "neither axis 1 nor axis 3"
            raise DataError(
                f"{what} of {images.shape} could be channels (1 or 3), so the layout is not clear",
                where=where,
                hint="give (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels",
            )
        if last:
            images = images.transpose(0, 3, 1, 2)
    else:
        raise DataError(f"expected images (N, H, W), (N, H, W, C) or (N, C, H, W), got {images.shape}", where=where)
    if 0 in images.shape[1:]:
        raise DataError(f"images of no pixels: {images.shape} (N, C, H, W)", where=where)
    return images


def _check_jpeg(data: NDArray[Any], lengths: NDArray[Any], where: str) -> None:
    if data.ndim != 1 or data.dtype != np.uint8 or lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise DataError(
            f"expected JPEG bytes (B,) of uint8 and lengths (N,), got {data.shape} of {data.dtype} "
            f"and {lengths.shape} of {lengths.dtype}",
            where=where,
        )
    if (lengths < 1).any() or int(lengths.sum(dtype=np.int64)) != len(data):
        raise DataError(
            f"the lengths add up to {int(lengths.sum(dtype=np.int64))} bytes, but there are {len(data)}", where=where
        )


def _decode(data: Bytes, ends: Int, index: Int, where: str) -> Bytes:
    """Decode the chosen JPEGs, which must be of one size and mode, into (n, C, H, W)."""
    from PIL import Image

    out: Bytes | None = None
    starts = np.concatenate([[0], ends[:-1]])
    for row, place in enumerate(index):
        try:
            with Image.open(BytesIO(data[starts[place] : ends[place]].tobytes()), formats=("JPEG",)) as image:
                pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        except Exception as cause:  # arbitrary bytes: decoders fail in many ways
            raise DataError(f"image {place} is not a whole JPEG: {cause}", where=where) from cause
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if out is None:
            out = np.empty((len(index), *pixels.shape), np.uint8)
        if pixels.shape != out.shape[1:]:
            raise DataError(
                f"image {place} is {pixels.shape}, the ones before it are {out.shape[1:]} (H, W, C)", where=where
            )
        out[row] = pixels
    assert out is not None  # an empty split was refused before
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))


def _choose(config: Arrays, packed: dict[str, _Packed], where: str) -> dict[str, tuple[str, Int]]:
    """Split name -> (split in the file, positions there)."""
    everything = {name: np.arange(len(part.targets)) for name, part in packed.items()}
    train = everything["train"]
    targets = packed["train"].targets
    chosen = {}
    if config.val_size:
        if config.val_size > len(train) - 2:
            raise DataError(
                f"val_size {config.val_size} leaves too little of {len(train)} training samples", where=where
            )
        held_out = spread(targets, config.val_size)
        chosen["val"] = ("train", held_out)
        train = np.setdiff1d(train, held_out)
    elif "val" in packed:
        chosen["val"] = ("val", everything["val"])
    train = limited(train, targets, config.train_limit, "train_limit", where)
    test = limited(everything["test"], packed["test"].targets, config.test_limit, "test_limit", where)
    return {"train": ("train", train), **chosen, "test": ("test", test)}


def limited(places: Int, targets: NDArray[Any], limit: int | None, name: str, where: str) -> Int:
    """``limit`` of ``places``, each class by its share; all of them without a limit.

    Raises:
        DataError: there are fewer.
    """
    if limit is None:
        return places
    if limit > len(places):
        raise DataError(f"{name} is {limit}, but there are {len(places)} samples", where=where, hint="leave it out")
    return places[spread(targets[places], limit)]


def _check_labels(packed: dict[str, _Packed], classes: tuple[str, ...], named: bool, where: str) -> None:
    for name, part in packed.items():
        low, high = int(part.targets.min()), int(part.targets.max())
        if low < 0 or high >= len(classes):
            source = "class_names" if named else "the training labels"
            raise DataError(
                f"{name} has labels {low}..{high}, but {source} give {len(classes)} classes: 0..{len(classes) - 1}",
                where=where,
            )


def _check_normalisation(config: Arrays, channels: int, where: str) -> None:
    for name, values in (("mean", config.mean), ("std", config.std)):
        check_per_channel(name, values, channels, where)


def check_per_channel(name: str, values: Iterable[float], channels: int, where: str) -> None:
    """One finite value for all channels, or one for each; ``std`` above 0.

    Raises:
        DataError: otherwise.
    """
    values = tuple(values)
    if len(values) not in (1, channels):
        raise DataError(f"{name} has {len(values)} values, but the images have {channels} channels", where=where)
    if not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
        what = "finite and above 0" if name == "std" else "finite"
        raise DataError(f"{name} must be {what}, got {', '.join(map(str, values))}", where=where)
