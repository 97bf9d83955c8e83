"""Files from anywhere: which runtime they belong to, and what is told of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from edgewise.bench.config import Bench
from edgewise.bench_files import RUNTIMES, _files, measure_files, summary
from edgewise.deploy.runtimes import MODULES, get
from edgewise.errors import MeasureError, RuntimeMissing


def test_every_runtime_has_its_suffix() -> None:
    assert sorted(RUNTIMES.values()) == sorted(MODULES)
    # OpenVINO, LiteRT and the others say themselves what their files are called.
    assert {get(runtime).SUFFIX: runtime for runtime in RUNTIMES.values()} == RUNTIMES


def test_size_counts_all_parts_and_the_hash_is_of_the_main_file(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    main = tmp_path / "net.xml"
    main.write_bytes(b"<net/>")
    with pytest.raises(MeasureError, match="weights are missing"):
        _files([main])
    main.with_suffix(".bin").write_bytes(b"12345")
    (file,) = _files([main])
    assert (file.size_bytes, file.sha256) == (11, hashlib.sha256(b"<net/>").hexdigest())


def test_an_engine_needs_its_runtime(tmp_path: Path) -> None:
    if get("tensorrt").missing() is None:
        pytest.skip("TensorRT works here")
    engine = tmp_path / "net.engine"
    engine.write_bytes(b"x")
    with pytest.raises(RuntimeMissing, match="tensorrt"):
        measure_files([engine], None, Bench(), None)


def test_a_file_is_measured_on_random_inputs(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    results = measure_files([onnx_file("a.onnx")], None, Bench(), tmp_path / "out")
    (row,) = summary(results)["files"]
    assert (row["name"], row["runtime"], row["error"]) == ("a.onnx", "onnxruntime", None)
    assert 3 <= row["launches"] <= 6
    assert row["p50_ms"]["low"] <= row["p50_ms"]["value"] <= row["p50_ms"]["high"]


def test_a_broken_file_stops_no_other(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    """Nobody can ask it for the shape of its input, either."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    (tmp_path / "broken.onnx").write_bytes(b"foo")
    quick = Bench(launches=1, max_launches=1, blocks=2, block_ms=2, warmup_s=0, sample_hz=0)
    results = measure_files([tmp_path / "broken.onnx", onnx_file("a.onnx")], None, quick, tmp_path / "out")
    rows = {row["name"]: row for row in summary(results)["files"]}
    assert "can't open it" in rows["broken.onnx"]["error"]
    assert rows["a.onnx"]["error"] is None
    assert rows["a.onnx"]["launches"] == 1
    with pytest.raises(MeasureError, match="can't open it"):
        measure_files([tmp_path / "broken.onnx"], None, quick, None)
