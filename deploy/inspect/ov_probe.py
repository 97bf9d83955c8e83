"""An OpenVINO file's layers, as OpenVINO computes them on the CPU, float parts in float32 unless asked otherwise."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.deploy.inspect.base import Float
from edgewise.deploy.inspect.points import MOVE, QUANTIZE, SHAPED, TURNED, Op, Point, base, points_of
from edgewise.deploy.runtimes import ov
from edgewise.deploy.runtimes.base import Options, reason
from edgewise.errors import MeasureError

KINDS = {
    "Convolution": "conv",
    "GroupConvolution": "conv",
    "ConvolutionBackpropData": "conv",
    "GroupConvolutionBackpropData": "conv",
    "MatMul": "matmul",
    "MVN": "mvn",
    "BatchNormInference": "norm",
    "Relu": "relu",
    "Clamp": "relu",
    "Gelu": "gelu",
    "Swish": "silu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "HSwish": "hardswish",
    "SoftMax": "softmax",
    "Softmax": "softmax",
    "Add": "add",
    "Subtract": "sub",
    "Multiply": "mul",
    "Divide": "div",
    "ReduceMean": "mean",
    "AvgPool": "mean",
    "MaxPool": "max_pool",
    "Concat": "concat",
    "ScaledDotProductAttention": "attention",
}
TRANSPOSE = "Transpose"
SHAPES = frozenset(("Reshape", TRANSPOSE, "Squeeze", "Unsqueeze", "Convert"))
MOVERS = frozenset(("Slice", "StridedSlice", "Pad", "Gather", "Split", "VariadicSplit", "Broadcast", "ShuffleChannels"))
CONSTANT = frozenset(("Constant", "ShapeOf"))
BARE = "/WithoutBiases"


class OvProbe:
    """An ``.xml`` file with its ``.bin``."""

    def __init__(self, path: Path, *, bfloat16: bool = False) -> None:
        """Read the graph, and open the file as it is; ``bfloat16``: compute float parts in that.

        Raises:
            RuntimeMissing: OpenVINO isn't installed.
            MeasureError: OpenVINO can't open the file, or it has not one input and one output.
        """
        self._path, self.label = path, f"{path.name}, OpenVINO"
        ov.open(str(path), Options()).close()  # its errors say what is wrong with a file
        self._openvino = ov.load_openvino()
        self._hint = self._openvino.Type.bf16 if bfloat16 else self._openvino.Type.f32
        model = self._read()
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise MeasureError(
                f"expected one input and one output, got {len(model.inputs)} and {len(model.outputs)}", where=str(path)
            )
        sizes = [None if size.is_dynamic else size.get_length() for size in model.inputs[0].partial_shape]
        self.input_shape, self.batch = tuple(sizes[1:]), sizes[0]
        self.token_ids = model.inputs[0].element_type.get_type_name() == "i64"
        ops = list(model.get_ordered_ops())
        kinds = {op.get_output_element_type(0).get_type_name() for op in ops if op.get_type_name() == "Constant"}
        faked = any(op.get_type_name() == "FakeQuantize" for op in ops)
        integer = faked or bool(kinds & {"i8", "u8"})
        self.precision = "int8" if integer else "float16" if "f16" in kinds else "float32"
        if bfloat16 and not integer:
            self.precision = "bfloat16"
        self._affine: dict[str, tuple[Float, Float]] = {}
        self.points: tuple[Point, ...] = points_of(self._ops(ops), _place(model.inputs[0].get_node()))
        self._wanted: dict[int, str] = {}
        self._opened: dict[tuple[int, ...], tuple[Any, Any, dict[str, int]]] = {}

    def expose(self, wanted: Collection[int]) -> None:
        """Name the points whose values ``run`` is to give."""
        self._wanted = {index: self.points[index].tensor or "" for index in sorted(wanted) if self.points[index].tensor}
        self._opened.clear()

    def run(self, inputs: NDArray[Any]) -> tuple[Float, dict[int, Float]]:
        """(N, C, H, W), or token ids (N, L) -> answers, and the exposed points' values."""
        try:
            shipped, exposed, order = self._open(inputs.shape)
            answers = np.array(shipped([inputs])[0], np.float32)
            found = exposed([inputs]) if self._wanted else {}
            values = {index: np.array(found[order[name]], np.float32) for index, name in self._wanted.items()}
        except Exception as error:  # its errors share no base
            raise MeasureError(f"OpenVINO can't run it: {reason(error)}", where=str(self._path)) from error
        for index, name in self._wanted.items():
            if name in self._affine:
                gain, offset = self._affine[name]
                values[index] = (values[index] * gain + offset).astype(np.float32)
        return answers, values

    def close(self) -> None:
        """Give the memory back."""
        self._opened.clear()

    def _open(self, shape: tuple[int, ...]) -> tuple[Any, Any, dict[str, int]]:
        """For one shape of inputs: the file as it is, the file with more outputs, and where each of them is found.

        The shape is fixed, as the bench fixes it: with a dynamic batch OpenVINO 2026.4 gives wrong values of inner
        tensors once a smaller batch follows a larger one.
        """
        if shape in self._opened:
            return self._opened[shape]
        model = self._read()
        ports = {_place(op): op.output(0) for op in model.get_ordered_ops() if op.get_output_size()}
        # A result that is there already would be one port with two names.
        order = {_place(result.input_value(0).get_node()): 0 for result in model.get_results()}
        names = [name for name in dict.fromkeys(self._wanted.values()) if name in ports and name not in order]
        if names:
            model.add_outputs([ports[name] for name in names])
        order |= {name: place for place, name in enumerate(names, start=1)}
        opened = self._compile(self._read(), shape), self._compile(model, shape) if self._wanted else None, order
        self._opened[shape] = opened
        return opened

    def _read(self) -> Any:
        return self._openvino.Core().read_model(self._path)

    def _compile(self, model: Any, shape: tuple[int, ...]) -> Any:
        model.reshape(list(shape))
        hint = {"INFERENCE_PRECISION_HINT": self._hint, "INFERENCE_NUM_THREADS": 1}
        return self._openvino.Core().compile_model(model, "CPU", hint)

    def _ops(self, nodes: list[Any]) -> Iterator[Op]:
        fixed: set[str] = set()
        integers: dict[str, str] = {}  # tensors that hold levels, not yet the numbers they stand for: their quantizer
        for node in nodes:
            kind, place = node.get_type_name(), _place(node)
            reads = [_place(port.get_source_output().get_node()) for port in node.inputs()]
            moving = tuple(name for name in reads if name not in fixed)
            if kind in CONSTANT or (not moving and kind != "Parameter"):
                fixed.add(place)
                continue
            if kind in ("Parameter", "Result"):
                continue
            yield self._op(node, kind, place, moving, len(moving) < len(reads), integers)

    def _op(
        self, node: Any, kind: str, place: str, reads: tuple[str, ...], constant: bool, integers: dict[str, str]
    ) -> Op:
        name = _name(node)
        if kind == "FakeQuantize":
            low, high, out_low, out_high = (_constant(node, place) for place in range(1, 5))
            if out_low is not None and low is not None and high is not None and out_high is not None:
                # The levels between ``out_low`` and ``out_high`` stand for the numbers between ``low`` and ``high``.
                if not (np.array_equal(low, out_low) and np.array_equal(high, out_high)):
                    gain = (high - low) / (out_high - out_low)
                    self._affine[place] = (gain, low - out_low * gain)
                    integers[place] = place
                return Op(QUANTIZE, name, reads, (place,), clips=not (low < 0).any())
        levels = next((integers[read] for read in reads if read in integers), None)
        if levels is not None and kind == "MaxPool":
            integers[place], self._affine[place] = levels, self._affine[levels]
        if levels is not None and (kind in SHAPES | MOVERS or (constant and kind in ("Subtract", "Multiply"))):
            if kind != "Multiply":
                integers[place] = levels  # a Multiply is the last step back to numbers
            return Op(MOVE if kind in MOVERS else TURNED if kind == TRANSPOSE else SHAPED, name, reads[:1], (place,))
        if kind in SHAPES or kind in MOVERS:
            return Op(TURNED if kind == TRANSPOSE else SHAPED if kind in SHAPES else MOVE, name, reads[:1], (place,))
        found = KINDS.get(kind, kind.lower())
        if found == "matmul" and constant:
            found = "linear"
        bare = name.endswith(BARE) or kind == "MatMul"
        return Op(found, base(name.removesuffix(BARE)), reads, (place,), bare=bare)


def _place(node: Any) -> str:
    """One name for one node: those of the file are unique."""
    return str(node.get_friendly_name())


def _name(node: Any) -> str:
    """The layer's name; "" for a number, which is what the converter leaves of others."""
    name = str(node.get_friendly_name())
    return "" if name.isdigit() else name


def _constant(node: Any, place: int) -> Float | None:
    source = node.input_value(place).get_node()
    return np.array(source.data, np.float32) if source.get_type_name() == "Constant" else None
