"""An ONNX file's layers, as ONNX Runtime computes them.

Integer tensors are exposed where the file quantizes, which leaves the runtime's integer kernels in place: they give
exactly these. What lies between a product and its quantizer never exists then, and isn't shown.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from edgewise.deploy.inspect.base import Float, dequantized
from edgewise.deploy.inspect.points import LAYERS, MOVE, QUANTIZE, SHAPED, TURNED, Op, Point, base, points_of
from edgewise.deploy.onnx_graph import attribute
from edgewise.deploy.runtimes.base import reason
from edgewise.errors import MeasureError, RuntimeMissing

KINDS = {
    "Conv": "conv",
    "ConvTranspose": "conv",
    "Gemm": "linear",
    "MatMul": "matmul",
    "LayerNormalization": "norm",
    "BatchNormalization": "norm",
    "GroupNormalization": "norm",
    "InstanceNormalization": "norm",
    "Relu": "relu",
    "Clip": "relu",
    "Gelu": "gelu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "HardSwish": "hardswish",
    "Softmax": "softmax",
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "ReduceMean": "mean",
    "GlobalAveragePool": "mean",
    "AveragePool": "mean",
    "MaxPool": "max_pool",
    "Concat": "concat",
    "Attention": "attention",
}
UNSCALED = {"MatMulInteger": "linear", "ConvInteger": "conv"}
TRANSPOSE = "Transpose"
SHAPES = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", TRANSPOSE, "Identity", "Cast", "DequantizeLinear"))
MOVERS = frozenset(("Slice", "Pad", "Gather", "Split", "Expand", "Dropout", "DynamicQuantizeLinear"))
ONWARD = (SHAPES - {"Cast", "DequantizeLinear"}) | MOVERS | {"MaxPool"}  # integers in, the same integers out
CONSTANT = frozenset(("Shape", "Size", "Constant", "ConstantOfShape"))


class OnnxProbe:
    """An ``.onnx`` file, or a TensorRT bundle's graph."""

    def __init__(self, path: Path, label: str = "") -> None:
        """Read the graph, and open the file as it is.

        Raises:
            RuntimeMissing: ONNX Runtime isn't installed.
            MeasureError: the file isn't a graph that ONNX Runtime can run, or has not one input and one output.
        """
        from edgewise.deploy.runtimes import ort

        absent = ort.missing()
        if absent is not None:
            raise RuntimeMissing(absent, where=str(path), hint="edgewise doctor says how to get it")
        self._path = path
        try:
            self._model = onnx.load(path)
        except Exception as error:  # protobuf's DecodeError has a base of its own in each version
            raise MeasureError(f"not an ONNX file: {reason(error)}", where=str(path)) from error
        graph = self._model.graph
        fixed = {tensor.name for tensor in graph.initializer}
        feeds = [item for item in graph.input if item.name not in fixed]
        if len(feeds) != 1 or len(graph.output) != 1:
            raise MeasureError(
                f"expected one input and one output, got {len(feeds)} and {len(graph.output)}", where=str(path)
            )
        self.label = label or f"{path.name}, ONNX Runtime"
        self._input, self._output = feeds[0].name, graph.output[0].name
        dims = feeds[0].type.tensor_type.shape.dim
        self.input_shape = tuple(dim.dim_value or None for dim in dims)[1:]
        self.token_ids = feeds[0].type.tensor_type.elem_type == TensorProto.INT64
        self.batch = dims[0].dim_value or None if dims else None
        self.points: tuple[Point, ...] = points_of(_ops(graph), self._input)
        self._scales = _scales(graph)
        kinds = {tensor.data_type for tensor in graph.initializer}
        integer = kinds & {TensorProto.INT8, TensorProto.UINT8}
        self.precision = "int8" if integer else "float16" if TensorProto.FLOAT16 in kinds else "float32"
        self._shipped = _session(self._model, path)
        self._exposed: Any = None
        self._wanted: dict[int, str] = {}

    def expose(self, wanted: Collection[int]) -> None:
        """Name the points whose values ``run`` is to give."""
        self._wanted = {index: self.points[index].tensor or "" for index in sorted(wanted) if self.points[index].tensor}
        model = ModelProto()
        model.CopyFrom(self._model)
        there = {self._output, self._input}
        for name in dict.fromkeys(self._wanted.values()):
            if name not in there:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
        self._exposed = _session(model, self._path)

    def run(self, inputs: NDArray[Any]) -> tuple[Float, dict[int, Float]]:
        """(N, C, H, W), or token ids (N, L) -> answers, and the exposed points' values."""
        feed = {self._input: inputs}
        try:
            answers = self._shipped.run([self._output], feed)[0]
            names = [name for name in dict.fromkeys(self._wanted.values()) if name != self._input]
            found = dict(zip(names, self._exposed.run(names, feed), strict=True)) if names else {}
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise MeasureError(f"ONNX Runtime can't run it: {reason(error)}", where=str(self._path)) from error
        found[self._input] = inputs
        return answers.astype(np.float32), {
            index: self._real(name, found[name]) for index, name in self._wanted.items()
        }

    def close(self) -> None:
        """Give the memory back."""
        self._shipped = self._exposed = None

    def _real(self, name: str, array: NDArray[Any]) -> Float:
        if array.dtype.kind == "f" or name not in self._scales:
            return array.astype(np.float32)
        return dequantized(array, *self._scales[name])


def _session(model: ModelProto, path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        if any(tensor.external_data for tensor in model.graph.initializer):
            raise MeasureError("expected all weights in the one file", where=str(path))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except MeasureError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise MeasureError(f"ONNX Runtime can't open it: {reason(error)}", where=str(path)) from error


def _ops(graph: GraphProto) -> list[Op]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if not tensor.dims}
    fixed = {tensor.name for tensor in graph.initializer} | {""}
    ops = []
    for node in graph.node:
        reads = tuple(name for name in node.input if name not in fixed)
        if node.op_type in CONSTANT or not reads:
            fixed.update(node.output)
            continue
        if node.op_type == "DynamicQuantizeLinear":
            fixed.update(node.output[1:])  # a scale and a zero point say nothing of where values go
        ops.append(_op(node, reads, constants, fixed))
    return ops


def _op(node: NodeProto, reads: tuple[str, ...], constants: dict[str, NDArray[Any]], fixed: Collection[str]) -> Op:
    name, writes = node.name, tuple(node.output)
    if node.op_type == "QuantizeLinear":
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        return Op(QUANTIZE, name, reads, writes, clips=zero is not None and zero.dtype == np.uint8 and not zero.any())
    if node.op_type in SHAPES or node.op_type in MOVERS:
        return Op(_moved(node.op_type), name, reads[:1], writes)
    kind = KINDS.get(node.op_type, node.op_type.lower())
    if node.op_type in UNSCALED:
        return Op(UNSCALED[node.op_type], base(name), reads, writes, bare=True, unscaled=True)
    if kind == "matmul" and any(given in fixed for given in node.input):
        kind = "linear"
    # One node may be several of torch's layer: they are called fc1, fc1~2.
    return Op(kind, base(name) if kind in LAYERS | {"add"} else name, reads, writes, bare=node.op_type == "MatMul")


def _moved(kind: str) -> str:
    return TURNED if kind == TRANSPOSE else SHAPED if kind in SHAPES else MOVE


def _scales(graph: GraphProto) -> dict[str, tuple[NDArray[Any], NDArray[Any], int]]:
    """(scale, zero point, axis) of every quantized tensor."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] in values:
            scale = values[node.input[1]]
            zero = values.get(node.input[2], np.zeros(())) if len(node.input) > 2 else np.zeros(())
            name = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
            found[name] = (scale, zero, attribute(node, "axis", 1))
        elif node.op_type in ONWARD and node.input[0] in found:
            found.update((name, found[node.input[0]]) for name in node.output)
    return found
