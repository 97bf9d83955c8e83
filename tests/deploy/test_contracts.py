from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgewise.deploy.contracts import ort, ov, trt


def net(dtype: type = np.int8, opset: int = 20) -> ModelProto:
    """input -> Conv a -> Relu -> Conv b, + a, -> Relu -> Gemm, with explicit Q/DQ as the exporter writes it."""
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {"scale": np.float32(0.1), "zero": np.zeros((), dtype)}
    if dtype == np.uint8:
        constants["zero"] = np.full((), 128, np.uint8)
    nodes: list[NodeProto] = []

    def pair(name: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}.q"], name=f"{name}.q"))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}.q", "scale", "zero"], [f"{name}.dq"], name=f"{name}.dq")
        )
        return f"{name}.dq"

    def weight(name: str, shape: tuple[int, ...]) -> str:
        constants[f"{name}.w"] = rng.integers(-127, 128, shape).astype(np.int8)
        constants[f"{name}.s"] = rng.uniform(0.01, 0.02, shape[0]).astype(np.float32)
        constants[f"{name}.z"] = np.zeros(shape[0], np.int8)
        inputs = [f"{name}.w", f"{name}.s", f"{name}.z"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.wdq"], name=f"{name}.wdq", axis=0))
        constants[f"{name}.b"] = rng.normal(size=shape[0]).astype(np.float32)
        return f"{name}.wdq"

    def layer(kind: str, name: str, source: str, shape: tuple[int, ...], **attributes: object) -> str:
        inputs = [source, weight(name, shape), f"{name}.b"]
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    first = layer("Conv", "a", pair("input"), (4, 3, 3, 3), pads=[1, 1, 1, 1])
    nodes.append(helper.make_node("Relu", [first], ["ra"], name="ra"))
    skip = pair("ra")
    second = layer("Conv", "b", skip, (4, 4, 3, 3), pads=[1, 1, 1, 1])
    nodes.append(helper.make_node("Add", [pair(second), skip], ["sum"], name="sum"))
    nodes.append(helper.make_node("Relu", ["sum"], ["rs"], name="rs"))
    nodes.append(helper.make_node("GlobalAveragePool", [pair("rs")], ["pool"], name="pool"))
    nodes.append(helper.make_node("Flatten", [pair("pool")], ["flat"], name="flat"))
    layer("Gemm", "logits", "flat", (5, 4), transB=1)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(model: ModelProto, name: str) -> NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def store(model: ModelProto, name: str, array: np.ndarray) -> None:
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.name == name:
            del model.graph.initializer[index]
            break
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))


def bypass(model: ModelProto, reader: str, index: int, source: str) -> None:
    node(model, reader).input[index] = source


def insert(model: ModelProto, before: str, *nodes: NodeProto) -> None:
    position = next(i for i, n in enumerate(model.graph.node) if n.name == before)
    for new in reversed(nodes):
        model.graph.node.insert(position, new)


def test_the_healthy_graph_is_valid_and_passes():
    for dtype, contract in ((np.int8, trt), (np.int8, ov), (np.uint8, ort), (np.uint8, ov)):
        model = net(dtype)
        onnx.checker.check_model(model, full_check=True)
        assert contract.check(model) == []


def float_weight(model: ModelProto) -> None:
    store(model, "b.float", np.ones((4, 4, 3, 3), np.float32))
    bypass(model, "b", 1, "b.float")


def float_data(model: ModelProto) -> None:
    bypass(model, "b", 0, "ra")


def float_gemm(model: ModelProto) -> None:
    store(model, "fc.float", np.ones((5, 4), np.float32))
    bypass(model, "logits", 1, "fc.float")


def float_skip(model: ModelProto) -> None:
    bypass(model, "sum", 1, "ra")


def float_add_of_convolutions(model: ModelProto) -> None:
    bypass(model, "sum", 0, "b")
    bypass(model, "sum", 1, "ra")


def batchnorm(model: ModelProto) -> None:
    for part in ("g", "h", "m", "v"):
        store(model, part, np.ones(4, np.float32))
    insert(model, "ra", helper.make_node("BatchNormalization", ["a", "g", "h", "m", "v"], ["bn"], name="bn"))
    bypass(model, "ra", 0, "bn")


def zero_scale(model: ModelProto) -> None:
    store(model, "scale", np.float32(0))


def nan_scale(model: ModelProto) -> None:
    store(model, "a.s", np.full(4, np.nan, np.float32))


def computed_scale(model: ModelProto) -> None:
    insert(model, "input.q", helper.make_node("ReduceMax", ["input"], ["peak"], name="peak", keepdims=0))
    bypass(model, "input.q", 1, "peak")


def per_channel_activation(model: ModelProto) -> None:
    store(model, "scale", np.full(4, 0.1, np.float32))


def weight_axis(model: ModelProto) -> None:
    node(model, "b.wdq").attribute[0].i = 1


def per_tensor_weight(model: ModelProto) -> None:
    store(model, "b.s", np.float32(0.1))
    store(model, "b.z", np.int8(0))


def uint8_weight(model: ModelProto) -> None:
    store(model, "b.w", np.ones((4, 4, 3, 3), np.uint8))
    store(model, "b.z", np.zeros(4, np.uint8))


def unfolded_weight(model: ModelProto) -> None:
    store(model, "b.float", np.ones((4, 4, 3, 3), np.float32))
    inputs = ["b.float", "b.s", "b.z"]
    insert(model, "b.wdq", helper.make_node("QuantizeLinear", inputs, ["b.wq"], name="b.wq", axis=0))
    bypass(model, "b.wdq", 0, "b.wq")


COMMON: dict[Callable[[ModelProto], None], tuple[str, str]] = {
    float_weight: ("float-island", "b"),
    float_data: ("float-island", "b"),
    float_gemm: ("float-island", "logits"),
    float_skip: ("residual-add", "sum"),
    float_add_of_convolutions: ("residual-add", "sum"),
    zero_scale: ("positive-scale", "input.q"),
    nan_scale: ("positive-scale", "a.wdq"),
    computed_scale: ("static-scale", "input.q"),
    per_channel_activation: ("per-tensor-activation", "input.q"),
    weight_axis: ("weight-axis", "b.wdq"),
    per_tensor_weight: ("per-channel-weight", "b.wdq"),
    uint8_weight: ("int8-weight", "b.wdq"),
    unfolded_weight: ("stored-weight", "b.wq"),
}


@pytest.mark.parametrize("contract", [ort, ov, trt], ids=lambda module: module.__name__.rsplit(".")[-1])
@pytest.mark.parametrize("damage", COMMON, ids=lambda damage: damage.__name__)
def test_every_contract_finds(contract, damage):
    model = net(np.int8 if contract is trt else np.uint8)
    damage(model)
    assert COMMON[damage] in [(finding.rule, finding.node) for finding in contract.check(model)]


def test_onnxruntime_wants_uint8_activations_and_folded_batchnorm():
    assert {finding.rule for finding in ort.check(net(np.int8))} == {"uint8-activation"}
    model = net(np.uint8)
    batchnorm(model)
    assert [(f.rule, f.node) for f in ort.check(model)] == [("folded-batchnorm", "bn")]
    assert ov.check(model) == []


def uint8(model: ModelProto) -> None:
    store(model, "zero", np.uint8(0))


def zero_point(model: ModelProto) -> None:
    store(model, "zero", np.int8(3))


def no_zero_point(model: ModelProto) -> None:
    del node(model, "rs.q").input[2]


def int32_bias(model: ModelProto) -> None:
    store(model, "bias", np.ones(4, np.int32))
    store(model, "bias.z", np.zeros(4, np.int32))
    inputs = ["bias", "b.s", "bias.z"]
    insert(model, "b", helper.make_node("DequantizeLinear", inputs, ["bias.dq"], name="bias.dq", axis=0))
    bypass(model, "b", 2, "bias.dq")


def quantized_constant_into_add(model: ModelProto) -> None:
    store(model, "k", np.ones((1, 4, 1, 1), np.int8))
    insert(model, "sum", helper.make_node("DequantizeLinear", ["k", "scale", "zero"], ["k.dq"], name="k.dq"))
    bypass(model, "sum", 1, "k.dq")


def dynamic(model: ModelProto) -> None:
    outputs = ["d.q", "d.s", "d.z"]
    insert(model, "a", helper.make_node("DynamicQuantizeLinear", ["input"], outputs, name="d"))


def other_domain(model: ModelProto) -> None:
    insert(model, "ra", helper.make_node("QLinearLeakyRelu", ["a"], ["leaky"], name="leaky", domain="com.microsoft"))


def pair_before_relu(model: ModelProto) -> None:
    insert(
        model,
        "ra",
        helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["mid.q"], name="mid.q"),
        helper.make_node("DequantizeLinear", ["mid.q", "scale", "zero"], ["mid.dq"], name="mid.dq"),
    )
    bypass(model, "ra", 0, "mid.dq")


def transposed(model: ModelProto) -> None:
    node(model, "b").op_type = "ConvTranspose"
    node(model, "b.wdq").attribute[0].i = 1


TENSORRT: dict[Callable[[ModelProto], None], tuple[str, str]] = {
    uint8: ("int8", "input.q"),
    zero_point: ("zero-point", "input.q"),
    no_zero_point: ("int8", "rs.q"),
    int32_bias: ("float-bias", "b"),
    quantized_constant_into_add: ("constant-weight", "sum"),
    dynamic: ("explicit-qdq", "d"),
    other_domain: ("explicit-qdq", "leaky"),
    pair_before_relu: ("fusion", "ra"),
    transposed: ("conv-transpose", "b"),
}


@pytest.mark.parametrize("damage", TENSORRT, ids=lambda damage: damage.__name__)
def test_tensorrt_finds(damage):
    model = net()
    damage(model)
    assert [(f.rule, f.node) for f in trt.check(model)][:1] == [TENSORRT[damage]]


def test_tensorrt_versions():
    assert [f.rule for f in trt.check(net(opset=21))] == ["opset"]
    model = net(opset=18)
    assert trt.check(model) == []
    store(model, "scale", np.float16(0.1))
    assert {f.rule for f in trt.check(model)} == {"float16-scale"}


def test_movers_keep_a_tensor_quantized():
    model = net()
    insert(model, "b", helper.make_node("MaxPool", ["ra.dq"], ["moved"], name="moved", kernel_shape=[1, 1]))
    bypass(model, "b", 0, "moved")
    for contract in (ov, trt):
        assert contract.check(model) == []


def test_products_of_two_activations_may_stay_float():
    model = net(np.uint8)
    insert(model, "logits", helper.make_node("MatMul", ["flat", "flat"], ["attention"], name="attention"))
    assert ort.check(model) == []


def test_a_float_graph_has_nothing_to_find_but_its_opset():
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["logits"], name="r")],
        "float",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert ort.check(model) == ov.check(model) == trt.check(model) == []


def test_findings_say_what_to_do():
    model = net(np.uint8)
    float_weight(model)
    for finding in ort.check(model):
        assert "expected" in finding.message
        assert finding.mend
