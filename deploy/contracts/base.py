"""What a contract finds in a graph, and the look-ups that the rules share. No runtime is needed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edgewise.deploy.onnx_graph import MOVERS as MOVED
from edgewise.deploy.onnx_graph import attribute, consumers, producers

CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = (*CONVOLUTIONS, "Gemm", "MatMul")
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
MOVERS = tuple(kind for kind in MOVED if kind != "Concat")  # a Concat moves only what is quantized alike
RECTIFIERS = ("Relu", "Clip")
MAKER = "edgewise"  # graphs of ours carry it, and name their nodes after torch modules

# What a mixed-precision plan brings about on purpose: no finding where the plan names the layer.
PLANNED = frozenset(("float-island", "residual-add", "float-output", "stored-weight", "one-sided"))
# Calls that are the whole of their module: such a node's name is the module's, any other's ends in the call.
OWN_CALLS = frozenset(
    ("Conv", "ConvTranspose", "Gemm", "Relu", "Clip", "Gelu", "LayerNormalization", "BatchNormalization", "Sigmoid")
)


@dataclass(frozen=True)
class Finding:
    """One place where a runtime would refuse the graph, or run it otherwise than meant.

    ``rule`` is the short name of what is broken, ``node`` the node's name, ``message`` what was expected and what came,
    ``mend`` the next step, ``module`` the torch module that the node came from: empty for a graph that another tool
    made, or for a node of the model itself.
    """

    rule: str
    node: str
    message: str
    mend: str
    module: str = ""


@dataclass(frozen=True)
class Facts:
    """A graph with its look-up tables."""

    model: ModelProto
    made: dict[str, NodeProto] = field(repr=False)
    read: dict[str, list[NodeProto]] = field(repr=False)
    constants: dict[str, TensorProto] = field(repr=False)

    def value(self, name: str) -> np.ndarray | None:
        """A constant's value; None if ``name`` isn't one, or lies in another file."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor)

    def source(self, name: str) -> NodeProto | None:
        """The node that made ``name``, looking past operators that only move values, and past a Concat of tensors that
        are dequantized alike."""
        node = self.made.get(name)
        while node is not None and node.op_type in MOVERS:
            node = self.made.get(node.input[0])
        if node is not None and node.op_type == "Concat":
            sources = [self.source(part) for part in node.input]
            scales = {self._scale(source) for source in sources}
            return sources[0] if len(scales) == 1 and None not in scales else node
        return node

    def _scale(self, node: NodeProto | None) -> tuple[bytes, bytes] | None:
        """Scale and zero-point of a DequantizeLinear's activation."""
        if node is None or node.op_type != DEQUANTIZE or self.constant(node.input[0]):
            return None
        scale, zero = (self.value(name) for name in (*node.input[1:], "")[:2])
        return (b"" if scale is None else scale.tobytes(), b"" if zero is None else zero.tobytes())

    def dequantized(self, name: str) -> bool:
        """Whether ``name`` comes from a DequantizeLinear; every part of it, where parts are joined."""
        node = self.made.get(name)
        while node is not None and node.op_type in MOVERS:
            if node.op_type == "Concat":
                return all(self.dequantized(part) for part in node.input)
            node = self.made.get(node.input[0])
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
            if node.op_type in ("Gather", "Slice") and not all(self.constant(which) for which in node.input[1:]):
                return False  # which rows of a table are taken, a run decides
            name = node.input[0]
            node = self.made.get(name)
        return name in self.constants

    def pairs(self) -> Iterator[NodeProto]:
        """Every QuantizeLinear and DequantizeLinear."""
        return (node for node in self.model.graph.node if node.op_type in (QUANTIZE, DEQUANTIZE))

    def outputs(self) -> set[str]:
        """The names of the graph's outputs."""
        return {item.name for item in self.model.graph.output}


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
    """Whether this is a quantized graph at all; a float graph has few rules to keep."""
    return any(True for _ in known.pairs())


def torch_module(node: NodeProto) -> str:
    """The torch module that a node of ours came from, as ``onnx_graph.rename`` wrote it into the node's name.

    ``layer1.0.conv1`` is itself, ``layer1.0.add_65`` a call in ``layer1.0``, and the quantizer
    ``layer1.0.relu1.relu.0.out0.q`` sits behind the first ``relu`` of ``layer1.0.relu1``.
    """
    name = re.sub(r"~\d+$", "", node.name)
    place = re.match(r"(.*?)\.?(?:in|out)\d+(?:\.|$)", name)
    if place:
        steps = place[1].split(".")
        return ".".join(steps[:-2]) if len(steps) > 1 else ""
    name = re.sub(r"(\.(q|dq|again|moved|joined|integers))+$", "", name)
    stored = re.match(r"(.*)\.(?:weight|bias)\b", name)
    if stored:
        return stored[1]
    if node.op_type in OWN_CALLS:
        return name
    steps = name.split(".")
    # A linear layer on three axes is a MatMul and an Add under the module's own name.
    if node.op_type in ("MatMul", "Add") and not re.fullmatch(r"(matmul|add|bmm|mul)(_\d+)?", steps[-1]):
        return name
    return ".".join(steps[:-1])


def planned(name: str, float_layers: Collection[str]) -> bool:
    """Whether a plan leaves the layer ``name`` in float: by its name, a glob, or the name of what holds it."""
    return any(fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") for pattern in float_layers)


def finish(known: Facts, found: list[Finding], float_layers: Collection[str]) -> list[Finding]:
    """Findings with their torch modules, without the islands that ``float_layers`` asked for."""
    nodes = {node.name: node for node in known.model.graph.node}
    ours = known.model.producer_name == MAKER
    told = []
    for finding in found:
        node = nodes.get(finding.node)
        module = torch_module(node) if ours and node is not None else ""
        if finding.rule in PLANNED and _asked_for(known, node, module, float_layers):
            continue
        told.append(replace(finding, module=module))
    return list(dict.fromkeys(told))


def _asked_for(known: Facts, node: NodeProto | None, module: str, float_layers: Collection[str]) -> bool:
    if node is None or not float_layers:
        return False
    if planned(module or re.sub(r"~\d+$", "", node.name), float_layers):
        return True
    # An Add beside a layer that is meant to be in float: that side of it is float, too.
    sides = [origin(known, name) for name in node.input] if node.op_type == "Add" else []
    return any(side is not None and planned(torch_module(side), float_layers) for side in sides)


def origin(known: Facts, name: str) -> NodeProto | None:
    """The node that computed ``name``, looking past movers, rectifiers and BatchNorm."""
    node = known.source(name)
    while node is not None and node.op_type in (*RECTIFIERS, "BatchNormalization"):
        node = known.source(node.input[0])
    return node


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
