"""Whether a net and a tokenizer speak of the same words, whether a net answers what a task asks, and which words no
pruning may take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.compress.config import PruneVocabulary, Source
from edgewise.errors import ModelError
from edgewise.models.config import HuggingFace
from edgewise.models.inputs import Shape, blank
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


def check_answers(config: Any, net: nn.Module, task: Task, shape: Shape) -> None:
    """The net must answer as often as the task asks: once a text, or once a token of it.

    Raises:
        ModelError: it doesn't.
    """
    from edgewise.compress.macs import evaluating, shown

    with evaluating(net):
        found = tuple(net(shown(net, blank(shape, 1))).shape)
    each = task.kind == "tag"
    if found == ((1, shape[0], len(task.classes)) if each else (1, len(task.classes))):
        return
    wanted = "vocabulary" if each and len(task.classes) == shape[1] else "token" if each else "sequence"
    raise ModelError(
        f"the task asks for {'an answer to each token' if each else 'one answer a text'} with {len(task.classes)} "
        f"numbers, and the net gives {found[1:]}",
        where=f"{config.kind}.answers",
        hint=f"say answers: {wanted}" if "answers" in type(config).model_fields else "change what its forward gives",
    )


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


def check_taught(source: Source, net: nn.Module) -> None:
    """A checkpoint whose head knows the task may teach as it is; another must learn the task first.

    Raises:
        ModelError: it has no such head, and is not to learn.
    """
    ready = not isinstance(source.model, HuggingFace) or source.weights is not None or source.train is not None
    if not ready and getattr(net, "fresh_head", True):
        raise ModelError(
            "the checkpoint has no head for the task's labels, and an untrained one teaches nothing",
            where="model",
            hint="give train, or a checkpoint that was fine-tuned on as many labels",
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
