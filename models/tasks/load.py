"""A task from its config, checked at the door, and a fingerprint of its data. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import DataError, EdgewiseError
from edgewise.models import factory
from edgewise.models.tasks.arrays import load_arrays
from edgewise.models.tasks.base import Split, Task
from edgewise.models.tasks.config import Arrays, Digits, ImageFolder, TaskConfig, TaskFactory
from edgewise.models.tasks.digits import PERIOD, load_digits
from edgewise.models.tasks.image_folder import list_images, load_image_folder
from edgewise.models.tasks.randaugment import pixel_scale


def load_task(config: TaskConfig) -> Task:
    """The task with its splits, metric and preprocessing.

    Raises:
        DataError: the data is missing or can't be used: empty, of one class, misshapen, mislabelled.
    """
    task = LOADERS[type(config)](config)
    where = config.factory if isinstance(config, TaskFactory) else task.name
    check_task(task, where)
    return task


def check_task(task: Task, where: str) -> None:
    """Whether training, pairing and scoring can rely on the task; one sample of each split is read.

    Raises:
        DataError: the first thing that is wrong.
    """
    for name in ("train", "test"):
        if name not in task.splits:
            raise DataError(f"no {name} split, but: {', '.join(task.splits) or 'none'}", where=where)
    if len(task.input_shape) != 3 or min(task.input_shape) < 1:
        raise DataError(f"the input shape must be (C, H, W), all at least 1, got {task.input_shape}", where=where)
    if len(task.classes) < 2:
        raise DataError(f"expected at least 2 classes, got {list(task.classes)}", where=where)
    if len(set(task.classes)) != len(task.classes):
        raise DataError("two classes have the same name", where=where)
    for name, split in task.splits.items():
        _check_split(split, task, f"{where} ({name})")
    for name, words in task.slices.items():
        if name == "class" or len(words) != len(task.splits["test"].ids):
            have = f"{len(words)} words for {len(task.splits['test'].ids)} test samples"
            what = "the classes are always one" if name == "class" else have
            raise DataError(f"slices {name!r}: expected a word a test sample, under another name: {what}", where=where)
    if task.augment.randaugment is not None:
        pixel_scale(task.splits["train"], task.input_shape[0])


def fingerprint(config: TaskConfig) -> str:
    """SHA-256 over what the task's samples come from, quick and without loading them: the file of ``npz``; path, size
    and time of each image of a folder; source and arguments of a factory; scikit-learn's version for the digits.

    Raises:
        DataError: there is nothing to take it of.
    """
    return FINGERPRINTS[type(config)](config)


def from_factory(config: TaskFactory) -> Task:
    """What the user's factory returns."""
    task = factory.call(config.factory, error=DataError, arguments=dict(config.arguments))
    if not isinstance(task, Task):
        raise DataError(f"expected an edgewise.models.tasks.Task, got {type(task).__name__}", where=config.factory)
    return task


LOADERS: dict[type, Callable[[Any], Task]] = {
    Digits: load_digits,
    Arrays: load_arrays,
    ImageFolder: load_image_folder,
    TaskFactory: from_factory,
}


def _check_split(split: Split, task: Task, where: str) -> None:
    targets, ids = split.targets, split.ids
    if not len(targets):
        raise DataError("the split is empty", where=where)
    if len(ids) != len(targets):
        raise DataError(f"{len(ids)} ids, but {len(targets)} targets", where=where)
    if len(set(ids)) != len(ids):
        raise DataError("two samples have the same id", where=where, hint="ids pair two models' answers")
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise DataError(f"expected targets (N,) of whole numbers, got {targets.shape} of {targets.dtype}", where=where)
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= len(task.classes):
        raise DataError(f"labels {low}..{high}, but there are {len(task.classes)} classes", where=where)
    if low == high:
        raise DataError(
            f"every sample is of the class {task.classes[low]}", where=where, hint="at least two classes are needed"
        )
    sample = split.read(np.zeros(1, np.int64))
    if sample.shape != (1, *task.input_shape) or sample.dtype != np.float32:
        raise DataError(
            f"read gave {sample.shape} of {sample.dtype} for one sample, "
            f"expected {(1, *task.input_shape)} of float32 (N, C, H, W)",
            where=where,
        )
    if not np.isfinite(sample).all():
        raise DataError(f"NaN or infinity in the sample {ids[0]}", where=where)


def _of_digits(config: Digits) -> str:
    # asked of the metadata: importing scikit-learn takes longer than all the rest
    return _digest("digits", PERIOD, version("scikit-learn"))


def _of_arrays(config: Arrays) -> str:
    try:
        digest = hashlib.sha256()
        with config.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError as cause:
        raise DataError(f"can't be read: {cause.strerror or cause}", where=str(config.path)) from cause


def _of_images(config: ImageFolder) -> str:
    root: Path = config.path
    if not root.is_dir():
        raise DataError("no such folder", where=str(root))
    rows = []
    for split in ("train", "val", "test"):
        if split == "val" and not (root / split).is_dir():
            continue
        for images in list_images(root, split).values():
            for name in images:
                status = (root / name).stat()
                rows.append([name, status.st_size, status.st_mtime_ns])
    return _digest("image folder", rows)


def _of_factory(config: TaskFactory) -> str:
    try:
        source = factory.source_digest(config.factory)
    except EdgewiseError as cause:
        raise DataError(cause.message, where=cause.where, hint=cause.hint) from cause
    return _digest(config.factory, source, config.arguments)


FINGERPRINTS: dict[type, Callable[[Any], str]] = {
    Digits: _of_digits,
    Arrays: _of_arrays,
    ImageFolder: _of_images,
    TaskFactory: _of_factory,
}


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
