"""One contract for all runtimes that run here; they are required, so nothing skips when one is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.deploy import runtimes
from edgewise.deploy.parity import compare
from edgewise.deploy.runtimes import Options, TensorSpec, check_feeds, trt_run
from edgewise.errors import MeasureError, RuntimeMissing

NAMES = ("onnxruntime", "openvino", "litert")
FLOATS = ("onnxruntime.float32", "openvino.float32", "openvino.float16", "litert.float32", "litert.float16")
INTEGERS = ("onnxruntime.int8", "openvino.int8", "litert.int8")
MIN_SQNR_DB = {"float32": 100.0, "float16": 50.0, "int8": 22.0}


def answers(file: str, path: Path, images: np.ndarray, batch: int) -> np.ndarray:
    with closing(runtimes.get(file.split(".")[0]).open(str(path), Options(batch=batch))) as session:
        outputs = [
            session.run({session.inputs[0].name: images[i : i + batch]})["logits"] for i in range(0, len(images), batch)
        ]
    return np.concatenate(outputs)


@pytest.mark.parametrize("name", NAMES)
def test_required_runtimes_are_here(name: str) -> None:
    assert runtimes.get(name).missing() is None


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("file", FLOATS + INTEGERS)
def test_answers_follow_torch(file: str, batch: int, converted: Mapping[str, Path], small_net: Any) -> None:
    got = answers(file, converted[file], small_net.images, batch)
    parity = compare(small_net.logits, got)
    assert parity.sqnr_db > MIN_SQNR_DB[file.split(".")[1]], parity
    if "int8" not in file:
        assert parity.flips == 0


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_outputs_say_what_run_takes_and_gives(
    name: str, batch: int, converted: Mapping[str, Path], small_net: Any
) -> None:
    with closing(runtimes.get(name).open(str(converted[f"{name}.int8"]), Options(batch=batch))) as session:
        assert session.inputs == (TensorSpec("input", (batch, 3, 16, 16), "float32"),)
        assert session.outputs == (TensorSpec("logits", (batch, 5), "float32"),)
        feeds = {"input": small_net.images[:batch]}
        check_feeds(session.inputs, feeds)
        outputs = session.run(feeds)
    assert {key: (value.shape, str(value.dtype)) for key, value in outputs.items()} == {
        "logits": ((batch, 5), "float32")
    }


@pytest.mark.parametrize("name", NAMES)
def test_answers_stay_valid_after_the_next_run_and_after_close(
    name: str, converted: Mapping[str, Path], small_net: Any
) -> None:
    session = runtimes.get(name).open(str(converted[f"{name}.float32"]), Options())
    first = session.run({"input": small_net.images[:1]})["logits"]
    kept = first.copy()
    second = session.run({"input": small_net.images[1:2]})["logits"]
    session.close()
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_images_that_are_views_are_read_right(name: str, converted: Mapping[str, Path], small_net: Any) -> None:
    view = small_net.images[:2].transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)[1:]  # channels last, offset
    with closing(runtimes.get(name).open(str(converted[f"{name}.float32"]), Options())) as session:
        got = session.run({"input": view})["logits"]
    np.testing.assert_allclose(got, small_net.logits[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_settings_are_echoed(name: str, threads: int, converted: Mapping[str, Path]) -> None:
    with closing(runtimes.get(name).open(str(converted[f"{name}.float32"]), Options(threads, "float32", 2))) as session:
        settings = session.settings
    assert settings["runtime"] == name
    assert settings["threads"] == threads
    assert settings["precision"] == "float32"
    assert settings["batch"] == 2
    assert settings["version"][0].isdigit()


def test_onnxruntime_runs_sequentially_on_the_cpu_alone(converted: Mapping[str, Path]) -> None:
    with closing(runtimes.get("onnxruntime").open(str(converted["onnxruntime.float32"]), Options())) as session:
        settings = session.settings
    assert settings["providers"] == ["CPUExecutionProvider"]
    assert settings["execution_mode"] == "ORT_SEQUENTIAL"
    assert settings["graph_optimization"] == "ORT_ENABLE_ALL"
    assert settings["session.intra_op.allow_spinning"] == "0"


def test_openvino_keeps_its_own_precision_only_when_asked_to(converted: Mapping[str, Path]) -> None:
    with closing(runtimes.get("openvino").open(str(converted["openvino.float32"]), Options(1, "default"))) as session:
        assert session.settings["precision"] in {"float32", "bfloat16", "float16"}
        assert session.settings["streams"] == 1


def test_openvino_sends_no_usage_data() -> None:
    import subprocess
    import sys

    code = (
        "from edgewise.deploy.runtimes import ov; ov.load_openvino(); import openvino, sys, threading; "
        "assert openvino.convert_model; assert sys.modules['openvino_telemetry'] is None; "
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_printed(converted: Mapping[str, Path], small_net: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        answers(name, converted[f"{name}.int8"], small_net.images[:1], 1)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "missing"),
        ({"input": np.zeros((1, 3, 16, 16), np.float32), "more": np.zeros(1, np.float32)}, "no input 'more'"),
        ({"input": np.zeros((1, 3, 16, 16), np.float64)}, "float64"),
        ({"input": np.zeros((2, 3, 16, 16), np.float32)}, "expected float32"),
        ({"input": np.zeros((3, 16, 16), np.float32)}, "expected float32"),
    ],
)
def test_wrong_feeds_are_named_before_they_run(
    name: str, feeds: dict[str, np.ndarray], message: str, converted: Mapping[str, Path]
) -> None:
    opened = closing(runtimes.get(name).open(str(converted[f"{name}.float32"]), Options()))
    with opened as session, pytest.raises(MeasureError, match=message):
        check_feeds(session.inputs, feeds)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_dtype_is_never_cast_in_silence(name: str, converted: Mapping[str, Path]) -> None:
    opened = closing(runtimes.get(name).open(str(converted[f"{name}.float32"]), Options()))
    with opened as session, pytest.raises(Exception, match=r"float|FLOAT|double|Double"):
        session.run({"input": np.zeros((1, 3, 16, 16), np.float64)})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["missing", "empty", "folder", "text", "half"])
def test_a_file_that_cannot_run_is_named(name: str, damage: str, converted: Mapping[str, Path], tmp_path: Path) -> None:
    good = converted[f"{name}.float32"]
    bad = tmp_path / f"bad{good.suffix}"
    if good.suffix == ".xml":
        shutil.copy(good.with_suffix(".bin"), bad.with_suffix(".bin"))
    content = good.read_bytes()
    if damage == "folder":
        bad.mkdir()
    elif damage != "missing":
        bad.write_bytes({"empty": b"", "text": b"no model at all\n" * 99, "half": content[: len(content) // 2]}[damage])
    with pytest.raises(MeasureError) as caught:
        runtimes.get(name).open(str(bad), Options())
    assert str(bad) in str(caught.value)
    assert "\n" not in caught.value.message


def test_openvino_weights_that_are_missing_or_cut_off(converted: Mapping[str, Path], tmp_path: Path) -> None:
    graph = tmp_path / "net.xml"
    shutil.copy(converted["openvino.float32"], graph)
    with pytest.raises(MeasureError, match="weights are missing"):
        runtimes.get("openvino").open(str(graph), Options())
    weights = converted["openvino.float32"].with_suffix(".bin").read_bytes()
    graph.with_suffix(".bin").write_bytes(weights[:-200])
    with pytest.raises(MeasureError, match=r"net\.xml"):
        runtimes.get("openvino").open(str(graph), Options())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [Options(threads=0), Options(batch=0), Options(precision="float8")])
def test_impossible_options_are_refused(name: str, options: Options, converted: Mapping[str, Path]) -> None:
    with pytest.raises(MeasureError, match="expected"):
        runtimes.get(name).open(str(converted[f"{name}.float32"]), options)


def test_an_unknown_runtime_is_answered_with_the_known_ones() -> None:
    with pytest.raises(MeasureError, match="onnxruntime, openvino, litert, tensorrt"):
        runtimes.get("tflite")


def test_a_file_with_a_fixed_batch_takes_no_other(small_net: Any, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(small_net.float_onnx)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "two.onnx")
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(MeasureError, match="fixed batch of 2, asked for 1"):
            runtimes.get(name).open(str(tmp_path / "two.onnx"), Options(batch=1))


def test_a_batch_is_open_or_fixed_as_the_file_has_it_and_said(
    small_net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    import onnxruntime

    for name, size in (("n", {"dim_param": "N"}), ("four", {"dim_value": 4})):
        model = onnx.load(small_net.float_onnx)
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(**size))
        onnx.save(model, tmp_path / f"{name}.onnx")
    opened: list[str] = []
    real = onnxruntime.InferenceSession

    def counted(path: str, *others: Any, **named: Any) -> Any:
        opened.append(path)
        return real(path, *others, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    files = {small_net.float_onnx: False, tmp_path / "n.onnx": False, tmp_path / "four.onnx": True}
    for path, static in files.items():
        with closing(runtimes.get("onnxruntime").open(str(path), Options(batch=4))) as session:
            assert session.inputs[0].shape == (4, 3, 16, 16)
            assert session.outputs[0].shape == (4, 5)
            assert session.settings["static_batch"] is static
            got = session.run({"input": small_net.images[:4]})["logits"]
        np.testing.assert_allclose(got, small_net.logits[:4], rtol=1e-4, atol=1e-5)
    assert opened == list(map(str, files))


def test_tensorrt_says_what_is_missing_and_what_it_refuses(small_net: Any, tmp_path: Path) -> None:
    runtime = runtimes.get("tensorrt")
    reason = runtime.missing()
    if reason is None:
        pytest.skip("a GPU with TensorRT is here")
    assert "tensorrt" in reason or "CUDA" in reason or "GPU" in reason
    engine = tmp_path / "net.engine"
    engine.write_bytes(b"ftrt" + bytes(100))
    with pytest.raises(RuntimeMissing):
        runtime.open(str(engine), Options(precision="default"))
    with pytest.raises(MeasureError, match="fixed when it is built"):
        runtime.open(str(engine), Options(precision="float32"))
    with pytest.raises(MeasureError, match="not an engine"):
        runtime.open(str(small_net.float_onnx), Options(precision="default"))


def test_the_devices_loop_answers_every_image_once(converted: Mapping[str, Path], small_net: Any) -> None:
    # The loop doesn't mind the runtime: here one that is installed, with a last batch that isn't full.
    path = str(converted["onnxruntime.float32"])
    with closing(runtimes.get("onnxruntime").open(path, Options(batch=4))) as session:
        logits, times_ms = trt_run.loop(session, small_net.images[:10])
        assert len(times_ms) == 3
        assert min(times_ms) > 0
        np.testing.assert_allclose(logits, small_net.logits[:10], rtol=1e-4, atol=1e-5)
        for wrong in (small_net.images[:0], small_net.images[:4].astype(np.float64), small_net.images[:4, :2]):
            with pytest.raises(MeasureError, match="expected"):
                trt_run.loop(session, wrong)


@pytest.mark.parametrize(
    ("file", "dtype"),
    [("pretrainedResnet.tflite", "float32"), ("pretrainedResnet_quant.tflite", "int8")],
)
def test_published_tflite_files_run(file: str, dtype: str, real_data: Callable[[str], Path]) -> None:
    path = real_data(f"mlperf_tiny/image_classification/{file}")
    with closing(runtimes.get("litert").open(str(path), Options(batch=2))) as session:
        (spec,) = session.inputs
        assert (spec.shape, spec.dtype) == ((2, 32, 32, 3), dtype)
        assert session.outputs[0].shape == (2, 10)
        (scores,) = session.run({spec.name: np.zeros(spec.shape, spec.dtype)}).values()
        np.testing.assert_array_equal(scores[0], scores[1])


def test_a_tflite_file_that_only_takes_its_own_batch(real_data: Callable[[str], Path]) -> None:
    path = str(real_data("tflite_ref/mobilenet_v1_0.25_128_quant.tflite"))
    with closing(runtimes.get("litert").open(path, Options())) as session:
        assert session.inputs[0].dtype == "uint8"
        (scores,) = session.run({session.inputs[0].name: np.zeros((1, 128, 128, 3), np.uint8)}).values()
        assert scores.shape == (1, 1001)
    with pytest.raises(MeasureError, match="batch of 4"):
        runtimes.get("litert").open(path, Options(batch=4))
