"""Small helpers on ONNX graphs: who makes a tensor, who reads it, constants as numpy, dead parts out."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

# Operators through which a quantized tensor stays quantized: they pick and move values, and make no new ones.
MOVERS = (
    *("Slice", "Pad", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Gather", "MaxPool", "Split"),
    "Concat",  # of what is quantized alike
)


def value(graph: GraphProto, name: str) -> np.ndarray | None:
    """A constant's value; None if ``name`` isn't one."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    return None


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that makes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each tensor, once per node."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            if name:
                found.setdefault(name, []).append(node)
    return found


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, text as ``str``."""
    for item in node.attribute:
        if item.name == name:
            got = helper.get_attribute_value(item)
            return got.decode() if isinstance(got, bytes) else got
    return default


def set_attribute(node: NodeProto, name: str, new: Any) -> None:
    """Set an attribute, replacing an older value."""
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, new)])


def add_constant(graph: GraphProto, name: str, array: np.ndarray) -> str:
    """Add an initializer under ``name``, or under ``name_2`` and so on if that is taken; returns the name."""
    taken = {tensor.name for tensor in graph.initializer}
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), unique))
    return unique


def rewire(graph: GraphProto, old: str, new: str) -> None:
    """Let every reader of ``old`` read ``new``."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def is_output(graph: GraphProto, name: str) -> bool:
    """Whether ``name`` is one of the graph's outputs."""
    return any(output.name == name for output in graph.output)


def sort_nodes(graph: GraphProto) -> None:
    """Put makers before readers, else in the order found."""
    known = {tensor.name for tensor in graph.initializer} | {item.name for item in graph.input} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            raise ValueError(f"the graph has a cycle or a dangling input at {waiting[0].name!r}")
        # One at a time: a rewritten node stays beside its neighbours, and the file stays readable.
        node = ready[0]
        waiting.remove(node)
        ordered.append(node)
        known.update(node.output)
    del graph.node[:]
    graph.node.extend(ordered)


def drop_dead(graph: GraphProto) -> None:
    """Remove nodes and initializers that lead to no output; equal initializers become one."""
    same: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        if same.setdefault(key, tensor.name) != tensor.name:
            rewire(graph, tensor.name, same[key])
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:]
    graph.node.extend(reversed(kept))
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def hook_place(name: str) -> str:
    """NNCF's name of a hook, as a place: ``__nncf_hooks.post_hooks.net/3/relu/0__0.0`` is ``net.3.relu.0.out0``."""
    found = re.fullmatch(r".*?__nncf_hooks\.(pre|post)_hooks\.(.+)__(\d+)\.\d+(.*)", name)
    if not found:
        return name
    side = "in" if found[1] == "pre" else "out"
    return f"{found[2]}.{side}{found[3]}{found[4]}".replace("/", ".").replace(":", ".")


def _scope(node: NodeProto, prefix: str, held: str) -> str:
    """A node's place in the torch model, as the exporter noted it: ``blocks.0.conv1``, or ``blocks.0.relu_1``."""
    notes = {item.key: item.value for item in node.metadata_props}
    try:
        scopes = json.loads(notes["pkg.torch.onnx.name_scopes"].replace("'", '"'))
    except (KeyError, ValueError):
        return ""
    module, call = (["", *scopes])[-2:]
    module = module.removeprefix(prefix)
    place = hook_place(module)
    if place != module:
        return place.removeprefix(held)
    if module.startswith("_empty") or module == prefix.rstrip("."):
        return str(call)
    return module if re.sub(r"_\d+$", "", call) in LAYER_CALLS else f"{module}.{call}".strip(".")


def _tensor_name(name: str, held: str) -> str:
    place = hook_place(name)
    return place if place == name else place.removeprefix(held)


# Calls that are the whole of their module: the module's name says enough.
LAYER_CALLS = (
    *("conv1d", "conv2d", "conv3d", "linear", "layer_norm", "relu", "gelu", "hardtanh", "batch_norm"),
    "convolution",  # a transposed one
)


def rename(model: ModelProto, prefix: str = "", held: str = "") -> None:
    """Name nodes and tensors after the torch modules they come from, so that an error names a layer one knows.

    Each node's first output has the node's name; inputs, outputs and parameters keep theirs. ``prefix`` is the name of
    a module around the model that no one needs to read, ``held`` that part of it which was there when the quantizers
    came: they are called after it, too.
    """
    graph = model.graph
    for tensor in graph.initializer:
        old, tensor.name = tensor.name, _tensor_name(tensor.name.removeprefix(prefix), held)
        rewire(graph, old, tensor.name)
    fixed = {item.name for item in (*graph.input, *graph.output)}
    taken: Counter[str] = Counter(fixed)
    taken.update(tensor.name for tensor in graph.initializer)
    new_names: dict[str, str] = {}
    for node in graph.node:
        base = _scope(node, prefix, held) or node.name.removeprefix(prefix) or node.op_type
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            base += ".q" if node.op_type == "QuantizeLinear" else ".dq"
        taken[base] += 1
        node.name = base if taken[base] == 1 else f"{base}~{taken[base]}"
        for index, name in enumerate(node.output):
            if name and name not in fixed:
                new_names[name] = node.name if index == 0 else f"{node.name}~out{index}"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = new_names.get(name, name)


def strip(model: ModelProto) -> None:
    """Remove what the exporter notes about the machine it ran on: stack traces, paths, versions, shapes of insides."""
    graph = model.graph
    for part in (model, graph):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]
    del graph.quantization_annotation[:]
    inside = [part for function in model.functions for part in (function, *function.node)]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, *inside):
        item.doc_string = ""
        del item.metadata_props[:]
    model.producer_name, model.producer_version, model.domain, model.model_version = "edgewise", "", "", 0
    graph.name = "model"


def to_bytes(model: ModelProto) -> bytes:
    """The same bytes for the same graph, in every process."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def opset(model: ModelProto) -> int:
    """The version of the standard operators."""
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
