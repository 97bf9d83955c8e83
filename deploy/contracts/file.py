"""Rules about a graph as a file: versions, operators, names, shapes, side files. They hold for float graphs, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import onnx
from onnx import NodeProto, TensorProto

from edgewise.deploy.contracts.base import Facts, Finding
from edgewise.deploy.onnx_graph import opset

STANDARD = ("", "ai.onnx")


def versions(known: Facts, opsets: range, formats: range) -> list[Finding]:
    """An opset and an IR version that the runtime reads."""
    found = []
    version = opset(known.model)
    if version not in opsets:
        message = f"expected opset {opsets[0]} to {opsets[-1]}, got {version}"
        found.append(Finding("opset", "model", message, f"export with opset {min(opsets[-1], 20)}"))
    version = known.model.ir_version
    if version not in formats:
        message = f"expected IR version {formats[0]} to {formats[-1]}, got {version}"
        found.append(Finding("ir-version", "model", message, "write the file with IR version 10"))
    return found


def operators(known: Facts, unsupported: Collection[str], domains: Collection[str] = ()) -> list[Finding]:
    """Operators that the runtime has.

    Args:
        known: the graph.
        unsupported: standard operators that it lacks.
        domains: further domains that it knows.
    """
    found = []
    version = opset(known.model)
    for node in known.model.graph.node:
        if node.domain in STANDARD and (node.op_type in unsupported or not _defined(node, version)):
            got = node.op_type
        elif node.domain not in STANDARD and node.domain not in domains:
            got = f"{node.domain}:{node.op_type}"
        else:
            continue
        mend = "write the layer with standard operators, or leave it out of the graph"
        found.append(Finding("unsupported-op", node.name, f"expected an operator it has, got {got}", mend))
    return found


def _defined(node: NodeProto, version: int) -> bool:
    """Whether ONNX's standard has this operator in this opset; a version that onnx doesn't know can't be judged."""
    if not 1 <= version <= onnx.defs.onnx_opset_version():
        return True
    try:
        onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return False
    return True


def names(known: Facts) -> list[Finding]:
    """Every node has a name of its own: reports and plans speak of layers by it."""
    counted = Counter(node.name for node in known.model.graph.node)
    found = []
    nameless = [node for node in known.model.graph.node if not node.name]
    if nameless:
        first = nameless[0].output[0] if nameless[0].output else nameless[0].op_type
        message = f"expected names, got {len(nameless)} nodes without; the first makes {first!r}"
        found.append(Finding("node-name", "model", message, "name the nodes after their layers"))
    for name, number in counted.items():
        if name and number > 1:
            message = f"expected a name of its own, got one that {number} nodes have"
            found.append(Finding("unique-name", name, message, "number the nodes of one name"))
    makers = Counter(name for node in known.model.graph.node for name in node.output if name)
    for node in known.model.graph.node:
        twice = [name for name in node.output if makers[name] > 1]
        if twice:
            message = f"expected one maker of {twice[0]!r}, got {makers[twice[0]]}"
            found.append(Finding("one-maker", node.name, message, "give each output a name of its own"))
            break
    return found


def shapes(known: Facts) -> list[Finding]:
    """Inputs have fixed sizes except for the batch, the first axis, and a text's length, the second of (N, L) ids."""
    stored = {tensor.name for tensor in known.model.graph.initializer}
    found = []
    for item in known.model.graph.input:
        if item.name in stored:
            continue
        kind, dims = item.type.tensor_type.elem_type, item.type.tensor_type.shape.dim
        fixed_from = 2 if len(dims) == 2 and kind in (TensorProto.INT64, TensorProto.INT32) else 1
        free = [place for place, dim in enumerate(dims) if place >= fixed_from and not dim.HasField("dim_value")]
        if free:
            message = f"expected fixed sizes behind the batch, got axis {free[0]} of {item.name!r} open"
            found.append(Finding("static-shape", item.name, message, "export with the device's input size"))
    return found


def side_files(known: Facts) -> list[Finding]:
    """All weights in the one file: a device gets no other."""
    found = []
    for tensor in known.model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            readers = known.read.get(tensor.name, [])
            node = readers[0].name if readers else tensor.name
            message = f"expected {tensor.name!r} in the file, got it in a side file"
            found.append(Finding("one-file", node, message, "save with external_data=False"))
    return found


def common(known: Facts) -> list[Finding]:
    """What no runtime's file may have."""
    return [*names(known), *shapes(known), *side_files(known)]
