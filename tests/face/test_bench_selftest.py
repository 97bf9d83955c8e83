"""``edgewise bench --selftest``: a real file against itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgewise.bench.config import Bench
from edgewise.bench_selftest import against_itself, refuse, show
from edgewise.errors import MeasureError, RecipeError

QUICK = Bench(launches=2, max_launches=3, blocks=4, block_ms=3, warmup_s=0.01)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from onnx import helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["output"])],
        "net",
        [value("input", onnx.TensorProto.FLOAT, [1, 16])],
        [value("output", onnx.TensorProto.FLOAT, [1, 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


def test_a_file_against_itself_tells_the_smallest_slowdown(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = against_itself([net], None, QUICK, tmp_path / "out")
    assert (found["file"], found["launches"], found["pairs"]) == ("net.onnx", 3, 12)
    ratio = found["ratio"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert found["clean"] == (ratio["low"] <= 1 <= ratio["high"])
    # More than the half width alone, or half of all slowdowns of that size would be missed.
    assert found["smallest_slowdown"] > math.sqrt(ratio["high"] / ratio["low"]) - 1
    show(found)
    said = capsys.readouterr().out
    assert "net.onnx against itself: " in said
    assert "the smallest slowdown found in 90 % of cases: " in said


def test_what_a_self_test_cannot_honour_is_refused(net: Path) -> None:
    refuse({"--scenario": None, "--trtexec": None})
    with pytest.raises(RecipeError, match="without --scenario, --trtexec"):
        refuse({"--scenario": ["server"], "--taskset": None, "--trtexec": "trtexec"})


def test_one_file_and_launches_in_pairs_are_needed(net: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"expected one file .*, got 2"):
        against_itself([net, net], None, QUICK, None)
    one = QUICK.model_copy(update={"launches": 1, "max_launches": 1})
    with pytest.raises(MeasureError, match="expected launches in pairs"):
        against_itself([net], None, one, tmp_path / "out")
