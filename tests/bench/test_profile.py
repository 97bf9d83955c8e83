"""The profile of a file: nodes and bytes against what is known of the graph, bounds against nodes made to wait."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgewise.bench.profile import Roof, profile, roof
from edgewise.errors import MeasureError

ROOF = Roof(macs_per_s=1e9, cache_bytes_per_s=1e10, memory_bytes_per_s=1e8)


def product(path: Path, rows: int, inner: int, columns: int) -> Path:
    """x (N, rows, inner) @ w + b."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, (inner, columns), np.ones(inner * columns, np.float32))
    bias = helper.make_tensor("b", TensorProto.FLOAT, (rows, columns), np.ones(rows * columns, np.float32))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"], name="multiply")]
    nodes += [helper.make_node("Sub", ["xw", "b"], ["y"], name="subtract")]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", rows, last))
        for name, last in (("x", inner), ("y", columns))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight, bias])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_every_node_is_told_with_its_bytes_in_order(tmp_path: Path) -> None:
    found = profile(product(tmp_path / "m.onnx", 8, 64, 32), np.ones((2, 8, 64), np.float32), runs=8)
    assert [(node.name, node.op) for node in found] == [("multiply", "MatMul"), ("subtract", "Sub")]
    assert found[0].output_shape == (1, 8, 32)
    assert found[1].bytes == 4 * 3 * 8 * 32  # xw, b, y
    assert found[1].weight_bytes == 4 * 8 * 32
    assert all(node.ms > 0 for node in found)


def test_more_work_takes_longer_than_less(tmp_path: Path) -> None:
    inputs = np.ones((2, 64, 1024), np.float32)
    large = profile(product(tmp_path / "large.onnx", 64, 1024, 1024), inputs, runs=8)
    small = profile(product(tmp_path / "small.onnx", 64, 1024, 4), inputs, runs=8)
    assert large[0].ms > small[0].ms  # 256 times the arithmetic


@pytest.mark.parametrize(
    ("ms", "macs", "moved", "bound"),
    [
        (1.0, 1_000_000, 1000, "compute"),  # its arithmetic takes 1 ms
        (1.5, 1_000_000, 1000, "compute"),
        (100.0, 1_000_000, 10_000_000, "memory"),  # too large for the cache: 100 ms
        (0.1, 10_000, 1_000_000, "memory"),  # 0.01 ms of arithmetic, 0.1 ms of cache
        (1.0, 1000, 1000, "overhead"),  # a thousand times what it needs
        (1.0, 0, 0, "overhead"),
    ],
)
def test_a_node_waits_for_its_highest_roof(ms: float, macs: int, moved: int, bound: str) -> None:
    assert ROOF.bound(ms, macs, moved) == bound


def test_the_roofs_are_those_of_a_computer() -> None:
    found = roof()
    assert 1e8 < found.macs_per_s < 1e14
    assert 1e8 < found.memory_bytes_per_s < 1e13
    assert 1e8 < found.cache_bytes_per_s < 1e14


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(MeasureError, match="can't profile"):
        profile(path, np.ones((1, 3), np.float32))
