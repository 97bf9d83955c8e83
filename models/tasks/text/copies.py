"""New texts out of old ones, for a teacher to answer: words replaced by near ones, or masked.

    replace   Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", arXiv 1909.10351, algorithm 1
    mask      Tang et al., "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", arXiv 1903.12136,
              section 3.1

TinyBERT asks BERT for words that are one piece and GloVe for the others; here the nearest vectors of a table of pieces
are the candidates of the former, and the latter stay. Tang et al. also replace words by others of the same part of
speech, which needs a tagger and is left out. Of pairs, one copy changes the first text, the next the second, the next
both, as Tang et al. do. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError
from edgewise.models.tasks.base import Int
from edgewise.models.tasks.config import MaskWords, ReplaceWords
from edgewise.models.tasks.text.tokenizer import Tokenizer

WORD = re.compile(r"(?<![\w'’])[^\W\d_]+(?:['’][^\W\d_]+)*(?!\w)")
LONGEST_NGRAM = 5
ROWS = 256  # of similarities at once: 256 x 30,000 floats are 31 MB

Change = Callable[[str, np.random.Generator], str]


def make_copies(
    texts: Sequence[Any], rows: Int, config: ReplaceWords | MaskWords, tokenizer: Tokenizer
) -> tuple[list[Any], list[tuple[int, int]]]:
    """New texts, and of each the place in ``texts`` it comes from and its number among the copies.

    Args:
        texts: (N,) strings or pairs of strings.
        rows: (N,) in the file: with the seed, what is drawn depends on it alone.
        config: how.
        tokenizer: what a piece is.

    Raises:
        DataError: the table of vectors can't be read or does not fit, or there is no mask token.
    """
    change = _replacing(texts, config, tokenizer) if isinstance(config, ReplaceWords) else _masking(config, tokenizer)
    made: list[Any] = []
    sources: list[tuple[int, int]] = []
    for place, (text, row) in enumerate(zip(texts, rows.tolist(), strict=True)):
        generator, seen = np.random.default_rng([config.seed, row]), {text}
        for number in range(config.copies):
            if isinstance(text, str):
                copy: Any = change(text, generator)
            else:
                sides = ((0,), (1,), (0, 1))[number % 3]
                copy = tuple(change(part, generator) if side in sides else part for side, part in enumerate(text))
            if copy not in seen:
                seen.add(copy)
                made.append(copy)
                sources.append((place, number))
    return made, sources


def _masking(config: MaskWords, tokenizer: Tokenizer) -> Change:
    if tokenizer.mask is None:
        raise DataError(
            "the tokenizer has no mask token", where=str(tokenizer.path), hint="use augment: {kind: replace}"
        )
    mask = str(tokenizer.inner.id_to_token(tokenizer.mask))

    def change(text: str, generator: np.random.Generator) -> str:
        words = text.split()
        masked = generator.random(len(words)) < config.chance
        short, length, place = generator.random(), generator.integers(1, LONGEST_NGRAM + 1), generator.random()
        words = [mask if hidden else word for word, hidden in zip(words, masked.tolist(), strict=True)]
        if short < config.ngram:
            start = int(place * (max(len(words) - int(length), 0) + 1))
            words = words[start : start + int(length)]
        return " ".join(words)

    return change


def _replacing(texts: Sequence[Any], config: ReplaceWords, tokenizer: Tokenizer) -> Change:
    table = _read_table(config.embeddings, config.tensor, tokenizer.size)
    ids, names = _whole_words(tokenizer)
    found = {
        word for text in texts for part in ([text] if isinstance(text, str) else text) for word in WORD.findall(part)
    }
    known = _pieces_of(sorted(found), tokenizer)
    place = {int(piece): number for number, piece in enumerate(ids)}
    known = {word: piece for word, piece in known.items() if piece in place}
    asked = np.unique(np.fromiter((place[piece] for piece in known.values()), np.int64, len(known)))
    near = dict(zip(asked.tolist(), _nearest(table[ids], asked, config.candidates), strict=True))
    candidates = {word: [names[other] for other in near[place[piece]].tolist()] for word, piece in known.items()}

    def change(text: str, generator: np.random.Generator) -> str:
        parts, end = [], 0
        words = list(WORD.finditer(text))
        replaced = (generator.random(len(words)) < config.chance).tolist()
        drawn = generator.random(len(words)).tolist()
        for word, wanted, choice in zip(words, replaced, drawn, strict=True):
            others = candidates.get(word[0]) if wanted else None
            if others:
                parts += [text[end : word.start()], others[int(choice * len(others))]]
                end = word.end()
        return "".join([*parts, text[end:]])

    return change


def _pieces_of(words: list[str], tokenizer: Tokenizer) -> dict[str, int]:
    """Words that are one piece, and which. The space before them is what tokenizers that see spaces expect."""
    tokenizer.inner.no_padding()
    tokenizer.inner.no_truncation()
    encodings = tokenizer.inner.encode_batch_fast([f" {word}" for word in words], add_special_tokens=False)
    return {word: encoding.ids[0] for word, encoding in zip(words, encodings, strict=True) if len(encoding.ids) == 1}


def _whole_words(tokenizer: Tokenizer) -> tuple[Int, list[str]]:
    """Ids of pieces that are words of their own, of two letters or more, and the words."""
    names = tokenizer.inner.decode_batch([[piece] for piece in range(tokenizer.size)])
    words = {}
    for piece, name in enumerate(names):
        word = name.strip()
        if piece not in tokenizer.special and len(word) > 1 and WORD.fullmatch(word):
            words[word] = piece
    own = {word: piece for word, piece in _pieces_of(list(words), tokenizer).items() if words[word] == piece}
    return np.fromiter(own.values(), np.int64, len(own)), list(own)


def _nearest(table: NDArray[np.float32], asked: Int, count: int) -> Int:
    """(len(asked), count) rows of ``table`` that are nearest by cosine, nearest first, never the row itself."""
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), np.float32(1e-12))
    count = min(count, len(table) - 1)
    found = np.empty((len(asked), count), np.int64)
    for start in range(0, len(asked), ROWS):
        rows = asked[start : start + ROWS]
        near = unit[rows] @ unit.T
        near[np.arange(len(rows)), rows] = -np.inf
        best = np.argpartition(-near, count - 1, axis=1)[:, :count] if count else np.empty((len(rows), 0), np.int64)
        order = np.argsort(-np.take_along_axis(near, best, axis=1), axis=1, kind="stable")
        found[start : start + ROWS] = np.take_along_axis(best, order, axis=1)
    return found


def _read_table(path: Path, name: str, size: int) -> NDArray[np.float32]:
    """(at least ``size``, width) float32."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys())
            table = np.asarray(file.get_tensor(name)) if name in names else None
    except FileNotFoundError:
        raise DataError("no such file", where=str(path), hint="check the path; it is relative to the recipe") from None
    except Exception as cause:  # arbitrary bytes, or numbers that numpy has no type for
        raise DataError(f"no table of vectors can be read: {cause}", where=str(path)) from cause
    if table is None:
        near = [other for other in names if "embed" in other] or names
        raise DataError(
            f"no tensor {name!r}, but: {', '.join(near[:8])}", where=str(path), hint="name it in augment.tensor"
        )
    if table.ndim != 2 or table.dtype.kind != "f" or len(table) < size:
        raise DataError(
            f"expected a vector for each of {size} ids, got {table.shape} of {table.dtype}",
            where=f"{path} ({name})",
            hint="is it of the net whose tokenizer this is?",
        )
    return table.astype(np.float32)
