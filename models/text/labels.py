"""The classes a checkpoint was trained for, by name: its head answers in the order of the task's classes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from edgewise.models.config import HuggingFace
from edgewise.models.text import folder as folders
from edgewise.models.text.bert import Bert

NAMELESS = re.compile(r"label_\d+", re.IGNORECASE)  # what transformers writes where nobody gave names


def align_labels(net: Bert, config: HuggingFace, classes: Sequence[str]) -> str | None:
    """Put the rows of a trained head into the order of ``classes`` where the checkpoint names the same ones.

    Args:
        net: as it was read from the folder; its head is changed in place.
        config: says the folder.
        classes: of the task, K names.

    Returns:
        What to tell of a head whose names are others, which is taken in the order it has; else None.
    """
    theirs = _names(config, len(classes))
    if net.fresh_head or theirs is None or not isinstance(net.head, nn.Linear):
        return None
    known = {name.casefold(): place for place, name in enumerate(theirs)}
    order = [known.get(name.casefold()) for name in classes]
    if sorted(place for place in order if place is not None) != list(range(len(classes))):
        pairs = ", ".join(f"{one} for {other}" for one, other in zip(theirs[:5], classes, strict=False))
        more = ", …" if len(classes) > 5 else ""
        return f"the checkpoint's classes have other names than the task's: {pairs}{more}, in the order they come"
    with torch.no_grad():
        for tensor in (net.head.weight, net.head.bias):
            tensor.copy_(tensor[order].clone())
    return None


def _names(config: HuggingFace, count: int) -> list[str] | None:
    stated = folders.settings(folders.located(config)).get("id2label")
    if not isinstance(stated, dict) or sorted(stated) != sorted(map(str, range(count))):
        return None
    names = [str(stated[str(place)]) for place in range(count)]
    return None if all(NAMELESS.fullmatch(name) for name in names) else names
