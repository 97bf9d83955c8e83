"""Whether a net and a tokenizer speak of the same words, and which words no pruning may take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.compress.config import PruneVocabulary
from edgewise.errors import ModelError
from edgewise.models.config import HuggingFace
from edgewise.models.tasks.base import Task, TextSplit
from edgewise.models.tasks.config import TaskConfig

if TYPE_CHECKING:
    from torch import nn

UNUSED = ("[unused", "<unused", "madeupword")  # rows that a vocabulary keeps free for a user's own words


def check_reads(config: Any, net: nn.Module, padding: int, tokenizer: Path | None) -> None:
    """The net's padding token must be the tokenizer's, and its words, where its folder has them, the tokenizer's too.

    Raises:
        ModelError: they are not.
    """
    takes = getattr(net, "padding", padding)
    if takes != padding:
        raise ModelError(
            f"the net takes token {takes} for padding, and the tokenizer pads with token {padding}",
            where=f"{config.kind}.padding",
            hint=f"say padding: {padding}"
            if "padding" in type(config).model_fields
            else "give the task the tokenizer that lies in the checkpoint's folder",
        )
    if tokenizer is not None and isinstance(config, HuggingFace):
        _check_words(config, tokenizer)


def _check_words(config: HuggingFace, tokenizer: Path) -> None:
    from edgewise.models.tasks.text.tokenizer import FILE, read_tokenizer
    from edgewise.models.text.folder import located

    folder = located(config)
    if not (folder / FILE).exists():
        return
    theirs = {number: word for word, number in read_tokenizer(folder).inner.get_vocab(True).items()}
    for word, number in sorted(read_tokenizer(tokenizer).inner.get_vocab(True).items(), key=lambda item: item[1]):
        other = theirs.get(number, word)
        if other != word and not other.startswith(UNUSED):
            raise ModelError(
                f"token {number} is {word!r} in the task's tokenizer and {other!r} in the checkpoint's own",
                where=str(folder),
                hint="give the task the tokenizer that lies in the checkpoint's folder",
            )


def kept_anyway(recipe: TaskConfig, task: Task, config: PruneVocabulary) -> tuple[frozenset[int], int]:
    """Ids that stay in any case, and the one that stands for those that leave.

    Raises:
        ModelError: the task has no texts, or its tokenizer no unknown token and ``config`` names none.
    """
    from edgewise.models.tasks.text.tokenizer import read_tokenizer

    split = task.splits["train"]
    if not isinstance(split, TextSplit):
        raise ModelError("the task has no texts, so no words", hint="leave the prune_vocabulary stage out")
    special, unknown = {split.padding, *config.keep}, config.unknown
    path = getattr(recipe, "tokenizer", None)
    if path is not None:
        tokenizer = read_tokenizer(path)
        special |= tokenizer.special
        unknown = tokenizer.unknown if unknown is None else unknown
    if unknown is None:
        raise ModelError(
            "the task's tokenizer has no token for what it doesn't know",
            where="prune_vocabulary.unknown",
            hint="say the id of the token that the words which leave shall be read as",
        )
    return frozenset(special), unknown
