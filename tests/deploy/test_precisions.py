"""int8_dynamic, int8_weights and bfloat16: what the files hold, what runs, how close it stays; and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

from edgewise.bench.ask import arithmetic
from edgewise.bench.record import FileUnderTest
from edgewise.compress.saved import Description, save_model
from edgewise.config import Precision, RuntimeName
from edgewise.deploy import tflite
from edgewise.deploy.config import REFUSED, Target
from edgewise.deploy.convert import litert, ort, ov, trt
from edgewise.deploy.convert.base import Job, Source
from edgewise.deploy.convert.run import convert_in_process
from edgewise.deploy.export import export_float
from edgewise.deploy.onnx_graph import value
from edgewise.deploy.parity import sqnr_db
from edgewise.deploy.runtimes import Options, get
from edgewise.deploy.weight_only import store_weights
from edgewise.errors import ContractError, MeasureError, ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, ModelConfig, ViT

SHAPE = (3, 32, 32)
NETS: dict[str, ModelConfig] = {
    "resnet": CifarResNet(kind="cifar_resnet", depth=8, width=16),
    "vit": ViT(kind="vit", patch=8, dim=64, depth=1, heads=2),
}
CONVERTERS = {"onnxruntime": ort, "openvino": ov, "litert": litert, "tensorrt": trt}
MIN_SQNR_DB = {"int8_dynamic": 28.0, "int8_weights": 30.0, "bfloat16": 35.0}
DONE = [
    *(("onnxruntime", precision) for precision in ("int8_dynamic", "int8_weights")),
    *(("openvino", precision) for precision in ("int8_dynamic", "int8_weights", "bfloat16")),
]


def bfloat16_here() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(scope="module", params=list(NETS))
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    torch.manual_seed(3)
    config = NETS[request.param]
    model = build(config, SHAPE, 10).eval()
    root = tmp_path_factory.mktemp(request.param)
    export_float(model, SHAPE, root / "float.onnx")
    save_model(model, Description(model=config, input_shape=SHAPE, classes=10), root / "saved")
    images = np.random.default_rng(0).standard_normal((8, *SHAPE)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(images)).numpy()
    source = Source(SHAPE, 10, float_onnx=root / "float.onnx", model_folder=root / "saved")
    return SimpleNamespace(name=request.param, root=root, source=source, images=images, logits=logits)


def _answers(runtime: str, path: Path, images: np.ndarray, precision: str = "float32") -> np.ndarray:
    session = get(runtime).open(str(path), Options(precision=precision))
    found = [session.run({"input": image[None]})["logits"] for image in images]
    session.close()
    return np.concatenate(found)


@pytest.fixture(scope="module")
def files(net: SimpleNamespace) -> dict[tuple[str, str], Path]:
    made = {}
    for runtime, precision in DONE:
        if (precision != "bfloat16" or bfloat16_here()) and (runtime, precision, net.name) != ONE_ROW:
            out = net.root / f"{runtime}.{precision}"
            made[runtime, precision] = CONVERTERS[runtime].convert(net.source, precision, out)  # type: ignore[attr-defined]
    return made


def _report(net: SimpleNamespace, runtime: str, precision: str) -> dict[str, object]:
    told: dict[str, object] = json.loads((net.root / f"{runtime}.{precision}.report.json").read_text())
    return told


@pytest.mark.parametrize(("runtime", "precision"), DONE)
def test_files_follow_torch(
    runtime: str, precision: str, net: SimpleNamespace, files: dict[tuple[str, str], Path]
) -> None:
    if (runtime, precision) not in files:
        return  # refused: see below
    mode = "bfloat16" if precision == "bfloat16" else "float32"
    logits = _answers(runtime, files[runtime, precision], net.images, mode)
    found = sqnr_db(net.logits, logits)
    assert MIN_SQNR_DB[precision] < found < 70  # and not the float file under another name


def test_dynamic_products_run_in_integers(net: SimpleNamespace, files: dict[tuple[str, str], Path]) -> None:
    told = _report(net, "onnxruntime", "int8_dynamic")
    products = 5 if net.name == "vit" else 1  # qkv, proj, fc1, fc2, head; or the head alone
    assert told["kernels"]["DynamicQuantizeMatMul"] == products  # type: ignore[index]
    assert told["integer_ops"] == products
    if net.name == "vit":
        assert _report(net, "openvino", "int8_dynamic")["integer_ops"] == products
    graph = onnx.load(files["onnxruntime", "int8_dynamic"]).graph
    names = {node.name for node in graph.node if node.op_type == "MatMulInteger"}
    assert names == ({"linear"} if net.name == "resnet" else {*(f"blocks.0.{n}" for n in VIT_LAYERS), "head"})
    assert "Conv" in {node.op_type for node in graph.node}  # in float


ONE_ROW = ("openvino", "int8_dynamic", "resnet")
VIT_LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def test_weights_alone_are_smaller_and_compute_in_float(
    net: SimpleNamespace, files: dict[tuple[str, str], Path]
) -> None:
    for runtime in ("onnxruntime", "openvino"):
        told = _report(net, runtime, "int8_weights")
        assert told["integer_ops"] == 0
        assert told["float_ops"] > 0  # type: ignore[operator]
    path = files["onnxruntime", "int8_weights"]
    assert path.stat().st_size < 0.45 * (net.root / "float.onnx").stat().st_size
    kernels = Counter(kind for kind, _ in ort.optimized_ops(path))
    assert not kernels["DequantizeLinear"] + kernels["Cast"] + kernels["MatMulNBits"]  # worked out when it is loaded
    assert kernels["Conv"] == Counter(kind for kind, _ in ort.optimized_ops(net.root / "float.onnx"))["Conv"]


def test_openvino_refuses_dynamic_where_it_would_compute_in_float(net: SimpleNamespace) -> None:
    """A classifier alone is a product of one row, which it leaves in float."""
    if net.name == "resnet":
        with pytest.raises(ContractError, match="compute in float all the same"):
            ov.convert(net.source, "int8_dynamic", net.root / "no.dynamic")


def test_the_openvino_file_says_whether_inputs_are_quantized(
    net: SimpleNamespace, files: dict[tuple[str, str], Path]
) -> None:
    groups = {}
    for precision in ("int8_dynamic", "int8_weights"):
        if ("openvino", precision) not in files:
            continue
        session = get("openvino").open(str(files["openvino", precision]), Options())
        groups[precision] = session.settings["dynamic_quantization_group"]
        session.close()
    assert groups == ({"int8_weights": 0} if net.name == "resnet" else {"int8_dynamic": 32, "int8_weights": 0})
    exact = _answers("openvino", files["openvino", "int8_weights"], net.images)
    same = _answers("onnxruntime", files["onnxruntime", "int8_weights"], net.images)
    assert sqnr_db(same, exact) > 90  # the same arithmetic, in two runtimes
    if net.name == "vit":
        assert sqnr_db(exact, _answers("openvino", files["openvino", "int8_dynamic"], net.images)) < 70


def test_stored_weights_are_the_nearest_on_their_grid(net: SimpleNamespace) -> None:
    """Against the definition, in float64."""
    before, after = (onnx.load(net.root / "float.onnx") for _ in range(2))
    names = store_weights(after)
    made = {name: node for node in after.graph.node for name in node.output}
    assert len(names) == (8 if net.name == "resnet" else 6)
    for old, new in zip(
        (node for node in before.graph.node if node.name in names),
        (node for node in after.graph.node if node.name in names),
        strict=True,
    ):
        weight = value(before.graph, old.input[1]).astype(np.float64)  # type: ignore[union-attr]
        product = made[new.input[1]]
        integers = value(after.graph, made[product.input[0]].input[0])
        scales = value(after.graph, product.input[1])
        assert integers is not None
        assert scales is not None
        assert integers.dtype == np.int8
        assert np.abs(integers.astype(int)).max() <= 127
        transposed = any(item.name == "transB" and item.i for item in old.attribute)
        axis = 0 if old.op_type == "Conv" or transposed else weight.ndim - 1
        others = tuple(place for place in range(weight.ndim) if place != axis)
        np.testing.assert_allclose(scales, np.abs(weight).max(others, keepdims=True) / 127, rtol=1e-6)
        assert np.abs(integers * scales.astype(np.float64) - weight).max() <= 0.5001 * scales.max()


def test_shared_and_vanishing_weights_are_stored_once_and_finite() -> None:
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    weight[:, 1] = 0
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w"], ["logits"], name="second"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("input", "logits")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert store_weights(model) == ["first", "second"]
    onnx.checker.check_model(model, full_check=True)
    assert [tensor.data_type for tensor in model.graph.initializer].count(TensorProto.INT8) == 1
    out = onnx.reference.ReferenceEvaluator(model).run(None, {"input": np.eye(4, dtype=np.float32)})[0]
    np.testing.assert_allclose(out, weight @ weight, atol=0.1)


def test_the_same_file_every_time(net: SimpleNamespace, files: dict[tuple[str, str], Path]) -> None:
    for runtime, precision in (("onnxruntime", "int8_dynamic"), ("openvino", "int8_weights")):
        again = CONVERTERS[runtime].convert(net.source, precision, net.root / f"again.{runtime}")  # type: ignore[attr-defined]
        assert again.read_bytes() == files[runtime, precision].read_bytes()


def test_bfloat16_is_asked_for_and_read_back(net: SimpleNamespace, files: dict[tuple[str, str], Path]) -> None:
    if not bfloat16_here():
        with pytest.raises(ContractError, match="no instructions for bfloat16"):
            ov.convert(net.source, "bfloat16", net.root / "no.bfloat16")
        return
    layers = _report(net, "openvino", "bfloat16")["layers"]
    assert set(layers) <= {"Convolution bf16", "FullyConnected bf16", "MatMul bf16"}  # type: ignore[call-overload]
    session = get("openvino").open(str(files["openvino", "bfloat16"]), Options(precision="bfloat16"))
    assert session.settings["precision"] == "bfloat16"
    session.close()


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_runtimes_without_bfloat16_refuse_it(runtime: str, net: SimpleNamespace) -> None:
    with pytest.raises(MeasureError, match="expected float32 or default, got 'bfloat16'"):
        get(runtime).open(str(net.root / "float.onnx"), Options(precision="bfloat16"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8_dynamic", "int8_weights"])
def test_litert(precision: Precision, net: SimpleNamespace) -> None:
    path = convert_in_process(Job("litert", precision, net.source, net.root / f"litert.{precision}"))
    assert sqnr_db(net.logits, _answers("litert", path, net.images)) > MIN_SQNR_DB[precision]
    ops = tflite.read(path.read_bytes())
    weights = [op.operands[1] for op in ops if op.kind in ("CONV_2D", "FULLY_CONNECTED")]
    if precision == "int8_dynamic":
        assert {weight.kind for weight in weights} == {"INT8"}  # the kernel takes them as they are
    else:
        assert {weight.kind for weight in weights} == {"FLOAT32"}  # and here an op before it expands them
        assert sum(op.kind == "DEQUANTIZE" for op in ops) == len(weights)
    told = _report(net, "litert", precision)
    assert told["integer_ops"] == (len(weights) if precision == "int8_dynamic" else 0)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("runtime", "precision"), list(REFUSED))
def test_what_a_runtime_can_t_do_is_said_in_the_recipe_and_by_the_converter(
    runtime: RuntimeName, precision: Precision, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match=f"{precision} is not for {runtime}"):
        Target(runtime=runtime, precisions=("float32", precision))
    with pytest.raises(ModelError, match=r"next: take float32") as caught:
        CONVERTERS[runtime].convert(Source(SHAPE, 10), precision, tmp_path / "x")  # type: ignore[attr-defined]
    assert caught.value.message == REFUSED[runtime, precision]


def test_a_net_without_products_has_nothing_to_quantize_dynamically(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    export_float(model, SHAPE, tmp_path / "float.onnx")
    source = Source(SHAPE, 4, float_onnx=tmp_path / "float.onnx")
    for converter in (ort, ov):
        with pytest.raises(ContractError):
            converter.convert(source, "int8_dynamic", tmp_path / "x")


@pytest.mark.parametrize(
    ("runtime", "precision", "expected"),
    [
        ("openvino", "bfloat16", "bfloat16"),
        ("openvino", "int8_dynamic", "float32"),
        ("openvino", "int8_weights", "float32"),
        ("onnxruntime", "int8_dynamic", "float32"),
    ],
)
def test_the_bench_asks_for_the_arithmetic_of_the_file(runtime: RuntimeName, precision: str, expected: str) -> None:
    file = FileUnderTest(
        name="x", runtime=runtime, precision=precision, role="candidate", path="x", size_bytes=1, sha256="0"
    )
    assert arithmetic(file) == expected
