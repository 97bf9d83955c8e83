"""One small net: in torch, in ONNX written by hand, quantized by ONNX Runtime's own tool, and converted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

SHAPE = (3, 16, 16)
CLASSES = 5

# A user's own model: the factory is found by import path, also in the converters' processes.
FACTORY = """
import torch
from torch import nn

class SmallNet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.conv3 = nn.Conv2d(8, 16, 1)
        self.linear = nn.Linear(16, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.conv2(x))
        x = torch.relu(self.conv3(x))
        return self.linear(x.mean((2, 3)))

def make(input_shape, classes):
    return SmallNet(classes)
"""

# Everything LiteRT in one process: its imports cost more than the conversions.
LITERT_SCRIPT = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from edgewise.compress.saved import load_model
from edgewise.deploy.convert.litert import convert_module
torch.set_num_threads(1)
folder, calibration, out = map(Path, sys.argv[1:4])
for precision in ("float32", "float16", "int8"):
    model, description = load_model(folder)
    convert_module(model, precision, out / f"litert.{precision}", input_shape=description.input_shape,
                   calibration=np.load(calibration))

# A fake-quantized one, with ranges that no calibration would find: training may well move them.
from edgewise.compress.quantization.insert import insert_quantizers, quantizers
images = np.load(calibration)
model = insert_quantizers(load_model(folder)[0], images)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if name.endswith("_scale_param_storage") and parameter.numel() == 1:
            parameter.mul_(0.6)
    np.save(out / "learned.npy", model(torch.from_numpy(images)).numpy())
convert_module(model, "int8", out / "litert.learned", input_shape=description.input_shape, calibration=images)

# A product of activations, which LiteRT's recipe leaves in float as it does a transformer's.
class Attending(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_1, self.linear = torch.nn.Conv2d(3, 8, 4, stride=4), torch.nn.Linear(8, 5)
    def forward(self, x):
        x = self.conv_1(x).flatten(2)
        return self.linear((x @ (x.transpose(1, 2) @ x)).mean(2))
convert_module(Attending(), "int8", out / "litert.attending", input_shape=description.input_shape, calibration=images)

# One channel and a flatten: reshapes in the file, which litert-torch writes with the batch of its sample.
torch.manual_seed(0)
grey = lambda: torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, stride=8), torch.nn.ReLU(), torch.nn.Flatten(),
                                   torch.nn.Linear(32, 5))
for precision in ("float32", "int8"):
    convert_module(grey(), precision, out / f"litert.grey.{precision}", input_shape=(1, 16, 16),
                   calibration=images[:, :1])
"""


@dataclass(frozen=True)
class SmallNet:
    """The net's files. ``images`` (64, C, H, W), ``logits`` (64, K) by torch."""

    root: Path
    images: NDArray[np.float32]
    logits: NDArray[np.float32]
    float_onnx: Path
    unsigned_onnx: Path
    signed_onnx: Path
    model_folder: Path
    calibration: Path


@pytest.fixture(scope="session")
def small_net(tmp_path_factory: pytest.TempPathFactory) -> SmallNet:
    import torch

    from edgewise.compress.saved import Description, save_model
    from edgewise.models.build import build
    from edgewise.models.config import ModelFactory

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("small_net")
    (root / "small_net_factory.py").write_text(FACTORY)
    sys.path.append(str(root))
    torch.manual_seed(5)
    config = ModelFactory(kind="factory", factory="small_net_factory:make")
    model = build(config, SHAPE, CLASSES).eval()
    # As after training: BatchNorm that does something, weights that are not all alike.
    with torch.no_grad():
        bn = model.get_submodule("bn1")
        bn.running_mean.normal_(0, 0.3)
        bn.running_var.uniform_(0.3, 2)
        bn.weight.uniform_(0.5, 2)
        bn.bias.normal_(0, 0.3)
        model.get_submodule("linear").weight.normal_(0, 0.5)
    images = np.random.default_rng(1).normal(size=(64, *SHAPE)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(images)).numpy()
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    save_model(model, Description(model=config, input_shape=SHAPE, classes=CLASSES), root / "model")
    np.save(root / "calibration.npy", images)
    _write_onnx(state, root / "float.onnx")
    _quantize(images, root / "float.onnx", root / "unsigned.onnx", signed=False)
    _quantize(images, root / "float.onnx", root / "signed.onnx", signed=True)
    return SmallNet(
        root=root,
        images=images,
        logits=logits,
        float_onnx=root / "float.onnx",
        unsigned_onnx=root / "unsigned.onnx",
        signed_onnx=root / "signed.onnx",
        model_folder=root / "model",
        calibration=root / "calibration.npy",
    )


@pytest.fixture(scope="session")
def converted(small_net: SmallNet) -> dict[str, Path]:
    """``{"litert.int8": path}`` of every runtime that runs here and every precision it has."""
    from edgewise.deploy.convert import ort, ov
    from edgewise.deploy.convert.base import Source

    source = Source(SHAPE, CLASSES, float_onnx=small_net.float_onnx, unsigned_onnx=small_net.unsigned_onnx)
    out = small_net.root / "converted"
    files = {}
    for name, converter, precisions in (
        ("onnxruntime", ort, ("float32", "int8")),
        ("openvino", ov, ("float32", "float16", "int8")),
    ):
        for precision in precisions:
            files[f"{name}.{precision}"] = converter.convert(source, precision, out / f"{name}.{precision}")
    command = [sys.executable, "-c", LITERT_SCRIPT, str(small_net.model_folder), str(small_net.calibration), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(small_net.root)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for precision in ("float32", "float16", "int8"):
        files[f"litert.{precision}"] = out / f"litert.{precision}.tflite"
    return files


@pytest.fixture(scope="session")
def reports(converted: Mapping[str, Path], small_net: SmallNet) -> dict[str, dict[str, object]]:
    """What each converter said about its file."""
    folder = small_net.root / "converted"
    return {name: json.loads((folder / f"{name}.report.json").read_text()) for name in converted}


@pytest.fixture
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, ...]:
    """What a file holds that tells of the machine it was made on."""
    folders = (tmp_path_factory.getbasetemp(), Path(__file__).parents[2], Path.home() / "x", Path(sys.prefix))
    return (*(str(folder).removesuffix("x").encode() for folder in folders), b"site-packages", b"stack_trace")


def _write_onnx(state: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """The net as a graph, BatchNorm folded by hand."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    gain = state["bn1.weight"] / np.sqrt(state["bn1.running_var"] + 1e-5)
    tensors = {
        "w1": state["conv1.weight"] * gain[:, None, None, None],
        "b1": state["bn1.bias"] - state["bn1.running_mean"] * gain,
        "w2": state["conv2.weight"],
        "b2": state["conv2.bias"],
        "w3": state["conv3.weight"],
        "b3": state["conv3.bias"],
        "w4": state["linear.weight"],
        "b4": state["linear.bias"],
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], strides=[2, 2], group=8),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], name="conv3"),
        helper.make_node("Relu", ["c3"], ["r3"]),
        helper.make_node("GlobalAveragePool", ["r3"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w4", "b4"], ["logits"], name="linear", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.producer_name, model.doc_string = "a tool", "made in /home/someone"
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _quantize(images: NDArray[np.float32], graph: Path, out: Path, *, signed: bool) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"input": image[None]} for image in images]

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return self.left.pop() if self.left else None

    kind = quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False} if signed else {}
    quantization.quantize_static(
        graph,
        out,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=kind,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm"] if signed else None,
        extra_options=options,
    )


PLAN = ("conv1", "layer2.0.conv2")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SimpleNamespace]:
    """Three families as we export them, and one with a mixed plan: ``model``, ``quantized``, the files ``float``,
    ``unsigned`` and ``signed``, the plan's ``float_layers``, and ``islands``, which stay in float by it."""
    from torch import nn

    from edgewise.compress.config import Quantize
    from edgewise.compress.quantization.insert import insert_quantizers
    from edgewise.deploy.export import export_float, export_qdq
    from edgewise.models.build import build
    from edgewise.models.config import CifarResNet, ViT

    samples = np.random.default_rng(0).standard_normal((8, *SHAPE), dtype=np.float32)
    resnet = CifarResNet(depth=8, width=16)
    families = {
        "resnet": (resnet, ()),
        "mobilenet": (None, ()),
        "vit": (ViT(patch=4, dim=16, depth=1, heads=2), ()),
        "mixed": (resnet, PLAN),
    }
    found = {}
    for name, (config, plan) in families.items():
        torch_seed()
        folder = tmp_path_factory.mktemp(name)
        model = (small_mobilenet() if config is None else build(config, SHAPE, CLASSES)).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.bias, std=0.1)
            elif isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        quantized = insert_quantizers(model, samples, Quantize(kind="quantize", float_layers=plan))
        files = {kind: folder / f"{kind}.onnx" for kind in ("float", "unsigned", "signed")}
        export_float(model, SHAPE, files["float"])
        for kind in ("unsigned", "signed"):
            export_qdq(quantized, SHAPE, files[kind], signed=kind == "signed", float_layers=plan)
        found[name] = SimpleNamespace(model=model, quantized=quantized, float_layers=plan, islands=plan, **files)
    return found


def small_mobilenet() -> object:
    """Depthwise convolutions, linear bottlenecks with and without a skip: MobileNetV2 in small."""
    from torch import nn

    from edgewise.models.mobilenet_v2 import InvertedResidual

    stem = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    blocks = [InvertedResidual(8, 8, 1, 3), InvertedResidual(8, 16, 2, 3)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))


def torch_seed() -> None:
    """The same weights in every session."""
    import torch

    torch.manual_seed(0)
