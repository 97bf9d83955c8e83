"""An ONNX file read, refused where it can't be used, and watched in ONNX Runtime: shapes, and what is known of values.

Exporters write how they compute shapes into the graph. Nothing of that is followed here: the file is run with two and
with three samples, and what depends on the number of samples alone is known from the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgewise.errors import ModelError
from edgewise.models.onnx.watch import Array, free_batch, watch

BATCHES = (2, 3)
QUANTIZED = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
        *("ConvInteger", "MatMulInteger"),
    )
)
CONTROL = frozenset(("If", "Loop", "Scan"))
ALIASES = frozenset(("Identity", "Dropout"))
SHAPES = frozenset(("Shape", "Size"))
NEXT = "export it from torch and give the torch model (model: {kind: factory, …})"


@dataclass(frozen=True)
class OnnxFileGraph:
    """A file as :mod:`edgewise.models.onnx.ops` wants it: constants folded, shapes and shape arithmetic known.

    ``runs``: by number of samples, every tensor of the graph; ``settled``: names of tensors that no sample's values can
    change.
    """

    where: str
    input: str
    output: str
    nodes: tuple[NodeProto, ...]
    constants: dict[str, Array]
    runs: dict[int, dict[str, Array]]
    settled: frozenset[str]
    opset: int


def read(path: Path) -> OnnxFileGraph:
    """Read a file.

    Raises:
        ModelError: it can't be read, is quantized already, has not one float32 input and one float32 output, has
            control flow, or ONNX Runtime can't run it, or not with another number of samples.
    """
    where = str(path)
    model = _load(path)
    _refuse(model, where)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    given = [item for item in graph.input if item.name not in constants]
    if len(given) != 1 or len(graph.output) != 1:
        raise ModelError(
            f"expected one input and one output, got {_names(given)} and {_names(graph.output)}",
            where=where,
            hint="cut it down with onnx.utils.extract_model(path, new_path, [one input], [one output])",
        )
    for side, item in (("input", given[0]), ("output", graph.output[0])):
        kind = item.type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            raise ModelError(
                f"expected a float32 {side}, got {item.name} of {TensorProto.DataType.Name(kind).lower()}", where=where
            )
    version = max(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    nodes = _fold(graph, constants, where, version)
    free_batch(model, given[0], nodes, constants, where)
    runs = {batch: watch(model, batch) for batch in BATCHES}
    return OnnxFileGraph(
        where,
        given[0].name,
        graph.output[0].name,
        tuple(nodes),
        constants,
        runs,
        _settled(nodes, constants),
        version,
    )


def _load(path: Path) -> ModelProto:
    where = str(path)
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        raise ModelError(f"no such file: {error.filename or path}", where=where) from error
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError, TypeError) as error:
        raise ModelError(f"not a valid ONNX file: {str(error).splitlines()[0]}", where=where) from error
    from onnx import inliner

    return inliner.inline_local_functions(model) if model.functions else model


def parts(path: Path) -> list[Path]:
    """The file, and those beside it that hold its larger tensors.

    Raises:
        ModelError: it can't be read, or one of those isn't there or lies in another folder.
    """
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (DecodeError, OSError, ValueError) as error:
        raise ModelError(f"not a valid ONNX file: {str(error).splitlines()[0]}", where=str(path)) from error
    found = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    folder = path.parent.resolve()
    for name in sorted(found):
        if not (folder / name).resolve().is_relative_to(folder):
            raise ModelError(f"its weights lie outside of its folder: {name!r}", where=str(path))
        if not (folder / name).is_file():
            raise ModelError(f"the file of its weights isn't there: {name!r}", where=str(path), hint="copy both files")
    return [path, *(path.parent / name for name in sorted(found))]


def _names(items: Sequence[Any]) -> str:
    return ", ".join(item.name for item in items) or "none"


def _refuse(model: ModelProto, where: str) -> None:
    for node in model.graph.node:
        name = f"{node.op_type} node {node.name or node.output[0]}"
        if node.op_type in QUANTIZED or node.op_type.startswith("QLinear"):
            raise ModelError(
                f"the file is quantized already: {name}",
                where=where,
                hint="give the float32 file that it was made from; a quantized file can be measured: edgewise bench",
            )
        if node.op_type in CONTROL:
            raise ModelError(f"dynamic control flow: {name}; which way it goes hangs on values", where=where, hint=NEXT)
        if node.domain not in ("", "ai.onnx"):
            raise ModelError(f"an operator of {node.domain}, not of ONNX: {name}", where=where, hint=NEXT)


def _fold(graph: GraphProto, constants: dict[str, Array], where: str, version: int) -> list[NodeProto]:
    """The nodes that are left when constants are computed and aliases followed; ``constants`` grows. ``version``: the
    opset of the file."""
    needed = _living(graph)
    alias: dict[str, str] = {}
    left: list[NodeProto] = []
    for place, original in enumerate(graph.node):
        if place not in needed:
            continue
        node = NodeProto()
        node.CopyFrom(original)
        node.input[:] = [alias.get(name, name) for name in node.input]
        if node.op_type == "Constant":
            constants[node.output[0]] = _computed(node, {}, version, where)[0]
        elif node.op_type in ALIASES and node.output[0] != graph.output[0].name:
            alias[node.output[0]] = node.input[0]
        elif all(name in constants for name in node.input if name) and not node.op_type.startswith("Random"):
            given = {name: constants[name] for name in node.input if name}
            values = _computed(node, given, version, where)
            constants.update(zip(node.output, values, strict=False))
        else:
            left.append(node)
    if not left:
        raise ModelError("its output hangs on no input", where=where)
    return left


def _computed(node: NodeProto, given: dict[str, Array], version: int, where: str) -> list[Array]:
    """The outputs of one node, by ONNX's own evaluator, as the file's opset means it: axes were attributes once."""
    names = [name for name in node.output if name]
    graph = helper.make_graph(
        [node],
        "constant",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in given.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in names],
    )
    try:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
        found: Any = ReferenceEvaluator(model).run(names, given)
    except Exception as error:  # the evaluator's operators raise whatever numpy does
        text = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{node.op_type} node {node.name or names[0]} reads constants only, and can't be computed: {text}",
            where=where,
        ) from error
    values = dict(zip(names, found, strict=True))
    return [np.asarray(values[name]) if name else np.empty(0) for name in node.output]


def _living(graph: GraphProto) -> set[int]:
    """The places of the nodes that lead to the output."""
    needed = {item.name for item in graph.output}
    found = set()
    for place in reversed(range(len(graph.node))):
        node = graph.node[place]
        if needed.intersection(node.output):
            needed.update(node.input)
            found.add(place)
    return found


def _settled(nodes: list[NodeProto], constants: dict[str, Array]) -> frozenset[str]:
    known = set(constants) | {""}
    for node in nodes:
        if node.op_type in SHAPES or known.issuperset(node.input):
            known.update(node.output)
    return frozenset(known - {""})


__all__ = ["BATCHES", "OnnxFileGraph", "parts", "read"]
