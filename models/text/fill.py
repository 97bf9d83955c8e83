"""A folder's tensors into our net: three projections become one, positions and words as many as the task needs."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from edgewise.errors import WeightsError
from edgewise.models import weights
from edgewise.models.text.bert import Bert
from edgewise.models.text.families import Family, encoder_names

TYPES = "embeddings.token_type_embeddings.weight"
LEFTOVER = "position_ids"  # a buffer that older checkpoints saved


def fill(net: Bert, family: Family, found: Mapping[str, Tensor], *, labelled: bool, where: str) -> bool:
    """Load ``found``, by the folder's plain names, into ``net``; what stands behind the encoder only where it fits, it
    is left fresh else. Nothing is changed where an error is raised.

    ``labelled``: the folder was trained for answers such as the net's, so its head may be taken.

    Returns:
        Whether the head was taken.

    Raises:
        WeightsError: a tensor of the encoder is missing, unknown, of another shape, or not finite.
    """
    weights.check_tensors(found, where)
    names = encoder_names(net.config, family)
    _check_names(net, family, names, found, where)
    expected = net.state_dict()
    state = _encoder(net, family, names, found, expected)
    behind = _behind(net, family, found, expected, labelled)
    state |= behind
    state = {name: value.to(torch.float32) for name, value in state.items()}
    weights.check_finite(state, where)
    wrong = [
        f"{name}: the folder has {tuple(value.shape)}, its config.json says {tuple(expected[name].shape)}"
        for name, value in state.items()
        if value.shape != expected[name].shape
    ]
    if wrong:
        raise WeightsError(
            f"{len(wrong)} tensors of another shape ({weights.few(wrong, '; ')})", where=where, hint=_HINT
        )
    net.load_state_dict({**expected, **state})
    return any(name.startswith("head.") for name in behind)


_HINT = "the folder's config.json speaks of another net: fetch or save it again"


def _check_names(net: Bert, family: Family, names: Mapping[str, str], found: Mapping[str, Tensor], where: str) -> None:
    missing = [theirs for theirs in names.values() if theirs not in found]
    known = {*names.values(), TYPES}
    block = re.compile(rf"{re.escape(family.blocks)}\.(\d+)\.")

    def strange(name: str) -> bool:
        number = block.match(name)
        if number and int(number[1]) >= net.config.layers:
            return False  # fewer layers were asked for
        inside = number or name.startswith("embeddings")
        return bool(inside) and name not in known and not name.endswith(LEFTOVER)

    unknown = [name for name in found if strange(name)]
    parts = [f"{len(missing)} of {len(names)} tensors missing ({weights.few(missing)})"] if missing else []
    parts += [f"{len(unknown)} unexpected ({weights.few(unknown)})"] if unknown else []
    if parts:
        raise WeightsError("; ".join(parts), where=where, hint=_HINT)


def _encoder(
    net: Bert,
    family: Family,
    names: Mapping[str, str],
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        if ".attn.query." in ours:
            rest = (found[names[ours.replace("query", other)]] for other in ("key", "value"))
            state[ours.replace("query", "qkv")] = torch.cat([found[theirs], *rest])
        elif ".attn.key." not in ours and ".attn.value." not in ours:
            state[ours] = found[theirs]
    first = family.first_position(net.padding)
    positions = state["embeddings.positions.weight"][first:]
    if not net.config.types and TYPES in found:
        positions = positions + found[TYPES][0]  # in such a family all tokens have type 0
    # The task's texts need no more places, and its tokenizer has no more words.
    for name, table in (("positions", positions), ("words", state["embeddings.words.weight"])):
        state[f"embeddings.{name}.weight"] = table[: len(expected[f"embeddings.{name}.weight"])]
    return state


def _behind(
    net: Bert, family: Family, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], labelled: bool
) -> dict[str, Tensor]:
    """Pooler and head, as far as the folder has them."""
    taken: dict[str, str] = {}
    if net.pooler is not None:
        source = family.label_pooler[1] if labelled else family.pooler
        taken |= {f"pooler.dense.{end}": f"{source}.{end}" for end in ("weight", "bias")}
    if labelled and net.answers == "vocabulary":
        taken |= family.words
    elif labelled and (net.answers == "token" or net.pooler is not None):
        classifier = family.classifier if net.answers == "sequence" else "classifier"
        head = {f"head.{end}": f"{classifier}.{end}" for end in ("weight", "bias")}
        weight = found.get(head["head.weight"])
        if weight is not None and weight.shape == expected["head.weight"].shape:
            taken |= head
    state = {ours: found[theirs] for ours, theirs in taken.items() if theirs in found}
    if "head.bias" in state:
        state["head.bias"] = state["head.bias"][: len(expected["head.bias"])]
    return state
