"""Rewrites of an exported graph that keep its meaning and let runtimes run it in integers; one function each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, NodeProto, helper

from edgewise.deploy.onnx_graph import (
    MOVERS,
    add_constant,
    attribute,
    consumers,
    drop_dead,
    is_output,
    producers,
    set_attribute,
    value,
)

# Activations that no integer convolution takes in.
UNEVEN = ("LeakyRelu", "Elu", "Celu", "Selu", "Gelu", "Mish", "HardSwish")

Scale = tuple[float, int, str]


def _remove(graph: GraphProto, node: NodeProto) -> None:
    # By identity: protobuf's own remove() compares by value.
    for index, other in enumerate(graph.node):
        if other is node:
            del graph.node[index]
            return


def _reshape_scale(array: np.ndarray, like: np.ndarray, axis: int) -> np.ndarray:
    return array if array.ndim == 0 else array.reshape([-1 if i == axis else 1 for i in range(like.ndim)])


def quantize_array(array: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int) -> np.ndarray:
    """ONNX's QuantizeLinear on a constant: round half to even, then saturate."""
    info = np.iinfo(zero_point.dtype)
    wide = np.rint(array.astype(np.float32) / _reshape_scale(scale, array, axis).astype(np.float32))
    wide = wide + _reshape_scale(zero_point, array, axis).astype(np.float32)
    out: np.ndarray = np.clip(wide, info.min, info.max).astype(zero_point.dtype)
    return out


def fold_weights(graph: GraphProto) -> int:
    """Store quantized constants as integers and drop their QuantizeLinear; returns how many."""
    folded = 0
    for node in [n for n in graph.node if n.op_type == "QuantizeLinear"]:
        array, scale, zero = (value(graph, name) for name in node.input)
        if array is None or scale is None or zero is None:
            continue
        stored = add_constant(
            graph, f"{node.input[0]}.int8", quantize_array(array, scale, zero, attribute(node, "axis", 1))
        )
        for reader in consumers(graph).get(node.output[0], []):
            reader.input[0] = stored
        _remove(graph, node)
        folded += 1
    return folded


def fold_weight_transposes(graph: GraphProto) -> None:
    """DequantizeLinear(constant) -> Transpose: transpose the constant instead, and move the axis with it."""
    made = producers(graph)
    for node in [n for n in graph.node if n.op_type == "Transpose"]:
        source = made.get(node.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            continue
        array, scale = value(graph, source.input[0]), value(graph, source.input[1])
        if array is None or scale is None:
            continue
        order = list(attribute(node, "perm", list(range(array.ndim))[::-1]))
        moved = helper.make_node("DequantizeLinear", list(source.input), list(node.output), name=source.name)
        moved.metadata_props.extend(source.metadata_props)
        moved.input[0] = add_constant(graph, source.input[0], array.transpose(order))
        if scale.ndim:
            set_attribute(moved, "axis", order.index(attribute(source, "axis", 1)))
        position = next(i for i, n in enumerate(graph.node) if n is node)
        del graph.node[position]
        graph.node.insert(position, moved)


def merge_slices(graph: GraphProto) -> None:
    """Slice(Slice(x)) with constant bounds on different axes: one Slice, one copy of the data."""
    changed = True
    while changed:
        changed = False
        made, readers = producers(graph), consumers(graph)
        for node in graph.node:
            first = made.get(node.input[0]) if node.op_type == "Slice" else None
            if first is None or first.op_type != "Slice" or len(readers[first.output[0]]) != 1:
                continue
            if len(node.input) != 5 or len(first.input) != 5 or is_output(graph, first.output[0]):
                continue
            bounds = [(value(graph, a), value(graph, b)) for a, b in zip(first.input[1:], node.input[1:], strict=True)]
            if any(a is None or b is None for a, b in bounds):
                continue
            axes = [set(np.atleast_1d(axis).tolist()) for axis in bounds[2] if axis is not None]
            if axes[0] & axes[1] or min(axes[0] | axes[1]) < 0:
                continue
            for index, (a, b) in enumerate(bounds, start=1):
                assert a is not None
                assert b is not None
                node.input[index] = add_constant(graph, f"{node.output[0]}.bounds{index}", np.concatenate([a, b]))
            node.input[0] = first.input[0]
            _remove(graph, first)
            changed = True
            break


def global_average_pool(graph: GraphProto) -> None:
    """ReduceMean over the last two of four axes: GlobalAveragePool, which ONNX Runtime can run in integers."""
    for node in [n for n in graph.node if n.op_type == "ReduceMean"]:
        axes = value(graph, node.input[1]) if len(node.input) > 1 else None
        if (
            axes is None
            or axes.tolist() not in ([2, 3], [3, 2], [-1, -2], [-2, -1])
            or not attribute(node, "keepdims", 1)
        ):
            continue
        node.op_type = "GlobalAveragePool"
        del node.input[1:]
        del node.attribute[:]


def _moves(graph: GraphProto, node: NodeProto) -> bool:
    """Whether ``node`` only picks and moves values, or adds zeros."""
    if node.op_type not in MOVERS or node.op_type == "Concat" or len(node.output) != 1:
        return False
    if node.op_type != "Pad":
        return True
    fill = value(graph, node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
    return attribute(node, "mode", "constant") == "constant" and fill is not None and not fill.any()


def sink_dequantize(graph: GraphProto) -> None:
    """DequantizeLinear -> Slice, Pad, Reshape …: move the integers, dequantize after. Per-tensor scales only."""
    changed = True
    while changed:
        changed = False
        made = producers(graph)
        for position, node in enumerate(graph.node):
            source = made.get(node.input[0]) if node.input and _moves(graph, node) else None
            if source is None or source.op_type != "DequantizeLinear":
                continue
            scale, zero = value(graph, source.input[1]), value(graph, source.input[2])
            if scale is None or zero is None or scale.ndim or value(graph, source.input[0]) is not None:
                continue
            out = node.output[0]
            node.output[0] = f"{out}.integers"
            node.input[0] = source.input[0]
            if node.op_type == "Pad":
                axes = list(node.input[3:])
                del node.input[2:]
                node.input.extend([source.input[2], *axes])
            after = helper.make_node("DequantizeLinear", [node.output[0], *source.input[1:]], [out])
            after.metadata_props.extend(node.metadata_props)
            graph.node.insert(position + 1, after)
            changed = True
            break


def sink_below_concat(graph: GraphProto, *, again: bool = False) -> int:
    """Concat of tensors that are dequantized alike: join the integers, dequantize after. Per-tensor scales only.

    Args:
        graph: changed in place.
        again: leave the Concat as it is, and quantize behind it with the same scale: that changes no value, and
            TensorRT sees what comes after quantized.

    Returns:
        How many.
    """
    made, changed = producers(graph), 0
    for node in [n for n in graph.node if n.op_type == "Concat"]:
        sources = [made.get(name) for name in node.input]
        pairs = [s for s in sources if s is not None and s.op_type == "DequantizeLinear"]
        if len(pairs) < len(sources) or is_output(graph, node.output[0]) or not _alike(graph, pairs):
            continue
        first, out = pairs[0], node.output[0]
        position = next(i for i, n in enumerate(graph.node) if n is node)
        integers, scales = f"{out}.integers", list(first.input[1:])
        if again:
            node.output[0] = f"{out}.joined"
            quantize = helper.make_node("QuantizeLinear", [node.output[0], *scales], [integers], name=f"{out}.again")
            graph.node.insert(position + 1, quantize)
            position += 1
        else:
            node.output[0] = integers
            for index, pair in enumerate(pairs):
                node.input[index] = pair.input[0]
        after = helper.make_node("DequantizeLinear", [integers, *scales], [out], name=f"{out}.moved")
        after.metadata_props.extend(node.metadata_props)
        graph.node.insert(position + 1, after)
        changed += 1
    return changed


def lift_dequantize(graph: GraphProto) -> int:
    """Undo ``sink_dequantize`` and ``sink_below_concat``: QuantizeLinear, DequantizeLinear, then what moves the values;
    how many nodes move floats now. OpenVINO knows a quantizer by the two side by side and takes it into the layer
    before; it finds by itself that what follows can move integers."""
    made, readers = producers(graph), consumers(graph)
    known: dict[str, Scale | None] = {}
    lifted = [n for n in graph.node if n.op_type in MOVERS and _moved_scale(graph, made, n.output[0], known)]
    ends = [reader for node in lifted for name in node.output for reader in readers.get(name, [])]
    pairs = [end for end in ends if end.op_type == "DequantizeLinear"]
    for end in ends:
        if end in pairs and _scale(graph, end) != _moved_scale(graph, made, end.input[0], known):
            return 0
        if end not in pairs and end not in lifted:
            return 0
    floats: dict[str, str] = {}
    for node in lifted:
        for index, name in enumerate(_moved(node)):
            if made[name].op_type == "QuantizeLinear":
                if name not in floats:
                    floats[name] = _dequantized(graph, made[name], readers[name])
                node.input[index] = floats[name]
        if node.op_type == "Pad" and len(node.input) > 2:
            node.input[2] = ""  # zero, as the zero-point was
    for pair in pairs:
        inner, outer = pair.input[0], pair.output[0]
        if is_output(graph, outer):
            pair.op_type = "Identity"
            del pair.input[1:]
            continue
        for reader in readers[outer]:
            for index, name in enumerate(reader.input):
                if name == outer:
                    reader.input[index] = inner
        _remove(graph, pair)
    names = {name for node in lifted for name in node.output}
    typed = [info for info in graph.value_info if info.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(typed)
    return len(lifted)


def _moved(node: NodeProto) -> list[str]:
    """The tensors whose values a mover moves."""
    return list(node.input) if node.op_type == "Concat" else [node.input[0]]


def _scale(graph: GraphProto, node: NodeProto) -> Scale | None:
    """Scale, zero-point and its type of a QuantizeLinear or DequantizeLinear; None for one a channel, or for none."""
    scale, zero = (value(graph, name) for name in [*node.input[1:3], ""][:2])
    return None if scale is None or zero is None or scale.ndim else (float(scale), int(zero), str(zero.dtype))


def _moved_scale(
    graph: GraphProto, made: dict[str, NodeProto], name: str, known: dict[str, Scale | None]
) -> Scale | None:
    """How integers that were moved here were quantized; None for floats, constants, and where it differs."""
    if name not in known:
        node, known[name] = made.get(name), None
        if node is not None and node.op_type == "QuantizeLinear":
            known[name] = _scale(graph, node)
        elif node is not None and node.op_type in MOVERS:
            found = {_moved_scale(graph, made, one, known) for one in _moved(node)}
            known[name] = found.pop() if len(found) == 1 else None
    return known[name]


def _dequantized(graph: GraphProto, quantize: NodeProto, readers: list[NodeProto]) -> str:
    """What a QuantizeLinear's own DequantizeLinear gives: it stands right behind now, made where there was none."""
    pair = next((r for r in readers if r.op_type == "DequantizeLinear"), None)
    if pair is None:
        pair = helper.make_node("DequantizeLinear", quantize.output[:1], [f"{quantize.output[0]}.lifted"])
        pair.name = pair.output[0]
        pair.input.extend(quantize.input[1:])
    else:
        _remove(graph, pair)
    position = next(i for i, node in enumerate(graph.node) if node is quantize)
    graph.node.insert(position + 1, pair)
    return str(pair.output[0])


def free_activations(graph: GraphProto) -> int:
    """Take out the Q/DQ pair between a Conv and an activation such as LeakyRelu; how many. OpenVINO fuses the two,
    which saves it a rounding and a pass over memory; ONNX Runtime needs the pair."""
    made, readers, freed = producers(graph), consumers(graph), 0
    for node in [n for n in graph.node if n.op_type in UNEVEN]:
        after = made.get(node.input[0])
        before = made.get(after.input[0]) if after is not None and after.op_type == "DequantizeLinear" else None
        if after is None or before is None or before.op_type != "QuantizeLinear":
            continue
        layer = made.get(before.input[0])
        pairs = (before.output[0], after.output[0])
        if layer is None or layer.op_type != "Conv" or any(len(readers[name]) != 1 for name in pairs):
            continue
        node.input[0] = before.input[0]
        freed += 1
    if freed:
        drop_dead(graph)
    return freed


def _alike(graph: GraphProto, pairs: Sequence[NodeProto]) -> bool:
    """Whether these DequantizeLinear nodes of activations share one scale and zero-point."""
    known = {None if value(graph, pair.input[0]) is not None else _scale(graph, pair) for pair in pairs}
    return len(known) == 1 and None not in known


def own_zero_points(graph: GraphProto) -> None:
    """Give the stored weights of Gemm and MatMul zero-points that no weight of another layout reads, too, a Conv's or
    one whose channels are the other axis: OpenVINO would reshape them for that one, could then fold neither, and would
    run both layers in float."""
    made, readers = producers(graph), consumers(graph)
    for node in [n for n in graph.node if n.op_type in ("Gemm", "MatMul")]:
        stored = made.get(node.input[1])
        if stored is None or stored.op_type != "DequantizeLinear" or value(graph, stored.input[0]) is None:
            continue
        name = stored.input[2] if len(stored.input) > 2 else ""
        zero = value(graph, name) if name else None
        layouts = {_layout(graph, other) for other in readers.get(name, [])}
        if zero is not None and zero.ndim and len(layouts) > 1:
            own = f"{node.name}.zero_point"
            stored.input[2] = own if value(graph, own) is not None else add_constant(graph, own, zero)


def _layout(graph: GraphProto, stored: NodeProto) -> tuple[int, int]:
    """How many axes a stored weight has, and which of them its scales run along."""
    array = value(graph, stored.input[0])
    ndim = 0 if array is None else array.ndim
    return ndim, attribute(stored, "axis", 1) % max(1, ndim)


def requantize_moved(graph: GraphProto) -> None:
    """DequantizeLinear -> Slice, Pad … -> Add: quantize again with the same scale before the Add. It changes no value,
    and TensorRT sees both inputs of the Add quantized."""
    made = producers(graph)
    pairs: dict[str, str] = {}  # several Adds may read one moved tensor
    for node in [n for n in graph.node if n.op_type == "Add"]:
        for index, name in enumerate(node.input):
            if name in pairs:
                node.input[index] = pairs[name]
                continue
            source = made.get(name)
            while source is not None and _moves(graph, source):
                source = made.get(source.input[0])
            if source is None or source.op_type != "DequantizeLinear" or name in source.output:
                continue
            if value(graph, source.input[0]) is not None:
                continue
            quantized, moved = f"{name}.again", f"{name}.moved"
            pair = (
                helper.make_node("QuantizeLinear", [name, *source.input[1:]], [quantized], name=quantized),
                helper.make_node("DequantizeLinear", [quantized, *source.input[1:]], [moved], name=moved),
            )
            node.input[index] = pairs[name] = moved
            position = next(i for i, n in enumerate(graph.node) if n is node)
            for part in reversed(pair):
                graph.node.insert(position, part)
