"""Texts that are measured again beside a release run at their own lengths, as they did the first time."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewise.bench.config import Bench
from edgewise.bench.devices.base import open_device
from edgewise.bench.measure import measure
from edgewise.bench.record import FileUnderTest
from edgewise.errors import NothingMeasured
from edgewise.measured import open_measured
from edgewise.progress import silent
from edgewise.reported import write_about
from edgewise.side_by_side import again

LONGEST, PADDING = 32, 3


def short_texts_only(path: Path) -> None:
    """A net with positions for 8 tokens: more of them, padding or not, are an error of the runtime."""
    table = np.ones((1, 8), np.float32)
    nodes = [
        helper.make_node("Cast", ["input"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["numbers", "positions"], ["placed"]),
        helper.make_node("ReduceSum", ["placed", "axes"], ["logits"], keepdims=1),
    ]
    constants = [numpy_helper.from_array(table, "positions"), numpy_helper.from_array(np.array([1]), "axes")]
    ids = helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "length"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])
    graph = helper.make_graph(nodes, "short", [ids], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.mark.parametrize("padding", [PADDING, None])
def test_the_padding_of_a_folder_is_known_when_it_is_measured_again(tmp_path: Path, padding: int | None) -> None:
    short_texts_only(tmp_path / "net.onnx")
    ids = np.full((4, LONGEST), PADDING)
    ids[:, :5] = 1
    out = tmp_path / "out"
    out.mkdir()
    np.save(out / "inputs.npy", ids)
    file = FileUnderTest("net", "onnxruntime", "float32", "candidate", str(tmp_path / "net.onnx"), 1, "0" * 64)
    config = Bench(launches=1, max_launches=1, blocks=2, block_ms=1, warmup_s=0, sample_hz=0)
    named, targets = list("abcd"), np.zeros(4, np.int64)
    measure(
        [file],
        out / "inputs.npy",
        targets,
        named,
        config,
        out,
        score=lambda outputs, truth: np.zeros(len(truth), np.float32),
        padding=PADDING,
    )
    write_about(out, metric=None, padding=padding)
    measured = open_measured(out)
    assert measured.padding == padding
    refused = pytest.raises(NothingMeasured) if padding is None else nullcontext()
    with open_device("local") as device, refused:
        again([file], measured, config, 1, 0, tmp_path / "again", device, silent)
