"""Rewrites that let runtimes run leaky ReLUs, concatenations, shared inputs and image stems in integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from edgewise.compress.quantization.insert import insert_quantizers
from edgewise.deploy.contracts import ort as ort_contract
from edgewise.deploy.contracts import ov as ov_contract
from edgewise.deploy.contracts import trt
from edgewise.deploy.convert import ort, ov
from edgewise.deploy.convert.base import Source
from edgewise.deploy.export import export_qdq
from edgewise.deploy.ort_rewrites import pad_input_channels
from edgewise.deploy.rewrites import free_activations, lift_dequantize

SHAPE = (3, 16, 16)
IMAGES = np.random.default_rng(0).standard_normal((6, *SHAPE)).astype(np.float32)


class Joined(nn.Module):
    """A fire module: two convolutions side by side, joined, pooled, joined again with another."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 8, 1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.last, self.relu = nn.MaxPool2d(2), nn.Conv2d(16, 8, 1), nn.ReLU()
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze(x))
        x = self.pool(torch.cat([self.relu(self.left(x)), self.relu(self.right(x))], 1))
        out: Tensor = self.linear(self.relu(self.last(x)).mean((2, 3)))
        return out


class Leaky(nn.Module):
    """A stem and a depthwise layer with leaky ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 16, 3, 2, 1), nn.LeakyReLU(0.1)
        self.depthwise, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.point(self.act(self.depthwise(self.act(self.stem(x))))))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


class Attention(nn.Module):
    """Three projections of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(1, 2))
        weights = torch.softmax(self.query(tokens) @ self.key(tokens).transpose(1, 2) / 4, dim=-1)
        out: Tensor = self.head((tokens + weights @ self.value(tokens))[:, 0])
        return out


def exported(net: nn.Module, folder: Path, *, signed: bool = False) -> tuple[ModelProto, nn.Module]:
    torch.manual_seed(0)
    quantized = insert_quantizers(net.eval(), IMAGES)
    export_qdq(quantized, SHAPE, folder / "model.onnx", signed=signed)
    return onnx.load(folder / "model.onnx"), quantized


def run(model: ModelProto, *, plain: bool = False) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answers: NDArray[np.float32] = session.run(None, {"input": IMAGES})[0]
    return answers


def kernels(model: ModelProto, folder: Path) -> Counter[str]:
    path = folder / "written.onnx"
    onnx.save(model, path)
    return Counter(kind for kind, _ in ort.optimized_ops(path))


def test_concatenations_join_integers(tmp_path: Path) -> None:
    model, quantized = exported(Joined(), tmp_path)

    found = kernels(model, tmp_path)

    assert found["QLinearConv"] == 4
    assert found["Concat"] == 1
    assert not {"Conv", "FusedConv", "Gemm"} & set(found)
    with torch.no_grad():
        np.testing.assert_allclose(run(model, plain=True), quantized(torch.from_numpy(IMAGES)), atol=1e-5)


def test_tensorrt_gets_a_pair_behind_a_concatenation_and_no_other_value(tmp_path: Path) -> None:
    model, _ = exported(Joined(), tmp_path, signed=True)
    node = next(node for node in model.graph.node if node.op_type == "Concat")
    reader = next(other for other in model.graph.node if node.output[0] in other.input)

    assert reader.op_type == "QuantizeLinear"
    assert trt.check(model) == []
    behind = next(other for other in model.graph.node if reader.output[0] in other.input)
    for other in model.graph.node:  # the same graph without the pair
        for place, name in enumerate(other.input):
            if name == behind.output[0]:
                other.input[place] = node.output[0]
    without = onnx.ModelProto.FromString(model.SerializeToString())
    model, _ = exported(Joined(), tmp_path, signed=True)
    np.testing.assert_array_equal(run(without, plain=True), run(model, plain=True))


def test_leaky_relus_run_in_integers(tmp_path: Path) -> None:
    model, quantized = exported(Leaky(), tmp_path)

    found = kernels(model, tmp_path)

    assert found["QLinearConv"] == 3
    assert found["QLinearLeakyRelu"] == 3
    assert not {"Conv", "FusedConv", "LeakyRelu"} & set(found)
    with torch.no_grad():
        np.testing.assert_allclose(run(model, plain=True), quantized(torch.from_numpy(IMAGES)), atol=1e-5)


def test_openvino_gets_convolution_and_leaky_relu_side_by_side(tmp_path: Path) -> None:
    model, _ = exported(Leaky(), tmp_path)
    before = run(model, plain=True)

    assert free_activations(model.graph) == 3

    onnx.checker.check_model(model, full_check=True)
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    leaky = [node for node in model.graph.node if node.op_type == "LeakyRelu"]
    assert [made[node.input[0]] for node in leaky] == ["Conv"] * 3
    after = run(model, plain=True)
    assert not np.array_equal(before, after)  # three roundings fewer ...
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()  # ... and no more than that


def test_free_activations_leaves_a_pair_that_others_read(tmp_path: Path) -> None:
    model, _ = exported(Leaky(), tmp_path)
    pair = next(node for node in model.graph.node if node.op_type == "LeakyRelu").input[0]
    model.graph.node.append(onnx.helper.make_node("Identity", [pair], ["spare"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("spare", onnx.TensorProto.FLOAT, None))

    assert free_activations(model.graph) == 2


class Moved(nn.Module):
    """A stem with a pool; a shortcut that is sliced and padded; two ways that read the same tensor, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.halve, self.left = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 8, 1)
        self.last, self.linear = nn.Conv2d(24, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.stem(x)))
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = self.relu(self.halve(x) + shortcut)
        x = torch.cat([x, self.relu(self.left(x))], 1)
        out: Tensor = self.linear(self.relu(self.last(x)).mean((2, 3)))
        return out


@pytest.mark.parametrize("net", [Joined, Moved])
def test_openvino_takes_every_quantizer_into_the_layer_before(tmp_path: Path, net: type[nn.Module]) -> None:
    """One that stands alone is computed in float, in a pass over memory of its own."""
    openvino = pytest.importorskip("openvino")
    exported(net(), tmp_path)
    source = Source(SHAPE, 5, unsigned_onnx=tmp_path / "model.onnx")

    path = ov.convert(source, "int8", tmp_path / "openvino")

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = Counter(ov._text(op.get_rt_info(), "layerType") for op in compiled.get_runtime_model().get_ops())
    assert kinds["Convolution"] == 4
    assert kinds["FakeQuantize"] == 1  # the input's: it has no layer before it


@pytest.mark.parametrize("net", [Joined, Moved])
def test_quantizers_side_by_side_change_no_answer(tmp_path: Path, net: type[nn.Module]) -> None:
    model, _ = exported(net(), tmp_path)
    before = run(model, plain=True)

    assert lift_dequantize(model.graph) > 0
    assert lift_dequantize(model.graph) == 0

    onnx.checker.check_model(model, full_check=True)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            readers = [other.op_type for other in model.graph.node if node.output[0] in other.input]
            assert readers == ["DequantizeLinear"]
    np.testing.assert_array_equal(run(model, plain=True), before)


def test_what_is_dequantized_otherwise_than_it_was_quantized_stays(tmp_path: Path) -> None:
    model, _ = exported(Joined(), tmp_path)
    before = model.SerializeToString()
    joined = next(node for node in model.graph.node if node.op_type in ("Concat", "MaxPool"))
    last = joined
    while last.op_type != "DequantizeLinear":
        last = next(node for node in model.graph.node if last.output[0] in node.input)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(9.0, np.float32), "other"))
    last.input[1] = "other"
    changed = model.SerializeToString()

    assert lift_dequantize(model.graph) == 0
    assert model.SerializeToString() == changed != before


def test_quantizers_of_one_tensor_count_once(tmp_path: Path) -> None:
    model, quantized = exported(Attention(), tmp_path)

    readers = Counter(name for node in model.graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1])
    assert set(readers.values()) == {1}
    with torch.no_grad():
        np.testing.assert_allclose(run(model, plain=True), quantized(torch.from_numpy(IMAGES)), atol=1e-4)


def test_a_fourth_channel_changes_no_answer(tmp_path: Path) -> None:
    model, _ = exported(Leaky(), tmp_path)
    before = run(model)

    assert pad_input_channels(model.graph) == 1

    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model), before)
    weights = {tuple(tensor.dims) for tensor in model.graph.initializer}
    assert (16, 4, 3, 3) in weights
    assert (16, 3, 3, 3) not in weights
    assert pad_input_channels(model.graph) == 0


def test_float_graphs_keep_their_channels(tmp_path: Path) -> None:
    from edgewise.deploy.export import export_float

    export_float(Leaky(), SHAPE, tmp_path / "float.onnx")
    model = onnx.load(tmp_path / "float.onnx")

    assert pad_input_channels(model.graph) == 0
    assert free_activations(model.graph) == 0


def test_litert_runs_leaky_relus_in_integers(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("ai_edge_quantizer")
    import subprocess
    import sys

    script = f"""
import sys
import numpy as np
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_rewrites_runtimes import IMAGES, SHAPE, Leaky
import torch
from edgewise.deploy.convert import litert
from edgewise.deploy import tflite
torch.manual_seed(0)
net = Leaky().eval()
path = litert.convert_module(net, "int8", Path({str(tmp_path)!r}) / "model", input_shape=SHAPE, calibration=IMAGES)
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(str(path))
interpreter.allocate_tensors()
place, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
answers = []
for image in IMAGES:
    interpreter.set_tensor(place, image[None])
    interpreter.invoke()
    answers.append(interpreter.get_tensor(out)[0])
kinds = [op["op_name"] for op in interpreter._get_ops_details()]
types = {{d["index"]: d["dtype"] for d in interpreter.get_tensor_details()}}
leaky = [op for op in interpreter._get_ops_details() if op["op_name"] == "LEAKY_RELU"]
assert len(leaky) == 3, kinds
assert all(types[int(op["outputs"][0])] is np.int8 for op in leaky)
assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 1, kinds
with torch.no_grad():
    float_answers = Leaky.forward(net, torch.from_numpy(IMAGES)).numpy()
error = np.square(np.array(answers) - float_answers).sum() / np.square(float_answers).sum()
assert error < 0.01, error
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


class Tokens(nn.Module):
    """Projections whose results are added, as in a transformer: their outputs stay float."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        tokens = tokens + self.down(nn.functional.gelu(self.up(self.norm(tokens))))
        out: Tensor = self.head(tokens[:, 0])
        return out


def test_biases_of_projections_are_integers_so_that_a_fixed_batch_runs_in_integers(tmp_path: Path) -> None:
    model, quantized = exported(Tokens(), tmp_path)

    found = kernels(model, tmp_path)

    assert found["QGemm"] + found["MatMulIntegerToFloat"] == 3
    assert not {"Gemm", "MatMul", "FusedMatMul"} & set(found)
    with torch.no_grad():
        np.testing.assert_allclose(run(model, plain=True), quantized(torch.from_numpy(IMAGES)), rtol=0.02, atol=0.02)
    stored = [tensor for tensor in model.graph.initializer if tensor.name.endswith("bias.int32")]
    assert len(stored) == 3
    assert all(tensor.data_type == onnx.TensorProto.INT32 for tensor in stored)
    assert ort_contract.check(model) == []
    assert ov_contract.check(model) == []
