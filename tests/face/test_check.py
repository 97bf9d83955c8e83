"""``edgewise check``: which contracts a file is held against, what is printed, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgewise.check import check_file
from edgewise.cli import app
from edgewise.errors import ModelError, RecipeError


def graph(kind: type | None, path: Path) -> Path:
    """input -> Gemm, with Q/DQ of ``kind`` for activations; a float graph for None."""
    stored: dict[str, np.ndarray] = {"weight": np.ones((5, 4), np.float32)}
    nodes, data, weight = [], "input", "weight"
    if kind is not None:
        stored = {
            "weight": np.ones((5, 4), np.int8),
            "weight.scale": np.full(5, 0.1, np.float32),
            "weight.zero": np.zeros(5, np.int8),
            "scale": np.asarray(0.1, np.float32),
            "zero": np.zeros((), kind),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"], name="q"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dq"),
            helper.make_node("DequantizeLinear", ["weight", "weight.scale", "weight.zero"], ["w"], name="w", axis=0),
        ]
        data, weight = "dq", "w"
    nodes.append(helper.make_node("Gemm", [data, weight], ["logits"], name="head", transB=1))
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
            [numpy_helper.from_array(array, name) for name, array in stored.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("kind", "runtimes"),
    [
        (None, ["onnxruntime", "openvino", "tensorrt"]),
        (np.uint8, ["onnxruntime", "openvino"]),
        (np.int8, ["tensorrt"]),
    ],
)
def test_a_file_is_held_against_what_it_is_made_for(kind: type | None, runtimes: list[str], tmp_path: Path) -> None:
    checked = check_file(graph(kind, tmp_path / "x.onnx"))
    assert list(checked.found) == runtimes
    assert checked.clean


def test_clean_files_end_with_0_and_others_with_1(tmp_path: Path) -> None:
    path = graph(np.int8, tmp_path / "x.onnx")
    done = CliRunner().invoke(app, ["check", str(path)])
    assert done.exit_code == 0
    assert done.stdout == "x.onnx for tensorrt: no findings\n"
    done = CliRunner().invoke(app, ["check", str(path), "--runtime", "onnxruntime"])
    assert done.exit_code == 1
    assert "2 findings" in done.stdout
    assert "uint8-activation" in done.stdout
    assert "add 128" in done.stdout  # the mend


def test_json_says_it_all(tmp_path: Path) -> None:
    path = graph(np.int8, tmp_path / "x.onnx")
    done = CliRunner().invoke(app, ["check", str(path), "--runtime", "onnxruntime", "--runtime", "openvino", "--json"])
    assert done.exit_code == 1
    value = json.loads(done.stdout)
    assert value["clean"] is False
    assert value["runtimes"]["openvino"] == []
    assert {"rule", "node", "message", "mend", "module"} == set(value["runtimes"]["onnxruntime"][0])


def test_a_plan_is_told_on_the_command_line(tmp_path: Path) -> None:
    path = graph(np.uint8, tmp_path / "x.onnx")
    model = onnx.load(path)
    model.graph.node[-1].input[1] = "plain"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((5, 4), np.float32), "plain"))
    onnx.save(model, path)
    told = CliRunner().invoke(app, ["check", str(path)])
    assert told.exit_code == 1
    assert "say so: --float-layer head\n" in told.stdout
    assert CliRunner().invoke(app, ["check", str(path), "--float-layer", "head"]).exit_code == 0


def test_what_is_no_graph_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        check_file(tmp_path / "gone.onnx")
    for name in ("model.pt", "model"):
        with pytest.raises(ModelError, match="expected a file of"):
            check_file(tmp_path / name)
    for name, way in (("model.xml", "--runtime openvino"), ("manifest.json", "the .onnx in it")):
        with pytest.raises(ModelError) as caught:
            check_file(tmp_path / name)
        assert way in caught.value.hint
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError):
        check_file(tmp_path / "bad.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="nodes"):
        check_file(tmp_path / "empty.onnx")
    with pytest.raises(RecipeError, match="doesn't read"):
        check_file(graph(None, tmp_path / "x.onnx"), ["litert"])
    done = CliRunner().invoke(app, ["check", str(tmp_path / "gone.onnx")])
    assert done.exit_code == 2
    assert "Traceback" not in done.output
