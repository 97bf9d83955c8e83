"""What a channel count costs here: µs per residual block against its inner channels, for docs/pruning.md.

    python tools/measure_channels.py

Two 3x3 convolutions, ReLU and the addition, nine blocks in a row, batch 1, one thread, float and INT8 (ONNX Runtime's
static quantizer, per channel), ONNX Runtime and OpenVINO. The counts take turns, so that a busy moment hits all alike.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

BLOCKS, RUNS = 9, 100
CASES = ((16, 32, (8, 16, 24, 32)), (32, 16, (8, 9, 16, 19, 24, 32)), (64, 8, (16, 24, 32, 39, 48, 64)))
"""Outer channels, side of the map, inner channels."""


def network(outer: int, inner: int, side: int) -> onnx.ModelProto:
    """Residual blocks with random weights, (1, outer, side, side) to the same."""
    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "input"

    def convolution(source: str, into: int, out: int, name: str) -> str:
        kernel = random.standard_normal((out, into, 3, 3)) / np.sqrt(9 * into)
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"{name}_weight"))
        weights.append(numpy_helper.from_array(np.zeros(out, np.float32), f"{name}_bias"))
        nodes.append(helper.make_node("Conv", [source, f"{name}_weight", f"{name}_bias"], [name], pads=[1] * 4))
        return name

    for k in range(BLOCKS):
        hidden = convolution(last, outer, inner, f"first{k}")
        nodes.append(helper.make_node("Relu", [hidden], [f"hidden{k}"]))
        added = convolution(f"hidden{k}", inner, outer, f"second{k}")
        nodes.append(helper.make_node("Add", [added, last], [f"sum{k}"]))
        nodes.append(helper.make_node("Relu", [f"sum{k}"], [f"block{k}"]))
        last = f"block{k}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, outer, side, side]) for name in ("input", last)]
    graph = helper.make_graph(nodes, "blocks", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


class Samples(CalibrationDataReader):
    """Two random samples to calibrate with."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.left = [np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i in range(2)]

    def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
        """The next one, or None."""
        return {"input": self.left.pop()} if self.left else None


def model_bytes(outer: int, inner: int, side: int, precision: str) -> bytes:
    """The network as an ONNX file's content."""
    model = network(outer, inner, side)
    if precision == "float":
        return bytes(model.SerializeToString())
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(
            source,
            out,
            Samples((1, outer, side, side)),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return out.read_bytes()


def open_ort(content: bytes) -> Callable[[np.ndarray], Any]:
    """One thread, CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"input": x})


def open_openvino(content: bytes) -> Callable[[np.ndarray], Any]:
    """One thread, CPU, float32 where the graph says float."""
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(content), "CPU", settings).create_infer_request()
    return lambda x: request.infer({0: x})


def main() -> None:
    """Print one line a case."""
    logging.disable(logging.WARNING)
    print(
        f"onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__}; µs per block, lower fifth of {RUNS}"
    )
    for runtime, opened in (("onnxruntime", open_ort), ("openvino", open_openvino)):
        for precision in ("float", "int8"):
            for outer, side, inners in CASES:
                nets = {inner: opened(model_bytes(outer, inner, side, precision)) for inner in inners}
                x = np.ones((1, outer, side, side), np.float32)
                times: dict[int, list[int]] = {inner: [] for inner in inners}
                for turn in range(RUNS + 20):
                    for inner, run in nets.items():
                        start = time.perf_counter_ns()
                        run(x)
                        if turn >= 20:  # the first ones warm up
                            times[inner].append(time.perf_counter_ns() - start)
                told = "  ".join(f"{i}: {np.percentile(t, 20) / 1e3 / BLOCKS:.0f}" for i, t in times.items())
                print(f"{runtime:11} {precision:5} {outer} outer, {side}x{side}:  {told}", flush=True)


if __name__ == "__main__":
    main()
