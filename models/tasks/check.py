"""Whether a task is one: what training, pairing and scoring rely on. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError
from edgewise.models import inputs
from edgewise.models.tasks.base import IGNORED, UNLABELLED, DrawnSplit, Split, Task, TextSplit
from edgewise.models.tasks.randaugment import pixel_scale

BESIDE = {"inputs.npy", "targets.npy", "calibration.npy", "samples.json", "card.json", "artifact.json"}


def check_task(task: Task, where: str) -> None:
    """Whether training, pairing and scoring can rely on the task; one sample of each split is read.

    Raises:
        DataError: the first thing that is wrong.
    """
    for name in ("train", "test"):
        if name not in task.splits:
            raise DataError(f"no {name} split, but: {', '.join(task.splits) or 'none'}", where=where)
    if len(task.input_shape) not in (2, 3) or min(task.input_shape) < 1:
        raise DataError(
            f"the input shape must be (C, H, W), or (L, V) of texts, all at least 1, got {task.input_shape}",
            where=where,
        )
    if task.kind == "tag" and not inputs.is_text(task.input_shape):
        raise DataError("only tokens of texts can be tagged", where=where)
    if task.kind == "regress" and len(task.classes) != 1:
        raise DataError(f"a task that regresses has one name in classes, got {list(task.classes)}", where=where)
    if task.kind != "regress" and len(task.classes) < 2:
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
    for name, path in task.carried.items():
        if Path(name).name != name or not path.is_file():
            raise DataError(f"expected a file to carry, under a plain name, got {name!r}: {path}", where=where)
        if name in BESIDE or name.startswith("model."):
            raise DataError(f"{name!r} is the name of a file that is written beside it", where=where)
    drawn = all(isinstance(split, DrawnSplit) for split in task.splits.values())
    if task.augment.draws and inputs.is_text(task.input_shape) and not drawn:
        raise DataError("augment changes pixels, and these are texts", where=where, hint="leave it out")
    if task.augment.randaugment is not None:
        pixel_scale(task.splits["train"], task.input_shape[0])


def _check_split(split: Split, task: Task, where: str) -> None:
    targets, ids = split.targets, split.ids
    if not len(targets):
        raise DataError("the split is empty", where=where)
    if len(ids) != len(targets):
        raise DataError(f"{len(ids)} ids, but {len(targets)} targets", where=where)
    if len(set(ids)) != len(ids):
        raise DataError("two samples have the same id", where=where, hint="ids pair two models' answers")
    unlabelled = split is task.splits.get("transfer")
    if task.kind == "regress":
        _check_numbers(targets, unlabelled, where)
    else:
        _check_classes(targets, task, unlabelled, where)
    sample, shape = split.read(np.zeros(1, np.int64)), task.input_shape
    expected = (1, shape[0]) if inputs.is_text(shape) else (1, *shape)
    if sample.shape != expected or sample.dtype != inputs.dtype_of(shape):
        raise DataError(
            f"read gave {sample.shape} of {sample.dtype} for one sample, "
            f"expected {expected} of {inputs.dtype_of(shape)}: {inputs.dims_in_words(shape)}",
            where=where,
        )
    if inputs.is_text(shape):
        _check_tokens(split, task, where)
    elif not np.isfinite(sample).all():
        raise DataError(f"NaN or infinity in the sample {ids[0]}", where=where)


def _check_classes(targets: NDArray[Any], task: Task, unlabelled: bool, where: str) -> None:
    shape = ("N", task.input_shape[0]) if task.kind == "tag" else ("N",)
    if targets.ndim != len(shape) or targets.shape[1:] != shape[1:] or targets.dtype.kind not in "iu":
        raise DataError(
            f"expected targets ({', '.join(map(str, shape))}{',' * (len(shape) == 1)}) of whole numbers, "
            f"got {targets.shape} of {targets.dtype}",
            where=where,
        )
    nothing = [IGNORED] * (task.kind == "tag") + [UNLABELLED] * unlabelled
    known = targets[~np.isin(targets, nothing)]
    if not known.size:
        if unlabelled:
            return
        raise DataError("no word has a tag", where=where)
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= len(task.classes):
        raise DataError(f"labels {low}..{high}, but there are {len(task.classes)} classes", where=where)
    if low == high and not unlabelled:
        what = "word" if task.kind == "tag" else "sample"
        raise DataError(
            f"every {what} is of the class {task.classes[low]}", where=where, hint="at least two classes are needed"
        )


def _check_numbers(targets: NDArray[Any], unlabelled: bool, where: str) -> None:
    if targets.ndim != 1 or targets.dtype != np.float32:
        raise DataError(f"expected targets (N,) of float32, got {targets.shape} of {targets.dtype}", where=where)
    if not unlabelled and not np.isfinite(targets).all():
        raise DataError("NaN or infinity among the targets", where=where)


def _check_tokens(split: Split, task: Task, where: str) -> None:
    """A text split is one, and as long and as rich in tokens as it says."""
    if not isinstance(split, TextSplit):
        raise DataError(
            f"{type(split).__name__} is no split of texts: padding, vocabulary, lengths and encoded are needed",
            where=where,
            hint="see edgewise.models.tasks.base.TextSplit",
        )
    longest, size = task.input_shape
    if split.vocabulary != size:
        raise DataError(f"{split.vocabulary} token ids, but the task's inputs have {size}", where=where)
    if not 0 <= split.padding < size:
        raise DataError(f"the padding id is {split.padding}, but there are {size} ids", where=where)
    lengths = split.lengths
    if lengths.shape != (len(split.ids),) or lengths.min() < 1 or lengths.max() > longest:
        raise DataError(
            f"expected a length in 1..{longest} for each of {len(split.ids)} samples, got {lengths.shape}, "
            f"from {lengths.min()} to {lengths.max()}",
            where=where,
        )
    # first, last and longest: all would be the whole task
    for place in {0, len(lengths) - 1, int(lengths.argmax())}:
        tokens = split.read(np.array([place]))[0]
        if tokens.min() < 0 or tokens.max() >= size:
            raise DataError(
                f"token ids from {tokens.min()} to {tokens.max()} in the sample {split.ids[place]}, but the vocabulary "
                f"has {size}",
                where=where,
                hint="a tokenizer that does not fit?",
            )
        if (tokens[lengths[place] :] != split.padding).any():
            raise DataError(f"tokens after the end of the sample {split.ids[place]}", where=where)
