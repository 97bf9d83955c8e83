"""Rules about QuantizeLinear and DequantizeLinear: scales, zero-points, types, and pairs that belong together."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from edgewise.deploy.contracts.base import DEQUANTIZE, MOVERS, QUANTIZE, Facts, Finding
from edgewise.deploy.onnx_graph import attribute

_SCALES = (TensorProto.FLOAT, TensorProto.FLOAT16)
_INTEGERS = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32)


def scales(known: Facts) -> list[Finding]:
    """Scales are stored, finite and above zero, float32 or float16; an activation has one scale."""
    found = []
    for node in known.pairs():
        tensor = known.constants.get(node.input[1])
        if tensor is None:
            mend = "quantize statically"
            found.append(Finding("static-scale", node.name, "expected a stored scale, got a computed one", mend))
            continue
        scale = known.value(node.input[1])
        if tensor.data_type not in _SCALES:
            got = TensorProto.DataType.Name(tensor.data_type).lower()
            message = f"expected a float32 or float16 scale, got {got}"
            found.append(Finding("scale-type", node.name, message, "store scales as float32"))
            continue
        if scale is None:
            continue  # in another file: said by its own rule
        if not (np.isfinite(scale) & (scale > 0)).all():
            message = f"expected scales above zero, got {float(scale.min()):g}"
            found.append(Finding("positive-scale", node.name, message, "calibrate with data that reaches this tensor"))
        if scale.size != 1 and not known.constant(node.input[0]):
            message = f"expected one scale for an activation, got {scale.size}"
            found.append(Finding("per-tensor-activation", node.name, message, "quantize activations per tensor"))
    return found


def types(known: Facts) -> list[Finding]:
    """Integers of 8 bits, biases of 32: there are no fast kernels for 4 and 16 bits, nor for 8-bit floats."""
    found = []
    for node in known.pairs():
        kind = _kind(known, node)
        if kind is not None and kind not in _INTEGERS:
            got = TensorProto.DataType.Name(kind).lower()
            found.append(Finding("eight-bits", node.name, f"expected 8-bit integers, got {got}", "quantize to 8 bits"))
    return found


def _kind(known: Facts, node: NodeProto) -> int | None:
    """The stored type of a quantizer's integers, as far as the graph says it by itself."""
    zero = known.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    stored = known.constants.get(node.input[0]) if node.op_type == DEQUANTIZE else None
    if zero is not None or stored is not None:
        tensor = zero if zero is not None else stored
        return tensor.data_type if tensor is not None else None
    return attribute(node, "output_dtype") or None


def pairing(known: Facts) -> list[Finding]:
    """Each Q leads to DQs of the same scale and zero-point, each DQ comes from a Q or a constant; never DQ -> Q at
    once, and no pair on the logits."""
    found = []
    outputs = known.outputs()
    for node in known.pairs():
        if node.op_type == QUANTIZE:
            found += _lonely_quantize(known, node)
            before = known.made.get(node.input[0])
            if before is not None and before.op_type == DEQUANTIZE and not known.constant(before.input[0]):
                message = f"expected an unquantized input, got {before.name!r}'s output"
                found.append(Finding("twice-quantized", node.name, message, "remove one of the two pairs"))
            continue
        if not known.constant(node.input[0]):
            found += _origin(known, node)
        if node.output[0] in outputs:
            message = "expected the graph's output in float, got it rounded to 8 bits"
            found.append(Finding("float-logits", node.name, message, "remove the pair before the output"))
    return found


def _origin(known: Facts, node: NodeProto) -> list[Finding]:
    """Where a DQ's integers come from: Qs of its own scale and zero-point, past movers and Concats."""
    waiting = [node.input[0]]
    while waiting:
        name = waiting.pop()
        source = known.source(name)
        if source is not None and source.op_type == "Concat":
            waiting.extend(source.input)
        elif source is None or source.op_type != QUANTIZE:
            if source is None or not _integer(source):
                got = f"them from {source.op_type}" if source is not None else f"the graph's input {name!r}"
                message = f"expected integers from a QuantizeLinear, got {got}"
                return [Finding("lonely-dequantize", node.name, message, "quantize inside the graph")]
        elif not _same(known, node, source):
            message = f"expected the scale and zero-point of {source.name!r}, got others"
            return [Finding("same-scale", node.name, message, "give both halves of a pair the same constants")]
    return []


def _lonely_quantize(known: Facts, node: NodeProto) -> list[Finding]:
    """A Q whose integers reach something that is no DQ, no mover and no integer operator; or nothing."""
    waiting, wrong = [node.output[0]], ""
    outputs = known.outputs()
    while waiting and not wrong:
        name = waiting.pop()
        readers = known.read.get(name, [])
        if name in outputs or not readers:
            wrong = "the graph's output" if name in outputs else "nothing"
        for reader in readers:
            if reader.op_type in (*MOVERS, "Concat"):
                waiting.extend(reader.output)
            elif reader.op_type != DEQUANTIZE and not _integer(reader):
                wrong = reader.op_type
    if not wrong:
        return []
    message = f"expected a DequantizeLinear behind, got {wrong}"
    return [Finding("lonely-quantize", node.name, message, "dequantize with the same scale")]


def _integer(node: NodeProto) -> bool:
    """Operators that take or make quantized values without a pair."""
    return node.op_type.startswith(("QLinear", "QGemm")) or node.op_type.endswith("Integer")


def _same(known: Facts, node: NodeProto, source: NodeProto) -> bool:
    for place in (1, 2):
        names = [part.input[place] if len(part.input) > place else "" for part in (node, source)]
        if names[0] == names[1]:
            continue
        left, right = (known.value(name) for name in names)
        if left is None or right is None:
            # A missing zero-point is 0, of whichever type.
            if place == 1 or any(value is not None and value.any() for value in (left, right)):
                return False
        elif not np.array_equal(left, right):
            return False
    return True
