"""Layers that exporters write out as arithmetic, read as the layers they are: quantizers and pruning know a LayerNorm
and a GELU, and not the nine nodes of one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from edgewise.models.onnx.read import OnnxFileGraph


class _View:
    """Who makes and who reads what."""

    def __init__(self, graph: OnnxFileGraph) -> None:
        self.graph = graph
        self.made = {name: node for node in graph.nodes for name in node.output}
        self.count = Counter(name for node in graph.nodes for name in node.input)
        self.count[graph.output] += 1
        self.reader = {name: node for node in graph.nodes for name in node.input}

    def number(self, name: str) -> float | None:
        """A constant of one element."""
        value = self.graph.constants.get(name)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def maker(self, name: str, op: str) -> NodeProto | None:
        """The node of this operator that makes ``name``."""
        node = self.made.get(name)
        return node if node is not None and node.op_type == op else None

    def next(self, node: NodeProto, op: str) -> NodeProto | None:
        """The one reader of a node's output, if it has this operator."""
        name = node.output[0]
        following = self.reader.get(name)
        return following if self.count[name] == 1 and following is not None and following.op_type == op else None

    def other(self, node: NodeProto, name: str) -> str:
        """The other input of a node of two."""
        return str(node.input[1] if node.input[0] == name else node.input[0])

    def with_number(self, node: NodeProto | None, value: float) -> str | None:
        """The other input of a node whose one input is this number."""
        if node is None or len(node.input) != 2:
            return None
        for place in (0, 1):
            found = self.number(node.input[place])
            if found is not None and math.isclose(found, value, rel_tol=1e-5):
                return str(node.input[1 - place])
        return None


def simplify(graph: OnnxFileGraph) -> OnnxFileGraph:
    """The same graph with GELU, hard swish and LayerNorm as one node each, where they were written out."""
    view = _View(graph)
    new: dict[str, NodeProto] = {}  # the last node's output -> what takes its place
    for node in graph.nodes:
        for op, find in FIND.items():
            found = find(view, node) if node.op_type == op else None
            if found is not None:
                new[found.output[0]] = found
    nodes = [new.get(node.output[0], node) for node in graph.nodes]
    needed, kept = {graph.output}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return replace(graph, nodes=tuple(reversed(kept)))


def _node(op: str, given: list[str], last: NodeProto, named: NodeProto, **attributes: Any) -> NodeProto:
    made = helper.make_node(op, given, [last.output[0]], name=named.name, **attributes)
    made.metadata_props.extend(named.metadata_props)
    return made


def _gelu(view: _View, erf: NodeProto) -> NodeProto | None:
    """x / 2 * (1 + erf(x / sqrt(2))), its factors in any order (arXiv 1606.08415)."""
    scaled = view.made.get(erf.input[0])
    root = math.sqrt(2) if scaled is not None and scaled.op_type == "Div" else 1 / math.sqrt(2)
    if scaled is None or scaled.op_type not in ("Div", "Mul"):
        return None
    x, plus = view.with_number(scaled, root), view.next(erf, "Add")
    if x is None or plus is None or view.with_number(plus, 1.0) != erf.output[0]:
        return None
    missing, last = {"x", "half"}, plus
    while missing:
        following = view.next(last, "Mul")
        if following is None:
            return None
        other = view.other(following, last.output[0])
        if other == x:
            got = {"x"}
        elif view.number(other) == 0.5:
            got = {"half"}
        elif view.with_number(view.maker(other, "Mul"), 0.5) == x:
            got = {"x", "half"}
        else:
            return None
        if not got <= missing:
            return None
        missing -= got
        last = following
    return _node("Gelu", [x], last, erf)


def _hard_swish(view: _View, clip: NodeProto) -> NodeProto | None:
    """x * relu6(x + 3) / 6 (arXiv 1905.02244 §5.2)."""
    plus = view.maker(clip.input[0], "Add")
    attributes = {item.name: helper.get_attribute_value(item) for item in clip.attribute}
    bounds = [view.number(name) for name in clip.input[1:]] or [attributes.get("min"), attributes.get("max")]
    x = view.with_number(plus, 3.0)
    if x is None or bounds != [0.0, 6.0]:
        return None
    times = view.next(clip, "Mul")
    if times is not None and view.other(times, clip.output[0]) == x:
        sixth = view.next(times, "Div") or view.next(times, "Mul")
        divided = sixth is not None and view.with_number(sixth, 6.0 if sixth.op_type == "Div" else 1 / 6)
        return _node("HardSwish", [x], sixth, clip) if sixth is not None and divided == times.output[0] else None
    sixth = view.next(clip, "Div")
    if sixth is None or sixth.input[0] != clip.output[0] or view.number(sixth.input[1]) != 6.0:
        return None
    times = view.next(sixth, "Mul")
    if times is not None and view.other(times, sixth.output[0]) == x:
        return _node("HardSwish", [x], times, clip)
    return None


def _layer_norm(view: _View, div: NodeProto) -> NodeProto | None:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (arXiv 1607.06450)."""
    centred, root = view.maker(div.input[0], "Sub"), view.maker(div.input[1], "Sqrt")
    plus = view.maker(root.input[0], "Add") if root is not None else None
    if centred is None or plus is None:
        return None
    mean = view.maker(centred.input[1], "ReduceMean")
    x = centred.input[0]
    if mean is None or mean.input[0] != x or not _last_axis(view, mean):
        return None
    variance = next((view.maker(name, "ReduceMean") for name in plus.input if view.maker(name, "ReduceMean")), None)
    eps = view.number(view.other(plus, variance.output[0])) if variance is not None else None
    if variance is None or eps is None or not _last_axis(view, variance):
        return None
    square = view.made.get(variance.input[0])
    # Some exporters subtract the mean twice.
    twins = {node.output[0] for node in view.graph.nodes if node.op_type == "Sub" and node.input == centred.input}
    if square is None or square.input[0] not in twins:
        return None
    squared = view.number(square.input[1]) == 2.0 if square.op_type == "Pow" else square.op_type == "Mul"
    if not squared or (square.op_type == "Mul" and square.input[1] not in twins):
        return None
    times = view.next(div, "Mul")
    add = view.next(times, "Add") if times is not None else None
    if times is None or add is None:
        return None
    weight, bias = view.other(times, div.output[0]), view.other(add, times.output[0])
    length = view.graph.runs[2][x].shape[-1]
    if any(view.graph.constants.get(name, np.empty(0)).shape != (length,) for name in (weight, bias)):
        return None
    return _node("LayerNormalization", [x, weight, bias], add, div, axis=-1, epsilon=eps)


def _last_axis(view: _View, mean: NodeProto) -> bool:
    """Whether a mean is over the last axis alone, which it keeps."""
    attributes = {item.name: helper.get_attribute_value(item) for item in mean.attribute}
    axes = attributes.get("axes")
    if axes is None and len(mean.input) > 1 and mean.input[1] in view.graph.constants:
        axes = view.graph.constants[mean.input[1]].reshape(-1).tolist()
    rank = view.graph.runs[2][mean.input[0]].ndim
    return axes in ([-1], [rank - 1]) and attributes.get("keepdims", 1) == 1


FIND: dict[str, Callable[[_View, NodeProto], NodeProto | None]] = {
    "Erf": _gelu,
    "Clip": _hard_swish,
    "Div": _layer_norm,
}

__all__ = ["simplify"]
