"""The nets for texts whose weights are fresh: what they can't be is said here."""

from __future__ import annotations

from edgewise.errors import ModelError
from edgewise.models import config as configs
from edgewise.models.inputs import Shape
from edgewise.models.text.bert import Bert
from edgewise.models.text.bilstm import BiLstm


def bert(config: configs.Bert, input_shape: Shape, classes: int) -> Bert:
    """The heads must divide the width, the table of positions must reach as far as the texts."""
    length, words = input_shape
    if config.width % config.heads:
        raise ModelError(
            f"heads {config.heads} does not divide width {config.width}",
            where="bert.heads",
            hint="change one of the two",
        )
    if config.positions is not None and config.positions < length:
        raise ModelError(
            f"the task's texts have up to {length} tokens, the table of positions has {config.positions}",
            where="bert.positions",
            hint=f"say positions: {length} or more, or leave it out; or give the task a max_length",
        )
    if config.projects == "sum" and config.embedding is None:
        raise ModelError("projects: sum without a width to project from", where="bert.projects", hint="say embedding")
    check_ids(config, words, "bert")
    if config.answers == "vocabulary" and classes != words:
        raise ModelError(
            f"answers: vocabulary tells {words} words apart, the task has {classes} classes",
            where="bert.answers",
            hint="answers: sequence or token for labels; a task of masked words for a vocabulary",
        )
    return Bert(config, input_shape, classes)


def bilstm(config: configs.BiLstm, input_shape: Shape, classes: int) -> BiLstm:
    """Any size will do."""
    check_ids(config, input_shape[1], "bilstm")
    return BiLstm(config, input_shape, classes)


def check_ids(config: configs.Bert | configs.BiLstm, words: int, where: str) -> None:
    """The padding token and the separator must be in the vocabulary.

    Raises:
        ModelError: one is not.
    """
    for name in ("padding", "separator"):
        token = getattr(config, name, None)
        if token is not None and token >= words:
            raise ModelError(
                f"{name} is token {token}, and the task's vocabulary has {words} tokens",
                where=f"{where}.{name}",
                hint="say the id that the task's tokenizer gives it",
            )
