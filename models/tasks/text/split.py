"""Texts in memory: ids without padding, padded when read. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.models.tasks.base import IGNORED, Int
from edgewise.models.tasks.text.tokenizer import Pieces, Tokenizer, read_tokenizer


@dataclass(frozen=True, eq=False)
class Texts:
    """A split of texts. ``texts``: strings, pairs, or lists of words as a tokenizer takes them; ``tags``: a class for
    each word where words are tagged; ``longest``: what ``read`` pads to."""

    ids: tuple[str, ...]
    targets: NDArray[Any]
    texts: Sequence[Any]
    pieces: Pieces
    padding: int
    vocabulary: int
    longest: int
    tags: Sequence[Int] | None = None
    _others: dict[Path, Texts] = field(default_factory=dict, repr=False)

    @property
    def lengths(self) -> Int:
        """(N,) real tokens of each sample."""
        return self.pieces.lengths

    def read(self, index: Int) -> Int:
        """Token ids (len(index), longest), padded at the end."""
        out = np.full((len(index), self.longest), self.padding, np.int64)
        lengths, columns = self.pieces.lengths[index], np.arange(self.longest)
        real = columns < lengths[:, None]
        out[real] = self.pieces.flat[(self.pieces.starts[index][:, None] + columns)[real]]
        return out

    def encoded(self, tokenizer: Path) -> Texts:
        """The same samples in the same order, as another tokenizer reads them, no longer than these.

        Raises:
            DataError: it is no tokenizer.
        """
        key = tokenizer.resolve()
        if key not in self._others:
            other = read_tokenizer(tokenizer)
            made = make_texts(other, self.ids, self.targets, self.texts, self.longest, self.tags)
            self._others[key] = made
        return self._others[key]


def make_texts(
    tokenizer: Tokenizer,
    ids: Sequence[str],
    targets: NDArray[Any],
    texts: Sequence[Any],
    longest: int,
    tags: Sequence[Int] | None = None,
) -> Texts:
    """A split of ``texts`` (N), of which ``targets`` (N,) are known, or of words whose ``tags`` are."""
    pieces = tokenizer.encode(texts, longest, words=tags is not None)
    split = Texts(tuple(ids), targets, texts, pieces, tokenizer.padding, tokenizer.size, longest, tags)
    return split if tags is None else replace(split, targets=_at_first_pieces(pieces, tags, longest))


def _at_first_pieces(pieces: Pieces, tags: Sequence[Int], longest: int) -> Int:
    """(N, longest): each word's tag at its first piece, ``IGNORED`` everywhere else."""
    targets = np.full((len(tags), longest), IGNORED, np.int64)
    for row, (start, length) in enumerate(zip(pieces.starts, pieces.lengths, strict=True)):
        words = pieces.words[start : start + length]
        first = (words >= 0) & (words != np.concatenate([[-1], words[:-1]]))
        targets[row, np.flatnonzero(first)] = tags[row][words[first]]
    return targets
