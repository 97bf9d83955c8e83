"""Ranges and 4-bit weights as training leaves them, in the integer runtimes: their answers against torch's with fake
quantizers. A net with LeakyReLU, a shortcut and a depthwise layer."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgewise.compress.config import Quantize
from edgewise.compress.quantization.insert import insert_quantizers
from edgewise.compress.quantization.places import given, owners
from edgewise.deploy import runtimes
from edgewise.deploy.export import export_qdq
from edgewise.deploy.runtimes.base import Options

SHAPE = (3, 16, 16)
KINDS = {
    "4 bits, percentile": {"weight_bits": 4, "ranges": "percentile", "percentile": 99.9},
    "8 bits, entropy": {"ranges": "entropy"},
}
# LiteRT's libraries don't live beside the others in one process.
LITERT = """
import sys
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from test_trained_ranges import KINDS, SHAPE, images, quantized
from edgewise.deploy.convert.litert import convert_module
torch.set_num_threads(1)
for number, name in enumerate(KINDS):
    out = Path(sys.argv[2]) / f"litert-{number}"
    convert_module(quantized(name), "int8", out, input_shape=SHAPE, calibration=images(16))
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.conv2 = nn.Conv2d(16, 16, 1)
        self.conv3 = nn.Conv2d(16, 24, 3, stride=2)
        self.act = nn.LeakyReLU(0.1)
        self.linear = nn.Linear(24, 10)

    def forward(self, x):
        x = self.act(self.conv1(x))
        x = self.act(x + self.conv2(self.act(self.depthwise(x))))
        return self.linear(self.act(self.conv3(x)).mean((2, 3)))


def images(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((number, *SHAPE), dtype=np.float32)


def quantized(name: str) -> nn.Module:
    """As after training: no calibration would find these ranges, and weights lie outside theirs."""
    torch.manual_seed(0)
    model = insert_quantizers(Net().eval(), images(32), Quantize(kind="quantize", **KINDS[name]))
    tensors = given(model, torch.from_numpy(images(1)))
    held = owners(model, tensors)
    with torch.no_grad():
        for quantizer in tensors:
            factor = 0.7 if quantizer in held else 0.9
            if hasattr(quantizer, "input_low"):
                quantizer.input_low.mul_(factor)
                quantizer._input_range_param_storage.mul_(factor)
            else:
                quantizer._scale_param_storage.mul_(factor)
    return model


def answers(name: str, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return quantized(name)(torch.from_numpy(x)).numpy()


def run(runtime: str, path: Path, x: np.ndarray) -> np.ndarray:
    with closing(runtimes.get(runtime).open(str(path), Options(batch=len(x)))) as session:
        return session.run({"input": x})["logits"]


def compare(expected: np.ndarray, found: np.ndarray, floor: float) -> None:
    noise = np.square(expected - found).sum() / np.square(expected).sum()
    assert 10 * np.log10(1 / noise) > floor
    assert (expected.argmax(1) == found.argmax(1)).mean() >= 0.97


@pytest.fixture(scope="module")
def litert_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("litert")
    command = [sys.executable, "-W", "ignore", "-c", LITERT, str(Path(__file__).parent), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: folder / f"litert-{number}.tflite" for number, name in enumerate(KINDS)}


@pytest.mark.parametrize("name", KINDS)
def test_onnx_files_answer_as_torch_does(name, tmp_path):
    x = images(128, seed=5)
    expected = answers(name, x)
    path = tmp_path / "unsigned.onnx"
    export_qdq(quantized(name), SHAPE, path, signed=False)
    compare(expected, run("onnxruntime", path, x), 30)
    compare(expected, run("openvino", path, x), 30)


def test_weights_of_four_bits_stay_on_their_grid(tmp_path):
    """Int8 has room beyond: an export that forgot the range would store what lies there."""
    path = tmp_path / "unsigned.onnx"
    export_qdq(quantized("4 bits, percentile"), SHAPE, path, signed=False)
    graph = onnx.load(path).graph
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert sorted(int(np.abs(weight).max()) for weight in weights) == [7, 7, 7, 127, 127]


@pytest.mark.parametrize("name", KINDS)
def test_litert_files_answer_as_torch_does(name, litert_files):
    x = images(128, seed=5)
    compare(answers(name, x), run("litert", litert_files[name], x), 25)
    report = json.loads(litert_files[name].with_suffix(".report.json").read_text())
    assert report["tensors_with_learned_ranges"] >= 10  # five weights and what they read
