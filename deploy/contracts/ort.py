"""What ONNX Runtime needs to run a Q/DQ graph in its integer kernels (QLinearConv, QLinearAdd, MatMulIntegerToFloat).

Measured with 1.31 on x86: a BatchNorm left after a Conv keeps every Conv in float; int8 activations run at half the
speed of uint8 ones; per-channel activations are slower than float; a Conv whose output isn't quantized runs in float;
float16 is computed as float32.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, TensorProto

from edgewise.deploy.contracts import base, file, layers, quantizers
from edgewise.deploy.contracts.base import Facts, Finding

OPSETS = range(7, 24)
FORMATS = range(3, 12)  # 1.23 reads IR 11, 1.31 reads 13
DOMAINS = ("com.microsoft", "ai.onnx.ml", "com.microsoft.nchwc")


def unsigned_activations(known: Facts) -> list[Finding]:
    """Activations are uint8."""
    found = []
    for node in known.pairs():
        zero = known.value(node.input[2]) if len(node.input) > 2 else None
        if known.constant(node.input[0]) or zero is None or zero.dtype != np.int8:
            continue
        mend = "add 128 to values and zero-points: it changes no result"
        found.append(Finding("uint8-activation", node.name, f"expected uint8 activations, got {zero.dtype}", mend))
    return found


def full_precision(known: Facts) -> list[Finding]:
    """No float16: the CPU kernels compute it as float32 and convert at every layer."""
    found = []
    for node in known.model.graph.node:
        if node.op_type not in (*base.PRODUCTS, base.QUANTIZE, base.DEQUANTIZE):
            continue
        tensors = [known.constants.get(name) for name in node.input]
        if any(tensor is not None and tensor.data_type == TensorProto.FLOAT16 for tensor in tensors):
            message = "expected float32, got float16: computed as float32, with conversions"
            found.append(Finding("float32", node.name, message, "export the float32 graph for ONNX Runtime"))
    return found


def check(model: ModelProto, float_layers: Collection[str] = ()) -> list[Finding]:
    """Every place where ONNX Runtime would refuse ``model`` or run it in float.

    A float graph is checked as a file only.

    Args:
        model: the graph.
        float_layers: torch modules, or globs of their names, that a plan leaves in float.
    """
    known = base.facts(model)
    found = [
        *file.versions(known, OPSETS, FORMATS),
        *file.operators(known, (), DOMAINS),
        *file.common(known),
        *full_precision(known),
    ]
    if base.quantizes_anything(known):
        found += [
            *quantizers.scales(known),
            *quantizers.types(known),
            *quantizers.pairing(known),
            *unsigned_activations(known),
            *layers.weights(known),
            *layers.unfolded(known),
            *layers.islands(known),
            *layers.float_outputs(known),
        ]
    return base.finish(known, found, float_layers)
