"""The ops of a LiteRT file that belong to layers of the torch model: found by the values of their weights, because the
conversion names ops after whatever they were fused with."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgewise.compress.quantization.insert import Whole
from edgewise.deploy import tflite
from edgewise.deploy.convert.planned import check_plan

Weights = Mapping[str, NDArray[np.float32]]


def weights_of(model: nn.Module, layers: Collection[str]) -> dict[str, NDArray[np.float32]]:
    """Each layer's weight, sorted; a layer that the model hasn't, or one without a ``weight`` of its own, is left
    out."""
    inner = model.net if isinstance(model, Whole) else model
    modules = dict(inner.named_modules())
    found = {}
    for name in layers:
        weight = getattr(modules.get(name), "weight", None)
        if weight is not None:
            found[name] = np.sort(weight.detach().float().cpu().numpy(), axis=None)
    return found


def ops_of(content: bytes, weights: Weights) -> dict[str, list[tflite.Op]]:
    """The ops that multiply by each layer's weights, which the file must store in float32."""
    products = [(op, op.operands[1]) for op in tflite.read(content) if op.kind in tflite.PRODUCTS]
    stored = [
        (op, np.sort(values, axis=None))
        for op, tensor in products
        if tensor.kind == "FLOAT32" and (values := tensor.values()) is not None
    ]
    return {name: [op for op, values in stored if np.array_equal(values, own)] for name, own in weights.items()}


def check_file(content: bytes, converted: bytes, weights: Weights, float_layers: Collection[str], where: str) -> None:
    """Check that the plan's layers compute in float in ``converted``, which was made of the float file ``content``.

    Raises:
        ContractError: naming those that don't, or aren't there.
    """
    before, after = ops_of(content, weights), ops_of(converted, weights)
    floats = {name: len(ops) for name, ops in before.items() if ops}
    check_plan(float_layers, {name: len(after[name]) != count for name, count in floats.items()}, where)


__all__ = ["check_file", "ops_of", "weights_of"]
