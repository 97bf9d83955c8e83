"""Faults planted in each runtime's file, found by the layer's name; and what is no fault of a layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgewise.deploy.inspect.compare import Comparison, Layer, compare_layers, first_bad
from edgewise.deploy.onnx_graph import add_constant, producers, value
from edgewise.errors import DataError, MeasureError

# layer2.0.conv1 is in the middle of the net, and has a ReLU of its own, which some runtimes fuse.
PLANTED = "layer2.0.conv1"
FOUND = {PLANTED, "layer2.0.relu1", f"{PLANTED}+relu"}
Edit = Callable[[onnx.ModelProto], None]


def judged(nets: Callable[[str], Path], one: str | nn.Module, other: Path | nn.Module) -> Comparison:
    folder = nets("resnet")
    source = folder / one if isinstance(one, str) else one
    return compare_layers(source, other, np.load(folder / "samples.npy")[:12])


def _conv(model: onnx.ModelProto, name: str = PLANTED) -> Any:
    return next(node for node in model.graph.node if node.op_type == "Conv" and node.name == name)


def _stored(model: onnx.ModelProto, name: str) -> tuple[str, np.ndarray]:
    """The tensor that holds a convolution's weights, be it behind a DequantizeLinear."""
    made = producers(model.graph).get(name)
    source = name if made is None else made.input[0]
    array = value(model.graph, source)
    assert array is not None
    return source, array.copy()


def _write(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def perturbed(model: onnx.ModelProto) -> None:
    name, weights = _stored(model, _conv(model).input[1])
    weights[::2] = -weights[::2]
    _write(model, name, weights)


def padded(model: onnx.ModelProto) -> None:
    """The same size of output, one pixel further."""
    pads = next(item for item in _conv(model).attribute if item.name == "pads")
    pads.ints[:] = [2, 2, 0, 0]


def poisoned(model: onnx.ModelProto) -> None:
    conv = _conv(model)
    name, bias = _stored(model, conv.input[2])
    conv.input[2] = add_constant(model.graph, f"{name}.poisoned", np.full_like(bias, np.nan))


def _rescaled(factor: float) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        """The quantizer behind the layer, in both of its halves."""
        graph = model.graph
        relu = next(node for node in graph.node if node.name == "layer2.0.relu1")
        quantizer = next(
            node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == relu.output[0]
        )
        scale = value(graph, quantizer.input[1])
        assert scale is not None
        other = add_constant(graph, "planted", (scale * factor).astype(np.float32))
        for node in graph.node:
            if node is quantizer or (node.op_type == "DequantizeLinear" and node.input[0] == quantizer.output[0]):
                node.input[1] = other

    return edit


FAULTS: dict[str, tuple[str, Edit]] = {
    "float, weights": ("float.onnx", perturbed),
    "float, padding": ("float.onnx", padded),
    "float, NaN": ("float.onnx", poisoned),
    "int8, weights": ("int8.onnx", perturbed),
    "int8, padding": ("int8.onnx", padded),
    "int8, scale too small": ("int8.onnx", _rescaled(1 / 8)),
    "int8, scale too large": ("int8.onnx", _rescaled(64)),
}


@pytest.mark.parametrize(
    ("fault", "reference"), [*((fault, "float") for fault in FAULTS), ("int8, padding", "lite.float32.tflite")]
)
def test_faults_in_an_onnx_file(nets: Callable[[str], Path], tmp_path: Path, fault: str, reference: str) -> None:
    name, edit = FAULTS[fault]
    model = onnx.load(nets("resnet") / name)
    edit(model)
    onnx.save(model, tmp_path / "planted.onnx")
    found = judged(nets, reference, tmp_path / "planted.onnx")
    assert found.first_bad in FOUND, found.why
    assert found.why


@pytest.mark.parametrize("fault", ["float, padding", "float, NaN", "int8, weights", "int8, scale too small"])
def test_faults_in_an_openvino_file(nets: Callable[[str], Path], tmp_path: Path, fault: str) -> None:
    import openvino

    name, edit = FAULTS[fault]
    model = onnx.load(nets("resnet") / name)
    edit(model)
    onnx.save(model, tmp_path / "planted.onnx")
    openvino.save_model(
        openvino.convert_model(tmp_path / "planted.onnx"), tmp_path / "planted.xml", compress_to_fp16=False
    )
    found = judged(nets, "float.onnx", tmp_path / "planted.xml")
    assert found.first_bad in FOUND, found.why


def _tflite(source: Path, out: Path, edit: Callable[[Any, Any, Any], None]) -> Path:
    """Change the convolution ``PLANTED`` in a file: ``edit(model, graph, op)``."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(source.read_bytes()))
    graph = model.subgraphs[0]
    wanted = PLANTED.replace(".", "/").encode()
    ops = [op for op in graph.operators if graph.tensors[op.outputs[0]].name.split(b":")[0] == wanted]
    edit(model, graph, ops[-1])
    out.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
    return out


def _buffer(model: Any, graph: Any, place: int, dtype: type) -> np.ndarray:
    data: np.ndarray = np.frombuffer(bytes(model.buffers[graph.tensors[place].buffer].data), dtype).copy()
    return data.reshape(graph.tensors[place].shape)


def _put(model: Any, graph: Any, place: int, array: np.ndarray) -> None:
    model.buffers[graph.tensors[place].buffer].data = np.frombuffer(array.tobytes(), np.uint8)


def _weights(dtype: type) -> Callable[[Any, Any, Any], None]:
    def edit(model: Any, graph: Any, op: Any) -> None:
        weights = _buffer(model, graph, op.inputs[1], dtype)
        weights[::2] = -weights[::2]
        _put(model, graph, op.inputs[1], weights)

    return edit


def _nan(model: Any, graph: Any, op: Any) -> None:
    _put(model, graph, op.inputs[1], np.full_like(_buffer(model, graph, op.inputs[1], np.float32), np.nan))


def _scale(factor: float) -> Callable[[Any, Any, Any], None]:
    def edit(model: Any, graph: Any, op: Any) -> None:
        quantization = graph.tensors[op.outputs[0]].quantization
        quantization.scale = (np.asarray(quantization.scale) * factor).astype(np.float32)

    return edit


def _pad(model: Any, graph: Any, op: Any) -> None:
    """The explicit PAD before the layer of stride 2: as much, on the other sides."""
    pad = next(one for one in graph.operators if one.outputs[0] == op.inputs[0])
    amounts = _buffer(model, graph, pad.inputs[1], np.int32)
    amounts[1:3] = [[2, 0], [2, 0]]
    _put(model, graph, pad.inputs[1], amounts)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("lite.float32.tflite", _weights(np.float32)),
        ("lite.float32.tflite", _nan),
        ("lite.float32.tflite", _pad),
        ("lite.int8.tflite", _weights(np.int8)),
        ("lite.int8.tflite", _scale(1 / 8)),
    ],
)
def test_faults_in_a_litert_file(
    nets: Callable[[str], Path], tmp_path: Path, name: str, edit: Callable[[Any, Any, Any], None]
) -> None:
    planted = _tflite(nets("resnet") / name, tmp_path / "planted.tflite", edit)
    for reference in ("float", "float.onnx"):
        assert judged(nets, reference, planted).first_bad in FOUND


def test_a_scale_that_the_next_layer_does_not_know_is_found_there(nets: Callable[[str], Path], tmp_path: Path) -> None:
    """LiteRT writes a layer with any scale that it is given; the bias behind it is stored in steps of the old one."""
    planted = _tflite(nets("resnet") / "lite.int8.tflite", tmp_path / "planted.tflite", _scale(4))
    assert judged(nets, "float", planted).first_bad == "layer2.0.conv2"


def test_faults_in_a_torch_model(nets: Callable[[str], Path]) -> None:
    from edgewise.compress.saved import load_model

    for folder in ("float", "quantized"):
        model, _ = load_model(nets("resnet") / folder)
        weight = model.get_parameter(f"{PLANTED}.weight")
        with torch.no_grad():
            weight[::2] *= -1
        assert judged(nets, "float.onnx", model).first_bad in FOUND


def test_a_quiet_fault_is_found_between_float_files(nets: Callable[[str], Path], tmp_path: Path) -> None:
    """A thousandth of the weights, which flips no answer."""
    model = onnx.load(nets("resnet") / "float.onnx")
    name, weights = _stored(model, _conv(model).input[1])
    _write(model, name, (weights * 1.003).astype(np.float32))
    onnx.save(model, tmp_path / "planted.onnx")
    found = judged(nets, "float", tmp_path / "planted.onnx")
    assert found.first_bad == PLANTED
    assert found.flips == 0


def test_strangers_are_compared_by_their_answers_alone(nets: Callable[[str], Path], tmp_path: Path) -> None:
    model = onnx.load(nets("resnet") / "float.onnx")
    for place, node in enumerate(model.graph.node):
        node.name = f"n{place}"
    onnx.save(model, tmp_path / "foreign.onnx")
    found = judged(nets, "float", tmp_path / "foreign.onnx")
    assert found.rows == ()
    assert "only the answers" in found.note
    assert found.output.sqnr_db > 100
    assert found.flips == 0
    other = judged(nets, nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), nets("resnet") / "float.onnx")
    assert other.output.sqnr_db < 60
    assert other.first_bad is None
    assert "don't look like two forms of one model" in other.note


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 3, 16), (0, 3, 16, 16), (4, 16, 16, 3)])
def test_inputs_of_another_shape_are_refused(nets: Callable[[str], Path], shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected inputs \(N, "):
        compare_layers(nets("resnet") / "float", nets("resnet") / "ov.int8.xml", np.zeros(shape, np.float32))


def test_what_cant_be_opened_is_named(nets: Callable[[str], Path], tmp_path: Path) -> None:
    samples = np.load(nets("resnet") / "samples.npy")[:2]
    (tmp_path / "notes.txt").write_text("no net")
    (tmp_path / "broken.onnx").write_text("no net either")
    (tmp_path / "broken.tflite").write_text("nor this one")
    (tmp_path / "empty").mkdir()
    for name, told in (
        ("missing.onnx", "no such file"),
        ("notes.txt", r"expected .*\.tflite, got '\.txt'"),
        ("empty", "this folder has no architecture"),
        ("broken.onnx", "not an ONNX file"),
        ("broken.tflite", "no TFL3 mark"),
    ):
        with pytest.raises(MeasureError, match=told):
            compare_layers(nets("resnet") / "float", tmp_path / name, samples)


def _row(name: str, sqnr_db: float, fall_db: float | None = 0.0) -> Layer:
    return Layer(name, "conv", sqnr_db, (1,), 0.0, fall_db)


@pytest.mark.parametrize(
    ("rows", "output", "expected"),
    [
        ([_row("a", 30), _row("b", 25, 5), _row("c", 20, 5)], 20, None),
        ([_row("a", 30), _row("b", 9, 21), _row("c", 2, 7)], 2, "b"),  # not the lowest, the first
        ([_row("a", 12, 3), _row("b", 9.5, 2.5), _row("c", 2, 7.5)], 2, "c"),  # b is under the floor by erosion
        ([_row("a", 12, 3), _row("b", 9.5, 2.5), _row("c", 7, 2.5)], 7, "b"),  # nobody fell
        ([_row("a", 30), _row("b", 17, 13), _row("c", 8, 9)], 8, "b"),  # steep, near the floor
        ([_row("a", 40), _row("b", 25, 15), _row("c", 24, 1)], 24, None),  # steep, far above
        ([_row("a", 9, None), _row("b", 3, 6)], 3, "a"),  # reads the input alone
        ([_row("a", 30), _row("b", float("-inf"), None)], float("-inf"), "b"),
        ([_row("a", 30), _row("b", 29, 1)], 3, "output"),
    ],
)
def test_the_rule_of_the_first_bad_layer(rows: list[Layer], output: float, expected: str | None) -> None:
    bad, why = first_bad(rows, Layer("output", "output", output, (1,), 0.0), 10.0)
    assert bad == expected
    assert bool(why) == (expected is not None)
