"""A small encoder of texts through every form: graphs with an open length, the runtimes' files, contracts, inspect."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from edgewise.compress.config import Quantize
from edgewise.compress.macs import count
from edgewise.compress.quantization.insert import insert_quantizers
from edgewise.compress.saved import Description, save_model
from edgewise.deploy import runtimes, tflite, triton
from edgewise.deploy.config import Triton
from edgewise.deploy.contracts import litert as litert_contract
from edgewise.deploy.contracts import ort as ort_contract
from edgewise.deploy.contracts import ov as ov_contract
from edgewise.deploy.contracts import trt as trt_contract
from edgewise.deploy.convert import ort, ov, trt
from edgewise.deploy.convert.base import Job, Source, dump_job, parse_job
from edgewise.deploy.convert.litert import lengths
from edgewise.deploy.convert.trt_device import build_script
from edgewise.deploy.export import export_float, export_qdq
from edgewise.deploy.inspect.compare import compare_layers
from edgewise.deploy.parity import sqnr_db
from edgewise.deploy.rewrites import own_zero_points
from edgewise.deploy.runtimes import Options
from edgewise.deploy.runtimes.litert import OF_LENGTH
from edgewise.deploy.weight_only import LEAST, store_tables
from edgewise.errors import DataError, MeasureError, ModelError
from edgewise.models.config import Bert, Encoder
from edgewise.models.text.bert import Bert as Net
from edgewise.models.text.encoder import build_encoder

LENGTH, WORDS, CLASSES, PADDING = 24, 300, 3, 0
SHAPE = (LENGTH, WORDS)
INT8 = ("int8", "int8_dynamic", "int8_weights")

# In a process of its own: LiteRT's libraries warn at their import.
LITERT = """
import sys
from pathlib import Path
import numpy as np, torch
from edgewise.compress.saved import load_model
from edgewise.deploy.convert.litert import convert_module
torch.set_num_threads(1)
folder = Path(sys.argv[1])
for name, precision in (("plain", "float32"), ("plain", "int8_dynamic"), ("quantized", "int8"), ("tags", "float32")):
    model, description = load_model(folder / name)
    convert_module(model, precision, folder / f"{name}.{precision}", input_shape=description.input_shape, padding=0,
                   calibration=np.load(folder / "calibration.npy"))
"""


def config(**changed: Any) -> Bert:
    return Bert(kind="bert", layers=2, width=32, heads=2, ffn=64, **changed)


def encoder(seed: int, **changed: Any) -> Net:
    """Untrained, but no gain of a norm is 1 and no bias 0: a converter drops those."""
    torch.manual_seed(seed)
    net = Net(config(**changed), SHAPE, CLASSES).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def texts(seed: int, samples: int, length: int = LENGTH) -> Any:
    """Each ends in padding from a place of its own."""
    random = np.random.default_rng(seed)
    ids = random.integers(1, WORDS, (samples, length))
    for row, real in zip(ids, random.integers(1, length + 1, samples), strict=True):
        row[real:] = PADDING
    return ids


def answers(net: torch.nn.Module, ids: Any) -> Any:
    with torch.no_grad():
        return net(torch.from_numpy(ids)).numpy()


def run(path: Path, ids: Any, batch: int = 1) -> Any:
    name = {".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "litert"}[path.suffix]
    with closing(runtimes.get(name).open(str(path), Options(batch=batch))) as session:
        parts = [ids[start : start + batch] for start in range(0, len(ids), batch)]
        return np.concatenate([session.run({"input": part})["logits"] for part in parts])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("text")
    net, tags = encoder(0, separator=3), encoder(1, answers="token")
    calibration = texts(2, 32)
    np.save(folder / "calibration.npy", calibration)
    quantized = insert_quantizers(net, calibration, correct_biases=False)
    export_float(net, SHAPE, folder / "float.onnx")
    export_float(tags, SHAPE, folder / "tags.onnx")
    export_qdq(quantized, SHAPE, folder / "unsigned.onnx", signed=False)
    export_qdq(quantized, SHAPE, folder / "signed.onnx", signed=True, half=True)
    source = Source(
        input_shape=SHAPE,
        classes=CLASSES,
        float_onnx=folder / "float.onnx",
        unsigned_onnx=folder / "unsigned.onnx",
        half_signed_onnx=folder / "signed.onnx",
        padding=PADDING,
    )
    return SimpleNamespace(folder=folder, net=net, tags=tags, quantized=quantized, source=source)


@pytest.fixture(scope="module")
def files(made: SimpleNamespace) -> dict[tuple[str, str], Path]:
    return {
        (name, precision): module.convert(made.source, precision, made.folder / f"{name}.{precision}")
        for name, module in (("onnxruntime", ort), ("openvino", ov))
        for precision in ("float32", *INT8)
    }


@pytest.fixture(scope="module")
def litert(made: SimpleNamespace) -> dict[str, Path]:
    from edgewise.compress.quantization.insert import quantizer_config
    from edgewise.compress.saved import FakeQuantized

    plain = Description(model=config(separator=3), input_shape=SHAPE, classes=CLASSES)
    tags = Description(model=config(answers="token"), input_shape=SHAPE, classes=CLASSES)
    fake = Description(**{**dict(plain), "edits": (FakeQuantized(nncf=quantizer_config(made.quantized)),)})
    for name, model, description in (
        ("plain", made.net, plain),
        ("tags", made.tags, tags),
        ("quantized", made.quantized, fake),
    ):
        save_model(model, description, made.folder / name)
    quiet = {**os.environ, "LITERT_TORCH_SHOW_PROGRESS": "n", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", LITERT, str(made.folder)], env=quiet, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.name.removesuffix(".tflite"): path for path in made.folder.glob("*.tflite")}


# Graphs


def test_a_graph_takes_ids_of_any_length_and_batch(made: SimpleNamespace) -> None:
    for name, answered in (("float", ["batch", CLASSES]), ("tags", ["batch", "length", CLASSES])):
        graph = onnx.load(made.folder / f"{name}.onnx").graph
        ends = [
            ([dim.dim_param or dim.dim_value for dim in end.type.tensor_type.shape.dim], end.type.tensor_type.elem_type)
            for end in (graph.input[0], graph.output[0])
        ]
        assert ends == [(["batch", "length"], TensorProto.INT64), (answered, TensorProto.FLOAT)]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("tags", [False, True])
def test_files_answer_as_torch_at_any_length(name: str, tags: bool, made: SimpleNamespace) -> None:
    net, path = (made.tags, made.folder / "tags.onnx") if tags else (made.net, made.folder / "float.onnx")
    for batch, length in itertools.product((1, 3), (LENGTH, 7, 7, 16, 1, LENGTH)):
        with closing(runtimes.get(name).open(str(path), Options(batch=batch))) as session:
            assert session.inputs[0] == ("input", (batch, None), "int64")
            assert session.outputs[0] == ("logits", (batch, *((None,) if tags else ()), CLASSES), "float32")
            ids = texts(length, batch, length)
            got = session.run({"input": ids})["logits"]
        np.testing.assert_allclose(got, answers(net, ids), rtol=1e-4, atol=1e-5)


def test_openvino_refuses_ids_of_another_type(made: SimpleNamespace) -> None:
    with closing(runtimes.get("openvino").open(str(made.folder / "float.onnx"), Options())) as session:
        session.run({"input": texts(0, 1, 5)})
        for wrong in (texts(0, 1).astype(np.int32), texts(0, 2), texts(0, 1)[0]):
            with pytest.raises(MeasureError, match=r"expected int64 \(1, None\)"):
                session.run({"input": wrong})
        np.testing.assert_allclose(session.run({"input": texts(1, 1)})["logits"], answers(made.net, texts(1, 1)), 1e-4)


@pytest.mark.parametrize("precision", ["float32", "int8", "int8_weights"])
def test_trailing_padding_changes_no_answer(precision: str, files: dict[tuple[str, str], Path]) -> None:
    ids = texts(5, 6, 10)
    longer = np.pad(ids, ((0, 0), (0, LENGTH - 10)), constant_values=PADDING)
    for name in ("onnxruntime", "openvino"):
        path = files[name, precision]
        np.testing.assert_allclose(run(path, longer), run(path, ids), rtol=1e-3, atol=1e-4)


def test_a_job_keeps_what_texts_need(made: SimpleNamespace) -> None:
    job = Job("litert", "float32", made.source, made.folder / "model")
    assert parse_job(dump_job(job)) == job
    assert job.source.length == LENGTH
    assert replace(job.source, input_shape=(3, 8, 8)).length == 1


# Files


@pytest.mark.parametrize("precision", INT8)
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_int8_files_follow_float_and_say_what_is_in_integers(
    name: str, precision: str, files: dict[tuple[str, str], Path], made: SimpleNamespace
) -> None:
    path = files[name, precision]
    report = json.loads(path.with_name(f"{name}.{precision}.report.json").read_text())
    cost = count(made.net, SHAPE)
    assert report["macs"] == cost.macs
    linear = sum(layer.macs for name, layer in cost.layers.items() if not name.endswith("attn"))
    if precision == "int8_weights":
        assert report["integer_macs_share"] == 0
    else:  # attention's own products may stay in float
        assert linear / cost.macs <= report["integer_macs_share"] <= 1
        assert all(".attn.matmul" in layer for layer in report["float_layers"])
    ids = texts(6, 16)
    assert sqnr_db(answers(made.net, ids), run(path, ids)) > 15


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_tables_of_words_are_int8_in_the_file(name: str, files: dict[tuple[str, str], Path]) -> None:
    def stored(precision: str) -> int:
        path = files[name, precision]
        return (path.with_suffix(".bin") if name == "openvino" else path).stat().st_size

    table = WORDS * 32
    weights = 2 * (32 * 96 + 32 * 32 + 2 * 32 * 64) + 32 * 32 + 32 * CLASSES
    # Three bytes of four are saved of each, but for scales, and what is said of more nodes.
    assert stored("float32") - stored("int8_weights") > 3 * (table + weights) - 4 * (WORDS + 600) - 6000


def test_a_stored_table_gives_the_rows_of_its_integers() -> None:
    random = np.random.default_rng(0)
    table = random.standard_normal((64, 80)).astype(np.float32) * random.uniform(0.01, 10, (64, 1)).astype(np.float32)
    table[5] = 0
    make = onnx.helper.make_tensor_value_info
    small = table[:4, :8].copy()
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Gather", ["table", "ids"], ["rows"], name="words"),
            onnx.helper.make_node("Gather", ["small", "kinds"], ["few"], name="types"),
        ],
        "tables",
        [make("ids", TensorProto.INT64, ["N", "L"]), make("kinds", TensorProto.INT64, ["N", "L"])],
        [make("rows", TensorProto.FLOAT, ["N", "L", 80]), make("few", TensorProto.FLOAT, ["N", "L", 8])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(small, "small")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    assert table.size >= LEAST > small.size
    assert store_tables(model) == ["table"]
    onnx.checker.check_model(model, full_check=True)
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids, kinds = random.integers(64, size=(2, 7)), random.integers(4, size=(2, 7))
    ids[0, 0] = 5
    rows, few = session.run(None, {"ids": ids, "kinds": kinds})
    step = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(rows - table[ids]) <= step[ids] / 2 + 1e-6).all()
    assert not rows[0, 0].any()
    np.testing.assert_array_equal(few, small[kinds])
    kinds_stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert TensorProto.INT8 in kinds_stored.values()
    assert "table" not in kinds_stored


# LiteRT


def test_lengths_of_signatures_double_up_to_the_longest() -> None:
    assert lengths(64) == [64, 32, 16]
    assert lengths(24) == [24, 16]
    assert lengths(16) == [16]
    assert lengths(5) == [5]


def test_litert_takes_any_length_up_to_its_longest(litert: dict[str, Path], made: SimpleNamespace) -> None:
    for name, net, least in (
        ("plain.float32", made.net, 80),
        ("tags.float32", made.tags, 80),
        ("plain.int8_dynamic", made.net, 15),
        ("quantized.int8", made.net, 12),
    ):
        with closing(runtimes.get("litert").open(str(litert[name]), Options())) as session:
            assert session.inputs[0] == ("input", (1, None), "int64")
            assert session.settings["lengths"] == [16, LENGTH]
            for length in (LENGTH, 7, 16, 1, 17):
                ids = texts(length, 1, length)
                got = session.run({"input": ids})["logits"]
                expected = answers(net, ids)
                assert got.shape == expected.shape
                assert sqnr_db(expected, got) > least, (name, length)
            with pytest.raises(MeasureError, match="at most 24 tokens, got 25"):
                session.run({"input": texts(0, 1, 25)})
        with pytest.raises(MeasureError, match="batch"):
            runtimes.get("litert").open(str(litert[name]), Options(batch=2))


def test_litert_holds_weights_once_and_tables_in_int8(litert: dict[str, Path], made: SimpleNamespace) -> None:
    sizes = {name: path.stat().st_size for name, path in litert.items()}
    params = 4 * sum(p.numel() for p in made.net.parameters())
    assert sizes["plain.float32"] < 1.6 * params  # not twice, for two lengths
    for name in ("plain.int8_dynamic", "quantized.int8"):
        content = litert[name].read_bytes()
        for graph in (0, 1):
            table = next(op for op in tflite.read(content, graph) if op.kind == "EMBEDDING_LOOKUP")
            assert table.inputs[1] is not None
            assert (table.inputs[1].kind, table.inputs[1].scales.size, table.version) == ("INT8", WORDS, 4)
        report = json.loads(litert[name].with_name(f"{name}.report.json").read_text())
        assert report["macs"] == count(made.net, SHAPE).macs
        assert report["contract"] == []
    # Both lengths compute with the same ranges.
    content = litert["quantized.int8"].read_bytes()
    first, second = ([op for op in tflite.read(content, graph) if op.kind == "FULLY_CONNECTED"] for graph in (0, 1))
    assert [op.name for op in second] == [f"{op.name}@1" for op in first]
    for one, other in zip(first, second, strict=True):
        for left, right in zip((*one.inputs, *one.outputs), (*other.inputs, *other.outputs), strict=True):
            assert left is not None
            assert right is not None
            assert left.scales.size
            np.testing.assert_array_equal(left.scales, right.scales)
            np.testing.assert_array_equal(left.zero_points, right.zero_points)


def test_signatures_tell_the_paddings_id() -> None:
    told = OF_LENGTH.fullmatch("length_64_padding_1")
    assert told is not None
    assert told.groups() == ("64", "1")
    from edgewise.deploy.convert.litert import _signatures

    with pytest.raises(ModelError, match="padding"):
        _signatures(SHAPE, None)


# Contracts, inspect, servers


def test_clean_text_graphs_break_no_rule(made: SimpleNamespace, litert: dict[str, Path]) -> None:
    graphs = {name: onnx.load(made.folder / f"{name}.onnx") for name in ("float", "tags", "unsigned", "signed")}
    for name in ("float", "tags", "unsigned"):
        assert ort_contract.check(graphs[name]) == []
        assert ov_contract.check(graphs[name]) == []
    for name in ("float", "signed"):
        assert trt_contract.check(graphs[name]) == []
    for path in litert.values():
        assert litert_contract.check(path.read_bytes()) == []


def test_only_a_texts_length_may_be_open(made: SimpleNamespace) -> None:
    model = onnx.load(made.folder / "float.onnx")
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    assert [finding.rule for finding in ort_contract.check(model)] == ["static-shape"]


def test_zero_points_of_two_layouts_are_told_and_parted() -> None:
    """OpenVINO would run both layers in float; here a MatMul and a Gemm that holds its weight the other way round."""
    arrays: dict[str, Any] = {
        "one": np.ones((4, 4), np.int8),
        "two": np.ones((4, 4), np.int8),
        "scale": np.full(4, 0.1, np.float32),
        "zero": np.zeros(4, np.int8),
    }
    node, make = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("DequantizeLinear", ["one", "scale", "zero"], ["w1"], name="w1", axis=1),
            node("MatMul", ["x", "w1"], ["h"], name="fc"),
            node("DequantizeLinear", ["two", "scale", "zero"], ["w2"], name="w2", axis=0),
            node("Gemm", ["h", "w2"], ["y"], name="pooler", transB=1),
        ],
        "mixed",
        [make("x", TensorProto.FLOAT, ["N", 4])],
        [make("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)

    def told() -> list[str]:
        return [finding.node for finding in ov_contract.check(model) if finding.rule == "own-zero-point"]

    assert told() == ["pooler"]
    own_zero_points(model.graph)
    assert told() == []
    onnx.checker.check_model(model, full_check=True)


def test_inspect_names_the_bad_layer_of_an_encoder(made: SimpleNamespace, tmp_path: Path) -> None:
    model = onnx.load(made.folder / "float.onnx")
    (layer,) = [node for node in model.graph.node if node.name == "blocks.1.mlp.fc1"]
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == layer.input[1]]
    wrong = numpy_helper.to_array(weight).copy()
    wrong[:, 3] *= -4
    weight.CopyFrom(numpy_helper.from_array(wrong, weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    found = compare_layers(made.net, tmp_path / "wrong.onnx", texts(7, 4))
    assert found.first_bad == "blocks.1.mlp.fc1"
    with pytest.raises(DataError, match="expected token ids"):
        compare_layers(made.folder / "float.onnx", tmp_path / "wrong.onnx", texts(7, 4).astype(np.float32))


def test_inspect_finds_nothing_bad_in_healthy_files(
    made: SimpleNamespace, files: dict[tuple[str, str], Path], litert: dict[str, Path]
) -> None:
    for path in (*files.values(), litert["plain.float32"], litert["quantized.int8"]):
        found = compare_layers(made.net, path, texts(8, 4))
        assert found.first_bad is None, (path.name, found.first_bad, found.why)
        names = {row.name for row in found.rows}
        assert {f"blocks.{place}.mlp.{layer}" for place in (0, 1) for layer in ("fc1", "fc2")} <= names, path.name


def test_triton_is_told_of_ids_and_open_lengths(files: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    served = [triton.Served("net", "onnxruntime", files["onnxruntime", "int8"])]
    for tags, answered in ((False, "dims: 3"), (True, "dims: -1\n  dims: 3")):
        out = tmp_path / str(tags)
        out.mkdir()
        triton.write_repository(served, Triton(), out, input_shape=SHAPE, classes=("a", "b", "c"), tags=tags)
        text = (out / "net" / "config.pbtxt").read_text()
        assert 'name: "input"\n  data_type: TYPE_INT64\n  dims: -1\n}' in text
        assert f'name: "logits"\n  data_type: TYPE_FP32\n  {answered}\n' in text


def test_tensorrt_builds_for_any_length(made: SimpleNamespace, tmp_path: Path) -> None:
    folder = trt.convert(made.source, "int8", tmp_path / "net").parent
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["input"] == {"name": "input", "dtype": "int64", "shape": [None, None]}
    assert (manifest["longest"], manifest["padding"]) == (LENGTH, PADDING)
    assert "int64 (N, L)" in (folder / "README.md").read_text()
    calls, fake = tmp_path / "calls", tmp_path / "trtexec"
    fake.write_text(
        "#!/bin/sh\n"
        "if [ \"$1\" = --help ]; then echo '&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b1]'; exit 0; fi\n"
        f"printf '%s\\n' \"$*\" >> '{calls}'\n"
    )
    fake.chmod(0o755)
    asked = {**os.environ, "TRTEXEC": str(fake), "BATCH": "4", "LENGTH": "16"}
    subprocess.run(["/bin/sh", str(folder / "build.sh")], env=asked, check=True, capture_output=True)
    words = calls.read_text().split()
    for word in ("--minShapes=input:4x1", "--optShapes=input:4x16", "--maxShapes=input:4x24", "--shapes=input:4x16"):
        assert word in words
    for wrong in ("25", "0", "x"):
        done = subprocess.run(
            ["/bin/sh", str(folder / "build.sh")], env={**asked, "LENGTH": wrong}, capture_output=True, check=False
        )
        assert done.returncode == 2


def test_the_script_for_images_asks_for_no_length() -> None:
    script = build_script("model.fp32", (3, 8, 9))
    assert "LENGTH" not in script
    assert script.count("@") == 0
    assert 'SHAPE="input:${BATCH}x3x8x9"' in script


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("albert", {"embedding_size": 32}),
        ("modernbert", {"local_attention": 8, "global_attn_every_n_layers": 2}),
        ("deberta-v2", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 40}),
        ("mobilebert", {"embedding_size": 16, "intra_bottleneck_size": 16, "initializer_range": 0.12}),
    ],
)
def test_an_encoder_of_transformers_goes_to_int8_with_a_layer_in_float(
    tmp_path: Path, kind: str, more: dict[str, Any]
) -> None:
    """ALBERT calls one block's layers again and again, and has a pooler that nobody reads. ModernBERT adds its mask
    among other additions, whose quantizers must not slip where a batch has no padding. DeBERTa multiplies by projected
    positions, which hang on no input. MobileBERT has no LayerNorm to be known by: its mask must stay in float."""
    pytest.importorskip("transformers")
    settings = {
        "model_type": kind,
        "vocab_size": WORDS,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "initializer_range": 0.3,
        "pad_token_id": PADDING,
        **more,
    }
    described = Encoder(
        settings=settings, answers="sequence", pooling="mean", padding=PADDING, separator=None, dropout=0.0
    )
    torch.manual_seed(0)
    net = build_encoder(described, SHAPE, CLASSES).eval()
    quantized = insert_quantizers(
        net, texts(2, 32), Quantize(kind="quantize", float_layers=("head",), ranges="min_max"), padding=PADDING
    )
    export_qdq(quantized, SHAPE, tmp_path / "graph.onnx", signed=False, float_layers=("head",))
    ids = texts(3, 16)
    got = run(ort.convert(Source(SHAPE, CLASSES, unsigned_onnx=tmp_path / "graph.onnx"), "int8", tmp_path / "x"), ids)
    assert sqnr_db(answers(quantized, ids), got) > 25  # the file is the quantized net
    assert sqnr_db(answers(net, ids), got) > 12
    graph = onnx.load(tmp_path / "graph.onnx").graph
    kept = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert kept["head.weight"] == TensorProto.FLOAT
    assert sum(kind == TensorProto.INT8 and len(name.split(".")) > 3 for name, kind in kept.items()) > 5
    whole, cut = ids[:1].copy(), ids[:1, :9].copy()
    whole[:, 9:], cut[:] = PADDING, np.maximum(cut, 1)
    whole[:, :9] = cut
    np.testing.assert_allclose(answers(quantized, whole), answers(quantized, cut), rtol=1e-3, atol=1e-3)
