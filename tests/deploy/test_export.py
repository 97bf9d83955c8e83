import copy
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.quantization.insert import insert_quantizers, quantizers
from edgewise.deploy.contracts import ort, ov, trt
from edgewise.deploy.export import _check_numbers, _check_quantized, export_float, export_qdq
from edgewise.deploy.onnx_graph import value
from edgewise.errors import ContractError, ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, ViT
from edgewise.models.mobilenet_v2 import InvertedResidual

SHAPE = (3, 16, 16)
CONFIGS = {
    "resnet": CifarResNet(depth=8, width=16),
    "mobilenet": None,
    "vit": ViT(patch=4, dim=16, depth=1, heads=2),
}


class Inverted(nn.Module):
    """Depthwise convolutions, linear bottlenecks with and without a skip: MobileNetV2 in small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.blocks = nn.Sequential(InvertedResidual(8, 8, 1, 3), InvertedResidual(8, 16, 2, 3))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def trained(name: str) -> nn.Module:
    """Weights and statistics far from their start: biases, uneven channels."""
    torch.manual_seed(3)
    config = CONFIGS[name]
    model = Inverted() if config is None else build(config, SHAPE, 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def images(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((number, *SHAPE), dtype=np.float32)


def run(path: Path, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path)).run(["logits"], {"input": x})[0]


def db(reference: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - other).sum()))


def logits(model: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def optimized(path: Path, folder: Path) -> list[str]:
    """Operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options)
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SimpleNamespace]:
    """Each family: the models and their files."""
    found = {}
    for name in CONFIGS:
        folder, model = tmp_path_factory.mktemp(name), trained(name)
        quantized = insert_quantizers(model, images(8))
        before = copy.deepcopy(quantized.state_dict())
        files = {kind: folder / f"{kind}.onnx" for kind in ("float", "unsigned", "signed")}
        export_float(model, SHAPE, files["float"])
        export_qdq(quantized, SHAPE, files["unsigned"], signed=False)
        export_qdq(quantized, SHAPE, files["signed"], signed=True)
        found[name] = SimpleNamespace(model=model, quantized=quantized, before=before, folder=folder, **files)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_float_files_follow_torch_at_any_batch(made, name):
    for batch in (1, 2, 7):
        x = images(batch, seed=9)
        assert db(logits(made[name].model, x), run(made[name].float, x)) > 60


@pytest.mark.parametrize("name", CONFIGS)
def test_quantized_files_follow_the_fake_quantized_model(made, name):
    x = images(64, seed=9)
    reference = logits(made[name].quantized, x)
    for path in (made[name].unsigned, made[name].signed):
        found = run(path, x)
        margin = np.diff(np.sort(reference, axis=1)[:, -2:])[:, 0]
        flips = reference.argmax(1) != found.argmax(1)
        assert flips.mean() <= 0.07
        # An answer flips only where the two best logits were a tie within the quantization's own noise.
        assert (margin[flips] < 0.2 * reference.std()).all()
    assert db(reference, run(made[name].unsigned, x)) > 25


@pytest.mark.parametrize("name", CONFIGS)
def test_every_quantizer_arrives(made, name):
    graph = onnx.load(made[name].unsigned).graph
    activations = sum(node.op_type == "QuantizeLinear" for node in graph.node)
    weights = sum(t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1 for t in graph.initializer)
    assert activations + weights == len(quantizers(made[name].quantized))


@pytest.mark.parametrize("name", CONFIGS)
def test_each_flavour_has_its_types_and_passes_its_contracts(made, name):
    for kind, dtype in (("unsigned", np.uint8), ("signed", np.int8)):
        model = onnx.load(getattr(made[name], kind))
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear":
                scale, zero = value(model.graph, node.input[1]), value(model.graph, node.input[2])
                assert zero.dtype == dtype
                assert scale.size == 1
                assert scale > 0
                assert kind == "unsigned" or zero == 0
        assert (trt.check(model) == []) == (kind == "signed")
        assert ov.check(model) == []
        assert (ort.check(model) == []) == (kind == "unsigned")


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_onnxruntime_runs_the_whole_cnn_in_integers(made, name):
    nodes = onnx.load(made[name].unsigned).graph.node
    operators = optimized(made[name].unsigned, made[name].folder)
    convolutions = sum(node.op_type == "Conv" for node in nodes)
    assert operators.count("QLinearConv") == convolutions
    assert operators.count("QLinearAdd") == sum(node.op_type == "Add" for node in nodes)
    assert operators.count("QGemm") == operators.count("QLinearGlobalAveragePool") == 1
    assert operators.count("QuantizeLinear") == 1
    assert "DequantizeLinear" not in operators


def test_files_are_about_a_byte_a_parameter(made):
    parameters = sum(p.numel() for p in made["resnet"].model.parameters())
    assert parameters < made["resnet"].unsigned.stat().st_size < 1.2 * parameters + 10_000


def test_files_say_nothing_of_the_machine(made, traces):
    for name in CONFIGS:
        for kind in ("float", "unsigned", "signed"):
            content = getattr(made[name], kind).read_bytes()
            for trace in (*traces, b".py", b"pkg.torch"):
                assert trace not in content, (name, kind, trace)


def test_nodes_are_named_after_their_layers(made):
    names = {node.name: node.op_type for node in onnx.load(made["resnet"].unsigned).graph.node}
    assert names["layer2.0.conv1"] == "Conv"
    assert names["linear"] == "Gemm"
    assert len(names) == len(onnx.load(made["resnet"].unsigned).graph.node)


def test_the_callers_model_is_untouched(made):
    for one in made.values():
        after = one.quantized.state_dict()
        assert list(after) == list(one.before)
        assert all(torch.equal(after[key], one.before[key]) for key in after)
        assert not any(type(m).__name__ == "QuantizePair" for m in one.quantized.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in made["resnet"].model.modules())


@pytest.mark.parametrize("name", ["vit"])
def test_half_files_take_and_give_float32(made, name, tmp_path):
    export_float(made[name].model, SHAPE, tmp_path / "half.onnx", half=True)
    export_qdq(made[name].quantized, SHAPE, tmp_path / "int8_half.onnx", signed=True, half=True)
    half, mixed = onnx.load(tmp_path / "half.onnx"), onnx.load(tmp_path / "int8_half.onnx")
    for model in (half, mixed):
        ends = [item.type.tensor_type.elem_type for item in (*model.graph.input, *model.graph.output)]
        assert ends == [onnx.TensorProto.FLOAT] * 2
        assert not any(t.data_type == onnx.TensorProto.FLOAT and t.dims for t in model.graph.initializer)
    scales = [value(mixed.graph, n.input[1]) for n in mixed.graph.node if n.op_type.endswith("quantizeLinear")]
    assert all(scale.dtype == np.float16 and (scale > 0).all() for scale in scales)
    assert trt.check(mixed) == trt.check(half) == []
    x = images(16, seed=9)
    assert db(logits(made[name].model, x), run(tmp_path / "half.onnx", x)) > 40
    weights = [t for t in half.graph.initializer if len(t.dims) > 1]
    assert {t.data_type for t in weights} == {onnx.TensorProto.FLOAT16}


SCRIPT = """
import sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_export as t
model = t.trained("resnet")
t.export_float(model, t.SHAPE, Path(sys.argv[2]) / "f.onnx")
t.export_qdq(t.insert_quantizers(model, t.images(8)), t.SHAPE, Path(sys.argv[2]) / "q.onnx", signed=False)
"""


def test_another_process_makes_the_same_bytes(made, tmp_path):
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", SCRIPT, here, str(tmp_path)], check=True, cwd=tmp_path, env=environment)
    for other, mine in (("f", made["resnet"].float), ("q", made["resnet"].unsigned)):
        digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / f"{other}.onnx", mine)]
        assert digests[0] == digests[1], other


class Dead(nn.Module):
    """One output channel without weights but with a bias, as pruned or collapsed channels are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.conv.weight[2] = 0
            self.conv.weight[3] *= 1e-9
            self.conv.bias[2:4] = 3.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def test_a_channel_without_weights_keeps_its_bias(tmp_path):
    torch.manual_seed(0)
    model = insert_quantizers(Dead(), images(8))
    export_qdq(model, SHAPE, tmp_path / "dead.onnx", signed=False)
    x = images(16, seed=5)
    assert db(logits(model, x), run(tmp_path / "dead.onnx", x)) > 30


class TwoAdds(nn.Module):
    """A skip path that picks every second pixel, read by two additions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.left, self.right = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        skip = x[:, :, ::2, ::2]
        return self.head((torch.relu(self.left(x) + skip) + torch.relu(self.right(x) + skip)).mean((2, 3)))


@pytest.mark.parametrize("signed", [True, False])
def test_a_moved_tensor_that_two_additions_read(tmp_path, signed):
    torch.manual_seed(1)
    model = insert_quantizers(TwoAdds(), images(8))
    export_qdq(model, SHAPE, tmp_path / "two.onnx", signed=signed)
    x = images(16, seed=5)
    assert db(logits(model, x), run(tmp_path / "two.onnx", x)) > 30


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))


def test_clear_errors(made, tmp_path):
    path = tmp_path / "no.onnx"
    with pytest.raises(ModelError, match="use export_qdq"):
        export_float(made["resnet"].quantized, SHAPE, path)
    with pytest.raises(ModelError, match="no quantizers"):
        export_qdq(made["resnet"].model, SHAPE, path, signed=True)
    with pytest.raises(ModelError, match=r"torch\.export can't follow"):
        export_float(Branches(), SHAPE, path)
    assert not path.exists()


def test_a_lost_quantizer_is_noticed(made):
    model = onnx.load(made["resnet"].unsigned)
    count = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    _check_quantized(model, count, 0)
    with pytest.raises(ContractError, match=f"expected {count + 1} quantizers"):
        _check_quantized(model, count + 1, 0)


def test_a_graph_that_computes_something_else_is_noticed(made):
    other = trained("resnet")
    with torch.no_grad():
        other.linear.weight[0] += 0.05
    with pytest.raises(ModelError, match="within 60 dB"):
        _check_numbers(onnx.load(made["resnet"].float), other, SHAPE, 60.0, plain=False)


def test_whatever_the_exporter_raises_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def optimize(*_: object, **__: object) -> None:
        raise KeyError("val_7")  # as a rewriting rule of onnxscript does on a graph that it doesn't know

    monkeypatch.setattr("onnxscript.optimizer.optimize_ir", optimize)
    monkeypatch.setattr("torch.onnx._internal._lazy_import.onnxscript_apis.optimize", optimize)
    with pytest.raises(ModelError, match=r"exporter of torch .* fails on the model: KeyError: 'val_7'"):
        export_float(trained("resnet"), SHAPE, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
