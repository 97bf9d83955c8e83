"""Layers that stay in float: from the names in a recipe to the layers of a model, and to NNCF's nodes.

A layer here is a module that multiplies by weights of its own (convolution, linear, attention). Its name is the one
in torch: ``layer1.0.conv1``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from edgewise.compress.macs import count
from edgewise.compress.quantization.places import given, owners
from edgewise.compress.taps import near
from edgewise.errors import ModelError
from edgewise.models.inputs import blank

WHERE = "float_layers"


def weighted_layers(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """{name: multiply-accumulates of one sample} of the layers that multiply by weights of their own, in order of
    execution. ``input_shape`` is (C, H, W).

    Raises:
        ModelError: the model can't take such an input.
    """
    return {name: cost.macs for name, cost in count(model, input_shape).layers.items() if cost.params}


def resolve_float_layers(model: nn.Module, wanted: Sequence[str], input_shape: tuple[int, ...]) -> tuple[str, ...]:
    """The layers that ``wanted`` names, in order of execution.

    Args:
        model: float or quantized.
        wanted: names of layers, or patterns in which ``*`` stands for anything.
        input_shape: (C, H, W).

    Raises:
        ModelError: a name or pattern meets no layer, or all layers would stay in float.
    """
    if not wanted:
        return ()
    known = list(weighted_layers(model, input_shape))
    for name in wanted:
        if not any(fnmatchcase(layer, name) for layer in known):
            raise ModelError(
                f"the model has no convolution or linear layer {name!r}",
                where=WHERE,
                hint=near(name, known),
            )
    chosen = tuple(layer for layer in known if any(fnmatchcase(layer, name) for name in wanted))
    if len(chosen) == len(known):
        raise ModelError(
            f"all {len(known)} layers would stay in float: nothing is left to quantize",
            where=WHERE,
            hint="name fewer layers, or leave the quantize stage out",
        )
    return chosen


def unquantized_layers(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[str, ...]:
    """The layers whose weights no quantizer is given, in order of execution: those that a plan leaves in float, and
    those that NNCF leaves so by itself, such as the two of a squeeze-and-excitation block.

    Args:
        model: with quantizers.
        input_shape: (C, H, W).

    Raises:
        ModelError: the model can't take such an input.
    """
    layers = weighted_layers(model, input_shape)
    quantized = owners(model, given(model, torch.from_numpy(blank(input_shape, 1)))).values()
    holders = {name.rpartition(".")[0] for name in quantized}
    return tuple(name for name in layers if name not in holders)


def node_patterns(names: Collection[str], prefix: str = "") -> list[str]:
    """Regular expressions for NNCF's nodes of these layers: the functions that the module itself calls, named
    ``layer1/0/conv1/conv2d/0``. ``prefix`` is the name of a module around the model."""
    places = [f"{prefix}.{name}" if prefix else name for name in names]
    return [re.escape(place.replace(".", "/")) + r"/[^/]+/\d+" for place in places]


def ignored_scope(nncf: Any, names: Collection[str], prefix: str = "", *, tables: bool = False) -> Any:
    """NNCF's ``IgnoredScope`` for these layers, and with ``tables`` for look-ups in tables of words; None for none."""
    if not names and not tables:
        return None
    return nncf.IgnoredScope(patterns=node_patterns(names, prefix), types=["embedding"] if tables else [])


__all__ = ["ignored_scope", "node_patterns", "resolve_float_layers", "unquantized_layers", "weighted_layers"]
