"""Masked words to guess, BERT's task (Devlin et al., arXiv 1810.04805, section 3.1), for pretraining and for
distilling a net before it knows a task, as DistilBERT does (Sanh et al., arXiv 1910.01108, section 2).

Masks are drawn anew for each view, as RoBERTa does (Liu et al., arXiv 1907.11692, section 4.1): a function of (seed,
view, sample). Validation and test have one fixed view. Each token is drawn for itself, where BERT takes exactly 15 % of
each text; of a text without a drawn one the nearest to it is masked. Special tokens are never drawn. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError
from edgewise.models.tasks.base import IGNORED, Int, Task
from edgewise.models.tasks.config import MaskedText, Redrawn
from edgewise.models.tasks.text.files import check_room, chosen, files_of, told_of
from edgewise.models.tasks.text.metrics import words_right
from edgewise.models.tasks.text.rows import read_rows
from edgewise.models.tasks.text.split import Texts, make_texts
from edgewise.models.tasks.text.tokenizer import FILE, Tokenizer, read_tokenizer

# Kinds of draws of their own, see models/tasks/augment.py.
MASKING, FIXED = 4, 5
MASKED, SWAPPED = 0.8, 0.1  # of the drawn tokens: become the mask, become any token; the others stay
ANSWERS_BYTES = 2 << 30


@dataclass(frozen=True, eq=False)
class Masked:
    """Texts with words to guess: ``read`` and ``targets`` are one fixed view, ``draw`` gives others."""

    whole: Texts
    tokenizer: Tokenizer
    chance: float
    seed: int

    @property
    def ids(self) -> tuple[str, ...]:
        """A name for each text."""
        return self.whole.ids

    @property
    def padding(self) -> int:
        """The id of the padding token."""
        return self.whole.padding

    @property
    def vocabulary(self) -> int:
        """Ids are below."""
        return self.whole.vocabulary

    @property
    def lengths(self) -> Int:
        """(N,) real tokens of each sample."""
        return self.whole.lengths

    @cached_property
    def targets(self) -> Int:
        """(N, L) of the fixed view: the token that was there, ``IGNORED`` where there is nothing to guess."""
        return self._seen(np.arange(len(self.ids)), self.seed, 0, FIXED)[1]

    def read(self, index: Int) -> Int:
        """Token ids (len(index), L) of the fixed view."""
        return self._seen(index, self.seed, 0, FIXED)[0]

    def draw(self, index: Int, seed: int, number: int) -> tuple[Int, Int]:
        """Token ids and targets, both (len(index), L), of the view ``number`` in a run of ``seed``."""
        return self._seen(index, seed, number, MASKING)

    def encoded(self, tokenizer: Path) -> Texts:
        """Never: a masked piece is of one tokenizer.

        Raises:
            DataError: always.
        """
        raise DataError(
            "the words to guess are pieces of the task's own tokenizer",
            where=str(tokenizer),
            hint="use a teacher that reads the same ids",
        )

    def _seen(self, index: Int, seed: int, number: int, kind: int) -> tuple[Int, Int]:
        tokens = self.whole.read(index)
        drawn, swaps = _draws(self, seed, number, kind)
        places = self.whole.pieces.starts[index][:, None] + np.arange(tokens.shape[1])
        real = np.arange(tokens.shape[1]) < self.lengths[index][:, None]
        luck = np.ones(tokens.shape, np.float32)
        luck[real] = drawn[places[real]]
        asked = luck < self.chance
        targets = np.where(asked, tokens, IGNORED)
        assert self.tokenizer.mask is not None  # asked when the task was loaded
        swapped = asked & (luck >= self.chance * MASKED) & (luck < self.chance * (MASKED + SWAPPED))
        tokens[luck < self.chance * MASKED] = self.tokenizer.mask
        tokens[swapped] = swaps[places[swapped]]
        return tokens, targets


@lru_cache(maxsize=2)
def _draws(split: Masked, seed: int, number: int, kind: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """For each piece of all texts: its luck in 0..1, 1 for special ones, and what it becomes if it is swapped."""
    flat = split.whole.pieces.flat
    generator = np.random.default_rng([seed, number, kind])
    luck = generator.random(len(flat), np.float32)
    special = np.unique([*split.tokenizer.special, split.padding])
    luck[np.isin(flat, special)] = 1
    least = np.minimum.reduceat(luck, split.whole.pieces.starts)
    least[(least < split.chance) | (least == 1)] = -1
    luck[luck == np.repeat(least, split.lengths)] = 0
    plain = np.setdiff1d(np.arange(split.vocabulary, dtype=np.int32), special)
    return luck, generator.choice(plain, len(flat))


def load_masked_text(config: MaskedText) -> Task:
    """Splits train, test and perhaps val; the classes are the tokenizer's tokens.

    Raises:
        DataError: a file is missing, a text is empty, the tokenizer can't be used or has no mask token, or the answers
            to the test split would not fit anywhere.
        RuntimeMissing: the extra ``text`` is not installed.
    """
    tokenizer = read_tokenizer(config.tokenizer)
    if tokenizer.mask is None:
        raise DataError("the tokenizer has no mask token", where=str(tokenizer.path), hint="use BERT's, for instance")
    check_room(tokenizer, config.max_length, pair=False)
    paths = files_of(config)
    rows = {name: read_rows(path, config.text) for name, path in paths.items()}
    texts = {name: read.column(config.text) for name, read in rows.items()}
    for name, column in texts.items():
        for row, text in enumerate(column):
            if not text.strip():
                raise DataError("the text is empty", where=rows[name].where(row), hint="remove the line")
    alike = {name: np.zeros(len(column), np.int64) for name, column in texts.items()}
    splits: dict[str, Masked] = {}
    notes: list[str] = []
    for name, (source, index) in chosen(config, alike, {name: str(path) for name, path in paths.items()}).items():
        kept = [texts[source][row] for row in index]
        ids = [f"{source}-{row:05d}" for row in index]
        whole = make_texts(tokenizer, ids, alike[source][index], kept, config.max_length)
        notes += told_of(name, whole, tokenizer, pair=False, where=[rows[source].where(row) for row in index])
        splits[name] = Masked(whole, tokenizer, config.chance, config.seed)
    most = ANSWERS_BYTES // (4 * config.max_length * tokenizer.size)
    for name in [name for name in ("val", "test") if name in splits and len(splits[name].ids) > most]:
        key = "test_limit" if name == "test" else "val_size" if config.val is None else "val"
        fewer = f"set it to {most} or less" if key != "val" else f"give it {most} texts or fewer"
        raise DataError(
            f"each {name} text is answered with {config.max_length} x {tokenizer.size} numbers, so {most} texts are "
            f"{ANSWERS_BYTES >> 30} GiB; there are {len(splits[name].ids)}",
            where=f"task.{key}",
            hint=fewer if most > 1 else "lower max_length",
        )
    names = [tokenizer.inner.id_to_token(piece) or f"id {piece}" for piece in range(tokenizer.size)]
    return Task(
        config.train.resolve().parent.name,
        tuple(names),
        (config.max_length, tokenizer.size),
        splits,
        augment=Redrawn(views=config.views),
        metric="accuracy of masked words",
        score=words_right,
        kind="tag",
        notes=notes,
        carried={FILE: tokenizer.path},
    )
