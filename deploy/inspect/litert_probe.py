"""A LiteRT file's layers, from its own kernels: XNNPACK, which runs the file as shipped, keeps no tensor between
fused ops, so the values come from a second interpreter without it; the answers come from the first."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.deploy.inspect.base import Float, dequantized
from edgewise.deploy.inspect.points import MOVE, SHAPED, TURNED, Op, Point, base, points_of
from edgewise.deploy.runtimes import litert
from edgewise.deploy.runtimes.base import Options, reason
from edgewise.errors import MeasureError

KINDS = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "conv",
    "TRANSPOSE_CONV": "conv",
    "FULLY_CONNECTED": "linear",
    "BATCH_MATMUL": "matmul",
    "RELU": "relu",
    "RELU6": "relu",
    "GELU": "gelu",
    "LOGISTIC": "sigmoid",
    "TANH": "tanh",
    "HARD_SWISH": "hardswish",
    "SOFTMAX": "softmax",
    "ADD": "add",
    "SUB": "sub",
    "MUL": "mul",
    "DIV": "div",
    "MEAN": "mean",
    "AVERAGE_POOL_2D": "mean",
    "MAX_POOL_2D": "max_pool",
    "CONCATENATION": "concat",
}
TRANSPOSE = "TRANSPOSE"
SHAPES = frozenset(("RESHAPE", TRANSPOSE, "SQUEEZE", "EXPAND_DIMS", "CAST", "DEQUANTIZE"))
MOVERS = frozenset(
    ("SLICE", "STRIDED_SLICE", "PAD", "PADV2", "GATHER", "SPLIT", "SPLIT_V", "BROADCAST_TO", "PACK", "UNPACK", "TILE")
)
CONSTANT = frozenset(("SHAPE",))
FUSED = {1: "relu", 2: "relu", 3: "relu", 4: "tanh"}  # NONE, RELU, RELU_N1_TO_1, RELU6, TANH
QUANTIZED = ("_quantized", "_dequant")  # what AI Edge Quantizer adds to a tensor's name


class LitertProbe:
    """A ``.tflite`` file."""

    def __init__(self, path: Path) -> None:
        """Read the graph, and open the file as it is.

        Raises:
            RuntimeMissing: LiteRT isn't installed.
            MeasureError: LiteRT can't open the file, or it has not one input and one output.
        """
        self._path, self.label = path, f"{path.name}, LiteRT"
        self._shipped = litert.open(str(path), Options())
        if len(self._shipped.inputs) != 1 or len(self._shipped.outputs) != 1:
            raise MeasureError(
                f"expected one input and one output, got {len(self._shipped.inputs)} and {len(self._shipped.outputs)}",
                where=str(path),
            )
        self.token_ids = self._shipped.inputs[0].dtype == "int64"
        self.batch = 1
        self._inside = _interpreter(path)
        # Of a file for texts the layers are those of its first graph, the longest.
        self.input_shape: tuple[int | None, ...] = tuple(
            int(size) for size in self._inside.get_input_details()[0]["shape"][1:]
        )
        details = {detail["index"]: detail for detail in self._inside.get_tensor_details()}
        self._details = {str(index): detail for index, detail in details.items()}
        ops, kinds = _ops(path)
        self.points: tuple[Point, ...] = points_of(ops, str(self._inside.get_input_details()[0]["index"]))
        self.precision = "int8" if "INT8" in kinds else "float16" if "FLOAT16" in kinds else "float32"
        self._wanted: dict[int, str] = {}

    def expose(self, wanted: Collection[int]) -> None:
        """Name the points whose values ``run`` is to give."""
        self._wanted = {index: self.points[index].tensor or "" for index in sorted(wanted) if self.points[index].tensor}

    def run(self, inputs: NDArray[Any]) -> tuple[Float, dict[int, Float]]:
        """(N, C, H, W), or token ids (N, L) -> answers, and the exposed points' values; one sample at a time, as the
        file was made."""
        answers, values = [], []
        place = self._inside.get_input_details()[0]["index"]
        for sample in inputs:
            answers.append(next(iter(self._shipped.run({self._shipped.inputs[0].name: sample[None]}).values())))
            if not self._wanted:
                continue
            try:
                self._inside.set_tensor(place, sample[None])
                self._inside.invoke()
                values.append({index: self._value(name) for index, name in self._wanted.items()})
            except (ValueError, RuntimeError) as error:
                raise MeasureError(f"LiteRT can't run it: {reason(error)}", where=str(self._path)) from error
        found = {index: np.stack([value[index] for value in values]) for index in self._wanted}
        return np.concatenate(answers).astype(np.float32), found

    def close(self) -> None:
        """Give the memory back."""
        self._shipped.close()
        self._inside = None

    def _value(self, name: str) -> Float:
        detail = self._details[name]
        array = self._inside.get_tensor(detail["index"])
        if array.dtype.kind == "f":
            return np.array(array, np.float32)
        told = detail["quantization_parameters"]
        return dequantized(array, told["scales"], told["zero_points"], told["quantized_dimension"])


def _interpreter(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with warnings.catch_warnings(), contextlib.suppress(AttributeError):
        warnings.filterwarnings("ignore", message="Warning: Enabling `experimental_preserve_all_tensors`")
        found = Interpreter(
            model_path=str(path),
            num_threads=1,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        found.allocate_tensors()
        return found


def _ops(path: Path) -> tuple[list[Op], set[str]]:
    """The ops of the main graph, and the types of its tensors. Tensors are called by their number."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    model: Any = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    fixed = {place for place, tensor in enumerate(graph.tensors) if _has_data(model, tensor)}
    ops: list[Op] = []
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        reads = tuple(str(place) for place in op.inputs if place >= 0 and place not in fixed)
        if kind in CONSTANT or not reads:
            fixed.update(int(place) for place in op.outputs)
            continue
        ops.extend(_op(graph, op, kind, reads, [graph.tensors[place] for place in op.inputs if place in fixed]))
    return ops, {types[tensor.type] for tensor in graph.tensors}


def _op(graph: Any, op: Any, kind: str, reads: tuple[str, ...], constants: list[Any]) -> Iterator[Op]:
    writes = tuple(str(place) for place in op.outputs)
    name = _name(graph.tensors[op.outputs[0]].name.decode())
    if kind == "QUANTIZE":
        yield Op("quantize", name, reads, writes)
    elif kind in SHAPES or kind in MOVERS:
        yield Op(TURNED if kind == TRANSPOSE else SHAPED if kind in SHAPES else MOVE, name, reads[:1], writes)
    else:
        found = KINDS.get(kind, kind.lower())
        if found == "matmul" and constants:
            found = "linear"
        fused = FUSED.get(getattr(op.builtinOptions, "fusedActivationFunction", 0) or 0, "")
        gain = kind in ("ADD", "MUL") and any(np.prod(tensor.shape) > 1 for tensor in constants)
        yield Op(found, name, reads, writes, fused=fused, gain=gain)


def _name(tensor: str) -> str:
    """``layer1/0/conv1:3`` is ``layer1.0.conv1``."""
    for end in QUANTIZED:
        tensor = tensor.removesuffix(end)
    return base(tensor).replace("/", ".")


def _has_data(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0
