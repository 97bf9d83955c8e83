"""An ONNX file run in ONNX Runtime, node by node, with any number of samples, even one that was exported for a single
number of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from edgewise.errors import ModelError

Array = NDArray[Any]


def free_batch(model: ModelProto, given: Any, nodes: list[NodeProto], constants: dict[str, Array], where: str) -> None:
    """Let ``model``, which becomes the folded graph, take any number of samples.

    A file that was exported for one number has it in its reshapes; there the first dimension is left to be inferred,
    and whether the answers are still right is checked afterwards, sample by sample.
    """
    graph = model.graph
    dims = given.type.tensor_type.shape.dim
    if not dims or any(not dim.dim_value for dim in dims[1:]):
        raise ModelError(
            f"expected an input of fixed size but for the number of samples, got {_shape(dims)}",
            where=where,
            hint="export it for one size of image",
        )
    fixed, samples = dims[0].dim_value, samples_for(dims, dims[0].dim_value)
    _replace(graph, nodes, constants)
    if not fixed:
        return
    before = watch(model, fixed)
    for node in nodes:
        if node.op_type == "Reshape" and node.input[1] in constants:
            asked, shape = constants[node.input[1]], before[node.output[0]].shape
            open_elsewhere = -1 in asked and asked[0] != fixed
            if not open_elsewhere and shape and shape[0] % fixed == 0:
                name = f"{node.output[0]}/any_batch"
                constants[name] = np.array([-1, *shape[1:]], np.int64)
                node.input[1] = name
                for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                    node.attribute.remove(attribute)
    nodes[:] = [one for node in nodes for one in _with_rows(node, given.name, constants, fixed)]
    _replace(graph, nodes, constants)
    graph.input[0].type.tensor_type.shape.dim[0].Clear()
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    out = graph.output[0].name
    told = f"it answers {fixed} sample{'s' if fixed > 1 else ''} at a time, and can't be made to take others"
    more = "export it with a dynamic batch: torch.onnx.export(…, dynamic_shapes=({0: torch.export.Dim('batch')},))"
    try:
        after = watch(model, 2 * fixed, np.concatenate([samples, samples]))[out]
    except ModelError as error:
        raise ModelError(f"{told}: {error.message}", where=where, hint=more) from error
    twice = np.concatenate([before[out]] * 2)
    if after.shape != twice.shape or not np.allclose(after, twice, rtol=1e-3, atol=1e-4 * float(np.abs(twice).max())):
        raise ModelError(told, where=where, hint=more)


def _with_rows(node: NodeProto, sample: str, constants: dict[str, Array], fixed: int) -> list[NodeProto]:
    """A node that joins constants to the samples, such as a class token, after nodes that give each sample its own."""
    made: list[NodeProto] = []
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    if node.op_type == "Concat" and axis != 0:
        for place, name in enumerate(node.input):
            if name in constants and constants[name].shape[:1] == (fixed,):
                new = f"{node.output[0]}/rows_{place}"
                constants[f"{new}/first"] = constants[name][:1]
                constants[f"{new}/rest"] = np.array(constants[name].shape[1:], np.int64)
                made += [
                    helper.make_node("Shape", [sample], [f"{new}/batch"], start=0, end=1),
                    helper.make_node("Concat", [f"{new}/batch", f"{new}/rest"], [f"{new}/shape"], axis=0),
                    helper.make_node("Expand", [f"{new}/first", f"{new}/shape"], [new]),
                ]
                node.input[place] = new
    return [*made, node]


def _shape(dims: Any) -> str:
    return f"({', '.join(str(dim.dim_value or dim.dim_param or '?') for dim in dims)})"


def _replace(graph: GraphProto, nodes: list[NodeProto], constants: dict[str, Array]) -> None:
    """Make ``graph`` the one of these nodes, and its output's shape open."""
    used = {name for node in nodes for name in node.input}
    kept = [item for item in graph.input if item.name not in constants]
    del graph.input[:], graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.input.extend(kept)
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(constants[name]), name) for name in sorted(used & set(constants))
    )
    graph.output[0].type.tensor_type.ClearField("shape")


def samples_for(dims: Any, batch: int) -> NDArray[np.float32]:
    """Random inputs (batch, …) for an input of these dimensions, the same ones each time."""
    shape = [dim.dim_value for dim in dims[1:]]
    return np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)


def watch(model: ModelProto, batch: int, samples: NDArray[np.float32] | None = None) -> dict[str, Array]:
    """Every tensor that the nodes make of ``batch`` random samples, as ONNX Runtime computes it without fusing any.

    Raises:
        ModelError: ONNX Runtime refuses the file, or can't run it.
    """
    import onnxruntime

    watched = ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    names = list(dict.fromkeys(name for node in graph.node for name in node.output if name))
    own = {item.name for item in graph.output}
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in own)
    if samples is None:
        samples = samples_for(graph.input[0].type.tensor_type.shape.dim, batch)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(watched.SerializeToString(), options, ["CPUExecutionProvider"])
        found = session.run([item.name for item in graph.output], {graph.input[0].name: samples})
    except Exception as error:  # onnxruntime's errors share no base of their own
        text = str(error).strip().splitlines()[0][:300]
        raise ModelError(f"ONNX Runtime can't run it with {batch} samples: {text}", where=graph.name) from error
    return {graph.input[0].name: samples, **dict(zip((item.name for item in graph.output), found, strict=True))}


__all__ = ["Array", "free_batch", "samples_for", "watch"]
