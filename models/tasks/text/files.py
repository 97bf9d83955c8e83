"""Sentences or pairs of them from TSV and CSV files. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError
from edgewise.models.tasks.arrays import limited, spread
from edgewise.models.tasks.base import UNLABELLED, Int, Task
from edgewise.models.tasks.config import MaskedText, MaskWords, ReplaceWords, TaggedFiles, TextFiles, Words
from edgewise.models.tasks.text import metrics
from edgewise.models.tasks.text.copies import make_copies
from edgewise.models.tasks.text.rows import Rows, read_rows
from edgewise.models.tasks.text.split import Texts, make_texts
from edgewise.models.tasks.text.tokenizer import FILE, Tokenizer, read_tokenizer


def load_text_files(config: TextFiles) -> Task:
    """Splits train, test and perhaps val and transfer; ids are ``<split>-<row>``, rows counted from 0.

    Raises:
        DataError: a file or column is missing, a text is empty, a label is not among the classes, or the tokenizer
            can't be used.
        RuntimeMissing: the extra ``text`` is not installed.
    """
    tokenizer = read_tokenizer(config.tokenizer)
    pair = not isinstance(config.text, str)
    check_room(tokenizer, config.max_length, pair=pair)
    paths = files_of(config)
    rows = {name: read_rows(path, _text_alone(name, config)) for name, path in paths.items()}
    texts = {name: _texts(read, config.text) for name, read in rows.items()}
    targets: dict[str, NDArray[Any]]
    if config.regress:
        classes: tuple[str, ...] = (config.label,)
        targets = {name: _numbers(read, config.label, name) for name, read in rows.items()}
    else:
        classes = _classes(rows["train"], config)
        targets = {name: _places(read, config.label, classes, name) for name, read in rows.items()}
    splits: dict[str, Texts] = {}
    notes: list[str] = []
    for name, (source, index) in chosen(config, targets, {name: str(path) for name, path in paths.items()}).items():
        ids = [f"{source}-{row:05d}" for row in index]
        kept = [texts[source][row] for row in index]
        split = make_texts(tokenizer, ids, targets[source][index], kept, config.max_length)
        notes += told_of(name, split, tokenizer, pair=pair, where=[rows[source].where(row) for row in index])
        splits[name] = split
    unseen = [] if config.regress else [name for place, name in enumerate(classes) if place not in targets["train"]]
    if unseen:
        notes.append(f"train: no text has the label {', '.join(unseen)}; remove it from task.labels, or add texts")
    if config.augment is not None:
        base = splits.get("transfer", splits["train"])
        splits["transfer"], told = _with_copies(base, config.augment, tokenizer)
        notes.append(told)
    shape = (config.max_length, tokenizer.size)
    carried = {FILE: tokenizer.path}
    label = config.train.resolve().parent.name
    if not config.regress:
        others = metrics.for_classes(len(classes))
        return Task(label, classes, shape, splits, metric="accuracy", others=others, notes=notes, carried=carried)
    low, high = float(targets["train"].min()), float(targets["train"].max())
    if low == high:
        raise DataError(f"every label is {low:g}", where=f"{config.train} ({config.label})")
    return Task(
        label,
        classes,
        shape,
        splits,
        metric="closeness",
        score=metrics.closeness(low, high),
        kind="regress",
        others=metrics.for_numbers(),
        notes=notes,
        carried=carried,
    )


def files_of(config: TextFiles | TaggedFiles | MaskedText) -> dict[str, Path]:
    """The file of each split."""
    transfer = None if isinstance(config, MaskedText) else config.transfer
    named = {"train": config.train, "val": config.val, "test": config.test, "transfer": transfer}
    return {name: path for name, path in named.items() if path is not None}


def check_room(tokenizer: Tokenizer, longest: int, *, pair: bool) -> None:
    """Whether ``longest`` tokens hold more than the special ones.

    Raises:
        DataError: they don't.
    """
    least = tokenizer.added(pair) + 1 + pair
    if longest < least:
        raise DataError(
            f"max_length is {longest}, but special tokens alone take {tokenizer.added(pair)}",
            where="task.max_length",
            hint=f"set it to {least} or more",
        )


def chosen(config: Words, targets: dict[str, NDArray[Any]], where: dict[str, str]) -> dict[str, tuple[str, Int]]:
    """Split name -> (file it is of, rows there), as ``val_size`` and the limits ask.

    Raises:
        DataError: they ask for more than there is.
    """
    everything = {name: np.arange(len(values)) for name, values in targets.items()}
    if config.val_size:
        if "val" in targets:
            raise DataError(
                "val_size is set, but there is a val file", where=where["val"], hint="leave one of them out"
            )
        total = len(everything["train"])
        if config.val_size > total - 2:
            raise DataError(
                f"val_size {config.val_size} leaves too little of {total} training samples", where=where["train"]
            )
    parts = {name: (name, rows) for name, rows in everything.items()}
    if config.val_size:
        held_out = spread(targets["train"], config.val_size)
        parts["val"] = ("train", held_out)
        parts["train"] = ("train", np.setdiff1d(everything["train"], held_out))
    for name, limit in (("train", config.train_limit), ("test", config.test_limit)):
        rows = limited(parts[name][1], targets[name], limit, f"{name}_limit", where[name])
        parts[name] = (name, rows)
    limit = getattr(config, "transfer_limit", None)
    if limit is not None:
        rows = parts["transfer"][1] if "transfer" in parts else everything["train"][:0]
        if limit > len(rows):
            raise DataError(
                f"transfer_limit is {limit}, but there are {len(rows)} transfer texts",
                where="task.transfer_limit",
                hint="leave it out",
            )
        parts["transfer"] = ("transfer", rows[np.arange(limit) * len(rows) // limit])
    return parts


def told_of(name: str, split: Texts, tokenizer: Tokenizer, *, pair: bool, where: Sequence[str]) -> list[str]:
    """What the user should know of a split: texts that were cut, and texts the tokenizer knows nothing of.

    Raises:
        DataError: no token is left of a text.
    """
    pieces, notes = split.pieces, []
    own = pieces.lengths - tokenizer.added(pair)
    nothing = np.flatnonzero(own < 1)
    if len(nothing):
        raise DataError(
            "the tokenizer leaves nothing of the text",
            where=where[nothing[0]],
            hint="it has only characters that are dropped; remove the line",
        )
    cut = pieces.cut
    if cut.any():
        notes.append(
            f"{name}: {int(cut.sum())} of {len(cut)} texts are longer than max_length {split.longest} and lose their "
            f"end, the first at {where[int(np.argmax(cut))]}"
        )
    if tokenizer.unknown is not None:
        unknown = np.add.reduceat(pieces.flat == tokenizer.unknown, pieces.starts, dtype=np.int64)
        if (unknown == own).any():
            every = unknown == own
            notes.append(
                f"{name}: of {int(every.sum())} of {len(every)} texts the tokenizer knows no piece, the first at "
                f"{where[int(np.argmax(every))]}"
            )
        share = unknown.sum() / own.sum()
        if share > 0.01:
            notes.append(
                f"{name}: {share:.1%} of all pieces are unknown to the tokenizer: was it made for this language?"
            )
    return notes


def _with_copies(base: Texts, config: ReplaceWords | MaskWords, tokenizer: Tokenizer) -> tuple[Texts, str]:
    """``base`` and new texts made of it, and a line about them; ids are ``<id of the old text>~<number>``."""
    rows = np.array([int(name.rpartition("-")[2]) for name in base.ids])
    made, sources = make_copies(base.texts, rows, config, tokenizer)
    ids = [f"{base.ids[place]}~{number}" for place, number in sources]
    none = np.full(len(made), np.nan if base.targets.dtype.kind == "f" else UNLABELLED, base.targets.dtype)
    split = make_texts(
        tokenizer, [*base.ids, *ids], np.concatenate([base.targets, none]), [*base.texts, *made], base.longest
    )
    alike = len(base.ids) * config.copies - len(made)
    return split, f"transfer: {len(base.ids)} texts and {len(made)} made of them; {alike} were made twice and left out"


def _text_alone(name: str, config: TextFiles) -> str | None:
    return config.text if name == "transfer" and isinstance(config.text, str) else None


def _texts(rows: Rows, columns: str | tuple[str, str]) -> Sequence[Any]:
    """Strings or pairs of strings, none of them empty."""
    names = (columns,) if isinstance(columns, str) else columns
    cells = [rows.column(name) for name in names]
    for name, column in zip(names, cells, strict=True):
        for row, text in enumerate(column):
            if not text.strip():
                what = "the text is empty" if len(names) == 1 else f"a pair needs two texts, and {name!r} is empty"
                raise DataError(what, where=rows.where(row), hint="remove the line, or fill it")
    return cells[0] if isinstance(columns, str) else list(zip(*cells, strict=True))


def _classes(train: Rows, config: TextFiles) -> tuple[str, ...]:
    if config.labels is not None:
        classes = tuple(map(str, config.labels))
        if len(set(classes)) != len(classes):
            raise DataError("two classes have the same name", where="task.labels")
    else:
        words = {word.strip() for word in train.column(config.label)} - {""}
        numbers = all(word.isascii() and word.isdigit() for word in words)
        classes = tuple(sorted(words, key=(lambda word: (int(word), word)) if numbers else None))
        if len(classes) > max(2, len(train.lines) // 2):
            raise DataError(
                f"{len(classes)} different labels on {len(train.lines)} lines",
                where=f"{train.path} ({config.label})",
                hint="is this the label's column? with regress: true labels are numbers to come close to",
            )
    if len(classes) < 2:
        raise DataError(f"expected at least 2 classes, got {list(classes)}", where=f"{train.path} ({config.label})")
    return classes


def _places(rows: Rows, label: str, classes: tuple[str, ...], split: str) -> Int:
    """(N,) class of each row, named by its name or, where names are words, by its number."""
    if split == "transfer" and label not in rows.columns:
        return np.full(len(rows.lines), UNLABELLED, np.int64)
    place = {str(number): number for number in range(len(classes))}
    if any(name.isdigit() for name in classes):
        place = {}
    place |= {name: number for number, name in enumerate(classes)}
    if split == "transfer":
        place[""] = UNLABELLED
    found = np.empty(len(rows.lines), np.int64)
    for row, word in enumerate(rows.column(label)):
        number = place.get(word.strip())
        if number is None:
            some = ", ".join(classes[:8]) + (", …" if len(classes) > 8 else "")
            raise DataError(
                f"the label {word!r} is not among the classes: {some}" if word.strip() else "the label is empty",
                where=rows.where(row),
                hint="correct it, or list every class in task.labels",
            )
        found[row] = number
    return found


def _numbers(rows: Rows, label: str, split: str) -> NDArray[np.float32]:
    if split == "transfer" and label not in rows.columns:
        return np.full(len(rows.lines), np.nan, np.float32)
    found = np.empty(len(rows.lines), np.float32)
    for row, word in enumerate(rows.column(label)):
        if split == "transfer" and not word.strip():
            found[row] = np.nan
            continue
        try:
            found[row] = float(word)
        except ValueError:
            found[row] = np.nan
        if not math.isfinite(found[row]):
            raise DataError(
                f"expected a number, got {word!r}", where=rows.where(row), hint="without regress, labels are classes"
            )
    return found
