"""What TensorRT 10.3 to 11 needs of a Q/DQ graph, checked without a GPU. Most breaches build in float, unsaid."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, TensorProto

from edgewise.deploy.contracts import base, file, layers, quantizers
from edgewise.deploy.contracts.base import CONVOLUTIONS, DEQUANTIZE, PRODUCTS, QUANTIZE, Facts, Finding
from edgewise.deploy.onnx_graph import opset

OPSETS = range(9, 21)
FORMATS = range(3, 11)  # its parser is built with onnx 1.16 or later
INTEGER_FORM = frozenset(
    [
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "QLinearAdd",
    ]
)
# What the parser of TensorRT-RTX 1.7 says it doesn't support, of the operators up to opset 20.
UNSUPPORTED = frozenset(
    [
        "AffineGrid",
        "Bernoulli",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "DFT",
        "DeformConv",
        "Det",
        "ImageDecoder",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "RegexFullMatch",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
        "Unique",
    ]
)


def half_scales(known: Facts) -> list[Finding]:
    """float16 scales came with opset 19."""
    version = opset(known.model)
    if version >= 19:
        return []
    tensors = {node.name: known.constants.get(node.input[1]) for node in known.pairs()}
    return [
        Finding("float16-scale", name, f"expected opset 19 or 20, got {version}", "export with opset 20")
        for name, tensor in tensors.items()
        if tensor is not None and tensor.data_type == TensorProto.FLOAT16
    ]


def forms(known: Facts) -> list[Finding]:
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
        if node.op_type in INTEGER_FORM or node.domain not in file.STANDARD
    ]


def signed(known: Facts) -> list[Finding]:
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


def stored(known: Facts) -> list[Finding]:
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


def transposed(known: Facts) -> list[Finding]:
    """ConvTranspose runs in float."""
    return [
        Finding(
            "conv-transpose",
            node.name,
            "expected float, got a quantized ConvTranspose",
            "keep ConvTranspose in float",
        )
        for node in known.model.graph.node
        if node.op_type == "ConvTranspose" and known.weight(node.input[1]) is not None
    ]


def check(model: ModelProto, float_layers: Collection[str] = ()) -> list[Finding]:
    """Every place where TensorRT would refuse ``model`` or run it in float.

    A float graph is checked as a file only: opset, operators, names, shapes.

    Args:
        model: the graph.
        float_layers: torch modules, or globs of their names, that a plan leaves in float.
    """
    known = base.facts(model)
    found = [
        *file.versions(known, OPSETS, FORMATS),
        *half_scales(known),
        *forms(known),
        *(finding for finding in file.operators(known, UNSUPPORTED) if ":" not in finding.message),
        *file.common(known),
    ]
    if base.quantizes_anything(known):
        found += [
            *signed(known),
            *quantizers.scales(known),
            *quantizers.types(known),
            *quantizers.pairing(known),
            *layers.weights(known),
            *stored(known),
            *layers.fusions(known),
            *transposed(known),
            *layers.unfolded(known),
            *layers.islands(known),
        ]
    return base.finish(known, found, float_layers)
