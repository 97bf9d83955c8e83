"""What a contract finds in a graph, and the facts about Q/DQ graphs that the contracts share. No runtime is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edgewise.deploy.onnx_graph import MOVERS, attribute, consumers, producers

CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = (*CONVOLUTIONS, "Gemm", "MatMul")
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Finding:
    """One place where a runtime would refuse the graph, or run it otherwise than meant.

    ``rule`` is the short name of what is broken, ``node`` the node's name, ``message`` what was expected and what came,
    ``mend`` the next step.
    """

    rule: str
    node: str
    message: str
    mend: str


@dataclass(frozen=True)
class Facts:
    """A graph with its look-up tables."""

    model: ModelProto
    made: dict[str, NodeProto] = field(repr=False)
    read: dict[str, list[NodeProto]] = field(repr=False)
    constants: dict[str, TensorProto] = field(repr=False)

    def value(self, name: str) -> np.ndarray | None:
        """A constant's value; None if ``name`` isn't one."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def source(self, name: str) -> NodeProto | None:
        """The node that made ``name``, looking past operators that only move values."""
        node = self.made.get(name)
        while node is not None and node.op_type in MOVERS:
            node = self.made.get(node.input[0])
        return node

    def dequantized(self, name: str) -> bool:
        """Whether ``name`` comes from a DequantizeLinear."""
        node = self.source(name)
        return node is not None and node.op_type == DEQUANTIZE

    def weight(self, name: str) -> NodeProto | None:
        """The DequantizeLinear of a stored weight that gives ``name``, if that is what it is."""
        node = self.source(name)
        return node if node is not None and node.op_type == DEQUANTIZE and node.input[0] in self.constants else None

    def constant(self, name: str) -> bool:
        """Whether ``name`` is stored in the file, quantized or not."""
        if name in self.constants:
            return True
        node = self.source(name)
        if node is None:
            return self._moved_constant(name)
        return node.op_type in (QUANTIZE, DEQUANTIZE) and self.constant(node.input[0])

    def _moved_constant(self, name: str) -> bool:
        node = self.made.get(name)
        while node is not None and node.op_type in MOVERS:
            name = node.input[0]
            node = self.made.get(name)
        return name in self.constants

    def pairs(self) -> Iterator[NodeProto]:
        """Every QuantizeLinear and DequantizeLinear."""
        return (node for node in self.model.graph.node if node.op_type in (QUANTIZE, DEQUANTIZE))


def facts(model: ModelProto) -> Facts:
    """Look-up tables for ``model``."""
    graph = model.graph
    tables = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensor = attribute(node, "value")
            if isinstance(tensor, TensorProto):
                tables[node.output[0]] = tensor
    return Facts(model, producers(graph), consumers(graph), tables)


def quantizes_anything(known: Facts) -> bool:
    """Whether this is a quantized graph at all; a float graph has nothing to check."""
    return any(True for _ in known.pairs())


def scales(known: Facts) -> list[Finding]:
    """Scales are stored, finite and above zero; an activation has one scale."""
    found = []
    for node in known.pairs():
        scale = known.value(node.input[1])
        if scale is None:
            found.append(
                Finding("static-scale", node.name, "expected a stored scale, got a computed one", "quantize statically")
            )
            continue
        if not (np.isfinite(scale) & (scale > 0)).all():
            found.append(
                Finding(
                    "positive-scale",
                    node.name,
                    f"expected scales above zero, got {float(scale.min()):g}",
                    "calibrate with data that reaches this tensor",
                )
            )
        if scale.size != 1 and not known.constant(node.input[0]):
            found.append(
                Finding(
                    "per-tensor-activation",
                    node.name,
                    f"expected one scale for an activation, got {scale.size}",
                    "quantize activations per tensor",
                )
            )
    return found


def weights(known: Facts) -> list[Finding]:
    """Weights are stored as int8 with zero-point 0, one scale per output channel: axis 0 of Conv, the output axis of
    Gemm and MatMul."""
    found = []
    for node in known.model.graph.node:
        if node.op_type == QUANTIZE and known.constant(node.input[0]):
            message = "expected the weight stored as int8, got a float constant quantized at run time"
            found.append(Finding("stored-weight", node.name, message, "fold the QuantizeLinear into the constant"))
        if node.op_type not in PRODUCTS:
            continue
        stored = known.weight(node.input[1])
        if stored is None:
            continue
        array = known.value(stored.input[0])
        scale = known.value(stored.input[1])
        zero = known.value(stored.input[2]) if len(stored.input) > 2 else None
        if array is None or scale is None:
            continue
        if array.dtype != np.int8 or (zero is not None and zero.any()):
            got = f"{array.dtype}" if array.dtype != np.int8 else "another zero-point"
            found.append(
                Finding(
                    "int8-weight",
                    stored.name,
                    f"expected int8 weights with zero-point 0, got {got}",
                    "quantize weights symmetrically",
                )
            )
        axis = attribute(stored, "axis", 1) % max(array.ndim, 1)
        wanted = weight_axis(known, node, array.ndim)
        if scale.size > 1 and axis != wanted:
            found.append(
                Finding(
                    "weight-axis",
                    stored.name,
                    f"expected {node.op_type} weights per channel on axis {wanted}, got axis {axis}",
                    "one scale per output channel: in float otherwise, without a word",
                )
            )
        elif scale.size == 1 and array.shape[wanted] > 1:
            found.append(
                Finding(
                    "per-channel-weight",
                    stored.name,
                    f"expected {array.shape[wanted]} scales, one per output channel, got 1",
                    "quantize weights per channel",
                )
            )
    return found


def weight_axis(known: Facts, node: NodeProto, ndim: int) -> int:
    """The axis of output channels in the stored weight of ``node``."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    last = not attribute(node, "transB", 0)
    between = known.made.get(node.input[1])
    if between is not None and between.op_type == "Transpose":
        last = not last
    return ndim - 1 if last else ndim - 2


def islands(known: Facts) -> list[Finding]:
    """No Conv, Gemm or MatMul with stored weights in float, and no residual Add with one float side.

    A product of two activations (attention) may be in float: NNCF leaves it so for accuracy.
    """
    found = []
    for node in known.model.graph.node:
        if node.op_type in PRODUCTS and known.constant(node.input[1]):
            sides = {"data": known.dequantized(node.input[0]), "weights": known.weight(node.input[1]) is not None}
            for name in [side for side, fine in sides.items() if not fine]:
                found.append(
                    Finding(
                        "float-island",
                        node.name,
                        f"expected {node.op_type} with quantized {name}, got float",
                        "quantize both inputs of the layer, or say why this one stays in float",
                    )
                )
        if node.op_type == "Add" and not any(known.constant(name) for name in node.input):
            quantized = [known.dequantized(name) for name in node.input]
            after_conv = any(_from_convolution(known, name) for name in node.input)
            if any(quantized) != all(quantized) or (after_conv and not all(quantized)):
                side = node.input[quantized.index(False)]
                found.append(
                    Finding(
                        "residual-add",
                        node.name,
                        f"expected both inputs of Add quantized, got {side!r} in float",
                        "quantize the skip path too",
                    )
                )
    return found


def _from_convolution(known: Facts, name: str) -> bool:
    node = known.source(name)
    while node is not None and node.op_type in ("Relu", "Clip", "BatchNormalization"):
        node = known.source(node.input[0])
    return node is not None and node.op_type in CONVOLUTIONS


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
            found.append(
                Finding(
                    "folded-batchnorm",
                    node.name,
                    f"expected BatchNorm folded into {before.name!r}, got it as a node: the Conv stays in float",
                    "fold BatchNorm before quantizing",
                )
            )
    return found
