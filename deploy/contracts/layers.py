"""Rules about the layers that compute: their weights, what is left in float among them, and what must be fused."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from edgewise.deploy.contracts.base import (
    CONVOLUTIONS,
    DEQUANTIZE,
    MOVERS,
    PRODUCTS,
    QUANTIZE,
    RECTIFIERS,
    Facts,
    Finding,
    origin,
    weight_axis,
)
from edgewise.deploy.onnx_graph import attribute

SYMMETRIC = -127  # int8 weights leave out the lowest level


def weights(known: Facts) -> list[Finding]:
    """Weights are stored as int8 with zero-point 0, one scale per output channel: axis 0 of Conv, the output axis of
    Gemm and MatMul."""
    found = []
    for node in known.model.graph.node:
        if node.op_type == QUANTIZE and known.constant(node.input[0]):
            message = "expected the weight stored as int8, got a float constant quantized at run time"
            found.append(Finding("stored-weight", node.name, message, "fold the QuantizeLinear into the constant"))
        stored = known.weight(node.input[1]) if node.op_type in PRODUCTS else None
        if stored is not None:
            found += _weight(known, node, stored)
    return found


def _weight(known: Facts, node: NodeProto, stored: NodeProto) -> list[Finding]:
    array, scale = known.value(stored.input[0]), known.value(stored.input[1])
    zero = known.value(stored.input[2]) if len(stored.input) > 2 and stored.input[2] else None
    if array is None or scale is None:
        return []
    found = []
    if array.dtype != np.int8 or (zero is not None and zero.any()):
        got = f"{array.dtype}" if array.dtype != np.int8 else "another zero-point"
        message = f"expected int8 weights with zero-point 0, got {got}"
        found.append(Finding("int8-weight", stored.name, message, "quantize weights symmetrically"))
    elif array.size and array.min() < SYMMETRIC:
        message = f"expected weights of -127 to 127, got {int(array.min())}"
        found.append(Finding("narrow-weight", stored.name, message, "leave out the lowest level of int8"))
    if not array.ndim:
        return found
    axis, wanted = attribute(stored, "axis", 1) % array.ndim, weight_axis(known, node, array.ndim)
    if scale.size > 1 and axis != wanted:
        message = f"expected {node.op_type} weights per channel on axis {wanted}, got axis {axis}"
        mend = "one scale per output channel: in float otherwise, without a word"
        found.append(Finding("weight-axis", stored.name, message, mend))
    elif scale.size == 1 and array.shape[wanted] > 1:
        message = f"expected {array.shape[wanted]} scales, one per output channel, got 1"
        found.append(Finding("per-channel-weight", stored.name, message, "quantize weights per channel"))
    elif scale.size not in (1, array.shape[wanted]) or (zero is not None and zero.size != scale.size):
        got = f"{scale.size} scales and {zero.size if zero is not None else 0} zero-points"
        message = f"expected {array.shape[wanted]} scales and as many zero-points, got {got}"
        found.append(Finding("scale-count", stored.name, message, "one scale per output channel"))
    return found


def islands(known: Facts) -> list[Finding]:
    """No Conv, Gemm or MatMul with stored weights in float, no residual Add and no product with one float side.

    A product of two activations (attention) may be in float on both sides: NNCF leaves it so for accuracy.
    """
    found = []
    for node in known.model.graph.node:
        if node.op_type in PRODUCTS and known.constant(node.input[1]):
            found += _layer(known, node)
        elif node.op_type in PRODUCTS:
            quantized = [known.dequantized(name) for name in node.input[:2]]
            if any(quantized) != all(quantized):
                side = node.input[quantized.index(False)]
                message = f"expected both inputs of {node.op_type} quantized, got {side!r} in float"
                found.append(Finding("one-sided", node.name, message, "quantize both inputs, or neither"))
        if node.op_type == "Add" and not any(known.constant(name) for name in node.input):
            quantized = [known.dequantized(name) for name in node.input]
            sources = [origin(known, name) for name in node.input]
            after_conv = any(source is not None and source.op_type in CONVOLUTIONS for source in sources)
            if any(quantized) != all(quantized) or (after_conv and not all(quantized)):
                side = node.input[quantized.index(False)]
                message = f"expected both inputs of Add quantized, got {side!r} in float"
                found.append(Finding("residual-add", node.name, message, "quantize the skip path too"))
    return found


def _layer(known: Facts, node: NodeProto) -> list[Finding]:
    """A layer with stored weights, in float on one side or both."""
    sides = {"data": known.dequantized(node.input[0]), "weights": known.dequantized(node.input[1])}
    mend = "quantize both inputs of the layer, or say why this one stays in float"
    told = {"data": "float", "weights": "float, stored as such"}
    return [
        Finding("float-island", node.name, f"expected {node.op_type} with quantized {side}, got {told[side]}", mend)
        for side, fine in sides.items()
        if not fine
    ]


def unfolded(known: Facts) -> list[Finding]:
    """No BatchNormalization right after a Conv, with or without quantizers between."""
    found = []
    for node in known.model.graph.node:
        if node.op_type != "BatchNormalization":
            continue
        before = known.made.get(node.input[0])
        while before is not None and before.op_type in (QUANTIZE, DEQUANTIZE):
            before = known.made.get(before.input[0])
        if before is not None and before.op_type in CONVOLUTIONS:
            message = f"expected BatchNorm folded into {before.name!r}, got it as a node: the Conv stays in float"
            found.append(Finding("folded-batchnorm", node.name, message, "fold BatchNorm before quantizing"))
    return found


def float_outputs(known: Facts) -> list[Finding]:
    """A quantized Conv's output is quantized, too, behind its rectifier: ONNX Runtime's integer Conv gives integers
    only. The token stream of a transformer is meant to be in float, and so is what its patches are cut with."""
    if any(node.op_type in ("LayerNormalization", "Softmax") for node in known.model.graph.node):
        return []
    found = []
    for node in known.model.graph.node:
        if node.op_type != "Conv" or known.weight(node.input[1]) is None or not known.dequantized(node.input[0]):
            continue
        waiting, loose = list(node.output), ""
        while waiting and not loose:
            name = waiting.pop()
            for reader in known.read.get(name, []):
                if reader.op_type in (*RECTIFIERS, *MOVERS, "BatchNormalization"):
                    waiting.extend(reader.output)
                elif reader.op_type != QUANTIZE and reader.op_type not in ("Add", *PRODUCTS):  # they have own rules
                    loose = reader.name or reader.op_type
        if loose:
            message = f"expected the output of Conv quantized, got it read in float by {loose!r}"
            found.append(Finding("float-output", node.name, message, "quantize the Conv's output"))
    return found


def fusions(known: Facts) -> list[Finding]:
    """No pair between Conv, BatchNorm and ReLU: it stops their fusion."""
    found = []
    for node in known.model.graph.node:
        if node.op_type not in (*RECTIFIERS, "BatchNormalization"):
            continue
        pair = known.made.get(node.input[0])
        quantize = known.made.get(pair.input[0]) if pair is not None and pair.op_type == DEQUANTIZE else None
        before = known.made.get(quantize.input[0]) if quantize is not None and quantize.op_type == QUANTIZE else None
        if before is not None and before.op_type in (*CONVOLUTIONS, "BatchNormalization"):
            message = f"expected {before.op_type} and {node.op_type} side by side, got a Q/DQ pair between"
            found.append(Finding("fusion", node.name, message, f"quantize after {node.op_type} only"))
    return found


def shared_zero_points(known: Facts) -> list[Finding]:
    """No zero-point array read by weights of two layouts, of a Conv and a MatMul, or of a MatMul and a Gemm whose
    channels are the other axis: OpenVINO 2026.4 reshapes it for one, can then fold neither, and runs both in float."""
    users: dict[str, dict[tuple[int, int], NodeProto]] = {}
    for node in known.model.graph.node:
        stored = known.weight(node.input[1]) if node.op_type in PRODUCTS else None
        if stored is not None and len(stored.input) > 2 and stored.input[2]:
            zero = known.value(stored.input[2])
            if zero is not None and zero.size > 1:
                array = known.value(stored.input[0])
                ndim = 0 if array is None else array.ndim
                layout = ndim, attribute(stored, "axis", 1) % max(1, ndim)
                users.setdefault(stored.input[2], {}).setdefault(layout, node)
    return [
        Finding(
            "own-zero-point",
            layouts[min(layouts)].name,
            f"expected a zero-point array of its own, got {name!r}, which {layouts[max(layouts)].name!r} reads, too",
            "give each weight its own zero-point array",
        )
        for name, layouts in users.items()
        if len(layouts) > 1
    ]
