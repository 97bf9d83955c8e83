"""A smaller table of words: the tokens that a task's texts use keep their row, all others share the unknown one's.

Most of a small encoder is its table, and most of the table is words that the task never sees (Abdaoui et al., "Load
What You Need", arXiv 2010.05609). The net goes on taking the tokenizer's ids; a map in it says which row each has.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from edgewise.config import Config
from edgewise.errors import ModelError
from edgewise.models.tasks.base import Split
from edgewise.models.text.bert import WordHead
from edgewise.models.text.words import Words

CHUNK = 1024  # texts at once
WHERE = "prune_vocabulary"


class VocabularyPruned(Config):
    """Words were removed: so many rows are left; which id has which is among the tensors."""

    kind: Literal["vocabulary_pruned"] = "vocabulary_pruned"
    rows: int = Field(ge=1)


@dataclass(frozen=True)
class VocabularyGone:
    """What pruning did: ``kept`` ids, in order, of ``before``."""

    kept: tuple[int, ...]
    before: int


def uses(split: Split, vocabulary: int) -> NDArray[np.int64]:
    """(V,) how often each token stands in a split's texts, padding too."""
    counts = np.zeros(vocabulary, np.int64)
    for start in range(0, len(split.ids), CHUNK):
        tokens = split.read(np.arange(start, min(start + CHUNK, len(split.ids))))
        counts += np.bincount(tokens.ravel(), minlength=vocabulary)
    return counts


def prune_vocabulary(
    model: nn.Module, counts: NDArray[np.int64], *, at_least: int, special: Collection[int], unknown: int
) -> VocabularyGone:
    """Take the rows of rare tokens out of the model's table, in place. Answers to texts of kept tokens stay the same.

    Args:
        model: has one table of words.
        counts: (V,) how often each token is used.
        at_least: tokens used less often leave.
        special: ids that stay in any case, such as padding and separators.
        unknown: the id whose row the others get; it stays.

    Raises:
        ModelError: the model has no such table, was pruned before, predicts words, or no token would leave.
    """
    words = _table(model)
    if not all(0 <= token < words.ids for token in (*special, unknown)) or len(counts) > words.ids:
        raise ModelError(
            f"the tokenizer has ids that the model's table of {words.ids} words doesn't", where=WHERE, hint=_FITS
        )
    stay = np.zeros(words.ids, bool)
    stay[: len(counts)] = counts >= at_least
    stay[[*special, unknown]] = True
    kept = np.flatnonzero(stay)
    if len(kept) == words.ids:
        raise ModelError(
            f"all {words.ids} tokens are used at least {at_least} times, so none can leave",
            where=WHERE,
            hint="ask for a larger at_least, or leave this stage out",
        )
    rows = np.full(words.ids, np.searchsorted(kept, unknown), np.int32)
    rows[kept] = np.arange(len(kept), dtype=np.int32)
    old = words.weight.detach()
    words.shrink(len(kept))
    assert words.remap is not None
    with torch.no_grad():
        words.weight.copy_(old[torch.from_numpy(kept).to(old.device)])
        words.remap.copy_(torch.from_numpy(rows))
    return VocabularyGone(tuple(kept.tolist()), words.ids)


_FITS = "give the task the tokenizer that the model was made for"


def restore_vocabulary(model: nn.Module, edit: VocabularyPruned) -> None:
    """An empty smaller table, in place; tensors are to be loaded.

    Raises:
        ModelError: the model has no table of words, or a smaller one.
    """
    words = _table(model)
    if edit.rows > words.ids:
        raise ModelError(f"{edit.rows} rows of a table of {words.ids} words", where=WHERE)
    words.shrink(edit.rows)


def _table(model: nn.Module) -> Words:
    found = [module for module in model.modules() if isinstance(module, Words)]
    if len(found) != 1:
        raise ModelError(
            f"expected a model with one table of words, got {len(found)}",
            where=WHERE,
            hint="models that have one: bert, huggingface, bilstm",
        )
    if found[0].remap is not None:
        raise ModelError("the vocabulary was pruned before", where=WHERE, hint="leave one of the two stages out")
    if any(isinstance(module, WordHead) for module in model.modules()):
        raise ModelError(
            "the model answers with words of this very vocabulary",
            where=WHERE,
            hint="prune the model that is fine-tuned",
        )
    return found[0]
