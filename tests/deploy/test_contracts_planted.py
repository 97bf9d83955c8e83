"""Graphs as we export them, with one fault planted in each: every contract finds its own, and nothing in clean ones.

Where TensorRT-RTX is installed it is asked about the same graphs: it refuses them or runs less of them in integers,
unless the contract is stricter on purpose.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgewise.deploy.contracts import ort, ov, trt
from edgewise.deploy.convert import rtx
from edgewise.deploy.convert.executed import read_back
from edgewise.deploy.onnx_graph import attribute, set_attribute, sort_nodes

CONTRACTS = {"onnxruntime": ort.check, "openvino": ov.check, "tensorrt": trt.check}
FLAVOUR = {"onnxruntime": "unsigned", "openvino": "unsigned", "tensorrt": "signed"}
ALL = tuple(CONTRACTS)
CPU = ("onnxruntime", "openvino")


# Small tools


def node(model: ModelProto, name: str) -> NodeProto:
    return next(item for item in model.graph.node if item.name == name)


def first(model: ModelProto, kind: str) -> NodeProto:
    return next(item for item in model.graph.node if item.op_type == kind)


def maker(model: ModelProto, name: str) -> NodeProto:
    return next(item for item in model.graph.node if name in item.output)


def tensor(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(item for item in model.graph.initializer if item.name == name))


def store(model: ModelProto, name: str, array: Any) -> str:
    for index, item in enumerate(model.graph.initializer):
        if item.name == name:
            del model.graph.initializer[index]
            break
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def add(model: ModelProto, *nodes: NodeProto) -> None:
    model.graph.node.extend(nodes)


def weight(model: ModelProto, layer: str) -> NodeProto:
    """The DequantizeLinear of a layer's weights."""
    return maker(model, node(model, layer).input[1])


def quantizer(model: ModelProto, layer: str) -> NodeProto:
    """The QuantizeLinear whose values a layer gets."""
    name = node(model, layer).input[0]
    while maker(model, name).op_type != "QuantizeLinear":
        name = maker(model, name).input[0]
    return maker(model, name)


def own(model: ModelProto, item: NodeProto, place: int, array: Any) -> None:
    """Give one node a constant of its own: others may share the old one."""
    while len(item.input) <= place:
        item.input.append("")
    item.input[place] = store(model, f"{item.name}.own{place}", array)


def both(model: ModelProto, layer: str, place: int, change: Callable[[np.ndarray], Any]) -> str:
    """Change a constant in both halves of the pair before a layer; the first half's name."""
    quantize = quantizer(model, layer)
    name = store(model, f"{quantize.name}.own{place}", change(tensor(model, quantize.input[place])))
    waiting = [quantize.output[0]]
    quantize.input[place] = name
    while waiting:
        value = waiting.pop()
        for item in model.graph.node:
            if value in item.input and item.op_type == "DequantizeLinear":
                item.input[place] = name
            elif value in item.input and item.op_type in ("Reshape", "Transpose", "Gather", "Slice", "Pad"):
                waiting.append(item.output[0])
    return quantize.name


def pair(model: ModelProto, name: str, source: str, scale: str, zero: str) -> str:
    """A Q and DQ behind ``source``; the name of what they give."""
    add(
        model,
        helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}.q"], name=f"{name}.q"),
        helper.make_node("DequantizeLinear", [f"{name}.q", scale, zero], [f"{name}.dq"], name=f"{name}.dq"),
    )
    return f"{name}.dq"


def skip(model: ModelProto) -> NodeProto:
    """The first residual Add: its inputs are the branch and the skip path."""
    return first(model, "Add")


# Faults: each changes a graph and says where the finding must be


def float_weight(model: ModelProto) -> str:
    layer = node(model, "layer1.0.conv2")
    shape = tensor(model, weight(model, layer.name).input[0]).shape
    layer.input[1] = store(model, "plain", np.random.default_rng(0).normal(size=shape).astype(np.float32))
    return layer.name


def float_data(model: ModelProto) -> str:
    node(model, "layer1.0.conv2").input[0] = quantizer(model, "layer1.0.conv2").input[0]
    return "layer1.0.conv2"


def float_linear(model: ModelProto) -> str:
    shape = tensor(model, weight(model, "linear").input[0]).shape
    linear = node(model, "linear")
    linear.input[1] = store(model, "plain", np.ones(shape, np.float32))
    return "linear"


def float_skip(model: ModelProto) -> str:
    skip(model).input[1] = maker(model, maker(model, skip(model).input[1]).input[0]).input[0]
    return skip(model).name


def float_branch(model: ModelProto) -> str:
    skip(model).input[0] = maker(model, maker(model, skip(model).input[0]).input[0]).input[0]
    return skip(model).name


def float_sides(model: ModelProto) -> str:
    float_skip(model)
    return float_branch(model)


def batchnorm(model: ModelProto) -> str:
    channels = tensor(model, weight(model, "layer1.0.conv1").input[0]).shape[0]
    parts = [store(model, f"bn.{part}", np.full(channels, 1.1, np.float32)) for part in "gbmv"]
    relu = node(model, "layer1.0.relu1")
    bn = helper.make_node("BatchNormalization", [relu.input[0], *parts], ["bn"], name="layer1.0.bn1")
    relu.input[0] = "bn"
    add(model, bn)
    return bn.name


def batchnorm_behind_a_pair(model: ModelProto) -> str:
    name = batchnorm(model)
    given = weightless_constants(model)
    node(model, name).input[0] = pair(model, "between", node(model, name).input[0], *given)
    return name


def weightless_constants(model: ModelProto) -> tuple[str, str]:
    """Scale and zero-point of some activation."""
    quantize = quantizer(model, "layer1.0.conv2")
    return quantize.input[1], quantize.input[2]


def zero_scale(model: ModelProto) -> str:
    return both(model, "layer1.0.conv2", 1, lambda scale: np.zeros_like(scale))


def negative_weight_scale(model: ModelProto) -> str:
    item = weight(model, "layer1.0.conv2")
    scale = tensor(model, item.input[1]).copy()
    scale[3] *= -1
    own(model, item, 1, scale)
    return item.name


def nan_weight_scale(model: ModelProto) -> str:
    item = weight(model, "layer1.0.conv2")
    own(model, item, 1, np.full_like(tensor(model, item.input[1]), np.nan))
    return item.name


def infinite_scale(model: ModelProto) -> str:
    return both(model, "layer1.0.conv2", 1, lambda scale: np.full_like(scale, np.inf))


def computed_scale(model: ModelProto) -> str:
    quantize = quantizer(model, "layer1.0.conv2")
    quantize_input = quantize.input[0]
    add(model, helper.make_node("ReduceMax", [quantize_input], ["peak"], name="peak", keepdims=0))
    dequantize = maker(model, node(model, "layer1.0.conv2").input[0])
    quantize.input[1] = dequantize.input[1] = "peak"
    return quantize.name


def per_channel_activation(model: ModelProto) -> str:
    channels = tensor(model, weight(model, "layer1.0.conv2").input[0]).shape[1]
    zero = tensor(model, quantizer(model, "layer1.0.conv2").input[2])
    both(model, "layer1.0.conv2", 2, lambda _: np.full(channels, zero, zero.dtype))
    return both(model, "layer1.0.conv2", 1, lambda scale: np.full(channels, scale, scale.dtype))


def conv_axis(model: ModelProto) -> str:
    set_attribute(weight(model, "layer1.0.conv2"), "axis", 1)
    return weight(model, "layer1.0.conv2").name


def matmul_axis(model: ModelProto) -> str:
    item = weight(model, "blocks.0.attn.proj")  # square
    set_attribute(item, "axis", 1 - attribute(item, "axis", 1))
    return item.name


def per_tensor_weight(model: ModelProto, layer: str = "layer1.0.conv2") -> str:
    item = weight(model, layer)
    own(model, item, 1, np.float32(tensor(model, item.input[1]).max()))
    own(model, item, 2, np.int8(0))
    return item.name


def per_tensor_depthwise(model: ModelProto) -> str:
    layer = next(item for item in model.graph.node if attribute(item, "group", 1) > 1)
    return per_tensor_weight(model, layer.name)


def uint8_weight(model: ModelProto) -> str:
    item = weight(model, "layer1.0.conv2")
    own(model, item, 0, tensor(model, item.input[0]).view(np.uint8))
    own(model, item, 2, tensor(model, item.input[2]).view(np.uint8) + np.uint8(128))
    return item.name


def asymmetric_weight(model: ModelProto) -> str:
    item = weight(model, "layer1.0.conv2")
    own(model, item, 2, tensor(model, item.input[2]) + np.int8(5))
    return item.name


def lowest_level(model: ModelProto) -> str:
    item = weight(model, "layer1.0.conv2")
    values = tensor(model, item.input[0]).copy()
    values.flat[7] = -128
    own(model, item, 0, values)
    return item.name


def weight_quantized_at_run_time(model: ModelProto) -> str:
    item = weight(model, "layer1.0.conv2")
    shape = tensor(model, item.input[0]).shape
    plain = store(model, "plain", np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32))
    add(model, helper.make_node("QuantizeLinear", [plain, *item.input[1:]], ["late"], name="late", axis=0))
    item.input[0] = "late"
    return "late"


def scale_too_many(model: ModelProto) -> str:
    item = weight(model, "layer1.0.conv2")
    own(model, item, 1, np.append(tensor(model, item.input[1]), np.float32(0.1)))
    return item.name


def one_sided_product(model: ModelProto) -> str:
    layer = next(item for item in model.graph.node if item.name.endswith("attn.matmul"))
    item = maker(model, layer.input[0])
    layer.input[0] = maker(model, item.input[0]).input[0]
    return layer.name


def quantize_alone(model: ModelProto) -> str:
    scale, zero = weightless_constants(model)
    add(
        model,
        helper.make_node("QuantizeLinear", ["relu", scale, zero], ["alone"], name="alone"),
        helper.make_node("Cast", ["alone"], ["cast"], name="cast", to=TensorProto.FLOAT),
    )
    node(model, "layer1.0.conv1").input[0] = "cast"
    return "alone"


def dequantize_alone(model: ModelProto) -> str:
    quantize = quantizer(model, "conv1")
    dequantize = maker(model, node(model, "conv1").input[0])
    kind = TensorProto.UINT8 if tensor(model, quantize.input[2]).dtype == np.uint8 else TensorProto.INT8
    model.graph.input[0].type.tensor_type.elem_type = kind
    dequantize.input[0] = quantize.input[0]
    model.graph.node.remove(quantize)
    return dequantize.name


def other_scale(model: ModelProto) -> str:
    item = maker(model, node(model, "layer1.0.conv2").input[0])
    own(model, item, 1, tensor(model, item.input[1]) * np.float32(1.5))
    return item.name


def other_zero_point(model: ModelProto) -> str:
    item = maker(model, node(model, "layer1.0.conv2").input[0])
    zero = tensor(model, item.input[2])
    own(model, item, 2, zero + zero.dtype.type(1))
    return item.name


def quantized_twice(model: ModelProto) -> str:
    layer = node(model, "layer1.0.conv2")
    layer.input[0] = pair(model, "again", layer.input[0], *weightless_constants(model))
    return "again.q"


def quantized_logits(model: ModelProto) -> str:
    linear = maker(model, "logits")
    linear.output[0] = "raw"
    scale, zero = weightless_constants(model)
    pair(model, "end", "raw", scale, zero)
    node(model, "end.dq").output[0] = "logits"
    return "end.dq"


def sixteen_bits(model: ModelProto) -> str:
    model.opset_import[0].version = 21
    zero = tensor(model, quantizer(model, "layer1.0.conv2").input[2])
    wide = np.int16 if zero.dtype == np.int8 else np.uint16
    return both(model, "layer1.0.conv2", 2, lambda old: old.astype(wide))


def four_bits(model: ModelProto) -> str:
    model.opset_import[0].version = 21
    item = weight(model, "layer1.0.conv2")
    shape = tensor(model, item.input[0]).shape
    values = (np.arange(np.prod(shape)) % 15 - 7).tolist()
    model.graph.initializer.extend(
        [
            helper.make_tensor("four", TensorProto.INT4, shape, values),
            helper.make_tensor("four.zero", TensorProto.INT4, [shape[0]], [0] * shape[0]),
        ]
    )
    item.input[0], item.input[2] = "four", "four.zero"
    return item.name


def double_scale(model: ModelProto) -> str:
    return both(model, "layer1.0.conv2", 1, lambda scale: scale.astype(np.float64))


def same_name(model: ModelProto) -> str:
    node(model, "layer1.0.conv2").name = "layer1.0.conv1"
    return "layer1.0.conv1"


def no_name(model: ModelProto) -> str:
    node(model, "layer1.0.conv2").name = ""
    return "model"


def two_makers(model: ModelProto) -> str:
    relu = first(model, "Relu")
    add(model, helper.make_node("Abs", list(relu.input), list(relu.output), name="twin"))
    return relu.name


def side_file(model: ModelProto) -> str:
    item = next(item for item in model.graph.initializer if len(item.dims) == 4)
    onnx.external_data_helper.set_external_data(item, "weights.bin")
    return weight(model, "conv1").name


def free_height(model: ModelProto) -> str:
    dim = model.graph.input[0].type.tensor_type.shape.dim[2]
    dim.ClearField("dim_value")
    dim.dim_param = "height"
    return "input"


def new_opset(model: ModelProto) -> str:
    model.opset_import[0].version = 26
    return "model"


def old_opset(model: ModelProto) -> str:
    model.opset_import[0].version = 6
    return "model"


def new_format(model: ModelProto) -> str:
    model.ir_version = 14
    return "model"


def _before_relu(model: ModelProto, kind: str, name: str, **attributes: Any) -> str:
    relu = node(model, "layer1.0.relu1")
    add(model, helper.make_node(kind, [relu.input[0]], [name], name=name, **attributes))
    relu.input[0] = name
    return name


def custom_operator(model: ModelProto) -> str:
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    return _before_relu(model, "Magic", "magic", domain="my.company")


def unknown_operator(model: ModelProto) -> str:
    return _before_relu(model, "Swoosh", "swoosh")


def stochastic_operator(model: ModelProto) -> str:
    return _before_relu(model, "Bernoulli", "bernoulli")


def microsoft_operator(model: ModelProto) -> str:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return _before_relu(model, "BiasGelu", "fused", domain="com.microsoft")


def dynamic_quantization(model: ModelProto) -> str:
    layer = node(model, "layer1.0.conv2")
    source = quantizer(model, layer.name).input[0]
    add(
        model,
        helper.make_node("DynamicQuantizeLinear", [source], ["d.q", "d.s", "d.z"], name="dynamic"),
        helper.make_node("DequantizeLinear", ["d.q", "d.s", "d.z"], ["d.dq"], name="dynamic.dq"),
    )
    layer.input[0] = "d.dq"
    return "dynamic"


def integer_operator(model: ModelProto) -> str:
    layer = node(model, "layer1.0.conv2")
    data, stored = maker(model, layer.input[0]), weight(model, layer.name)
    layer.op_type = "QLinearConv"
    scale, zero = weightless_constants(model)
    inputs = [*data.input, *stored.input, scale, zero]
    (after,) = (item for item in model.graph.node if layer.output[0] in item.input)
    del layer.input[:]
    layer.input.extend(inputs)
    add(model, helper.make_node("DequantizeLinear", [layer.output[0], scale, zero], ["back"], name="back"))
    after.input[0] = "back"
    return layer.name


def uint8_activation(model: ModelProto) -> str:
    return both(model, "layer1.0.conv2", 2, lambda zero: zero.view(np.uint8))


def shifted(model: ModelProto) -> str:
    return both(model, "layer1.0.conv2", 2, lambda zero: zero + np.int8(3))


def no_zero_point(model: ModelProto) -> str:
    quantize = quantizer(model, "layer1.0.conv2")
    del quantize.input[2]
    return quantize.name


def int8_activation(model: ModelProto) -> str:
    return both(model, "layer1.0.conv2", 2, lambda zero: (zero.astype(np.int16) - 128).astype(np.int8))


def int32_bias(model: ModelProto) -> str:
    layer = node(model, "layer1.0.conv2")
    channels = tensor(model, weight(model, layer.name).input[0]).shape[0]
    stored = store(model, "bias.int32", np.ones(channels, np.int32))
    zero = store(model, "bias.zero", np.zeros(channels, np.int32))
    scale = weight(model, layer.name).input[1]
    add(model, helper.make_node("DequantizeLinear", [stored, scale, zero], ["bias.dq"], name="bias.dq", axis=0))
    layer.input[2] = "bias.dq"
    return layer.name


def constant_into_add(model: ModelProto) -> str:
    stored = store(model, "table", np.ones((1, 1, 1, 1), np.int8))
    scale, zero = weightless_constants(model)
    add(model, helper.make_node("DequantizeLinear", [stored, scale, zero], ["table.dq"], name="table.dq"))
    skip(model).input[1] = "table.dq"
    return skip(model).name


def pair_before_relu(model: ModelProto) -> str:
    relu = node(model, "layer1.0.relu1")
    relu.input[0] = pair(model, "between", relu.input[0], *weightless_constants(model))
    return relu.name


def transposed(model: ModelProto) -> str:
    layer = node(model, "layer1.0.conv2")
    layer.op_type = "ConvTranspose"
    set_attribute(weight(model, layer.name), "axis", 1)
    return layer.name


def half_scales_of_old_opset(model: ModelProto) -> str:
    model.opset_import[0].version = 18
    return both(model, "layer1.0.conv2", 1, lambda scale: scale.astype(np.float16))


def half_weights(model: ModelProto) -> str:
    float_weight(model)
    layer = node(model, "layer1.0.conv2")
    store(model, "plain", tensor(model, "plain").astype(np.float16))
    return layer.name


def shared_zero_point(model: ModelProto) -> str:
    proj = weight(model, "blocks.0.attn.proj")
    proj.input[2] = weight(model, "patch_embed.proj").input[2]
    return "blocks.0.attn.proj"


def float_output(model: ModelProto) -> str:
    """The last Conv's output isn't quantized before it is averaged."""
    pool = first(model, "GlobalAveragePool")
    pool.input[0] = maker(model, maker(model, pool.input[0]).input[0]).input[0]
    return maker(model, pool.input[0]).name


@dataclass(frozen=True)
class Fault:
    plant: Callable[[ModelProto], str]
    rule: str
    runtimes: tuple[str, ...] = ALL
    net: str = "resnet"


FAULTS = {
    fault.plant.__name__: fault
    for fault in (
        Fault(float_weight, "float-island"),
        Fault(float_data, "float-island"),
        Fault(float_linear, "float-island"),
        Fault(float_skip, "residual-add"),
        Fault(float_branch, "residual-add"),
        Fault(float_sides, "residual-add"),
        Fault(batchnorm, "folded-batchnorm", ("onnxruntime", "tensorrt")),
        Fault(batchnorm_behind_a_pair, "folded-batchnorm", ("onnxruntime", "tensorrt")),
        Fault(zero_scale, "positive-scale"),
        Fault(negative_weight_scale, "positive-scale"),
        Fault(nan_weight_scale, "positive-scale"),
        Fault(infinite_scale, "positive-scale"),
        Fault(computed_scale, "static-scale"),
        Fault(per_channel_activation, "per-tensor-activation"),
        Fault(conv_axis, "weight-axis"),
        Fault(matmul_axis, "weight-axis", net="vit"),
        Fault(per_tensor_weight, "per-channel-weight"),
        Fault(per_tensor_depthwise, "per-channel-weight", net="mobilenet"),
        Fault(uint8_weight, "int8-weight"),
        Fault(asymmetric_weight, "int8-weight"),
        Fault(lowest_level, "narrow-weight"),
        Fault(weight_quantized_at_run_time, "stored-weight"),
        Fault(scale_too_many, "scale-count"),
        Fault(one_sided_product, "one-sided", net="vit"),
        Fault(quantize_alone, "lonely-quantize"),
        Fault(dequantize_alone, "lonely-dequantize"),
        Fault(other_scale, "same-scale"),
        Fault(other_zero_point, "same-scale"),
        Fault(quantized_twice, "twice-quantized"),
        Fault(quantized_logits, "float-logits"),
        Fault(sixteen_bits, "eight-bits"),
        Fault(four_bits, "eight-bits"),
        Fault(double_scale, "scale-type"),
        Fault(same_name, "unique-name"),
        Fault(no_name, "node-name"),
        Fault(two_makers, "one-maker"),
        Fault(side_file, "one-file"),
        Fault(free_height, "static-shape"),
        Fault(new_opset, "opset"),
        Fault(old_opset, "opset"),
        Fault(new_format, "ir-version"),
        Fault(custom_operator, "unsupported-op", CPU),
        Fault(unknown_operator, "unsupported-op"),
        Fault(stochastic_operator, "unsupported-op", ("tensorrt",)),
        Fault(microsoft_operator, "explicit-qdq", ("tensorrt",)),
        Fault(dynamic_quantization, "explicit-qdq", ("tensorrt",)),
        Fault(integer_operator, "explicit-qdq", ("tensorrt",)),
        Fault(uint8_activation, "int8", ("tensorrt",)),
        Fault(shifted, "zero-point", ("tensorrt",)),
        Fault(no_zero_point, "int8", ("tensorrt",)),
        Fault(int32_bias, "float-bias", ("tensorrt",)),
        Fault(constant_into_add, "constant-weight", ("tensorrt",)),
        Fault(pair_before_relu, "fusion", ("tensorrt",)),
        Fault(transposed, "conv-transpose", ("tensorrt",)),
        Fault(half_scales_of_old_opset, "float16-scale", ("tensorrt",)),
        Fault(int8_activation, "uint8-activation", ("onnxruntime",)),
        Fault(half_weights, "float32", ("onnxruntime",)),
        Fault(float_output, "float-output", ("onnxruntime",), "mobilenet"),
        Fault(shared_zero_point, "own-zero-point", ("openvino",), "vit"),
    )
}
CASES = [(name, runtime) for name, fault in FAULTS.items() for runtime in fault.runtimes]


def planted(graphs: dict[str, Any], name: str, runtime: str) -> tuple[ModelProto, str]:
    """A clean graph with one fault, and the node that is at fault."""
    model = onnx.load(getattr(graphs[FAULTS[name].net], FLAVOUR[runtime]))
    at = FAULTS[name].plant(model)
    sort_nodes(model.graph)  # at the end: it makes new nodes of all
    return model, at


@pytest.mark.parametrize(("name", "runtime"), CASES)
def test_a_planted_fault_is_found(exported: dict[str, Any], name: str, runtime: str) -> None:
    model, at = planted(exported, name, runtime)
    found = CONTRACTS[runtime](model)
    assert (FAULTS[name].rule, at) in [(finding.rule, finding.node) for finding in found]
    for finding in found:
        assert "expected" in finding.message
        assert finding.mend


def test_there_are_many_faults() -> None:
    assert len(FAULTS) >= 30


@pytest.mark.parametrize("runtime", ALL)
@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit", "mixed"])
def test_clean_graphs_raise_nothing(exported: dict[str, Any], name: str, runtime: str) -> None:
    graphs = exported[name]
    for kind in ("float", FLAVOUR[runtime]):
        assert CONTRACTS[runtime](onnx.load(getattr(graphs, kind)), graphs.float_layers) == []


@pytest.mark.parametrize("runtime", ALL)
def test_a_plans_islands_are_findings_to_those_who_dont_know_the_plan(exported: dict[str, Any], runtime: str) -> None:
    found = CONTRACTS[runtime](onnx.load(getattr(exported["mixed"], FLAVOUR[runtime])))
    assert {finding.module for finding in found if finding.rule == "float-island"} == set(exported["mixed"].islands)


def test_a_plan_excuses_its_own_layers_only(exported: dict[str, Any]) -> None:
    model = onnx.load(exported["resnet"].unsigned)
    name = float_weight(model)
    assert ort.check(model, (name,)) == ort.check(model, ("layer1.0.*",)) == ort.check(model, ("layer1",)) == []
    assert ort.check(model, ("layer1.0.conv1", "layer1.0.conv")) != []
    conv_axis(model := onnx.load(exported["resnet"].unsigned))
    assert ort.check(model, ("*",)) != []  # a plan says what is in float, not that other rules may be broken


def test_findings_name_the_torch_module(exported: dict[str, Any]) -> None:
    modules = {
        float_weight: "layer1.0.conv2",
        zero_scale: "layer1.0.relu1",
        conv_axis: "layer1.0.conv2",
        float_skip: "layer1.0",
        quantized_logits: "",
    }
    torch_names = {name for name, _ in exported["resnet"].model.named_modules()}
    for plant, module in modules.items():
        model = onnx.load(exported["resnet"].unsigned)
        at = plant(model)
        (finding,) = {item for item in ort.check(model) if item.node == at and item.rule == FAULTS[plant.__name__].rule}
        assert finding.module == module
        assert finding.module in torch_names


def test_every_node_of_ours_leads_to_a_torch_module(exported: dict[str, Any]) -> None:
    from edgewise.deploy.contracts.base import torch_module

    for name in ("resnet", "mobilenet", "vit"):
        torch_names = {module for module, _ in exported[name].model.named_modules()}
        for kind in ("float", "unsigned", "signed"):
            for item in onnx.load(getattr(exported[name], kind)).graph.node:
                assert torch_module(item) in torch_names, item.name


def test_foreign_graphs_have_no_torch_modules(exported: dict[str, Any]) -> None:
    model = onnx.load(exported["resnet"].unsigned)
    float_weight(model)
    model.producer_name = "pytorch"
    assert {finding.module for finding in ort.check(model)} == {""}


# TensorRT-RTX on the same graphs

# The contract asks for more than TensorRT-RTX needs, on purpose.
STRICTER = {
    name: why
    for why, names in {
        "the Conv runs in int8, but the Add reads a tensor four times as wide": (
            "float_skip",
            "float_branch",
            "float_sides",
        ),
        "RTX compiles any elementwise chain into one kernel; TensorRT fuses by patterns, which a pair breaks": (
            "batchnorm",
            "batchnorm_behind_a_pair",
            "pair_before_relu",
        ),
        "it builds, and answers otherwise than meant": (
            "infinite_scale",
            "other_scale",
            "quantized_twice",
            "quantized_logits",
            "dequantize_alone",
        ),
        "it builds, and costs accuracy": ("per_tensor_weight", "per_tensor_depthwise", "lowest_level"),
        "the builder folds it; the file keeps weights of 32 bits": ("weight_quantized_at_run_time",),
        "versions before RTX 1.7 refuse it": (
            "double_scale",
            "new_opset",
            "new_format",
            "uint8_activation",
            "no_zero_point",
            "constant_into_add",
        ),
        "an engine of one input size is faster, and all we build": ("free_height",),
    }.items()
    for name in names
}

ASK = """
import json, sys
from pathlib import Path
from edgewise.deploy.convert import rtx
folder = Path(sys.argv[1])
for graph in sorted(folder.glob("*.onnx")):
    if not graph.with_suffix(".json").exists():
        graph.with_suffix(".json").write_text(json.dumps({"refused": "it ended the process"}))
        graph.with_suffix(".json").write_text(json.dumps(rtx.ask(graph, (1, 3, 16, 16))))
"""


@pytest.fixture(scope="module")
def verdicts(exported: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any] | None]:
    """{graph: shares of what TensorRT-RTX runs, None where it refuses}; one process for all, restarted if it ends."""
    if rtx.module_name() is None:
        pytest.skip("TensorRT-RTX is not installed: pip install 'edgewise[rtx]'")
    folder = tmp_path_factory.mktemp("rtx")
    for name in ("resnet", "mobilenet", "vit", "mixed"):
        (folder / f"{name}.onnx").write_bytes(Path(exported[name].signed).read_bytes())
    for name, fault in FAULTS.items():
        if "tensorrt" in fault.runtimes:
            model, _ = planted(exported, name, "tensorrt")
            (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    count = len(list(folder.glob("*.onnx")))
    for _ in range(count):
        subprocess.run([sys.executable, "-c", ASK, str(folder)], capture_output=True, timeout=300, check=False)
        if len(list(folder.glob("*.json"))) == count:
            break
    found: dict[str, dict[str, Any] | None] = {}
    for path in folder.glob("*.json"):
        told = json.loads(path.read_text())
        if "refused" in told:
            found[path.stem] = None
            continue
        layers = [layer for layer in rtx.parse_layers(told["log"]) if layer.kind in rtx.COMPUTING]
        model = onnx.load(path.with_suffix(".onnx"), load_external_data=False)
        found[path.stem] = read_back(model, ((layer.nodes, layer.integer) for layer in layers))
    return found


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if "tensorrt" in fault.runtimes])
def test_tensorrt_rtx_agrees(verdicts: dict[str, dict[str, Any] | None], name: str) -> None:
    verdict, clean = verdicts[name], verdicts[FAULTS[name].net]
    assert clean is not None
    worse = verdict is None or verdict["integer_ops"] < clean["integer_ops"]
    assert worse == (name not in STRICTER), (name, verdict)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit"])
def test_tensorrt_rtx_runs_clean_graphs_in_integers(verdicts: dict[str, dict[str, Any] | None], name: str) -> None:
    verdict = verdicts[name]
    assert verdict is not None
    # The product of probabilities and values is meant to be in float.
    assert all("matmul" in layer for layer in verdict["float_layers"])
    assert verdict["integer_ops"] >= 0.7 * (verdict["integer_ops"] + verdict["float_ops"])
