"""How the operators of ONNX that have no weights become plain torch functions; and the way through a whole graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import NodeProto

from edgewise.models.onnx.build import Builder, type_name
from edgewise.models.onnx.layers import LAYER_OPS
from edgewise.models.onnx.program import BATCH, Program
from edgewise.models.onnx.read import OnnxFileGraph

Translator = Callable[[Builder, NodeProto], None]
FAR = 2**31 - 1


def unary(op: str) -> Translator:
    """A function of one tensor."""

    def translate(b: Builder, node: NodeProto) -> None:
        b.call(node, op, b.input(node, 0))

    return translate


def arithmetic(op: str, turned: str | None = None) -> Translator:
    """A function of two tensors, or of a tensor and a number; ``turned``: the one that takes the tensor first."""

    def translate(b: Builder, node: NodeProto) -> None:
        first, second = b.input(node, 0), b.input(node, 1)
        if not isinstance(first, str) and turned is None:
            first, second = b.input(node, 0, tensor=True), second
        if not isinstance(first, str):
            assert turned is not None
            b.call(node, turned, second, first)
        else:
            b.call(node, op, first, second)

    return translate


def several(op: str) -> Translator:
    """A function of any number of tensors."""

    def translate(b: Builder, node: NodeProto) -> None:
        b.call(node, op, *(b.input(node, index, tensor=True) for index in range(len(node.input))))

    return translate


def reduction(op: str) -> Translator:
    """A mean, a sum and the like over axes."""

    def translate(b: Builder, node: NodeProto) -> None:
        axes = b.numbers(node, 1, "axes")
        rank = b.rank(node.input[0])
        if not axes and b.attribute(node, "noop_with_empty_axes", 0):
            b.call(node, "mul", b.input(node, 0), 1.0)
            return
        dims = sorted(axis % rank for axis in axes) if axes else list(range(rank))
        keep = bool(b.attribute(node, "keepdims", 1))
        if (op, dims, rank, keep) == ("mean", [2, 3], 4, True):  # how exporters write a global pool
            b.layer(node, "AdaptiveAvgPool2d", b.input(node, 0), output_size=1)
        else:
            b.call(node, op, b.input(node, 0), dims=dims, keep=keep)

    return translate


def concat(b: Builder, node: NodeProto) -> None:
    """Concat."""
    given = [b.input(node, index, tensor=True) for index in range(len(node.input))]
    b.call(node, "concat", *given, dim=int(b.attribute(node, "axis")) % b.rank(node.output[0]))


def split(b: Builder, node: NodeProto) -> None:
    """Split; its sizes are those it gave."""
    axis = int(b.attribute(node, "axis", 0)) % b.rank(node.input[0])
    sizes = [b.fixed(node, name, axis) for name in node.output]
    if len(sizes) == 1:
        b.call(node, "mul", b.input(node, 0), 1.0)
    else:
        b.call(node, "split", b.input(node, 0), sizes=sizes, dim=axis)


def slice_(b: Builder, node: NodeProto) -> None:
    """Slice; a step of -1 over a whole axis turns it around."""
    starts, ends = b.numbers(node, 1, "starts"), b.numbers(node, 2, "ends")
    assert starts is not None
    assert ends is not None
    axes = b.numbers(node, 3, "axes") or list(range(len(starts)))
    steps = b.numbers(node, 4, "steps") or [1] * len(starts)
    axes = [axis % b.rank(node.input[0]) for axis in axes]
    given = b.input(node, 0)
    if any(step < 1 for step in steps):
        whole = all(
            step == -1 and b.dims(node.input[0])[axis] == b.dims(node.output[0])[axis]
            for step, axis in zip(steps, axes, strict=True)
        )
        if not whole:
            raise b.fail(node, f"steps of {steps}")
        b.call(node, "flip", given, dims=axes)
        return
    ends = [min(end, FAR) for end in ends]
    b.call(node, "slice", given, dims=axes, starts=starts, ends=ends, steps=steps)


def gather(b: Builder, node: NodeProto) -> None:
    """Gather at constant places."""
    index = b.constant(node, 1)
    if index is None:
        raise b.fail(node, "its places hang on the input's values")
    axis = int(b.attribute(node, "axis", 0)) % b.rank(node.input[0])
    given = b.input(node, 0, tensor=True)
    if index.ndim == 0:
        b.call(node, "take", given, dim=axis, index=int(index))
        return
    length = b.dims(node.input[0])[axis]
    flat = index.reshape(-1) if isinstance(length, str) else index.reshape(-1) % length
    held = b.hold(node.input[1], flat.astype(np.int64))
    if index.ndim == 1:
        b.call(node, "gather", given, axis, held)
        return
    b.call(node, "reshape", b.between(node, "gather", given, axis, held), shape=b.dims(node.output[0]))


def reshape(b: Builder, node: NodeProto) -> None:
    """Reshape and Flatten. What the file left open is left open: a pruned net has fewer channels."""
    dims, before = b.dims(node.output[0]), b.dims(node.input[0])
    given = b.input(node, 0)
    if len(dims) == 2 and dims[0] == before[0] == BATCH and len(before) > 2:
        b.call(node, "flatten", given, start_dim=1)
        return
    asked = b.constant(node, 1) if node.op_type == "Reshape" else None
    open_ = [place for place, value in enumerate([] if asked is None else asked.reshape(-1)) if value == -1]
    shape = list(dims)
    if open_ and shape[open_[0]] != BATCH:
        shape[open_[0]] = -1
    b.call(node, "reshape", given, shape=shape)


def transpose(b: Builder, node: NodeProto) -> None:
    """Transpose."""
    order = b.attribute(node, "perm") or list(range(b.rank(node.input[0])))[::-1]
    b.call(node, "transpose", b.input(node, 0), dims=list(order))


def squeeze(b: Builder, node: NodeProto) -> None:
    """Squeeze."""
    axes, before = b.numbers(node, 1, "axes"), b.dims(node.input[0])
    dims = [axis % len(before) for axis in axes] if axes else [at for at, length in enumerate(before) if length == 1]
    b.call(node, "squeeze", b.input(node, 0), dims=dims)


def unsqueeze(b: Builder, node: NodeProto) -> None:
    """Unsqueeze, one axis after the other."""
    axes = b.numbers(node, 1, "axes") or []
    *first, last = sorted(axis % b.rank(node.output[0]) for axis in axes)
    given = b.input(node, 0, tensor=True)
    for axis in first:
        given = b.between(node, "unsqueeze", given, dim=axis)
    b.call(node, "unsqueeze", given, dim=last)


def expand(b: Builder, node: NodeProto) -> None:
    """Expand."""
    b.call(node, "expand", b.input(node, 0, tensor=True), shape=b.dims(node.output[0]))


def tile(b: Builder, node: NodeProto) -> None:
    """Tile."""
    times = b.numbers(node, 1, "repeats")
    b.call(node, "tile", b.input(node, 0), times=times)


def pad(b: Builder, node: NodeProto) -> None:
    """Pad by constant amounts."""
    pads, rank = b.numbers(node, 1, "pads"), b.rank(node.input[0])
    assert pads is not None
    axes = b.numbers(node, 3, "axes") if len(node.input) > 3 else None
    axes = [axis % rank for axis in axes] if axes else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = pads[place], pads[place + len(axes)]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}.get(
        b.attribute(node, "mode", "constant")
    )
    if mode is None:
        raise b.fail(node, f"mode {b.attribute(node, 'mode')}")
    first = 0 if mode == "constant" else 2  # torch's other modes pad all axes but the first two
    if any(before[:first] + after[:first]):
        raise b.fail(node, f"mode {mode} of samples or channels")
    flat = [size for axis in range(rank - 1, first - 1, -1) for size in (before[axis], after[axis])]
    while mode == "constant" and len(flat) > 2 and flat[-2:] == [0, 0]:
        del flat[-2:]
    value = b.scalar(node, 2, "value", 0.0)
    b.call(node, "pad", b.input(node, 0), pads=flat, mode=mode, value=value)


def resize(b: Builder, node: NodeProto) -> None:
    """Resize and Upsample of maps, nearest, linear or cubic; whether torch means the same is checked with numbers."""
    mode = b.attribute(node, "mode", "nearest")
    place = b.attribute(node, "coordinate_transformation_mode", "half_pixel")
    if node.op_type == "Upsample" or b.opset < 11:
        place = "asymmetric"
    rank = b.rank(node.input[0])
    names = {
        ("nearest", 3): "nearest", ("nearest", 4): "nearest",
        ("linear", 3): "linear", ("linear", 4): "bilinear", ("cubic", 4): "bicubic",
    }  # fmt: skip
    before, after = b.dims(node.input[0]), b.dims(node.output[0])
    if (mode, rank) not in names or before[:2] != after[:2]:
        raise b.fail(node, f"mode {mode} of shape {before} to {after}")
    kind, align = names[mode, rank], None
    if mode == "nearest":
        rounding = b.attribute(node, "nearest_mode", "round_prefer_floor")
        floors = place == "asymmetric" and (rounding == "floor" or node.op_type == "Upsample" or b.opset < 11)
        kind = "nearest" if floors else "nearest-exact"
    else:
        align = place == "align_corners"
    size = [b.fixed(node, node.output[0], axis) for axis in range(2, rank)]
    b.call(node, "resize", b.input(node, 0), size=size, mode=kind, align=align)


def where(b: Builder, node: NodeProto) -> None:
    """Where."""
    b.call(node, "where", *(b.input(node, index, tensor=True) for index in range(3)))


def cast(b: Builder, node: NodeProto) -> None:
    """Cast between the types that programs know."""
    dtype = type_name(int(b.attribute(node, "to")))
    if dtype is None:
        raise b.fail(node, "to a type other than float32, int64, int32 or bool")
    b.call(node, "cast", b.input(node, 0, tensor=True), dtype=dtype)


def depth_to_space(b: Builder, node: NodeProto) -> None:
    """DepthToSpace."""
    block = int(b.attribute(node, "blocksize"))
    if b.attribute(node, "mode", "DCR") == "CRD":
        b.call(node, "pixel_shuffle", b.input(node, 0), upscale_factor=block)
    else:
        b.call(node, "depth_first", b.input(node, 0), block=block)


def einsum(b: Builder, node: NodeProto) -> None:
    """Einsum."""
    given = [b.input(node, index, tensor=True) for index in range(len(node.input))]
    b.call(node, "einsum", *given, equation=b.attribute(node, "equation"))


def same(b: Builder, node: NodeProto) -> None:
    """Identity and Dropout at the graph's end; elsewhere they are gone already."""
    b.call(node, "mul", b.input(node, 0), 1.0)


OPS: dict[str, Translator] = {
    **LAYER_OPS,
    **{name: unary(name.lower()) for name in ("Sqrt", "Neg", "Exp", "Log", "Abs", "Erf", "Sin", "Cos", "Sign", "Not")},
    **{name: unary(name.lower()) for name in ("Floor", "Ceil", "Round", "Reciprocal", "Softplus")},
    "Add": arithmetic("add", "add"),
    "Mul": arithmetic("mul", "mul"),
    "Sub": arithmetic("sub", "rsub"),
    "Div": arithmetic("div", "rdiv"),
    "Pow": arithmetic("pow"),
    "Equal": arithmetic("equal", "equal"),
    "Greater": arithmetic("greater"),
    "GreaterOrEqual": arithmetic("greater_equal"),
    "Less": arithmetic("less"),
    "LessOrEqual": arithmetic("less_equal"),
    "And": arithmetic("and"),
    "Or": arithmetic("or"),
    "Min": several("minimum"),
    "Max": several("maximum"),
    "ReduceMean": reduction("mean"),
    "ReduceSum": reduction("sum"),
    "ReduceMax": reduction("amax"),
    "ReduceMin": reduction("amin"),
    "ReduceL2": reduction("norm"),
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Reshape": reshape,
    "Flatten": reshape,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Expand": expand,
    "Tile": tile,
    "Pad": pad,
    "Resize": resize,
    "Upsample": resize,
    "Where": where,
    "Cast": cast,
    "DepthToSpace": depth_to_space,
    "Einsum": einsum,
    "Identity": same,
    "Dropout": same,
}


def translate(graph: OnnxFileGraph) -> tuple[Program, dict[str, Any]]:
    """The program of a file, and its weights by the names of the module's state (numpy).

    Raises:
        ModelError: an operator, or a use of one, that has no translation; it names the node.
    """
    b = Builder(graph)
    for node in graph.nodes:
        if all(name in graph.settled for name in node.output if name) or node.output[0] in b.skipped:
            continue  # what the number of samples decides is known where it is read
        if node.op_type not in OPS:
            raise b.fail(node, "no translation to torch for this operator")
        OPS[node.op_type](b, node)
    return b.program(), b.weights


__all__ = ["OPS", "translate"]
