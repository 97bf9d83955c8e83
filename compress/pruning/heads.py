"""Heads of attention as units of pruning: rows of the projections to queries, keys and values, and the columns of the
output projection that read them (Michel et al., arXiv 1905.10650).

Where the output projection lies differs from family to family, so it is taken from a dry run: the last linear layer
inside the attention, or the next behind it. Whether that is right is tried like everything else (``soundness.py``).
"""

from __future__ import annotations

from collections import Counter
from math import gcd

import torch
from torch import Tensor, nn

from edgewise.compress.attention import Attention, attention_of, sizes
from edgewise.compress.macs import evaluating, shown
from edgewise.compress.pruning.groups import Candidate, Place
from edgewise.errors import ModelError
from edgewise.models.inputs import blank, dims_in_words


def head_groups(
    model: nn.Module, input_shape: tuple[int, ...], *, round_to: int
) -> tuple[list[Candidate], dict[str, str]]:
    """One candidate for each attention module, its writers the projections to queries, keys and values; and why an
    ``nn.MultiheadAttention`` has none.

    The number of heads stays such that heads times head width is a multiple of ``round_to``.

    Raises:
        ModelError: the model can't take an input of this shape.
    """
    skipped = {
        name: "nn.MultiheadAttention can't lose heads: they always fill its embed_dim"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    found = {name: one for name, module in model.named_modules() if (one := attention_of(module))}
    order = _run_order(model, set(found), input_shape) if found else []
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    candidates = []
    for name, attention in found.items():
        writers = tuple(f"{name}.{projection}".lstrip(".") for projection in attention.projections)
        reader = _reader(order, name, writers)
        why_not = "it has one head" if attention.heads == 1 else ""
        if reader is None or _inputs(model, reader) != attention.heads * attention.head_dim:
            why_not = "no linear layer behind the attention reads its heads"
        tied = [layer for layer in (*writers, reader) if layer and _shared(model, layer, uses)]
        if tied:
            why_not = f"Linear {tied[0]!r} shares its weights with another layer"
        places = _places(model, name, attention, writers, "" if why_not else reader or "")
        multiple = round_to // gcd(attention.head_dim, round_to)
        candidates.append(Candidate(writers, places, kind="heads", multiple=multiple, why_not=why_not))
    return candidates, skipped


def _places(
    model: nn.Module, name: str, attention: Attention, writers: tuple[str, ...], reader: str
) -> dict[Place, Tensor]:
    heads = range(attention.heads)
    held = {
        Place(name, side): torch.arange(value).reshape(attention.heads, -1)
        for side, value in sizes(model.get_submodule(name)).items()
    }
    held |= {Place(writer, "out"): torch.tensor([attention.rows([head]) for head in heads]) for writer in writers}
    if reader:
        held[Place(reader, "in")] = torch.tensor([attention.columns([head]) for head in heads])
    return held


def _reader(order: list[tuple[str, str]], attention: str, writers: tuple[str, ...]) -> str | None:
    """The linear layer that puts the heads together, in the order of events of one pass."""
    try:
        start, end = order.index(("enter", attention)), order.index(("leave", attention))
    except ValueError:
        return None
    inside = [name for event, name in order[start:end] if event == "linear" and name not in writers]
    behind = (name for event, name in order[end:] if event == "linear")
    return inside[-1] if inside else next(behind, None)


def _run_order(model: nn.Module, attentions: set[str], input_shape: tuple[int, ...]) -> list[tuple[str, str]]:
    """Linear layers and attention modules in the order in which they run: ("enter" | "leave" | "linear", name)."""
    events: list[tuple[str, str]] = []
    handles = []
    for name, module in model.named_modules():
        if name in attentions:
            handles.append(module.register_forward_pre_hook(lambda _m, _i, name=name: events.append(("enter", name))))
            handles.append(module.register_forward_hook(lambda _m, _i, _o, name=name: events.append(("leave", name))))
        elif isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(lambda _m, _i, _o, name=name: events.append(("linear", name))))
    try:
        with evaluating(model):
            model(shown(model, blank(input_shape, 1)))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"the model can't take an input of shape {dims_in_words(input_shape)}: {error}",
            hint="check the task's input shape against the model",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return events


def _inputs(model: nn.Module, name: str) -> int:
    return int(getattr(model.get_submodule(name), "in_features", 0))


def _shared(model: nn.Module, name: str, uses: Counter[int]) -> bool:
    return any(uses[id(parameter)] > 1 for parameter in model.get_submodule(name).parameters(recurse=False))
