"""The graph that a runtime really executes, held against the one it was given: which share of the multiply-accumulates
runs in integers.

A multiply-accumulate is counted as ``edgewise.compress.macs`` counts it, from the shapes in the file, for one sample.
Runtimes rename what they fuse (``conv1`` becomes ``relu_nchwc``, ``conv1_token_2``, ``logits``), so a layer is known by
all the names along the chain that is fused into it. A layer that the executed graph doesn't show counts as float.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from edgewise.deploy.onnx_graph import attribute, consumers, is_output
from edgewise.errors import ModelError

# Places of data and weights among the inputs, by operator.
OPERANDS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "Gemm", "MatMul", "MatMulInteger", "FusedMatMul"), (0, 1)),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), (0, 1)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), (0, 3)),
}
CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv")
FOLLOWERS = ("Relu", "Clip", "Gelu", "Sigmoid", "HardSigmoid", "LeakyRelu", "BatchNormalization", "Add", "Mul", "Cast")
FOLLOWED = 4  # how far a runtime fuses
# What runtimes append to the names of layers that they rewrite.
ADDED = re.compile(r"(_nchwc|_token_\d+|/[^.]*|_original|_quant)$")
TOLD = 20  # names of float layers in a report


def layer_macs(model: ModelProto, length: int = 1) -> dict[str, int]:
    """{name of the node, or of its first output: multiply-accumulates for one sample} of each convolution and matrix
    product, in order. ``length`` is a text's, where the graph leaves it open.

    Raises:
        ModelError: the shapes can't be found.
    """
    nodes = [node for node in model.graph.node if node.op_type in OPERANDS or node.op_type == "Einsum"]
    if not nodes:
        return {}
    known = _shapes(model, {name for node in nodes for name in (*node.input, *node.output) if name}, length)
    return {node.name or node.output[0]: _macs(node, known) for node in nodes}


def _macs(node: NodeProto, known: Mapping[str, tuple[int, ...]]) -> int:
    out = prod(known[node.output[0]])
    if node.op_type == "Einsum":
        places = attribute(node, "equation").replace(" ", "").split("->")[0].split(",")
        sizes = {
            label: size
            for labels, name in zip(places, node.input, strict=True)
            for label, size in zip(labels, known[name], strict=False)
        }
        return prod(sizes.values())
    data, weight = (known[node.input[place]] for place in OPERANDS[node.op_type])
    if node.op_type in CONVOLUTIONS:
        return out * prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return prod(data) * prod(weight[1:])
    return out * (data[0] if attribute(node, "transA", 0) and len(data) == 2 else data[-1])


def _shapes(model: ModelProto, wanted: Collection[str], length: int = 1) -> dict[str, tuple[int, ...]]:
    """The shapes of ``wanted`` for a batch of 1: inferred, or where that fails, seen in a run."""
    single = copy.deepcopy(model)
    for item in single.graph.input:
        for place, dim in enumerate(item.type.tensor_type.shape.dim):
            if place < 2 and not dim.HasField("dim_value"):
                dim.dim_value = length if place else 1
    for item in single.graph.output:
        item.type.tensor_type.ClearField("shape")
    known: dict[str, tuple[int, ...]] = {tensor.name: tuple(tensor.dims) for tensor in single.graph.initializer}
    try:
        inferred = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
        for item in (*inferred.input, *inferred.value_info, *inferred.output):
            dims = item.type.tensor_type.shape.dim
            if item.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
                known.setdefault(item.name, tuple(dim.dim_value for dim in dims))
    except onnx.shape_inference.InferenceError:
        pass  # a run may still tell
    missing = sorted(set(wanted) - set(known))
    if missing:
        known.update(_seen(single, missing))
    return known


def _seen(model: ModelProto, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors in a run on zeros.

    Raises:
        ModelError: the graph doesn't run.
    """
    import onnxruntime

    outputs = {item.name for item in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    stored = {tensor.name for tensor in model.graph.initializer}
    feed = {
        item.name: np.zeros(
            [dim.dim_value or 1 for dim in item.type.tensor_type.shape.dim],
            onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type),
        )
        for item in model.graph.input
        if item.name not in stored
    }
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        arrays = session.run(names, feed)
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise ModelError(
            f"ONNX Runtime refuses the graph, so its shapes stay unknown: {error}", where="graph"
        ) from error
    return {name: tuple(array.shape) for name, array in zip(names, arrays, strict=True)}


def aliases(model: ModelProto) -> dict[str, str]:
    """{any name a runtime may give a layer: the layer}.

    A layer goes by its own name, its outputs', and those of the bias, the activation and other elementwise followers
    that runtimes fuse into it.
    """
    graph = model.graph
    readers = consumers(graph)
    layers = [node for node in graph.node if node.op_type in OPERANDS or node.op_type == "Einsum"]
    own = {node.name or node.output[0]: node.name or node.output[0] for node in layers}
    found: dict[str, str] = {}
    for node in layers:
        layer = node.name or node.output[0]
        for _ in range(FOLLOWED):
            for name in (node.name, *node.output):
                found.setdefault(name, layer)
            following = readers.get(node.output[0], [])
            if len(following) != 1 or following[0].op_type not in FOLLOWERS or is_output(graph, node.output[0]):
                break
            node = following[0]
    return found | own


def located(name: str, known: Mapping[str, str]) -> str | None:
    """The layer that an executed node's name speaks of, whatever its runtime appended."""
    while name:
        if name in known:
            return known[name]
        shorter = ADDED.sub("", name)
        if shorter == name:
            return None
        name = shorter
    return None


def read_back(model: ModelProto, executed: Iterable[tuple[Iterable[str], bool]], length: int = 1) -> dict[str, Any]:
    """A report's lines on what a graph's layers run in.

    Args:
        model: the graph that the runtime was given.
        executed: of each computing node of the executed graph, the names it goes by and whether it runs in integers.
        length: a text's, where the graph leaves it open.
    """
    return arithmetic(layer_macs(model, length), integer_layers(model, executed))


def integer_layers(model: ModelProto, executed: Iterable[tuple[Iterable[str], bool]]) -> set[str]:
    """The layers of ``model`` that run in integers; arguments as in :func:`read_back`."""
    known = aliases(model)
    integer: set[str] = set()
    for names, runs_in_integers in executed:
        if runs_in_integers:
            integer.update(layer for name in names if (layer := located(name, known)) is not None)
    return integer


def executed_layers(model: ModelProto, names: Iterable[str], length: int = 1) -> dict[str, tuple[str, int]]:
    """{name of an executed node: (the layer it does the work of, its multiply-accumulates)}; ``length`` as above.

    A node that isn't a convolution or matrix product has none, and keeps its own name, without what the runtime added.
    """
    macs, known = layer_macs(model, length), aliases(model)
    asked = list(dict.fromkeys(names))
    found: dict[str, tuple[str, int]] = {}
    # The layers' own names first: a rectifier that runs by itself isn't the layer before it.
    for name in sorted(asked, key=lambda name: ADDED.sub("", name) not in macs):
        layer = located(name, known)
        found[name] = (plain(layer), macs.pop(layer)) if layer in macs else (plain(ADDED.sub("", name)), 0)
    return {name: found[name] for name in asked}


def arithmetic(macs: Mapping[str, int], integer: Collection[str]) -> dict[str, Any]:
    """A report's lines on what a file computes in.

    Args:
        macs: {layer: multiply-accumulates} of every convolution and matrix product.
        integer: the layers that run in integers; the first 20 of the others are told.

    Returns:
        dict: ``integer_ops``, ``float_ops`` and ``integer_share`` count layers; ``macs`` and ``integer_macs_share``
        weigh them by their multiply-accumulates; ``float_layers`` and ``float_layer_macs`` name what is in float.
    """
    floating = [name for name in macs if name not in integer]
    total, left = sum(macs.values()), sum(macs[name] for name in floating)
    heaviest = sorted(floating, key=lambda name: -macs[name])[:TOLD]
    return {
        "integer_ops": len(macs) - len(floating),
        "float_ops": len(floating),
        "integer_share": (len(macs) - len(floating)) / len(macs) if macs else 0.0,
        "macs": total,
        "integer_macs_share": (total - left) / total if total else 0.0,
        "float_layers": [plain(name) for name in floating[:TOLD]],
        "float_layer_macs": {plain(name): macs[name] for name in heaviest},
    }


def plain(name: str) -> str:
    """A node's name without the number that tells it from others of its layer."""
    return re.sub(r"~\d+$", "", name)
