"""A plan's layers, and no others, are in float: in the graphs, and in what each runtime really executes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgewise.compress.agreement import answers
from edgewise.compress.config import Quantize
from edgewise.compress.quantization.insert import insert_quantizers, quantizer_config
from edgewise.compress.saved import Description, FakeQuantized, save_model
from edgewise.deploy.contracts import ort as ort_contract
from edgewise.deploy.contracts.base import facts, torch_module
from edgewise.deploy.convert import ort, ov, trt
from edgewise.deploy.convert.base import Job, Source, dump_job, parse_job
from edgewise.deploy.convert.planned import check_plan
from edgewise.deploy.convert.run import convert_in_process
from edgewise.deploy.export import export_qdq
from edgewise.deploy.parity import flips, sqnr_db
from edgewise.deploy.runtimes import Options, get
from edgewise.errors import ContractError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2, ModelConfig, ViT

SHAPE = (3, 32, 32)
NETS: dict[str, tuple[ModelConfig, tuple[str, ...]]] = {
    "resnet": (
        CifarResNet(kind="cifar_resnet", depth=20, width=16),
        ("layer1.0.conv1", "layer2.0.conv2", "layer3.1.conv2", "linear"),
    ),
    "mobilenet": (
        MobileNetV2(kind="mobilenet_v2", stem="cifar", width_multiplier=0.25),
        ("features.2.conv.1.0", "features.3.conv.2", "features.10.conv.0.0"),
    ),
    "vit": (ViT(kind="vit", patch=8, dim=64, depth=2, heads=2), ("blocks.0.mlp.fc1", "blocks.1.attn.qkv")),
}
# ONNX Runtime's integer convolution writes integers: where only a layer in float reads them, it runs in float, too.
# Before tokens are put together there is no quantizer either. Products of two activations are nobody's plan.
BESIDE = {
    "resnet": {"conv1", "layer2.0.conv1", "layer3.1.conv1"},
    "mobilenet": {"features.2.conv.0.0", "features.3.conv.1.0"},
    "vit": {"patch_embed.proj"},
}


@pytest.fixture(scope="module", params=["resnet", pytest.param("mobilenet", marks=pytest.mark.slow), "vit"])
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A quantized net with a plan: saved, exported, and its answers in torch."""
    config, floats = NETS[request.param]
    torch.manual_seed(0)
    model = build(config, SHAPE, 10)
    images = np.random.default_rng(0).standard_normal((64, *SHAPE)).astype(np.float32)
    with torch.no_grad():
        for _ in range(3):  # statistics that BatchNorm has after training
            model.train()(torch.from_numpy(images))
    quantized = insert_quantizers(model.eval(), images[:16], Quantize(kind="quantize", float_layers=floats))
    root = tmp_path_factory.mktemp(request.param)
    edit = FakeQuantized(nncf=quantizer_config(quantized), float_layers=floats)
    save_model(quantized, Description(model=config, input_shape=SHAPE, classes=10, edits=(edit,)), root / "saved")
    np.save(root / "calibration.npy", images[:16])
    export_qdq(quantized, SHAPE, root / "unsigned.onnx", signed=False, float_layers=floats)
    export_qdq(quantized, SHAPE, root / "signed.onnx", signed=True, half=True, float_layers=floats)
    source = Source(
        input_shape=SHAPE,
        classes=10,
        unsigned_onnx=root / "unsigned.onnx",
        half_signed_onnx=root / "signed.onnx",
        model_folder=root / "saved",
        calibration=root / "calibration.npy",
        float_layers=floats,
    )
    return SimpleNamespace(
        name=request.param,
        root=root,
        floats=floats,
        source=source,
        images=images,
        quantized=quantized,
        logits=answers(quantized, images),
    )


def _layers_with_weights(model: onnx.ModelProto) -> dict[str, bool]:
    """{torch module: whether its stored weight is dequantized}."""
    known = facts(model)
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return {
        torch_module(node): known.weight(node.input[1]) is not None
        for node in products
        if known.constant(node.input[1])
    }


def _executed_floats(report: Path) -> set[str]:
    told = json.loads(report.read_text())
    products = ("matmul", "matmul_1", "matmul_2", "matmul_3")  # of two activations
    return {name for name in told["float_layers"] if name.rsplit(".", 1)[-1] not in products}


def _answers(name: str, path: Path, images: np.ndarray) -> np.ndarray:
    session = get(name).open(str(path), Options())
    found = [session.run({"input": image[None]})["logits"] for image in images]
    session.close()
    return np.concatenate(found)


@pytest.mark.parametrize("graph", ["unsigned.onnx", "signed.onnx"])
def test_the_graphs_have_exactly_the_plan_in_float(graph: str, planned: SimpleNamespace) -> None:
    layers = _layers_with_weights(onnx.load(planned.root / graph))
    assert {name for name, quantized in layers.items() if not quantized} == set(planned.floats)
    assert len(layers) > len(planned.floats)


def test_onnxruntime_executes_the_plan(planned: SimpleNamespace) -> None:
    path = ort.convert(planned.source, "int8", planned.root / "ort")
    floats = _executed_floats(planned.root / "ort.report.json")
    assert set(planned.floats) <= floats <= {*planned.floats, *BESIDE[planned.name]}
    logits = _answers("onnxruntime", path, planned.images)
    assert sqnr_db(planned.logits, logits) > 25
    assert flips(planned.logits, logits) <= 2


def test_openvino_executes_the_plan(planned: SimpleNamespace) -> None:
    path = ov.convert(planned.source, "int8", planned.root / "ov")
    assert _executed_floats(planned.root / "ov.report.json") == set(planned.floats)
    logits = _answers("openvino", path, planned.images)
    assert sqnr_db(planned.logits, logits) > 25
    assert flips(planned.logits, logits) <= 3


def test_the_bundle_of_tensorrt_says_the_plan(planned: SimpleNamespace) -> None:
    manifest = json.loads(trt.convert(planned.source, "int8", planned.root / "trt").read_text())
    assert manifest["float_layers"] == list(planned.floats)
    told = manifest["conformance"]  # None where TensorRT-RTX isn't installed
    if told is not None:
        products = 4 if planned.name == "vit" else 0  # attention's
        assert told["float_ops"] <= len(planned.floats) + products


@pytest.mark.slow
def test_litert_writes_the_plan(planned: SimpleNamespace) -> None:
    path = convert_in_process(Job("litert", "int8", planned.source, planned.root / "litert"))
    told = json.loads((planned.root / "litert.report.json").read_text())
    products = {"blocks.0.attn", "blocks.1.attn"}
    assert set(told["float_layers"]) - products == set(planned.floats)
    logits = _answers("litert", path, planned.images)
    assert sqnr_db(planned.logits, logits) > 20
    assert flips(planned.logits, logits) <= 5


# --- refused ---------------------------------------------------------------------------------------------------------


def _two_convolutions() -> tuple[nn.Module, np.ndarray]:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    return model.eval(), np.random.default_rng(0).standard_normal((8, 3, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model that is its own container: NNCF's hooks need another around it."""
    model, images = _two_convolutions()
    return SimpleNamespace(
        root=tmp_path_factory.mktemp("sequential"),
        all_int8=insert_quantizers(model, images),
        planned=insert_quantizers(model, images, Quantize(kind="quantize", float_layers=("2",))),
    )


@pytest.mark.parametrize("signed", [False, True])
def test_names_of_a_sequential_model_are_its_own(signed: bool, sequential: SimpleNamespace) -> None:
    path = sequential.root / f"{signed}.onnx"
    export_qdq(sequential.planned, (3, 12, 12), path, signed=signed, half=signed, float_layers=("2",))
    layers = _layers_with_weights(onnx.load(path))
    assert layers == {"0": True, "2": False, "6": True}


def test_a_layer_in_float_without_a_plan_is_an_island(sequential: SimpleNamespace) -> None:
    """The net in torch has no quantizer there, so it can be exported; who reads the file alone is told."""
    path = sequential.root / "island.onnx"
    export_qdq(sequential.planned, (3, 12, 12), path, signed=False)
    graph = onnx.load(path)
    assert {(finding.rule, finding.module) for finding in ort_contract.check(graph)} == {("float-island", "2")}
    assert ort_contract.check(graph, ["2"]) == []


def test_a_plan_that_the_graph_doesn_t_follow_is_refused(sequential: SimpleNamespace) -> None:
    out = sequential.root / "x.onnx"
    with pytest.raises(ContractError, match="leaves 2 in float, and the file computes it in INT8"):
        export_qdq(sequential.all_int8, (3, 12, 12), out, signed=False, float_layers=("2",))
    with pytest.raises(ContractError, match="leaves conv9 in float, and the file has no such layer"):
        export_qdq(sequential.planned, (3, 12, 12), out, signed=True, float_layers=("2", "conv9"))
    assert not out.exists()


@pytest.mark.parametrize("converter", [ort, ov, trt])
def test_converters_refuse_a_plan_that_their_graph_doesn_t_follow(
    converter: object, sequential: SimpleNamespace
) -> None:
    graph = sequential.root / "all.onnx"
    signed = sequential.root / "all.signed.onnx"
    export_qdq(sequential.all_int8, (3, 12, 12), graph, signed=False)
    export_qdq(sequential.all_int8, (3, 12, 12), signed, signed=True)
    source = Source((3, 12, 12), 5, unsigned_onnx=graph, signed_onnx=signed, float_layers=("6",))
    with pytest.raises(ContractError, match="leaves 6 in float, and the file computes it in INT8"):
        converter.convert(source, "int8", sequential.root / "refused")  # type: ignore[attr-defined]


def test_many_layers_are_told_briefly() -> None:
    with pytest.raises(ContractError, match=r"a0, a1, a2, a3, a4 and 2 more in float.*no such layer"):
        check_plan([f"a{i}" for i in range(7)], {}, "x")
    check_plan(["a"], {"a": False, "b": True}, "x")


def test_the_plan_reaches_the_converter_s_process(tmp_path: Path) -> None:
    job = Job("litert", "int8", Source(SHAPE, 10, float_layers=("a.b", "c")), tmp_path / "x")
    assert parse_job(dump_job(job)) == job
    assert parse_job(dump_job(replace(job, source=Source(SHAPE, 10)))).source.float_layers == ()


def test_a_leaky_relu_before_a_float_layer_keeps_nothing_else_in_float(tmp_path: Path) -> None:
    """No integer convolution takes it in: what goes into it is quantized, though what comes out of it isn't."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(16, 16, 3, padding=1), nn.LeakyReLU(0.1)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    ).eval()
    images = np.random.default_rng(0).standard_normal((32, *SHAPE)).astype(np.float32)
    floats = ("2",)
    quantized = insert_quantizers(net, images[:16], Quantize(kind="quantize", float_layers=floats))
    export_qdq(quantized, SHAPE, tmp_path / "unsigned.onnx", signed=False, float_layers=floats)
    source = Source(input_shape=SHAPE, classes=10, unsigned_onnx=tmp_path / "unsigned.onnx", float_layers=floats)
    for name, runtime in (("onnxruntime", ort), ("openvino", ov)):
        path = runtime.convert(source, "int8", tmp_path / name)
        assert _executed_floats(tmp_path / f"{name}.report.json") == {"2"}
        assert sqnr_db(answers(quantized, images), _answers(name, path, images)) > 25
