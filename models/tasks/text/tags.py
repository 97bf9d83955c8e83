"""Sentences whose words are tagged, from CoNLL files. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgewise.errors import DataError
from edgewise.models.tasks.base import UNLABELLED, Int, Task
from edgewise.models.tasks.config import TaggedFiles
from edgewise.models.tasks.text import metrics
from edgewise.models.tasks.text.files import check_room, chosen, files_of, told_of
from edgewise.models.tasks.text.rows import read_text
from edgewise.models.tasks.text.split import Texts, make_texts
from edgewise.models.tasks.text.tokenizer import FILE, read_tokenizer

START = "-DOCSTART-"


@dataclass(frozen=True)
class Sentences:
    """Of each sentence its words, its tags ("" where not known), and the line in ``path`` it starts at."""

    path: Path
    words: list[list[str]]
    tags: list[list[str]]
    lines: list[int]

    def where(self, row: int) -> str:
        """``file:line`` of a sentence."""
        return f"{self.path}:{self.lines[row]}"


def load_tagged_files(config: TaggedFiles) -> Task:
    """Splits train, test and perhaps val and transfer; ids are ``<split>-<sentence>``, sentences counted from 0.

    Raises:
        DataError: a file is missing or no CoNLL file, a tag is not among the classes, or the tokenizer can't be used.
        RuntimeMissing: the extra ``text`` is not installed.
    """
    tokenizer = read_tokenizer(config.tokenizer)
    check_room(tokenizer, config.max_length, pair=False)
    paths = files_of(config)
    read = {name: read_sentences(path, tagged=name != "transfer") for name, path in paths.items()}
    classes = config.labels or _classes(read["train"])
    if len(set(classes)) != len(classes):
        raise DataError("two tags have the same name", where="task.labels")
    tags = {name: _places(found, classes) for name, found in read.items()}
    # what val_size and the limits keep alike: the rarest thing a sentence has, more or less
    kinds = {name: np.array([int(row.max()) for row in rows]) for name, rows in tags.items()}
    splits: dict[str, Texts] = {}
    notes: list[str] = []
    for name, (source, index) in chosen(config, kinds, {name: str(path) for name, path in paths.items()}).items():
        found = read[source]
        words, own = [found.words[row] for row in index], [tags[source][row] for row in index]
        ids = [f"{source}-{row:05d}" for row in index]
        split = make_texts(tokenizer, ids, kinds[source][index], words, config.max_length, own)
        notes += told_of(name, split, tokenizer, pair=False, where=[found.where(row) for row in index])
        splits[name] = split
    return Task(
        config.train.resolve().parent.name,
        tuple(classes),
        (config.max_length, tokenizer.size),
        splits,
        metric="accuracy of words",
        score=metrics.words_right,
        kind="tag",
        others=metrics.for_tags(classes),
        notes=notes,
        carried={FILE: tokenizer.path},
    )


def read_sentences(path: Path, *, tagged: bool = True) -> Sentences:
    """A word a line, its tag in the last column, blank lines between sentences.

    Args:
        path: columns are separated by a tab, or where a line has none by spaces.
        tagged: a line of one column is a mistake; else it is a word without a tag.

    Raises:
        DataError: it can't be read, has no sentence, or a line without a tag.
    """
    found = Sentences(path, [], [], [])
    inside = False
    for number, line in enumerate(read_text(path).split("\n"), 1):
        cells = [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()
        if not any(cells) or cells[0] == START:
            inside = False
            continue
        if not cells[0]:
            raise DataError("a tag without a word", where=f"{path}:{number}")
        if tagged and (len(cells) < 2 or not cells[-1]):
            raise DataError(
                f"expected a word and its tag, got {line.strip()!r}",
                where=f"{path}:{number}",
                hint="the tag is the last column, after a tab or a space",
            )
        if not inside:
            found.words.append([])
            found.tags.append([])
            found.lines.append(number)
            inside = True
        found.words[-1].append(cells[0])
        found.tags[-1].append(cells[-1] if len(cells) > 1 else "")
    if not found.words:
        raise DataError("the file has no sentence", where=str(path))
    return found


def _classes(train: Sentences) -> tuple[str, ...]:
    tags = {tag for sentence in train.tags for tag in sentence}
    if len(tags) < 2:
        raise DataError(f"expected at least 2 tags, got {sorted(tags)}", where=str(train.path))
    return tuple(sorted(tags, key=lambda tag: (tag != "O", tag)))


def _places(found: Sentences, classes: tuple[str, ...]) -> list[Int]:
    """Of each sentence the classes of its words."""
    place = {name: number for number, name in enumerate(classes)} | {"": UNLABELLED}
    rows = []
    for row, sentence in enumerate(found.tags):
        for word, tag in enumerate(sentence):
            if tag not in place:
                some = ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "")
                raise DataError(
                    f"the tag {tag!r} of {found.words[row][word]!r} is not among the classes: {some}",
                    where=f"{found.path}:{found.lines[row] + word}",
                    hint="correct it, or list every tag in task.labels",
                )
        rows.append(np.array([place[tag] for tag in sentence], np.int64))
    return rows
