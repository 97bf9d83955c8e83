"""The LiteRT contract over written files: clean ones as we convert them, and one fault planted in each copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.deploy import tflite
from edgewise.deploy.contracts import litert
from edgewise.errors import ModelError

schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="litert is not installed")
CONV, DEPTHWISE, LINEAR = "conv1", "conv2", "linear"


class File:
    """A .tflite file as objects, changed by name."""

    def __init__(self, content: bytes) -> None:
        self.model = tflite.load(content)
        self.graph = self.model.subgraphs[0]
        for item in self.graph.tensors:
            if item.quantization is not None and item.quantization.scale is not None:
                item.quantization.scale = np.array(item.quantization.scale)  # what is read can't be written
                item.quantization.zeroPoint = np.array(item.quantization.zeroPoint)
        self.layers = dict(zip(tflite.layers(tflite.read(content)), self._products(), strict=True))

    def kind(self, op: Any) -> str:
        names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        code = self.model.operatorCodes[op.opcodeIndex]
        return names[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def _products(self) -> list[Any]:
        return [op for op in self.graph.operators if self.kind(op) in tflite.PRODUCTS]

    def tensor(self, layer: str, place: int) -> Any:
        return self.graph.tensors[self.layers[layer].inputs[place]]

    def output(self, layer: str) -> Any:
        return self.graph.tensors[self.layers[layer].outputs[0]]

    def first(self, kind: str) -> Any:
        return next(op for op in self.graph.operators if self.kind(op) == kind)

    def code(self, kind: str, version: int = 1) -> int:
        """The place of a new operator code."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = version
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def content(self) -> bytes:
        from ai_edge_litert.tools import flatbuffer_utils

        return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))


def activation_scales(file: File) -> str:
    told = file.output(CONV).quantization
    told.scale, told.zeroPoint = np.full(8, told.scale[0]), np.full(8, told.zeroPoint[0])
    return CONV


def conv_axis(file: File) -> str:
    file.tensor(CONV, 1).quantization.quantizedDimension = 3
    return CONV


def depthwise_axis(file: File) -> str:
    file.tensor(DEPTHWISE, 1).quantization.quantizedDimension = 0
    return DEPTHWISE


def weight_zero_point(file: File) -> str:
    file.tensor(CONV, 1).quantization.zeroPoint[2] = 4
    return CONV


def lowest_level(file: File) -> str:
    buffer = file.model.buffers[file.tensor(CONV, 1).buffer]
    buffer.data = np.array(buffer.data)
    buffer.data[3] = 0x80
    return CONV


def zero_scale(file: File) -> str:
    file.tensor(CONV, 1).quantization.scale[1] = 0
    return CONV


def nan_scale(file: File) -> str:
    file.output(CONV).quantization.scale[0] = np.nan
    return CONV


def one_weight_scale(file: File) -> str:
    told = file.tensor(DEPTHWISE, 1).quantization
    told.scale, told.zeroPoint = told.scale[:1], told.zeroPoint[:1]
    return DEPTHWISE


def too_many_scales(file: File) -> str:
    told = file.tensor(CONV, 1).quantization
    told.scale = np.append(told.scale, told.scale[0])
    return CONV


def bias_scale(file: File) -> str:
    file.tensor(CONV, 2).quantization.scale *= 2
    return CONV


def bias_zero_point(file: File) -> str:
    file.tensor(CONV, 2).quantization.zeroPoint[0] = 1
    return CONV


def float_bias(file: File) -> str:
    file.tensor(CONV, 2).type = schema.TensorType.FLOAT32
    return CONV


def float_layer(file: File) -> str:
    for item in (file.tensor("conv3", 1), file.output("conv3")):
        item.type = schema.TensorType.FLOAT32
        item.quantization = None
    return "conv3"


def float_pool(file: File) -> str:
    op = next(op for op in file.graph.operators if file.kind(op) in ("MEAN", "SUM", "AVERAGE_POOL_2D"))
    item = file.graph.tensors[op.outputs[0]]
    item.type, item.quantization = schema.TensorType.FLOAT32, None
    return str(item.name.decode())


def wide_zero_point(file: File) -> str:
    file.output(CONV).quantization.zeroPoint[0] = 300
    return CONV


def sixteen_bits(file: File) -> str:
    file.output(CONV).type = schema.TensorType.INT16
    return CONV


def custom_operator(file: File) -> str:
    place = file.code("CUSTOM")
    file.model.operatorCodes[place].customCode = b"FlexErf"
    op = file.first("DEQUANTIZE")
    op.opcodeIndex = place
    return str(file.graph.tensors[op.outputs[0]].name.decode())


def integer_input(file: File) -> str:
    item = file.graph.tensors[file.graph.inputs[0]]
    item.type = schema.TensorType.INT8
    return str(item.name.decode())


def free_width(file: File) -> str:
    item = file.graph.tensors[file.graph.inputs[0]]
    item.shapeSignature = np.array([1, 3, 16, -1], np.int32)
    return str(item.name.decode())


def same_name(file: File) -> str:
    file.output("conv3").name = file.output(CONV).name
    return str(file.output(CONV).name.decode())


def moved_scale(file: File) -> str:
    op = next(op for op in file.graph.operators if file.kind(op) in ("TRANSPOSE", "RESHAPE", "PAD"))
    item = file.graph.tensors[op.outputs[0]]
    item.quantization = copy.deepcopy(item.quantization)
    item.quantization.scale = item.quantization.scale * 1.5
    return str(item.name.decode())


def joined_scale(file: File) -> str:
    op = schema.OperatorT()
    op.opcodeIndex = file.code("CONCATENATION")
    item = copy.deepcopy(file.output(CONV))
    item.name = b"joined"
    file.graph.tensors.append(item)
    op.inputs = np.array([file.layers[CONV].outputs[0], file.layers["conv3"].outputs[0]], np.int32)
    op.outputs = np.array([len(file.graph.tensors) - 1], np.int32)
    file.graph.operators.append(op)
    return "joined"


def back_and_forth(file: File) -> str:
    """DEQUANTIZE and QUANTIZE behind a layer."""
    given = file.layers[CONV].outputs[0]
    for kind, name in (("DEQUANTIZE", b"there"), ("QUANTIZE", b"back")):
        item = copy.deepcopy(file.graph.tensors[file.layers[CONV].outputs[0]])
        item.name = name
        if kind == "DEQUANTIZE":
            item.type, item.quantization = schema.TensorType.FLOAT32, None
        file.graph.tensors.append(item)
        op = schema.OperatorT()
        op.opcodeIndex = file.code(kind)
        op.inputs, op.outputs = np.array([given], np.int32), np.array([len(file.graph.tensors) - 1], np.int32)
        file.graph.operators.append(op)
        given = len(file.graph.tensors) - 1
    return "back"


def old_version(file: File) -> str:
    """The form that dynamic-range quantization gives: integers stored, floats around."""
    for item in (file.tensor(LINEAR, 0), file.output(LINEAR)):
        item.type, item.quantization = schema.TensorType.FLOAT32, None
    return LINEAR


FAULTS: dict[Callable[[File], str], str] = {
    activation_scales: "per-tensor-activation",
    conv_axis: "weight-axis",
    depthwise_axis: "weight-axis",
    weight_zero_point: "int8-weight",
    lowest_level: "narrow-weight",
    zero_scale: "positive-scale",
    nan_scale: "positive-scale",
    one_weight_scale: "per-channel-weight",
    too_many_scales: "scale-count",
    bias_scale: "int32-bias",
    bias_zero_point: "int32-bias",
    float_bias: "int32-bias",
    float_layer: "float-island",
    float_pool: "float-island",
    wide_zero_point: "zero-point",
    sixteen_bits: "eight-bits",
    custom_operator: "unsupported-op",
    integer_input: "float-ends",
    free_width: "static-shape",
    same_name: "unique-name",
    moved_scale: "same-scale",
    joined_scale: "concat-scale",
    back_and_forth: "needless-conversion",
    old_version: "op-version",
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(converted: Mapping[str, Path], plant: Callable[[File], str]) -> None:
    file = File(converted["litert.int8"].read_bytes())
    at = plant(file)
    found = litert.check(file.content())
    assert any(finding.rule == FAULTS[plant] and at in (finding.node, finding.module) for finding in found), found
    assert all("expected" in finding.message and finding.mend for finding in found)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_clean_files_raise_nothing(converted: Mapping[str, Path], precision: str) -> None:
    assert litert.check(converted[f"litert.{precision}"].read_bytes()) == []


def test_a_transformer_may_keep_attention_in_float(converted: Mapping[str, Path]) -> None:
    folder = converted["litert.int8"].parent
    assert litert.check((folder / "litert.attending.tflite").read_bytes()) == []


def test_a_plan_excuses_its_layers(converted: Mapping[str, Path]) -> None:
    file = File(converted["litert.int8"].read_bytes())
    name = float_layer(file)
    assert [item.module for item in litert.check(file.content(), (name,)) if item.rule == "float-island"] == []


def test_our_converter_says_the_version_that_per_channel_weights_need(converted: Mapping[str, Path]) -> None:
    from edgewise.deploy.convert.litert_rewrites import say_per_channel

    file = File(converted["litert.int8"].read_bytes())
    old_version(file)
    content = file.content()
    assert "op-version" in {finding.rule for finding in litert.check(content)}
    assert "op-version" not in {finding.rule for finding in litert.check(say_per_channel(content))}


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 something else entirely", b"\x00\x00\x00\x00TFL3" + b"\xff" * 64]
)
def test_what_is_no_file_is_told(content: bytes) -> None:
    with pytest.raises(ModelError, match="tflite"):
        litert.check(content)
