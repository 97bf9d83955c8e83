from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgewise.deploy import runtimes
from edgewise.deploy.child import PARENT
from edgewise.deploy.convert import ort, ov, run, trt
from edgewise.deploy.convert import trt_device as device
from edgewise.deploy.convert.__main__ import main
from edgewise.deploy.convert.base import Job, Source, dump_job, parse_job
from edgewise.deploy.parity import sqnr_db
from edgewise.deploy.runtimes import Options
from edgewise.errors import ContractError, ModelError, RuntimeMissing

SHAPE = (3, 16, 16)
INTEGERS = ("onnxruntime.int8", "openvino.int8", "litert.int8")


@pytest.fixture(autouse=True)
def _logs_of_failures_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def source(small_net: Any, **changes: Any) -> Source:
    return dataclasses.replace(
        Source(
            SHAPE,
            5,
            float_onnx=small_net.float_onnx,
            unsigned_onnx=small_net.unsigned_onnx,
            signed_onnx=small_net.signed_onnx,
            half_onnx=small_net.float_onnx,
            model_folder=small_net.model_folder,
            calibration=small_net.calibration,
        ),
        **changes,
    )


def environment(small_net: Any) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(small_net.root)}


# What the files hold


@pytest.mark.parametrize("file", INTEGERS)
def test_int8_files_really_run_in_integers(file: str, reports: Mapping[str, dict[str, Any]]) -> None:
    report = reports[file]
    assert report["integer_ops"] == 4  # three convolutions, one linear
    assert report["float_ops"] == 0
    assert report["integer_share"] == 1.0
    assert report["float_layers"] == []


@pytest.mark.parametrize("converter", [ort, ov])
def test_a_layer_left_in_float_is_told_by_its_name(converter: Any, small_net: Any, tmp_path: Path) -> None:
    model = onnx.load(small_net.unsigned_onnx)
    # The third convolution reads what it read before its quantizers came.
    made = {node.output[0]: node for node in model.graph.node}
    conv = next(node for node in model.graph.node if node.name == "conv3")
    weight = made[conv.input[1]]
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values, scale = stored[weight.input[0]], stored[weight.input[1]]
    plain = values.astype(np.float32) * scale.reshape(-1, 1, 1, 1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(plain.astype(np.float32), "plain"))
    conv.input[1] = "plain"
    if converter is ov:  # without bias OpenVINO keeps the bare name; ONNX Runtime would quantize such a weight itself
        del conv.input[2]
    conv.name = "conv_3"  # as a user may name it, and as OpenVINO numbers what has no name
    onnx.save(model, tmp_path / "mixed.onnx")
    converter.convert(source(small_net, unsigned_onnx=tmp_path / "mixed.onnx"), "int8", tmp_path / "x")
    report = json.loads((tmp_path / "x.report.json").read_text())
    assert (report["integer_ops"], report["float_ops"], report["float_layers"]) == (3, 1, ["conv_3"])


def test_litert_tells_what_it_left_in_float(converted: Mapping[str, Path], small_net: Any) -> None:
    report = json.loads((small_net.root / "converted" / "litert.attending.report.json").read_text())
    assert (report["integer_ops"], report["float_ops"]) == (2, 2)
    assert len(report["float_layers"]) == 2
    assert not {"conv_1", "linear"} & set(report["float_layers"])


@pytest.mark.parametrize("file", ["onnxruntime.float32", "openvino.float32", "openvino.float16", "litert.float16"])
def test_float_files_are_told_from_int8_ones(file: str, reports: Mapping[str, dict[str, Any]]) -> None:
    assert reports[file]["integer_ops"] == 0
    assert reports[file]["float_ops"] == 4


def test_sizes_count_every_file_of_the_model(
    converted: Mapping[str, Path], reports: Mapping[str, dict[str, Any]]
) -> None:
    for name, path in converted.items():
        files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
        assert reports[name]["size_bytes"] == sum(file.stat().st_size for file in files), name


def test_openvinos_slimmed_files_answer_to_the_bit_as_the_whole_ones(
    converted: Mapping[str, Path], small_net: Any, tmp_path: Path
) -> None:
    from edgewise.deploy.runtimes.ov import load_openvino

    openvino = load_openvino()
    for name, graph in {"openvino.float32": small_net.float_onnx, "openvino.int8": small_net.unsigned_onnx}.items():
        whole = tmp_path / f"{name}.xml"
        openvino.save_model(openvino.convert_model(graph), whole, compress_to_fp16=False)
        slimmed = converted[name]
        answers = [
            openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(small_net.images)[0]
            for path in (whole, slimmed)
        ]
        assert np.array_equal(*answers)
        assert slimmed.stat().st_size < 0.6 * whole.stat().st_size


def test_half_weights_are_half_as_large(converted: Mapping[str, Path]) -> None:
    sizes = {name: converted[f"openvino.{name}"].with_suffix(".bin").stat().st_size for name in ("float32", "float16")}
    assert sizes["float16"] < 0.6 * sizes["float32"]


def test_no_file_tells_where_or_by_whom_it_was_made(
    converted: Mapping[str, Path], small_net: Any, traces: tuple[bytes, ...], tmp_path: Path
) -> None:
    bundle = trt.convert(source(small_net), "int8", tmp_path / "bundle").parent
    files = [path for path in (*next(iter(converted.values())).parent.iterdir(), *bundle.rglob("*")) if path.is_file()]
    assert {".onnx", ".xml", ".bin", ".tflite", ".json", ".sh", ".py", ".md"} <= {path.suffix for path in files}
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".npy":  # the fixture's own
            continue
        assert not re.search(rb"\b20[23]\d\.\d", content), path  # a version of OpenVINO
        for trace in (*traces, b"/home/someone", b"small_net_factory", b"conversion_parameters"):
            assert trace not in content, (path, trace)


def test_names_in_litert_files_are_the_modules_names(converted: Mapping[str, Path]) -> None:
    content = converted["litert.float32"].read_bytes()
    assert b"conv1" in content
    assert b"torch.nn" not in content


def test_the_same_bytes_in_another_process(converted: Mapping[str, Path], small_net: Any, tmp_path: Path) -> None:
    for runtime, precision in (("onnxruntime", "int8"), ("openvino", "int8"), ("litert", "int8")):
        job = Job(runtime, precision, source(small_net), tmp_path / f"{runtime}.{precision}", timeout_s=300)
        made = run.convert_in_process(job)
        first = converted[f"{runtime}.{precision}"]
        assert made.name == first.name
        assert made.read_bytes() == first.read_bytes(), runtime
        if made.suffix == ".xml":
            assert made.with_suffix(".bin").read_bytes() == first.with_suffix(".bin").read_bytes()


# What is refused


def test_onnxruntime_refuses_float16(small_net: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no gain"):
        ort.convert(source(small_net), "float16", tmp_path / "x")


@pytest.mark.parametrize("converter", [ort, ov])
def test_an_int8_graph_that_would_run_in_float_is_an_error(converter: Any, small_net: Any, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="all 4 arithmetic"):
        converter.convert(source(small_net, unsigned_onnx=small_net.float_onnx), "int8", tmp_path / "x")


@pytest.mark.parametrize("converter", [ort, ov, trt])
def test_a_missing_start_is_named(converter: Any, small_net: Any, tmp_path: Path) -> None:
    nothing = source(small_net, float_onnx=None, unsigned_onnx=tmp_path / "gone.onnx", signed_onnx=None)
    with pytest.raises(ModelError, match=r"starts from an? .*ONNX graph"):
        converter.convert(nothing, "float32", tmp_path / "x")
    with pytest.raises(ModelError):
        converter.convert(nothing, "int8", tmp_path / "x")


@pytest.mark.parametrize("converter", [ort, ov])
def test_a_graph_the_runtime_cannot_read_is_a_model_error(converter: Any, small_net: Any, tmp_path: Path) -> None:
    model = onnx.load(small_net.float_onnx)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match="refuses the graph"):
        converter.convert(source(small_net, float_onnx=tmp_path / "bad.onnx"), "float32", tmp_path / "x")


# In a process of its own


def test_jobs_survive_json(small_net: Any, tmp_path: Path) -> None:
    job = Job("litert", "int8", source(small_net), tmp_path / "a.b", timeout_s=5)
    assert parse_job(dump_job(job)) == job
    for text in ("", "[]", "{}", '{"source": {}}', dump_job(job).replace('"precision"', '"precise"')):
        with pytest.raises(ModelError, match="not a conversion job"):
            parse_job(text)


def test_an_error_in_the_process_comes_back_as_itself(small_net: Any, tmp_path: Path) -> None:
    job = Job("onnxruntime", "int8", source(small_net, unsigned_onnx=small_net.float_onnx), tmp_path / "x")
    with pytest.raises(ContractError, match="in float") as caught:
        run.convert_in_process(job)
    assert "log.txt" in caught.value.hint


def test_a_crash_is_told_by_its_last_line(small_net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_onnx(tmp_path, "raise RuntimeError('a broken library')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match="RuntimeError: a broken library") as caught:
        run.convert_in_process(Job("onnxruntime", "float32", source(small_net), tmp_path / "x"))
    log = Path(caught.value.hint.split(": ", 1)[1])
    assert "Traceback" in log.read_text()


def fake_onnx(folder: Path, code: str) -> None:
    """A module that the conversion imports, and that does something else."""
    (folder / "onnx.py").write_text(code)


def test_an_answer_that_is_not_whole_is_none(small_net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a full disk would leave it.
    fake_onnx(tmp_path, "import os, sys\nopen(sys.argv[2], 'w').write('{\"pa')\nos._exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match="failed with code 0") as caught:
        run.convert_in_process(Job("onnxruntime", "float32", source(small_net), tmp_path / "x"))
    assert "log.txt" in caught.value.hint


@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH came with Python 3.11")
def test_the_current_directory_hides_no_library(
    small_net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_onnx(tmp_path, "raise RuntimeError('not this one')\n")
    monkeypatch.chdir(tmp_path)
    assert run.convert_in_process(Job("onnxruntime", "float32", source(small_net), tmp_path / "x")).exists()


def test_what_a_failed_conversion_started_ends_with_it(
    small_net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    code = "import subprocess, sys\n"
    code += f"open({str(started)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\nsys.exit(3)\n"
    fake_onnx(tmp_path, code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match="failed with code 3"):
        run.convert_in_process(Job("onnxruntime", "float32", source(small_net), tmp_path / "x"))
    pid = int(started.read_text())
    end = time.monotonic() + 10
    while _alive(pid):
        assert time.monotonic() < end
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel to be ended with its parent")
def test_a_conversion_whose_parent_is_gone_already_makes_nothing(small_net: Any, tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text(dump_job(Job("onnxruntime", "float32", source(small_net), tmp_path / "x")))
    command = [sys.executable, "-m", "edgewise.deploy.convert", str(job)]
    for parent, made in (("1", False), (str(os.getpid()), True)):
        settings = {**os.environ, PARENT: parent}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == made, done.stderr
        assert (tmp_path / "x.onnx").exists() == made


def test_a_killed_process_is_told_by_its_signal(
    small_net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_onnx(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match="SIGKILL"):
        run.convert_in_process(Job("onnxruntime", "float32", source(small_net), tmp_path / "x"))


def test_a_conversion_that_takes_too_long_is_stopped(small_net: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="longer than"):
        run.convert_in_process(Job("openvino", "float32", source(small_net), tmp_path / "x", timeout_s=0.05))


def test_a_missing_runtime_is_told_before_anything_starts(
    small_net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(run.NEEDED, "litert", (("no_such_package",), "litert"))
    with pytest.raises(RuntimeMissing, match="no_such_package") as caught:
        run.convert_in_process(Job("litert", "int8", source(small_net), tmp_path / "x"))
    assert "edgewise[litert]" in caught.value.hint


def test_one_job_from_the_command_line(small_net: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.json").write_text(dump_job(Job("onnxruntime", "float32", source(small_net), tmp_path / "x")))
    assert main([str(tmp_path / "job.json")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "x.onnx")
    assert main([]) == 2
    assert main([str(tmp_path / "gone.json")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_litert_says_what_is_wrong_with_calibration(small_net: Any, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from edgewise.deploy.convert import litert; from edgewise.deploy.convert.base import Source\n"
        "from edgewise.errors import ModelError\n"
        "model, bad, out = map(Path, sys.argv[1:])\n"
        "for calibration in (None, bad):\n"
        "    try: litert.convert(Source((3, 16, 16), 5, model_folder=model, calibration=calibration), 'int8', out)\n"
        "    except ModelError as error: print(error.message)\n"
    )
    np.save(tmp_path / "bad.npy", np.zeros((2, 16, 16, 3), np.float32))
    command = [sys.executable, "-c", code, str(small_net.model_folder), str(tmp_path / "bad.npy"), str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(small_net), check=True)
    none, wrong = done.stdout.splitlines()
    assert "calibration samples" in none
    assert "(N, 3, 16, 16)" in wrong
    assert "(2, 16, 16, 3)" in wrong


# Quantizers come off, weights stay on their grid


def test_stripping_leaves_weights_as_the_quantizers_see_them(small_net: Any) -> None:
    import torch

    from edgewise.compress.quantization.insert import insert_quantizers
    from edgewise.compress.quantization.strip import learned_ranges, strip_quantizers
    from edgewise.compress.saved import load_model

    plain, _ = load_model(small_net.model_folder)
    quantized = insert_quantizers(plain, small_net.images[:8])
    x = torch.from_numpy(small_net.images)
    with torch.no_grad():
        before = quantized(x).numpy()
    names = {name for name, _ in quantized.named_parameters() if "__nncf" not in name}
    steps = {entry.values.shape: entry.step for entry in learned_ranges(copy.deepcopy(quantized), small_net.images[:1])}
    stripped = strip_quantizers(quantized, SHAPE)
    assert {name for name, _ in stripped.named_parameters()} == names
    assert not any("nncf" in name for name, _ in stripped.named_modules())
    assert not any("nncf" in key for key in stripped.state_dict())
    for layer in ("conv1", "conv2", "conv3", "linear"):
        weight = stripped.get_submodule(layer).weight.detach().numpy()
        codes = weight / steps[weight.shape]
        assert np.abs(codes - codes.round()).max() < 1e-3, layer
        assert codes.round().min() >= -128
        assert codes.round().max() <= 127
    with torch.no_grad():
        after = stripped(x).numpy()
    noise = np.square(after - before).sum() / np.square(before).sum()
    assert 0 < noise < 0.01  # the activations' rounding is gone, and that is all
    assert strip_quantizers(stripped, SHAPE) is stripped


def test_litert_keeps_the_ranges_that_were_learned(converted: Mapping[str, Path], small_net: Any) -> None:
    folder = small_net.root / "converted"
    expected = np.load(folder / "learned.npy")
    report = json.loads((folder / "litert.learned.report.json").read_text())
    assert report["tensors_with_learned_ranges"] >= 8  # four weights, and the activations in front of them

    def answer(path: Path) -> np.ndarray:
        with closing(runtimes.get("litert").open(str(path), Options(batch=len(small_net.images)))) as session:
            return session.run({"input": small_net.images})["logits"]

    learned = sqnr_db(expected, answer(folder / "litert.learned.tflite"))
    measured = sqnr_db(expected, answer(converted["litert.int8"]))
    assert learned > 25
    assert learned > measured + 6


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_litert_files_with_reshapes_take_any_batch(
    precision: str, converted: Mapping[str, Path], small_net: Any
) -> None:
    path = small_net.root / "converted" / f"litert.grey.{precision}.tflite"
    images = small_net.images[:6, :1]
    found = {}
    for batch in (1, 2, 6):
        with closing(runtimes.get("litert").open(str(path), Options(batch=batch))) as session:
            parts = np.split(images, len(images) // batch)
            found[batch] = np.concatenate([session.run({"input": part})["logits"].copy() for part in parts])
    assert np.ptp(found[1], axis=0).min() > 0.01  # each image has an answer of its own
    for batch in (2, 6):
        np.testing.assert_allclose(found[batch], found[1], rtol=0, atol=1e-6)


# TensorRT's bundle


def test_the_bundle_says_what_it_is_and_that_no_engine_was_built(small_net: Any, tmp_path: Path) -> None:
    contract = tmp_path / "contract.json"
    contract.write_text('{"findings": []}')
    path = trt.convert(source(small_net, contract=contract), "int8", tmp_path / "small.int8")
    manifest = json.loads(path.read_text())
    assert path == tmp_path / "small.int8.trt" / "manifest.json"
    assert manifest["built"] is False
    assert manifest["engine"] is None
    assert "Run build.sh on the device" in manifest["reason"]
    assert manifest["main"] == "model.int8.onnx"
    assert manifest["input"] == {"name": "input", "dtype": "float32", "shape": [None, 3, 16, 16]}
    assert manifest["contract"] == {"findings": []}
    assert set(manifest["files"]) == {"model.int8.onnx", "model.fp16.onnx"}
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256((path.parent / name).read_bytes()).hexdigest()
        assert entry["opset"] == 20
    again = trt.convert(source(small_net, contract=contract), "int8", tmp_path / "small.int8")
    assert json.loads(again.read_text()) == manifest


def test_the_bundles_runner_stands_alone(small_net: Any, tmp_path: Path) -> None:
    folder = trt.convert(source(small_net), "int8", tmp_path / "small.int8").parent
    runner = folder / "runner"
    code = (
        "import sys; from pathlib import Path; from edgewise.deploy import runtimes\n"
        "import edgewise.errors, edgewise.deploy.runtimes.trt as trt\n"
        "own = [m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'edgewise']\n"
        "assert all(Path(f).is_relative_to(Path(sys.argv[1])) for f in own), own\n"
        "assert runtimes.get('tensorrt') is trt\n"
        "print(trt.missing())"
    )
    # Without site-packages, so without the installed edgewise: numpy alone is put back.
    here = tmp_path / "device"
    here.mkdir()
    (here / "numpy").symlink_to(Path(np.__file__).parent)
    for libraries in Path(np.__file__).parent.parent.glob("numpy.libs"):
        (here / "numpy.libs").symlink_to(libraries)
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(runner), str(here)])}
    bare = [sys.executable, "-S", "-B"]
    done = subprocess.run([*bare, "-c", code, str(runner)], capture_output=True, text=True, env=settings, check=False)
    assert done.returncode == 0, done.stderr
    assert "tensorrt can't be imported" in done.stdout
    # The commands of its README, as far as they go without a GPU.
    page = (folder / "README.md").read_text()
    assert "python3 runner/run.py model.int8.engine images.npy logits.npy" in page
    (folder / "model.int8.engine").write_bytes(b"ftrt" + bytes(64))
    np.save(folder / "images.npy", small_net.images)
    settings["PYTHONPATH"] = str(here)
    command = [*bare, "runner/run.py", "model.int8.engine", "images.npy", "logits.npy"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=settings, check=False)
    assert done.returncode == 2
    assert "tensorrt can't be imported" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_bundle_every_time(small_net: Any, tmp_path: Path) -> None:
    first, second = (trt.convert(source(small_net), "int8", tmp_path / name / "net").parent for name in "ab")
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert {"run.py", "cudart.py", "errors.py"} <= {name.name for name in names}
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_bundle_refuses_uint8_and_new_opsets(small_net: Any, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="no uint8"):
        trt.convert(source(small_net, signed_onnx=small_net.unsigned_onnx), "int8", tmp_path / "x")
    model = onnx.load(small_net.float_onnx)
    model.opset_import[0].version = 21
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(ModelError, match="9 to 20"):
        trt.convert(source(small_net, float_onnx=tmp_path / "new.onnx"), "float32", tmp_path / "x")


@pytest.mark.parametrize(
    ("version", "code", "timing"),
    [
        ("100300", 0, []),
        ("101602", 0, []),
        ("110000", 0, ["--noCudaGraph", "--noSpinWait", "--includeDataTransfers"]),
        ("100200", 2, []),
        ("8601", 2, []),
    ],
)
def test_the_build_script_tells_each_version_the_same_thing(
    version: str, code: int, timing: list[str], small_net: Any, tmp_path: Path
) -> None:
    # A folder with a space, and a trtexec that only writes down how it was called.
    folder = trt.convert(source(small_net), "int8", tmp_path / "a folder" / "small").parent
    calls = tmp_path / "calls"
    fake = tmp_path / "trtexec"
    fake.write_text(
        "#!/bin/sh\n"
        f"if [ \"$1\" = --help ]; then echo '&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] [b1]'; exit 0; fi\n"
        f"printf '%s\\n' \"$*\" >> '{calls}'\n"
    )
    fake.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(folder / "build.sh")],
        env={**os.environ, "TRTEXEC": str(fake), "BATCH": "4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code:
        assert "10.3 or later" in done.stderr
        return
    builds = [line.split() for line in calls.read_text().splitlines() if "--onnx" in line]
    times = [line.split() for line in calls.read_text().splitlines() if "--loadEngine" in line]
    assert [line[0] for line in builds] == ["--onnx=model.fp16.onnx", "--onnx=model.int8.onnx"]
    for line in builds:
        assert "--stronglyTyped" in line
        assert "--optShapes=input:4x3x16x16" in line
        assert not {"--fp16", "--int8", "--best"} & set(line)
    for line in times:
        assert [flag for flag in line if flag in ("--noCudaGraph", "--noSpinWait", "--includeDataTransfers")] == timing


@pytest.mark.parametrize("batch", ["0", "-1", "2x", "1;touch evil", "$(touch evil)"])
def test_the_build_script_takes_nothing_but_numbers(batch: str, tmp_path: Path) -> None:
    script = tmp_path / "build.sh"
    script.write_text(device.BUILD_SH)
    done = subprocess.run(
        ["/bin/sh", str(script)], env={**os.environ, "BATCH": batch}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "whole number" in done.stderr
    assert not list(tmp_path.glob("evil*"))
