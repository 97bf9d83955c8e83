"""Golden values of transcripts; the transcripts' README says where their formats come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.bench.agent.jetson import nvpmodel
from edgewise.bench.parsers.benchmark_model import benchmark_model
from edgewise.bench.parsers.tegrastats import tegrastats
from edgewise.bench.parsers.trtexec import trtexec_log, trtexec_times, trtexec_version
from edgewise.errors import MeasureError

TRANSCRIPTS = Path(__file__).parent / "transcripts"


def said(name: str) -> str:
    return (TRANSCRIPTS / name).read_text(encoding="utf-8")


def test_benchmark_model_of_2026() -> None:
    found = benchmark_model(said("benchmark_model_2026.txt"))
    assert (found.init_us, found.first_us, found.warmup_us, found.inference_us) == (18214, 11390, 7044.11, 6981.25)
    assert (found.count, found.min_us, found.max_us, found.std_us) == (143, 6688, 8120, 187)  # not the warm-up's 71
    assert (found.p5_us, found.median_us, found.p95_us) == (6751, 6950, 7301)
    assert (found.init_mb, found.overall_mb) == (7.23438, 14.0508)
    assert (found.threads, found.delegate, found.delegated) == (4, "TfLiteXNNPackDelegate", (66, 70))
    assert found.graph is not None
    assert found.graph.endswith("/net.tflite")


def test_benchmark_model_of_2020_tells_less() -> None:
    found = benchmark_model(said("benchmark_model_2020.txt"))
    assert (found.init_us, found.first_us, found.warmup_us, found.inference_us) == (1250, None, 2380.5, 2251.8)
    assert (found.count, found.median_us, found.overall_mb, found.threads) == (444, None, None, None)


def test_benchmark_model_through_logcat() -> None:
    found = benchmark_model(said("benchmark_model_logcat.txt"))
    assert (found.inference_us, found.warmup_us, found.count, found.p95_us) == (256000, 1.0203e6, 30, 303000)
    assert (found.threads, found.init_mb, found.overall_mb) == (2, 65.5, 90.25)


def test_benchmark_model_that_failed_says_its_last_words() -> None:
    with pytest.raises(MeasureError, match=r"(?s)found none.*Failed to mmap model.*Benchmarking failed"):
        benchmark_model(said("benchmark_model_failed.txt"))
    with pytest.raises(MeasureError, match="said nothing"):
        benchmark_model("")


@pytest.mark.parametrize("bad", ["nan", "-1", "inf", "1e999", "0", "six", "1e400", "٣٤"])
def test_an_impossible_average_is_an_error(bad: str) -> None:
    text = said("benchmark_model_2026.txt").replace("Inference (avg): 6981.25", f"Inference (avg): {bad}")
    with pytest.raises(MeasureError, match="expected a"):
        benchmark_model(text)


def test_an_impossible_range_is_an_error() -> None:
    with pytest.raises(MeasureError, match="above its maximum"):
        benchmark_model(said("benchmark_model_2026.txt").replace("min=6688", "min=9999"))


def test_trtexec_log() -> None:
    log = trtexec_log(said("trtexec_10.3.txt"))
    assert log.version == (10, 3, 0)
    assert log.passed
    assert log.settings == {"streams": 1, "data_transfers": True, "spin_wait": False, "cuda_graph": False}
    assert (log.qps, log.unstable_percent) == (655.321, 12.5)
    with pytest.raises(MeasureError, match="no version"):
        trtexec_log("Segmentation fault")


@pytest.mark.parametrize(
    ("digits", "version"),
    [("8502", (8, 5, 2)), ("8601", (8, 6, 1)), ("100300", (10, 3, 0)), ("101600", (10, 16, 0)), ("110000", (11, 0, 0))],
)
def test_trtexec_versions(digits: str, version: tuple[int, int, int]) -> None:
    assert trtexec_version(digits) == version


def test_trtexec_times_come_in_order_of_their_start() -> None:
    queries = trtexec_times(said("trtexec_times.json"))
    assert [query.start_ms for query in queries] == [500.24, 501.74, 503.24]
    assert [query.latency_ms for query in queries] == [1.45, 1.45, 1.47]
    assert queries[2].compute_ms == 1.42


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],  # cut off
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "[1]",
        lambda text: text.replace('"latencyMs" : 1.47', '"latencyMs" : -1'),
        lambda text: text.replace('"latencyMs" : 1.47', '"latencyMs" : 0'),
        lambda text: text.replace('"latencyMs" : 1.47', '"latencyMs" : NaN'),
        lambda text: text.replace('"latencyMs" : 1.47', '"latencyMs" : 1e999'),
        lambda text: text.replace('"latencyMs" : 1.47', '"latencyMs" : true'),
        lambda text: text.replace('"latencyMs" : 1.47', '"other" : 1'),
        lambda text: "[" * 100000,
    ],
)
def test_trtexec_times_that_cannot_be_are_errors(change: object) -> None:
    assert callable(change)
    with pytest.raises(MeasureError):
        trtexec_times(change(said("trtexec_times.json")))


def test_tegrastats_in_all_its_formats() -> None:
    xavier, orin, thor = tegrastats(said("tegrastats.txt"))
    assert (xavier.ram_bytes, xavier.swap_bytes) == (2500 * 2**20, 400 * 2**20)
    assert xavier.cpu_percent == (3, 7, 1, 0, None, None)
    assert xavier.cpu_mhz == (1904, 1906, 1905, 1907, None, None)
    assert (xavier.gpu_percent, xavier.gpu_mhz) == (10, (510,))
    assert xavier.power_w == {"VDD_IN": 5.1, "VDD_CPU_GPU_CV": 0.7, "VDD_SOC": 1.1}  # without the unit
    assert (orin.gpu_percent, orin.gpu_mhz) == (14, (407, 408))
    assert orin.temp_c == {"CPU": 77.281, "Tboard": 62.0, "GPU": 69.125, "tj": 77.281}  # CV0 is off
    assert orin.power_w == {"VDD_GPU_SOC": 3.15, "VDD_CPU_CV": 14.0, "VIN_SYS_5V0": 5.0, "VDDQ_VDD2_1V8AO": 1.09}
    assert (thor.gpu_percent, thor.gpu_mhz) == (None, (1000, 1001, 1002))
    assert thor.power_w == {"VDD_GPU": 2.4, "VDD_CPU_SOC_MSS": 1.6, "VIN_SYS_5V0": 4.7}
    assert tegrastats("RAM is not given\n") == ()


def test_nvpmodel() -> None:
    assert nvpmodel(said("nvpmodel_q.txt")) == {"id": 2, "name": "MAXN_SUPER"}
    assert nvpmodel(said("nvpmodel_verbose.txt")) == {"id": 1, "name": "25W"}
    assert nvpmodel("NV Power Mode: MODE_15W") == {"id": None, "name": "MODE_15W"}
    assert nvpmodel("nvpmodel: not found") is None
