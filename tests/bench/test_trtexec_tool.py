"""A ``trtexec`` that is a real program: it answers as its version would, and writes times that are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgewise.bench.jetson import Settings, blocks_of, measure_engines, trtexec_argv
from edgewise.bench.parsers.trtexec import Query
from edgewise.bench_tools import bench_engines, show
from edgewise.errors import MeasureError, RuntimeMissing

TOOL = """#!{python} -SE
import json, pathlib, sys

version, quirk = {version}, {quirk!r}
mark = "TensorRT.trtexec [TensorRT v%d] # trtexec" % version
print("&&&& RUNNING", mark)
given = dict((word.partition("=")[0], word.partition("=")[2]) for word in sys.argv[1:])
if "--help" in given:
    sys.exit(0)
known = {{"--useCudaGraph", "--useSpinWait", "--noDataTransfers"}} if version < 110000 else {{
    "--noCudaGraph", "--noSpinWait", "--includeDataTransfers"}}
known |= {{"--loadEngine", "--exportTimes", "--duration", "--warmUp", "--iterations", "--infStreams", "--percentile"}}
if set(given) - known:
    print("[E] Unknown option:", *sorted(set(given) - known))
    print("&&&& FAILED", mark)
    sys.exit(1)
new = version >= 110000
graph = "--noCudaGraph" not in given if new else "--useCudaGraph" in given
spin = "--noSpinWait" not in given if new else "--useSpinWait" in given
copies = "--includeDataTransfers" in given if new else "--noDataTransfers" not in given
word = lambda on: "Enabled" if on else "Disabled"
print("[11/20/2026-10:00:00] [I] Inference Streams: " + given["--infStreams"])
print("[11/20/2026-10:00:00] [I] Data transfers: " + word(copies))
print("[11/20/2026-10:00:00] [I] Spin-wait: " + word(spin))
print("[11/20/2026-10:00:00] [I] CUDA Graph: " + word(graph != (quirk == "graph")))
if "/broken.engine" in given["--loadEngine"]:
    print("[E] Engine could not be created from file")
    print("&&&& FAILED", mark)
    sys.exit(1)
times = [{{"startComputeMs": 500 + 2 * i, "latencyMs": 1 + i % 10 / 100, "computeMs": 1.0}} for i in range(600)]
if quirk == "negative":
    times[3]["latencyMs"] = -1
if quirk != "mute":
    pathlib.Path(given["--exportTimes"]).write_text(json.dumps(times))
print("[11/20/2026-10:00:03] [I] Throughput: 500.5 qps")
if quirk == "crash":
    sys.exit(139)
print("&&&& PASSED", mark)
"""


@pytest.fixture
def trtexec(tmp_path: Path) -> Callable[..., str]:
    def make(version: int = 100300, quirk: str = "") -> str:
        path = tmp_path / f"trtexec{version}{quirk}"
        path.write_text(TOOL.format(python=sys.executable, version=version, quirk=quirk))
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "net.engine"
    path.write_bytes(b"engine")
    return path


@pytest.mark.parametrize("version", [100300, 101600, 110000])
@pytest.mark.parametrize("on", [True, False])
def test_settings_are_said_by_version_and_read_back(
    version: int, on: bool, trtexec: Callable[..., str], engine: Path, tmp_path: Path
) -> None:
    asked = Settings(cuda_graph=on, spin_wait=on, data_transfers=on)
    (result,) = measure_engines([engine], trtexec(version), tmp_path / "w", settings=asked, launches=2)
    assert result.settings == {"cuda_graph": on, "spin_wait": on, "data_transfers": on, "streams": 1}
    assert result.flags == ()
    assert result.version == (version // 10000, version // 100 % 100, 0)
    assert result.qps == (500.5, 500.5)


def test_percentiles_come_from_the_raw_times(trtexec: Callable[..., str], engine: Path, tmp_path: Path) -> None:
    (result,) = measure_engines([engine], trtexec(), tmp_path / "w", launches=2)
    latencies = np.array([1 + i % 10 / 100 for i in range(600)])
    assert sum(len(block) for launch in result.launches for block in launch) == 1200
    p50, p99 = result.percentiles_ms((0.5, 0.99))
    assert p50 is not None
    assert p99 is not None
    assert p50.value == pytest.approx(np.sort(latencies)[299])
    assert p99.value == pytest.approx(1.09)
    assert {len(block) for launch in result.launches for block in launch} == {25}  # 50 ms of one every 2 ms


@pytest.mark.parametrize(
    ("quirk", "words"),
    [("negative", "expected latencyMs from 0"), ("mute", "wrote no times"), ("crash", "exit status 139")],
)
def test_a_tool_gone_wrong_is_an_error(
    quirk: str, words: str, trtexec: Callable[..., str], engine: Path, tmp_path: Path
) -> None:
    with pytest.raises(MeasureError, match=words):
        measure_engines([engine], trtexec(quirk=quirk), tmp_path / "w")


def test_a_setting_that_was_not_honoured_is_flagged(trtexec: Callable[..., str], engine: Path, tmp_path: Path) -> None:
    (result,) = measure_engines([engine], trtexec(quirk="graph"), tmp_path / "w", launches=2)
    assert result.flags == ("setting_not_honoured",)


def test_one_broken_engine_does_not_lose_the_others(trtexec: Callable[..., str], engine: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.engine"
    broken.write_bytes(b"x")
    good, bad = measure_engines([engine, broken], trtexec(), tmp_path / "w", launches=1)
    assert good.flags == ("single_launch",)
    assert bad.launches == ()
    assert "could not be created" in (bad.error or "")
    assert bad.percentiles_ms() == [None, None, None]


def test_too_old_or_missing_is_refused(trtexec: Callable[..., str], engine: Path, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"10\.3\.0 or newer, got 8\.6\.1"):
        measure_engines([engine], trtexec(8601), tmp_path / "w")
    with pytest.raises(RuntimeMissing, match="no such tool"):
        measure_engines([engine], str(tmp_path / "none"), tmp_path / "w")
    with pytest.raises(MeasureError, match="no version"):
        measure_engines([engine], "/bin/echo", tmp_path / "w")


def test_the_command_line_differs_by_version() -> None:
    old = trtexec_argv("t", (10, 16, 0), Path("e"), Path("x"), Settings(cuda_graph=True))
    new = trtexec_argv("t", (11, 0, 0), Path("e"), Path("x"), Settings(cuda_graph=True))
    assert "--useCudaGraph" in old
    assert {"--noSpinWait", "--includeDataTransfers"} & set(old) == set()
    assert {"--noSpinWait", "--includeDataTransfers"} <= set(new)
    assert {"--noCudaGraph", "--useCudaGraph"} & set(new) == set()  # on is its default there


def test_blocks_are_stretches_of_time() -> None:
    queries = [Query(start, 1.5, 1.0) for start in (10.0, 30.0, 59.9, 60.0, 200.0)]
    assert [len(block) for block in blocks_of(queries, 50.0)] == [3, 1, 1]


def test_the_table_of_the_command_line(
    trtexec: Callable[..., str], engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    table = bench_engines([engine], trtexec(110000), settings=Settings(), launches=2, out=out, tick=lambda *about: None)
    (row,) = table["files"]
    assert (row["version"], row["runtime"], row["launches"]) == ("11.0.0", "tensorrt", 2)
    assert row["p50_ms"]["low"] <= row["p50_ms"]["value"] <= row["p50_ms"]["high"]
    assert json.loads((out / "tools.json").read_text())["files"] == table["files"]
    show(table)
    assert "net.engine" in capsys.readouterr().out
