"""What TensorRT 10.3 to 11 needs of a Q/DQ graph, checked without a GPU. Most breaches build in float, unsaid."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from edgewise.deploy.contracts import base
from edgewise.deploy.contracts.base import CONVOLUTIONS, DEQUANTIZE, PRODUCTS, QUANTIZE, Finding
from edgewise.deploy.onnx_graph import opset

UNSUPPORTED = (
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QLinearAdd",
)


def versions(known: base.Facts) -> list[Finding]:
    """Opset 9 to 20; float16 scales need 19."""
    found = []
    version = opset(known.model)
    if not 9 <= version <= 20:
        found.append(Finding("opset", "model", f"expected opset 9 to 20, got {version}", "export with opset 20"))
    if version < 19:
        halves = (
            n for n in known.pairs() if (scale := known.value(n.input[1])) is not None and scale.dtype == np.float16
        )
        for node in halves:
            found.append(
                Finding("float16-scale", node.name, f"expected opset 19 or 20, got {version}", "export with opset 20")
            )
    return found


def forms(known: base.Facts) -> list[Finding]:
    """Explicit Q/DQ pairs only: no dynamic quantization, no integer operators, no other domains."""
    mend = "export with QuantizeLinear and DequantizeLinear"
    return [
        Finding(
            "explicit-qdq",
            node.name,
            f"expected standard Q/DQ form, got {node.domain or 'ai.onnx'}:{node.op_type}",
            mend,
        )
        for node in known.model.graph.node
        if node.op_type in UNSUPPORTED or node.domain not in ("", "ai.onnx")
    ]


def signed(known: base.Facts) -> list[Finding]:
    """int8 everywhere, zero-point 0. TensorRT 10.1 refuses uint8; later ones read it as int8 with a warning only."""
    found = []
    for node in known.pairs():
        zero = known.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        stored = known.constants.get(node.input[0]) if node.op_type == DEQUANTIZE else None
        if stored is not None and stored.data_type == TensorProto.INT32:
            continue  # a bias: said by its own rule
        if zero is None:
            # Without a zero-point QuantizeLinear makes uint8.
            if node.op_type == QUANTIZE:
                mend = "give an int8 zero-point of 0"
                found.append(Finding("int8", node.name, "expected int8, got uint8 (no zero-point)", mend))
            continue
        if zero.dtype != np.int8:
            mend = "export the signed flavour"
            found.append(Finding("int8", node.name, f"expected int8, got {zero.dtype}", mend))
        elif zero.any():
            mend = "quantize symmetrically"
            found.append(Finding("zero-point", node.name, f"expected zero-point 0, got {int(zero.flat[0])}", mend))
    return found


def stored(known: base.Facts) -> list[Finding]:
    """A constant's DequantizeLinear feeds weights only: never a bias, never an Add."""
    found = []
    for node in known.model.graph.node:
        if node.op_type != DEQUANTIZE or not known.constant(node.input[0]):
            continue
        tensor = known.constants.get(node.input[0])
        for reader in known.read.get(node.output[0], []):
            place = list(reader.input).index(node.output[0])
            if reader.op_type in PRODUCTS and place == 2:
                kind = TensorProto.DataType.Name(tensor.data_type).lower() if tensor is not None else "quantized"
                mend = "keep the bias in float"
                found.append(Finding("float-bias", reader.name, f"expected a float bias, got {kind}", mend))
            elif reader.op_type not in (*PRODUCTS, "Transpose") or (reader.op_type in CONVOLUTIONS and place != 1):
                mend = "keep this constant in float"
                message = f"expected quantized constants as weights only, got one into {reader.op_type}"
                found.append(Finding("constant-weight", reader.name, message, mend))
    return found


def placement(known: base.Facts) -> list[Finding]:
    """No pair between Conv, BatchNorm and ReLU: it stops their fusion. ConvTranspose runs in float."""
    found = []
    for node in known.model.graph.node:
        if node.op_type == "ConvTranspose" and known.weight(node.input[1]) is not None:
            mend = "keep ConvTranspose in float"
            found.append(Finding("conv-transpose", node.name, "expected float, got a quantized ConvTranspose", mend))
        if node.op_type not in ("Relu", "BatchNormalization"):
            continue
        pair = known.made.get(node.input[0])
        if pair is None or pair.op_type != DEQUANTIZE:
            continue
        quantize = known.made.get(pair.input[0])
        before = known.made.get(quantize.input[0]) if quantize is not None and quantize.op_type == QUANTIZE else None
        if before is not None and before.op_type in (*CONVOLUTIONS, "BatchNormalization"):
            message = f"expected {before.op_type} and {node.op_type} side by side, got a Q/DQ pair between"
            found.append(Finding("fusion", node.name, message, f"quantize after {node.op_type} only"))
    return found


def check(model: ModelProto) -> list[Finding]:
    """Every place where TensorRT would refuse ``model`` or run it in float.

    A float graph is checked for its opset and operators only.
    """
    known = base.facts(model)
    found = [*versions(known), *forms(known)]
    if not base.quantizes_anything(known):
        return found
    return [
        *found,
        *signed(known),
        *base.scales(known),
        *base.weights(known),
        *stored(known),
        *placement(known),
        *base.islands(known),
    ]
