"""Triton's model repository: the text is read back by protobuf itself, by a schema of the fields that Triton has."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import TensorProto, helper, numpy_helper

from edgewise.deploy.config import Triton
from edgewise.deploy.triton import Served, check, model_config, to_text, write_repository
from edgewise.errors import ModelError

SHAPE, CLASSES = (3, 8, 8), ("cat", "dog", 'a "b" \\ ü\nc')
INT32, INT64, UINT64, STRING = 5, 3, 4, 9

# Field names, numbers and types of Triton's ModelConfig, as far as they are used here.
ENUMS = {"DataType": {"TYPE_INVALID": 0, "TYPE_FP32": 11}, "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2}}
MESSAGES: dict[str, dict[str, tuple[int, int | str, bool]]] = {
    "ModelInput": {"name": (1, STRING, False), "data_type": (2, "DataType", False), "dims": (4, INT64, True)},
    "ModelOutput": {
        "name": (1, STRING, False), "data_type": (2, "DataType", False), "dims": (3, INT64, True),
        "label_filename": (4, STRING, False),
    },
    "ModelInstanceGroup": {"count": (2, INT32, False), "kind": (4, "Kind", False)},
    "ModelDynamicBatching": {
        "preferred_batch_size": (1, INT32, True), "max_queue_delay_microseconds": (2, UINT64, False),
    },
    "ModelConfig": {
        "name": (1, STRING, False), "max_batch_size": (4, INT32, False), "input": (5, "ModelInput", True),
        "output": (6, "ModelOutput", True), "instance_group": (7, "ModelInstanceGroup", True),
        "default_model_filename": (8, STRING, False), "dynamic_batching": (11, "ModelDynamicBatching", False),
        "backend": (17, STRING, False),
    },
}  # fmt: skip


def _schema() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="test", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for word, number in values.items():
            enum.value.add(name=word, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            made = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, int):
                made.type = kind
            else:
                made.type, made.type_name = (14 if kind in ENUMS else 11), f".test.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.ModelConfig"))


CONFIG = _schema()


def parsed(path: Path) -> Any:
    return text_format.Parse(path.read_text(encoding="utf-8"), CONFIG())


def _graph(path: Path, batch: int | str) -> Path:
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(np.ones((3, 3), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def write(folder: Path, served: Served, config: Triton) -> list[str]:
    folder.mkdir(exist_ok=True)
    return write_repository([served], config, folder, input_shape=SHAPE, classes=CLASSES)


def test_an_onnx_model_is_batched_as_asked(tmp_path: Path) -> None:
    graph = _graph(tmp_path / "int8.onnx", "batch")
    config = Triton(max_batch=16, preferred=(8, 4, 8), queue_delay_us=250, instances=2)
    assert write(tmp_path / "models", Served("net-int8", "onnxruntime", graph), config) == []
    folder = tmp_path / "models" / "net-int8"
    found = parsed(folder / "config.pbtxt")
    assert (found.name, found.backend, found.max_batch_size) == ("net-int8", "onnxruntime", 16)
    assert list(found.dynamic_batching.preferred_batch_size) == [4, 8]
    assert found.dynamic_batching.max_queue_delay_microseconds == 250
    # The names, types and sizes are those of the graph; the batch is Triton's own dimension.
    model = onnx.load(folder / "1" / found.default_model_filename).graph
    for ours, theirs in ((found.input[0], model.input[0]), (found.output[0], model.output[0])):
        assert ours.name == theirs.name
        assert ours.data_type == ENUMS["DataType"]["TYPE_FP32"]
        assert list(ours.dims) == [dim.dim_value for dim in theirs.type.tensor_type.shape.dim[1:]]
    assert (folder / "1" / "model.onnx").read_bytes() == graph.read_bytes()
    labels = (folder / found.output[0].label_filename).read_text(encoding="utf-8").splitlines()
    assert labels == ["cat", "dog", 'a "b" \\ ü c']
    assert [(group.kind, group.count) for group in found.instance_group] == [(ENUMS["Kind"]["KIND_CPU"], 2)]


def test_a_graph_of_one_batch_size_is_not_batched(tmp_path: Path) -> None:
    told = write(tmp_path / "models", Served("net", "onnxruntime", _graph(tmp_path / "one.onnx", 1)), Triton())
    assert "takes one batch size only" in told[0]
    found = parsed(tmp_path / "models" / "net" / "config.pbtxt")
    assert found.max_batch_size == 0
    assert not found.HasField("dynamic_batching")
    assert list(found.input[0].dims) == [1, *SHAPE]
    assert list(found.output[0].dims) == [1, 3]


@pytest.mark.parametrize(("batch", "largest"), [("batch", 8), (1, 0)])
def test_openvino_s_two_files_go_together(tmp_path: Path, batch: int | str, largest: int) -> None:
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    openvino.save_model(openvino.convert_model(_graph(tmp_path / "net.onnx", batch)), path)
    write(tmp_path / "models", Served("net", "openvino", path), Triton())
    found = parsed(tmp_path / "models" / "net" / "config.pbtxt")
    assert (found.backend, found.default_model_filename, found.max_batch_size) == ("openvino", "model.xml", largest)
    served = openvino.Core().read_model(tmp_path / "models" / "net" / "1" / "model.xml")  # finds its .bin beside it
    assert [port.get_any_name() for port in (*served.inputs, *served.outputs)] == ["input", "logits"]


def test_a_tensorrt_model_brings_the_script_that_builds_it(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    _graph(bundle / "model.int8.onnx", "batch")
    (bundle / "manifest.json").write_text(json.dumps({"main": "model.int8.onnx"}))
    served = Served("net", "tensorrt", bundle / "manifest.json")
    told = write(tmp_path / "models", served, Triton(max_batch=32, preferred=(4, 16)))
    assert "no engine is inside" in told[0]
    folder = tmp_path / "models" / "net"
    found = parsed(folder / "config.pbtxt")
    assert (found.backend, found.default_model_filename, found.max_batch_size) == ("tensorrt", "model.plan", 32)
    assert found.instance_group[0].kind == ENUMS["Kind"]["KIND_GPU"]
    # A stand-in for trtexec says what it was asked, and writes what it was asked to.
    fake = tmp_path / "trtexec"
    fake.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done > asked\n: > ../1/model.plan.part\n')
    fake.chmod(0o755)
    subprocess.run([folder / "build" / "build.sh"], env={"TRTEXEC": str(fake), "PATH": "/bin:/usr/bin"}, check=True)
    asked = (folder / "build" / "asked").read_text().split()
    assert {"--minShapes=input:1x3x8x8", "--optShapes=input:16x3x8x8", "--maxShapes=input:32x3x8x8"} <= set(asked)
    assert (folder / "1" / "model.plan").exists()
    assert (folder / "build" / "model.onnx").exists()
    assert subprocess.run([folder / "build" / "build.sh"], env={"TRTEXEC": "/none", "PATH": "/bin"}).returncode == 2


def test_what_can_not_be_served_is_refused(tmp_path: Path) -> None:
    graph = _graph(tmp_path / "net.onnx", "batch")
    with pytest.raises(ModelError, match="no backend of its own for litert"):
        write(tmp_path / "a", Served("net", "litert", graph), Triton())
    with pytest.raises(ModelError, match="a folder's name"):
        write(tmp_path / "a", Served("../net", "onnxruntime", graph), Triton())
    with pytest.raises(ModelError, match="no such file"):
        write(tmp_path / "b", Served("net", "onnxruntime", tmp_path / "none.onnx"), Triton())
    (tmp_path / "manifest.json").write_text('{"main": "none.onnx"}')
    with pytest.raises(ModelError, match="has no graph"):
        write(tmp_path / "c", Served("net", "tensorrt", tmp_path / "manifest.json"), Triton())


BROKEN: dict[str, dict[str, Any]] = {
    "dynamic_batching needs": {"max_batch_size": 0},
    "preferred_batch_size must": {"dynamic_batching": {"preferred_batch_size": [9]}},
    "names of inputs and outputs must differ": {"output": [{"name": "input", "dims": [3]}]},
    "inputs and outputs must have names": {"output": [{"name": "", "dims": [3]}]},
    "dims must not be empty": {"output": [{"name": "logits", "dims": []}]},
    "there must be an input": {"input": []},
    "a count of at least 1": {"instance_group": [{"count": 0, "kind": "KIND_CPU"}]},
    "TensorRT runs on a GPU": {"backend": "tensorrt"},
    "max_batch_size must not": {"max_batch_size": -1, "dynamic_batching": None},
}


@pytest.mark.parametrize("rule", BROKEN)
def test_what_triton_would_refuse_is_refused_here(rule: str) -> None:
    sound = model_config("net", "onnxruntime", Triton(), SHAPE, [3], "float32", batches=True)
    check(sound)
    with pytest.raises(ModelError, match=rule):
        check({**sound, **BROKEN[rule]})


@pytest.mark.parametrize(
    "text", ["", "plain", 'say "no"', "back\\slash", "two\nlines\r\t", "ünïcode ✓", "\x00\x7f", "'"]
)
def test_any_text_comes_back(text: str) -> None:
    message = text_format.Parse(to_text({"name": text, "max_batch_size": 3}), CONFIG())
    assert (message.name, message.max_batch_size) == (text, 3)
    assert to_text({"name": text}).isascii()


def test_a_preferred_size_above_the_largest_batch_is_a_mistake_of_the_recipe() -> None:
    with pytest.raises(ValueError, match="expected sizes up to max_batch 4, got 8"):
        Triton(max_batch=4, preferred=(2, 8))
