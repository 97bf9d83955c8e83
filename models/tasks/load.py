"""A task from its config, checked at the door, and a fingerprint of its data. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgewise.errors import DataError, EdgewiseError
from edgewise.models import factory
from edgewise.models.tasks.arrays import load_arrays
from edgewise.models.tasks.base import Task
from edgewise.models.tasks.check import check_task
from edgewise.models.tasks.config import (
    Arrays,
    Digits,
    ImageFolder,
    MaskedText,
    ReplaceWords,
    TaggedFiles,
    TaskConfig,
    TaskFactory,
    TextFiles,
    Words,
)
from edgewise.models.tasks.digits import PERIOD, load_digits
from edgewise.models.tasks.image_folder import list_images, load_image_folder
from edgewise.models.tasks.text.files import files_of, load_text_files
from edgewise.models.tasks.text.masked import load_masked_text
from edgewise.models.tasks.text.tags import load_tagged_files
from edgewise.models.tasks.text.tokenizer import file_of, unusual


def load_task(config: TaskConfig) -> Task:
    """The task with its splits, metric and preprocessing.

    Raises:
        DataError: the data is missing or can't be used: empty, of one class, misshapen, mislabelled.
    """
    task = LOADERS[type(config)](config)
    where = config.factory if isinstance(config, TaskFactory) else task.name
    check_task(task, where)
    return task


def fingerprint(config: TaskConfig) -> str:
    """SHA-256 over what the task's samples come from, quick and without loading them: the file of ``npz``; those of
    texts and their tokenizer; path, size and time of each image of a folder; source and arguments of a factory;
    scikit-learn's version for the digits.

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
    TextFiles: load_text_files,
    TaggedFiles: load_tagged_files,
    MaskedText: load_masked_text,
    TaskFactory: from_factory,
}


def _of_digits(config: Digits) -> str:
    # asked of the metadata: importing scikit-learn takes longer than all the rest
    return _digest("digits", PERIOD, version("scikit-learn"))


def _of_arrays(config: Arrays) -> str:
    return _of_file(config.path)


def _of_file(path: Path) -> str:
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError as cause:
        raise DataError(f"can't be read: {cause.strerror or cause}", where=str(path)) from cause


def _of_text(config: TextFiles | TaggedFiles | MaskedText) -> str:
    files = {name: [path.suffix.lower(), _of_file(path)] for name, path in files_of(config).items()}
    augment = config.augment if isinstance(config, TextFiles) else None
    table = _of_file(augment.embeddings) if isinstance(augment, ReplaceWords) else None
    return _digest("text", files, table, *_of_tokenizer(config))


def _of_tokenizer(config: Words) -> list[str]:
    """The tokenizer's file, the library that reads it, and what the files beside it call special tokens."""
    try:
        library = version("tokenizers")
    except PackageNotFoundError:
        library = "none"  # loading says how to get it
    named = unusual(config.tokenizer)
    return [_of_file(file_of(config.tokenizer)), library, *([json.dumps(named, sort_keys=True)] if named else [])]


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
    TextFiles: _of_text,
    TaggedFiles: _of_text,
    MaskedText: _of_text,
    TaskFactory: _of_factory,
}


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
