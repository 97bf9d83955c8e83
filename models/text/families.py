"""Hugging Face's families of encoders that are one net here: how each says its sizes, and how it calls its tensors.

BERT (arXiv 1810.04805; MiniLM is one), DistilBERT (1910.01108), RoBERTa (1907.11692) with XLM-R and CamemBERT, ELECTRA
(2003.10555). They differ in names, in where positions start, and in what stands between the encoder and the labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgewise.errors import ModelError
from edgewise.models.config import Bert


@dataclass(frozen=True)
class Family:
    """``sizes``: our field -> the key of config.json; ``blocks``: where block N's tensors are, and ``layers`` how they
    are called there. Behind the encoder: ``pooler`` of pretraining, ``label_pooler``, the activation and the name of
    the dense layer before a ``classifier``, and ``words``, our tensors -> theirs of the head for masked words.
    ``offset``: the first positions are not places of tokens (RoBERTa counts from its padding id + 1). ``inner``: the
    key of the embeddings' own width. ``words_gelu``: the head for masked words has GELU whatever the blocks have."""

    sizes: Mapping[str, str]
    blocks: str
    layers: Mapping[str, str]
    label_pooler: tuple[str, str]
    classifier: str
    words: Mapping[str, str]
    pooler: str | None = "pooler.dense"
    offset: bool = False
    types: bool = True
    inner: str | None = None
    words_gelu: bool = False

    def first_position(self, padding: int) -> int:
        """The row of the position table that the first token reads."""
        return padding + 1 if self.offset else 0


_SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
}
_DISTIL_SIZES = {
    "layers": "n_layers",
    "width": "dim",
    "heads": "n_heads",
    "ffn": "hidden_dim",
    "activation": "activation",
    "dropout": "dropout",
}
_LAYERS = {
    "attn.query": "attention.self.query",
    "attn.key": "attention.self.key",
    "attn.value": "attention.self.value",
    "attn.proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm2": "output.LayerNorm",
}
_DISTIL_LAYERS = {
    "attn.query": "attention.q_lin",
    "attn.key": "attention.k_lin",
    "attn.value": "attention.v_lin",
    "attn.proj": "attention.out_lin",
    "norm1": "sa_layer_norm",
    "mlp.fc1": "ffn.lin1",
    "mlp.fc2": "ffn.lin2",
    "norm2": "output_layer_norm",
}


def _head(dense: str, norm: str, bias: str) -> dict[str, str]:
    names = {f"head.dense.{end}": f"{dense}.{end}" for end in ("weight", "bias")}
    return names | {f"head.norm.{end}": f"{norm}.{end}" for end in ("weight", "bias")} | {"head.bias": bias}


_BERT = Family(
    sizes=_SIZES,
    blocks="encoder.layer",
    layers=_LAYERS,
    label_pooler=("tanh", "pooler.dense"),
    classifier="classifier",
    words=_head("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
)
_ROBERTA = Family(
    sizes=_SIZES,
    blocks="encoder.layer",
    layers=_LAYERS,
    label_pooler=("tanh", "classifier.dense"),
    classifier="classifier.out_proj",
    words=_head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    offset=True,
    types=False,
    words_gelu=True,
)
FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "distilbert": Family(
        sizes=_DISTIL_SIZES,
        blocks="transformer.layer",
        layers=_DISTIL_LAYERS,
        label_pooler=("relu", "pre_classifier"),
        classifier="classifier",
        words=_head("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        pooler=None,
        types=False,
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": Family(
        sizes=_SIZES,
        blocks="encoder.layer",
        layers=_LAYERS,
        label_pooler=("gelu", "classifier.dense"),
        classifier="classifier.out_proj",
        words=_head("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
        pooler=None,
        inner="embedding_size",
        words_gelu=True,
    ),
}

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def bert_config(settings: Mapping[str, Any], where: str) -> Bert:
    """The net that ``config.json`` describes, up to what stands behind the encoder.

    Raises:
        ModelError: a size is missing or is none, or the net is one that is not built here.
    """
    family = FAMILIES[settings["model_type"]]
    if settings.get("position_embedding_type", "absolute") != "absolute" or settings.get("is_decoder"):
        raise ModelError(
            "expected an encoder with absolute positions, and config.json says "
            f"position_embedding_type {settings.get('position_embedding_type')!r}, "
            f"is_decoder {bool(settings.get('is_decoder'))}",
            where=where,
            hint="take another checkpoint of the family",
        )
    said: dict[str, Any] = {ours: settings.get(theirs) for ours, theirs in family.sizes.items()}
    activation = said.pop("activation") or "gelu"
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"its activation {activation!r} is none of {', '.join(_ACTIVATIONS)}",
            where=where,
            hint="take another checkpoint, or give the net as kind: factory",
        )
    inner = settings.get(family.inner) if family.inner else None
    try:
        return Bert(
            **{name: value for name, value in said.items() if name != "dropout"},
            dropout=0.1 if said["dropout"] is None else said["dropout"],
            activation=_ACTIVATIONS[activation],
            embedding=inner if inner != said["width"] else None,
            projects="sum" if inner and inner != said["width"] else "words",
            types=settings.get("type_vocab_size", 2) if family.types else 0,
            padding=_padding(settings, family),
            norm_eps=settings.get("layer_norm_eps", 1e-12),
        )
    except ValueError as cause:  # pydantic's own
        detail = cause.errors()[0] if hasattr(cause, "errors") else {"loc": ("",), "msg": str(cause)}
        key = family.sizes.get(str(detail["loc"][0]), str(detail["loc"][0]))
        raise ModelError(f"config.json says no net: {key}: {detail['msg']}", where=where) from cause


def _padding(settings: Mapping[str, Any], family: Family) -> int:
    given = settings.get("pad_token_id")
    return int(given) if given is not None else (1 if family.offset else 0)


def encoder_names(config: Bert, family: Family) -> dict[str, str]:
    """The folder's tensors of embeddings and blocks by our names; ``attn.query``, ``attn.key`` and ``attn.value`` are
    one ``attn.qkv`` here."""
    stems = {"embeddings.words": "embeddings.word_embeddings", "embeddings.positions": "embeddings.position_embeddings"}
    if config.types:
        stems["embeddings.types"] = "embeddings.token_type_embeddings"
    both = {"embeddings.norm": "embeddings.LayerNorm"}
    if config.embedding:
        both["embeddings.project"] = "embeddings_project"
    for number in range(config.layers):
        for ours, theirs in family.layers.items():
            both[f"blocks.{number}.{ours}"] = f"{family.blocks}.{number}.{theirs}"
    tables = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in stems.items()}
    return tables | {f"{ours}.{end}": f"{theirs}.{end}" for ours, theirs in both.items() for end in ("weight", "bias")}


PREFIX = re.compile(r"^(bert|distilbert|roberta|electra)\.(?=embeddings|encoder|transformer|pooler)")


def plain_name(name: str) -> str:
    """Without the prefix of a checkpoint for labels, and norms as they are called today."""
    name = PREFIX.sub("", name)
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
