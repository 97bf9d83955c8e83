"""``edgewise inspect`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

SHAPE = (3, 8, 8)


def edgewise(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgewise", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``net("a.onnx", factor=1.0, shape=SHAPE)``: two convolutions, mean, Gemm; ``factor`` on the second's weights."""
    root = tmp_path_factory.mktemp("nets")

    def make(name: str, factor: float = 1.0, shape: tuple[int, ...] = SHAPE) -> Path:
        random = np.random.default_rng(0)
        tensors = {
            "w1": random.normal(size=(8, shape[0], 3, 3)),
            "w2": factor * random.normal(size=(8, 8, 3, 3)),
            "w3": random.normal(size=(8, 5)),
        }
        pads = {"pads": [1, 1, 1, 1]}
        nodes = [
            helper.make_node("Conv", ["input", "w1"], ["stem"], name="stem", **pads),
            helper.make_node("Relu", ["stem"], ["relu"], name="relu"),
            helper.make_node("Conv", ["relu", "w2"], ["body.conv"], name="body.conv", **pads),
            helper.make_node("GlobalAveragePool", ["body.conv"], ["pool"], name="pool"),
            helper.make_node("Flatten", ["pool"], ["flat"], name="flat"),
            helper.make_node("Gemm", ["flat", "w3"], ["logits"], name="head"),
        ]
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
            [numpy_helper.from_array(value.astype(np.float32), key) for key, value in tensors.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), root / name)
        return root / name

    return make


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "x.npy"
    np.save(path, np.random.default_rng(1).standard_normal((40, *SHAPE), dtype=np.float32))
    return path


def test_two_equal_files_are_equal_in_every_layer(net: Callable[..., Path], samples: Path) -> None:
    done = edgewise("inspect", net("a.onnx"), net("same.onnx"), "--inputs", samples, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [row["name"] for row in told["rows"]] == ["stem", "relu", "body.conv", "pool", "head"]
    assert all(row["exact"] for row in told["rows"])
    assert (told["first_bad"], told["flips"], told["n"], told["warnings"]) == (None, 0, 32, [])
    assert told["flip_rate"]["low"] == 0
    assert 0.05 < told["flip_rate"]["high"] < 0.15  # rule of three: 3 / 32


def test_the_first_bad_layer_is_named_and_drawn(net: Callable[..., Path], samples: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = edgewise("inspect", net("a.onnx"), net("bad.onnx", 0.5), "--inputs", samples, "--samples", 5, "--html", page)
    assert done.returncode == 0, done.stderr
    assert "first bad layer: body.conv: 6.0 dB" in done.stdout  # half of the signal is missing: 10 log10(4)
    assert "warning" not in done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("body.conv"))
    assert "6.0 dB" in row
    assert "first bad" in row
    text = page.read_text(encoding="utf-8")
    assert "body.conv" in text
    assert text.count("<svg") == 1
    assert "prefers-color-scheme: dark" in text
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org/", "")


def test_random_inputs_are_told_of(net: Callable[..., Path]) -> None:
    done = edgewise("inspect", net("a.onnx"), net("same.onnx"), "--samples", 3, "--json")
    told = json.loads(done.stdout)
    assert told["inputs"] == "random"
    assert "random numbers" in told["warnings"][0]
    assert "--inputs" in done.stderr
    assert told["n"] == 3


def _quantized(path: Path, to: Path) -> Path:
    """The same net with its second convolution's weights quantized, and far off."""
    model = onnx.load(path)
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "w2")
    weights = numpy_helper.to_array(stored)
    stored.CopyFrom(numpy_helper.from_array(np.rint(20 * weights).clip(-127, 127).astype(np.int8), "w2.int8"))
    extra = {"scale": np.asarray(0.02, np.float32), "zero": np.zeros((), np.int8)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in extra.items())
    inputs = ["w2.int8", "scale", "zero"]
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, ["w2"], name="w2.dq"))
    onnx.save(model, to)
    return to


def test_random_inputs_judge_no_int8_file(net: Callable[..., Path], samples: Path, tmp_path: Path) -> None:
    path, page = _quantized(net("a.onnx"), tmp_path / "int8.onnx"), tmp_path / "page.html"
    done = edgewise("inspect", net("a.onnx"), path, "--html", page)
    assert done.returncode == 0, done.stderr
    assert "no verdict: random numbers leave the ranges" in done.stdout
    assert "first bad" not in done.stdout
    assert "body.conv" in done.stdout  # the table is there
    assert "no verdict" in page.read_text()
    assert "no bad layer" not in page.read_text()
    judged = edgewise("inspect", net("a.onnx"), path, "--inputs", samples)
    assert "first bad layer: body.conv" in judged.stdout


def test_the_samples_of_the_run_that_a_file_lies_in_are_taken(net: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("samples-1", "float-2", "int8-3"):
        (tmp_path / "run" / "stages" / name).mkdir(parents=True)
    inputs, one = tmp_path / "run" / "stages" / "samples-1" / "inputs.npy", tmp_path / "run/stages/float-2/model.onnx"
    np.save(inputs, np.random.default_rng(1).standard_normal((40, *SHAPE), dtype=np.float32))
    one.write_bytes(net("a.onnx").read_bytes())
    other = _quantized(one, tmp_path / "run" / "stages" / "int8-3" / "model.onnx")
    steps = [{"name": name.split("-")[0], "folder": f"stages/{name}"} for name in ("float-2", "samples-1", "int8-3")]
    (tmp_path / "run" / "run.json").write_text(json.dumps({"steps": steps}))
    told = json.loads(edgewise("inspect", net("a.onnx"), other, "--json").stdout)
    assert told["inputs"] == str(inputs)
    assert (told["n"], told["first_bad"], told["warnings"]) == (32, "body.conv", [])
    (tmp_path / "run" / "run.json").write_text("half a")
    assert json.loads(edgewise("inspect", one, other, "--json").stdout)["inputs"] == "random"


def test_strangers_are_called_so(net: Callable[..., Path], samples: Path, tmp_path: Path) -> None:
    model = onnx.load(net("other.onnx", 3.0))
    for place, node in enumerate(model.graph.node):
        node.name = f"n{place}"
    onnx.save(model, tmp_path / "stranger.onnx")
    done = edgewise("inspect", net("a.onnx"), tmp_path / "stranger.onnx", "--inputs", samples)
    assert done.returncode == 0
    assert "no verdict: these don't look like two forms of one model" in done.stdout
    assert "first bad" not in done.stdout


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (
            "notes.txt",
            "expected a saved model's folder, a TensorRT bundle, or a file that ends in .onnx, .xml, .tflite",
        ),
        ("missing.onnx", "no such file"),
        ("other.onnx", "with the same inputs"),
        ("broken.onnx", "not an ONNX file"),
    ],
)
def test_mistakes_are_one_line_and_no_traceback(
    net: Callable[..., Path], tmp_path: Path, other: str, expected: str
) -> None:
    path = tmp_path / other
    if other == "other.onnx":
        path = net(other, shape=(1, 8, 8))
    elif other != "missing.onnx":
        path.write_text("words")
    done = edgewise("inspect", net("a.onnx"), path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_missing_runtime_is_named_with_the_way_to_get_it(
    net: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python in which OpenVINO can't be imported, as where it isn't installed."""
    (tmp_path / "openvino.py").write_text("raise ImportError('no module named openvino')")
    (tmp_path / "net.xml").write_text("<net></net>")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = edgewise("inspect", net("a.onnx"), tmp_path / "net.xml")
    assert done.returncode == 2
    assert "pip install openvino" in done.stderr
    assert "Traceback" not in done.stderr


def test_inputs_of_another_shape_are_refused(net: Callable[..., Path], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 4, 4), np.float32))
    done = edgewise("inspect", net("a.onnx"), net("same.onnx"), "--inputs", tmp_path / "x.npy")
    assert done.returncode == 2
    assert "expected inputs (N, 3, 8, 8), got (4, 3, 4, 4)" in done.stderr
