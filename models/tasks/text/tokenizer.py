"""A Hugging Face tokenizer, read from a file: texts to ids. Torch-free; ``tokenizers`` is the extra ``text``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import DataError, RuntimeMissing
from edgewise.models.tasks.base import Int

if TYPE_CHECKING:
    import tokenizers

FILE = "tokenizer.json"
CHUNK = 10_000  # texts encoded at once: what the library gives back is many times the ids
PADDING = ("[PAD]", "<pad>", "<|padding|>", "<|pad|>")
MASK = ("[MASK]", "<mask>")


@dataclass(frozen=True, eq=False)
class Pieces:
    """Token ids of N texts without padding: ``flat[starts[i] : starts[i] + lengths[i]]``.

    ``words`` is, for each piece, the place of its word in a text that came as words, -1 for special tokens; empty for
    plain texts. ``cut``: (N,) whether the text was too long.
    """

    flat: NDArray[np.int32]
    lengths: Int
    words: NDArray[np.int32]
    cut: NDArray[np.bool_]

    @property
    def starts(self) -> Int:
        """(N,) place of each text's first piece."""
        return np.cumsum(self.lengths) - self.lengths


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """``path`` is the file; ``size`` one above the largest id; ``padding`` and perhaps ``unknown`` and ``mask`` are
    ids. ``special``: ids of tokens that no text consists of."""

    path: Path
    size: int
    padding: int
    unknown: int | None
    mask: int | None
    special: frozenset[int]
    inner: tokenizers.Tokenizer

    def added(self, pair: bool) -> int:
        """How many special tokens each input gets."""
        return int(self.inner.num_special_tokens_to_add(pair))

    def encode(self, texts: Sequence[Any], longest: int, *, words: bool = False) -> Pieces:
        """Ids of texts, cut to ``longest`` tokens.

        Args:
            texts: strings, pairs of strings, or, with ``words``, lists of words.
            longest: special tokens count; of a pair the longer text is cut first.
            words: texts are lists of words; which word each piece is of is kept.
        """
        inner = self.inner
        inner.no_padding()
        inner.enable_truncation(longest)
        flat, of_words, lengths, cut = [], [], [], []
        encode = inner.encode_batch if words else inner.encode_batch_fast
        for start in range(0, len(texts), CHUNK):
            for encoding in encode(list(texts[start : start + CHUNK]), is_pretokenized=words):
                ids = encoding.ids
                flat += ids
                lengths.append(len(ids))
                if words:
                    of_words += [-1 if word is None else word for word in encoding.word_ids]
                cut.append(bool(encoding.overflowing))
        pieces = np.asarray(flat, np.int32), np.asarray(lengths, np.int64), np.asarray(of_words, np.int32)
        return Pieces(*pieces, np.asarray(cut, np.bool_))


def file_of(path: Path) -> Path:
    """The ``tokenizer.json`` of a folder, or the file itself.

    Raises:
        DataError: there is none.
    """
    if path.is_dir():
        if not (path / FILE).is_file():
            raise DataError(
                f"no {FILE} in the folder",
                where=str(path),
                hint="AutoTokenizer.from_pretrained(…).save_pretrained(folder) of transformers writes one",
            )
        return path / FILE
    if not path.is_file():
        raise DataError("no such tokenizer", where=str(path), hint="check the path; it is relative to the recipe")
    return path


def unusual(path: Path) -> dict[str, str]:
    """Special tokens that files beside the tokenizer name, but for those that are looked for anyway: with the
    tokenizer's own file they decide its ids.

    Raises:
        DataError: there is no tokenizer.
    """
    return {key: name for key, name in _beside(file_of(path)).items() if name not in (*PADDING, *MASK)}


def read_tokenizer(path: Path) -> Tokenizer:
    """A ``tokenizer.json``, or a folder with one; its padding token may be named in the files beside it.

    Raises:
        DataError: missing, broken, without a vocabulary or without a padding token.
        RuntimeMissing: ``tokenizers`` is not installed.
    """
    file = file_of(path)
    status = file.stat()
    return _read(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read(file: Path, _time: int, _size: int) -> Tokenizer:
    try:
        from tokenizers import Tokenizer as Inner
    except ImportError:
        raise RuntimeMissing("texts need the package tokenizers", hint="pip install 'edgewise[text]'") from None
    try:
        text = file.read_text("utf-8")
        told = json.loads(text)
        inner = Inner.from_str(text)
    except Exception as cause:  # arbitrary bytes: the library raises plain Exception
        raise DataError(
            f"not a tokenizer: {cause}",
            where=str(file),
            hint="expected a tokenizer.json as Hugging Face's tokenizers writes it",
        ) from cause
    vocabulary = inner.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise DataError("the tokenizer has no vocabulary", where=str(file))
    beside = _beside(file)
    padding = _one_of(vocabulary, [(told.get("padding") or {}).get("pad_token"), beside.get("pad_token"), *PADDING])
    if padding is None:
        raise DataError(
            "the tokenizer has no padding token",
            where=str(file),
            hint=f"add one: tokenizer.add_special_tokens(['{PADDING[0]}']), and a row for it in the model's embedding",
        )
    model = told.get("model") or {}
    unknown = model.get("unk_id")
    if unknown is None:
        unknown = _one_of(vocabulary, [model.get("unk_token")])
    special = {token["id"] for token in told.get("added_tokens") or [] if token.get("special")}
    return Tokenizer(
        file,
        max(vocabulary.values()) + 1,
        padding,
        unknown,
        _one_of(vocabulary, [beside.get("mask_token"), *MASK]),
        frozenset(special),
        inner,
    )


def _one_of(vocabulary: dict[str, int], names: Sequence[str | None]) -> int | None:
    return next((vocabulary[name] for name in names if name is not None and name in vocabulary), None)


def _beside(file: Path) -> dict[str, str]:
    """Names of special tokens that a Hugging Face folder gives; nothing where it gives none."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            told = json.loads((file.parent / name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        for key in ("pad_token", "mask_token") if isinstance(told, dict) else ():
            value = told.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                found[key] = value
    return found
