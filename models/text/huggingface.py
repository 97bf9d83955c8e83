"""A folder in Hugging Face form as a net: our own :class:`Bert` where the family is known, else one of transformers.

A saved net says the config that was read, not the folder, which is not needed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.models.config import Bert as BertConfig
from edgewise.models.config import Encoder, HuggingFace
from edgewise.models.inputs import Shape
from edgewise.models.text import folder as folders
from edgewise.models.text.bert import Bert
from edgewise.models.text.build import bert
from edgewise.models.text.encoder import HuggingFaceEncoder, from_folder
from edgewise.models.text.families import FAMILIES, Family, bert_config, plain_name
from edgewise.models.text.fill import fill

LABELLED = {"sequence": "SequenceClassification", "token": "TokenClassification", "vocabulary": "MaskedLM"}


def build_folder(config: HuggingFace, input_shape: Shape, classes: int) -> nn.Module:
    """The net of a folder with its weights, and a fresh head where the folder has none that fits the labels.

    Raises:
        ModelError: the folder is none, of a kind that nothing here knows, or too small for the task's texts.
        WeightsError: its tensors are missing, damaged, a pickle, or not those that its config speaks of.
    """
    folder = folders.located(config)
    settings = folders.settings(folder)
    _check_words(settings, input_shape, folder)
    family = FAMILIES.get(settings["model_type"])
    if family is None:
        return from_folder(config, folder, settings, input_shape, classes)
    found = {plain_name(name): tensor for name, tensor in folders.tensors(folder).items()}
    described = _described(config, settings, family, found, folder)
    _check_length(described, settings, family, input_shape[0], folder)
    net = bert(described, input_shape, classes)
    labelled = _for_labels(settings, LABELLED[config.answers])
    net.fresh_head = not fill(net, family, found, labelled=labelled, where=str(folder))
    return net


def without_folder(config: HuggingFace, model: nn.Module) -> BertConfig | Encoder:
    """What a saved model says instead of the folder: the net's own config.

    Raises:
        ModelError: ``model`` was not made from a folder.
    """
    for module in model.modules():
        if isinstance(module, Bert | HuggingFaceEncoder):
            return module.config
    raise ModelError("expected a net that was read from a folder", where=str(config.path or config.hub))


def _check_words(settings: Mapping[str, Any], input_shape: Shape, folder: Path) -> None:
    has = settings.get("vocab_size")
    if isinstance(has, int) and has < input_shape[1]:
        raise ModelError(
            f"the task's tokenizer has {input_shape[1]} tokens, the checkpoint {has}",
            where=str(folder),
            hint="give the task the tokenizer that lies in the checkpoint's folder",
        )


def _described(
    config: HuggingFace, settings: Mapping[str, Any], family: Family, found: Mapping[str, Tensor], folder: Path
) -> BertConfig:
    """The net's config: the folder's sizes, and the recipe's wishes."""
    base = bert_config(settings, str(folder / folders.CONFIG))
    if config.layers is not None and config.layers > base.layers:
        raise ModelError(
            f"layers: {config.layers}, and the checkpoint has {base.layers}", where="layers", hint="ask for fewer"
        )
    if config.separator is not None and base.types < 2:
        raise ModelError(
            f"a {settings['model_type']} has no token types to tell two texts apart by",
            where="separator",
            hint="leave it out: the separator itself is what the net sees",
        )
    if config.answers == "vocabulary" and family.words_gelu and base.activation != "gelu":
        raise ModelError(
            f"the head for masked words of a {settings['model_type']} has GELU, and this one's blocks have "
            f"{settings['hidden_act']}: such a net is not built here",
            where=str(folder),
        )
    pooling, pooler = _pooling(config, settings, family, found, folder)
    dropout = base.dropout if config.dropout is None else config.dropout
    return base.model_copy(
        update={
            "layers": config.layers or base.layers,
            "answers": config.answers,
            "separator": config.separator,
            "pooling": pooling,
            "pooler": pooler,
            "dropout": dropout,
        }
    )


def _pooling(
    config: HuggingFace, settings: Mapping[str, Any], family: Family, found: Mapping[str, Tensor], folder: Path
) -> tuple[str, str]:
    """What a sequence is told by, and the activation of a dense layer behind it or ``none``."""
    if config.pooling in ("cls", "mean"):
        return config.pooling, "none"
    if _for_labels(settings, LABELLED["sequence"]):
        return "cls", family.label_pooler[0]
    stated = folders.stated_pooling(folder) if config.pooling == "auto" else None
    if stated is not None:
        return stated, "none"
    if family.pooler and f"{family.pooler}.weight" in found:
        return "cls", "tanh"
    if config.pooling == "pooler":
        raise ModelError(
            "the checkpoint has no trained pooler", where=str(folder), hint="pooling: auto, cls or mean takes none"
        )
    return "cls", "none"


def _for_labels(settings: Mapping[str, Any], task: str) -> bool:
    return any(str(name).endswith(f"For{task}") for name in settings.get("architectures") or ())


def _check_length(config: BertConfig, settings: Mapping[str, Any], family: Family, length: int, folder: Path) -> None:
    rows = int(settings.get("max_position_embeddings") or 0) - family.first_position(config.padding)
    if rows < length:
        raise ModelError(
            f"the task's texts have up to {length} tokens, the checkpoint has places for {rows}",
            where=str(folder),
            hint=f"give the task a max_length of {rows} or less",
        )
