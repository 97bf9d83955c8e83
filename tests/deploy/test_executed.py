"""What the reports say of the executed graph, against counts of the torch models and graphs written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.compress.macs import count
from edgewise.compress.saved import save_model
from edgewise.deploy.convert import executed, ort, ov
from edgewise.deploy.convert.base import Source
from edgewise.deploy.convert.executed import aliases, arithmetic, executed_layers, layer_macs, located, read_back
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2, ViT

SHAPE = (3, 16, 16)
WHOLE = {
    "resnet20": CifarResNet(depth=20, width=16),
    "mobilenet_v2": MobileNetV2(),
    "vit": ViT(patch=4, dim=48, depth=2, heads=2),
}


def one(kind: str, shapes: dict[str, tuple[int, ...]], out: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    """A graph of one node whose first input is the graph's, the others stored."""
    first, *stored = shapes
    graph = helper.make_graph(
        [helper.make_node(kind, list(shapes), ["out"], name="layer", **attributes)],
        "one",
        [helper.make_tensor_value_info(first, TensorProto.FLOAT, ["n", *shapes[first][1:]])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(shapes[name], np.float32), name) for name in stored],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        # out places * filters * (channels in / groups) * kernel
        (one("Conv", {"x": (1, 4, 9, 9), "w": (8, 4, 3, 3)}, ()), 7 * 7 * 8 * 4 * 9),
        (one("Conv", {"x": (1, 4, 9, 9), "w": (8, 2, 3, 3)}, (), group=2, strides=[2, 2]), 4 * 4 * 8 * 2 * 9),
        # places in * channels in * filters * kernel
        (one("ConvTranspose", {"x": (1, 4, 5, 5), "w": (4, 6, 2, 2)}, (), strides=[2, 2]), 25 * 4 * 6 * 4),
        (one("Gemm", {"x": (1, 12), "w": (7, 12)}, (), transB=1), 7 * 12),
        (one("MatMul", {"x": (1, 5, 12), "w": (12, 7)}, ()), 5 * 12 * 7),
        (one("Einsum", {"x": (1, 5, 12), "w": (7, 12)}, (), equation="bij,kj->bik"), 5 * 12 * 7),
    ],
)
def test_macs_are_those_of_the_formulas(model: onnx.ModelProto, macs: int) -> None:
    assert layer_macs(model) == {"layer": macs}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """The families as they are, exported, with what torch counts."""
    from edgewise.deploy.export import export_float

    found = {}
    for name, config in WHOLE.items():
        model = build(config, (3, 32, 32), 10).eval()
        path = tmp_path_factory.mktemp(name) / "float.onnx"
        export_float(model, (3, 32, 32), path)
        found[name] = (path, count(model, (3, 32, 32)).macs)
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_macs_agree_with_torch(whole: dict[str, tuple[Path, int]], name: str) -> None:
    path, macs = whole[name]
    assert sum(layer_macs(onnx.load(path)).values()) == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit"])
def test_macs_agree_with_torch_layer_by_layer(exported: dict[str, Any], name: str) -> None:
    expected = count(exported[name].model, SHAPE).layers
    for kind in ("float", "unsigned", "signed"):
        counted: dict[str, int] = {}
        for layer, macs in layer_macs(onnx.load(getattr(exported[name], kind))).items():
            module = layer if layer in expected else layer.rpartition(".")[0]
            counted[module] = counted.get(module, 0) + macs
        assert counted == {layer: cost.macs for layer, cost in expected.items()}


def test_shapes_that_inference_lacks_are_seen_in_a_run(exported: dict[str, Any]) -> None:
    model = onnx.load(exported["vit"].float)
    wanted = {name for node in model.graph.node if node.op_type == "MatMul" for name in (*node.input, *node.output)}
    inferred = executed._shapes(model, wanted)
    for item in model.graph.input:
        item.type.tensor_type.shape.dim[0].dim_value = 1
    seen = executed._seen(model, sorted(wanted - {tensor.name for tensor in model.graph.initializer}))
    assert {name: inferred[name] for name in seen} == seen


def test_a_graph_without_shapes_is_told() -> None:
    model = one("Conv", {"x": (1, 4, 9, 9), "w": (8, 4, 3, 3)}, ())
    model.graph.node.insert(0, helper.make_node("Swoosh", ["x"], ["y"], name="unknown"))
    model.graph.node[1].input[0] = "y"
    with pytest.raises(ModelError, match="shapes"):
        layer_macs(model)


# Names


def test_layers_are_known_by_what_is_fused_into_them(exported: dict[str, Any]) -> None:
    known = aliases(onnx.load(exported["resnet"].float))
    assert located("relu_nchwc", known) == "conv1"
    assert located("layer1.0.conv2_nchwc", known) == "layer1.0.conv2"
    assert located("conv1_token_2", known) == "conv1"
    assert located("logits", known) == located("linear/WithoutBiases/DequantizationMultiply", known) == "linear"
    assert located("layer1.0.add_1", known) is None
    assert located("", known) is None


def test_a_layers_own_name_is_never_taken_apart() -> None:
    model = one("Gemm", {"x": (1, 12), "w": (7, 12)}, (), transB=1)
    model.graph.node[0].name = "head_quant"
    assert located("head_quant", aliases(model)) == "head_quant"


def test_executed_layers_have_their_macs_once(exported: dict[str, Any]) -> None:
    model = onnx.load(exported["resnet"].float)
    names = ["relu_nchwc", "layer1.0.conv1", "layer1.0.relu1", "ReorderOutput_7"]
    found = executed_layers(model, names)
    assert list(found) == names
    macs = layer_macs(model)
    assert found["relu_nchwc"] == ("conv1", macs["conv1"])
    assert found["layer1.0.conv1"] == ("layer1.0.conv1", macs["layer1.0.conv1"])
    assert found["layer1.0.relu1"] == ("layer1.0.relu1", 0)
    assert found["ReorderOutput_7"] == ("ReorderOutput_7", 0)


def test_what_the_executed_graph_doesnt_show_counts_as_float(exported: dict[str, Any]) -> None:
    report = read_back(onnx.load(exported["resnet"].float), [(("conv1",), True), (("something",), True)])
    assert report["integer_ops"] == 1
    assert report["integer_macs_share"] == pytest.approx(16 * 3 * 9 * 256 / report["macs"])
    assert "conv1" not in report["float_layers"]


def test_shares_weigh_layers_by_their_macs() -> None:
    report = arithmetic({"stem": 900, "head~2": 100}, ["stem"])
    assert (report["integer_share"], report["integer_macs_share"], report["macs"]) == (0.5, 0.9, 1000)
    assert report["float_layers"] == ["head"]
    assert report["float_layer_macs"] == {"head": 100}
    assert arithmetic({}, [])["integer_macs_share"] == 0.0


def test_reports_name_no_more_than_twenty_layers() -> None:
    names = [f"layer{number}" for number in range(30)]
    report = arithmetic(
        dict.fromkeys(names, 1) | {f"int{number}": 1 for number in range(10)}, {f"int{n}" for n in range(10)}
    )
    assert report["float_ops"] == 30
    assert report["integer_share"] == 0.25
    assert report["float_layers"] == names[:20]
    assert len(report["float_layer_macs"]) == 20


# What each runtime executes


PLANNED = {"conv1", "layer2.0.conv2"}


@pytest.mark.parametrize(
    ("converter", "name", "floating"),
    [
        (ort, "resnet", set()),
        (ov, "resnet", set()),
        (ort, "mobilenet", set()),
        (ov, "mobilenet", set()),
        (ov, "mixed", PLANNED),
        # ONNX Runtime's integer Conv gives integers only: one whose reader is in float runs in float itself.
        (ort, "mixed", PLANNED | {"layer2.0.conv1"}),
    ],
)
def test_cnns_run_in_integers_but_for_the_plan(
    exported: dict[str, Any], converter: Any, name: str, floating: set[str], tmp_path: Path
) -> None:
    source = Source(SHAPE, 5, unsigned_onnx=exported[name].unsigned, float_layers=exported[name].float_layers)
    converter.convert(source, "int8", tmp_path / "x")
    report = json.loads((tmp_path / "x.report.json").read_text())
    macs = {layer: cost.macs for layer, cost in count(exported[name].model, SHAPE).layers.items()}
    assert report["macs"] == sum(macs.values())
    assert set(report["float_layers"]) == floating
    assert report["float_layer_macs"] == {layer: macs[layer] for layer in floating}
    assert report["integer_macs_share"] == pytest.approx(
        1 - sum(macs[layer] for layer in floating) / sum(macs.values())
    )


def test_openvino_runs_every_layer_of_a_transformer_that_has_weights_in_integers(
    exported: dict[str, Any], tmp_path: Path
) -> None:
    ov.convert(Source(SHAPE, 5, unsigned_onnx=exported["vit"].unsigned), "int8", tmp_path / "x")
    report = json.loads((tmp_path / "x.report.json").read_text())
    assert all(".attn.matmul" in name for name in report["float_layers"])
    assert len(report["float_layers"]) <= 2


def test_onnxruntime_leaves_patches_and_attention_in_float(exported: dict[str, Any], tmp_path: Path) -> None:
    ort.convert(Source(SHAPE, 5, unsigned_onnx=exported["vit"].unsigned), "int8", tmp_path / "x")
    report = json.loads((tmp_path / "x.report.json").read_text())
    assert report["float_layers"] == ["patch_embed.proj", "blocks.0.attn.matmul_1"]
    cost = count(exported["vit"].model, SHAPE).layers
    attention = cost["blocks.0.attn"].macs // 2  # two products of the same size
    assert report["float_layer_macs"] == {
        "patch_embed.proj": cost["patch_embed.proj"].macs,
        "blocks.0.attn.matmul_1": attention,
    }


LITERT = """
import sys
from pathlib import Path
import numpy as np, torch
from edgewise.compress.saved import load_model
from edgewise.deploy.convert.litert import convert_module
torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    model, about = load_model(folder)
    samples = np.random.default_rng(0).standard_normal((4, *about.input_shape), dtype=np.float32)
    convert_module(model, "int8", folder / "file", input_shape=about.input_shape, calibration=samples)
"""


@pytest.mark.slow
def test_litert_reports_agree_with_torch(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="litert is not installed")
    from edgewise.compress.saved import Description

    folders, macs = {}, {}
    for name, config in {
        "resnet": CifarResNet(depth=8, width=16),
        "vit": ViT(patch=4, dim=16, depth=1, heads=2),
    }.items():
        model = build(config, SHAPE, 5).eval()
        folders[name] = tmp_path / name
        save_model(model, Description(model=config, input_shape=SHAPE, classes=5), folders[name])
        macs[name] = count(model, SHAPE)
    done = subprocess.run(
        [sys.executable, "-c", LITERT, *map(str, folders.values())],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reports = {name: json.loads((folder / "file.report.json").read_text()) for name, folder in folders.items()}
    for name, report in reports.items():
        assert report["macs"] == macs[name].macs
    assert reports["resnet"]["integer_macs_share"] == 1.0
    assert reports["resnet"]["xnnpack"]["partitions"] >= 1
    attention = macs["vit"].layers["blocks.0.attn"].macs
    assert reports["vit"]["integer_macs_share"] == pytest.approx(1 - attention / macs["vit"].macs)
