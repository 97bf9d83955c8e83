"""An ``adb`` that is a real program and plays a phone: its files lie in a folder, its tool prints a transcript."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from edgewise.bench.devices.adb import FOLDER, Adb, serial_of, tool_argv
from edgewise.bench.devices.base import open_device
from edgewise.bench.phone import mean_of, measure_on_phone
from edgewise.bench_tools import bench_phone
from edgewise.errors import DeviceError, MeasureError

TRANSCRIPTS = Path(__file__).parent / "transcripts"

# Android's shell is played by this machine's own, with what toybox has in front of the PATH.
ADB = """#!{python} -SE
import json, os, pathlib, shutil, subprocess, sys

phone = pathlib.Path({phone!r})
state = json.loads((phone / "state.json").read_text())
argv = sys.argv[1:]
with (phone / "calls.jsonl").open("a") as log:
    log.write(json.dumps(argv) + "\\n")
assert argv[:2] == ["-s", "emulator-5554"], argv
argv = argv[2:]
if state.get("says"):
    print(state["says"])
    sys.exit(1)
if argv == ["get-state"]:
    print("device")
elif argv == ["features"]:
    print("cmd,stat_v2,shell_v2" if state["v2"] else "cmd")
elif argv[0] == "push":
    if state.get("full"):
        print("adb: error: failed to copy: remote couldn't create file: No space left on device")
        sys.exit(1)
    data = pathlib.Path(argv[1]).read_bytes()
    (phone / argv[2].lstrip("/")).write_bytes(data[:-1] if state.get("damaged") else data)
elif argv[0] == "shell":
    assert len(argv) == 2, argv
    line = argv[1].replace("/data/local/tmp", str(phone / "data/local/tmp"))
    env = dict(os.environ, PATH=str(phone / "bin") + ":" + os.environ["PATH"])
    done = subprocess.run(["sh", "-c", line], env=env, stdin=subprocess.DEVNULL)
    sys.exit(done.returncode if state["v2"] else 0)
else:
    sys.exit("unknown: " + repr(argv))
"""

TOOL = """#!/bin/sh
echo "$@" >> {phone}/tool.txt
n=$(wc -l < {phone}/tool.txt)
case "$*" in
  */broken.tflite*) cat {transcripts}/benchmark_model_failed.txt; exit 1;;
  */slow.tflite*) exec sleep 30;;
esac
sed "s/Inference (avg): 6981.25/Inference (avg): $((7000 + 10 * n))/" {transcripts}/benchmark_model_2026.txt
"""


class Phone:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data/local/tmp").mkdir(parents=True)
        (folder / "bin").mkdir()
        self._tool("getprop", "[ro.product.model]: [Pixel 0]\n[ro.build.version.release]: [16]\n[ro.soc.model]: [X1]\n")
        self.dumpsys()
        self.adb = folder / "adb"
        self.adb.write_text(ADB.format(python=sys.executable, phone=str(folder)))
        self.adb.chmod(0o755)
        self.set()

    def set(self, **state: Any) -> None:
        (self.folder / "state.json").write_text(json.dumps({"v2": True, **state}))

    def dumpsys(self, status: int = 5, level: int = 100, thermal: int = 0) -> None:
        text = f"  level: {level}\n  status: {status}\n  temperature: 312\nThermal Status: {thermal}\n"
        self._tool("dumpsys", text)

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def tool_calls(self) -> list[str]:
        return (self.folder / "tool.txt").read_text().splitlines()

    def _tool(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
        path.chmod(0o755)

    def open(self) -> Adb:
        return Adb("emulator-5554", str(self.adb))


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    return Phone(tmp_path / "phone")


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "benchmark_model"
    path.write_text(TOOL.format(phone=tmp_path / "phone", transcripts=TRANSCRIPTS))
    path.chmod(0o755)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str = "net.tflite") -> Path:
        path = tmp_path / name
        path.write_bytes(b"TFL3" + name.encode())
        return path

    return make


@pytest.mark.parametrize("v2", [True, False])
def test_files_are_measured_in_turns_and_averaged_over_launches(
    v2: bool, phone: Phone, binary: Path, model: Callable[[str], Path]
) -> None:
    phone.set(v2=v2)
    files = [model("a b.tflite"), model("$(touch pwned).tflite")]
    found = measure_on_phone(files, phone.open(), binary, threads=4, launches=4, mask="1")
    calls = phone.tool_calls()
    assert len(calls) == 8
    assert all("--num_threads=4" in call and "--num_runs=50" in call for call in calls)
    assert not list(phone.folder.rglob("pwned"))
    for result, name in zip(found.results, ("a-b", "touch-pwned"), strict=True):
        expected = [7000 + 10 * (place + 1) for place, call in enumerate(calls) if name in call]
        assert [launch.inference_us for launch in result.launches] == expected
        logs = np.log(np.array(expected) / 1000)
        low, high = np.exp(student.interval(0.95, 3, logs.mean(), logs.std(ddof=1) / 2))
        mean = result.mean_ms()
        assert mean is not None
        assert (mean.low, mean.high) == (pytest.approx(low), pytest.approx(high))
        assert result.percentile_ms("median") == 6.95
        assert result.percentile_ms("p95") == 7.301  # 143 runs are enough for it
        assert result.flags == ()
    # Each round has both, in an order that is drawn.
    rounds = [{name for name in ("a-b", "touch-pwned") if name in "".join(calls[i : i + 2])} for i in range(0, 8, 2)]
    assert rounds == [{"a-b", "touch-pwned"}] * 4
    shell = [call[3] for call in phone.calls() if call[2] == "shell" and "--graph" in call[3]]
    assert all("taskset 1 " in line and "timeout 330 " in line for line in shell)


def test_what_is_there_is_not_sent_again(phone: Phone, binary: Path, model: Callable[[str], Path]) -> None:
    adb, path = phone.open(), model("net.tflite")
    one = adb.put(path)
    assert one.startswith(FOLDER)
    assert (phone.folder / one.lstrip("/")).read_bytes() == path.read_bytes()
    assert adb.put(path) == one
    assert sum(call[2] == "push" for call in phone.calls()) == 1
    path.write_bytes(b"TFL3 another")
    assert adb.put(path) != one
    adb.clean()
    assert not (phone.folder / FOLDER.lstrip("/")).exists()


def test_a_phone_that_is_full_or_damages_is_an_error_and_the_next_run_works(
    phone: Phone, model: Callable[[str], Path]
) -> None:
    path = model("net.tflite")
    for state, words in (({"full": True}, "no room for net.tflite"), ({"damaged": True}, "arrived damaged")):
        phone.set(**state)
        with pytest.raises(DeviceError, match=words):
            phone.open().put(path)
    phone.set()
    remote = phone.open().put(path)
    assert (phone.folder / remote.lstrip("/")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("error: device 'emulator-5554' not found", "not found"),
        ("error: device unauthorized.", r"(?s)unauthorized.*next: allow this computer"),
        ("error: device offline", "offline"),
    ],
)
def test_a_phone_that_is_gone_is_a_device_error(says: str, words: str, phone: Phone) -> None:
    phone.set(says=says)
    with pytest.raises(DeviceError, match=words) as caught:
        phone.open()
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("v2", [True, False])
def test_a_phone_that_goes_away_meanwhile(v2: bool, phone: Phone) -> None:
    phone.set(v2=v2)
    adb = phone.open()
    assert adb.shell("true").code == 0
    assert adb.shell("sh", "-c", "exit 7").code == 7
    phone.set(v2=v2, says="error: closed")
    with pytest.raises(DeviceError, match="closed"):
        adb.shell("true")


def test_one_broken_file_does_not_lose_the_others(phone: Phone, binary: Path, model: Callable[[str], Path]) -> None:
    good, broken = model("net.tflite"), model("broken.tflite")
    found = measure_on_phone([good, broken], phone.open(), binary, threads=4, launches=2)
    assert len(found.results[0].launches) == 2
    assert found.results[1].launches == ()
    assert "Failed to mmap model" in (found.results[1].error or "")
    with pytest.raises(MeasureError, match=r"(?s)not one file.*broken.tflite.*exit status 1"):
        measure_on_phone([broken], phone.open(), binary)


def test_a_tool_that_hangs_is_ended_there(
    phone: Phone, binary: Path, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.bench.phone.MOST_S", 0.5)
    monkeypatch.setattr("edgewise.bench.phone.GRACE_S", 1.0)
    with pytest.raises(MeasureError, match="ran for over 2 s"):
        measure_on_phone([model("slow.tflite")], phone.open(), binary)
    with pytest.raises(MeasureError, match=r"no answer to 'shell' within 0\.2 s"):
        phone.open().shell("sleep", "3", limit_s=0.2)


def test_flags_of_a_phone(phone: Phone, binary: Path, model: Callable[[str], Path]) -> None:
    path = model("net.tflite")
    phone.dumpsys(status=3, level=50, thermal=3)
    (result,) = measure_on_phone([path], phone.open(), binary, threads=2, launches=1).results
    assert set(result.flags) == {"battery", "throttled", "single_launch", "setting_not_honoured"}  # it ran with 4
    phone.dumpsys(status=2, level=10)
    assert set(measure_on_phone([path], phone.open(), binary, threads=4, launches=2).results[0].flags) == {"battery"}


def test_the_phone_is_described_without_its_serial(phone: Phone) -> None:
    found = phone.open().probe()
    assert found["device"]["os"] == "Android 16"
    assert found["device"]["cpu"] == "X1"
    assert found["state"]["battery"] == {"capacity_percent": 100, "status": "Full", "temperature_c": 31.2}
    assert found["state"]["thermal_status"] == "none"
    assert "emulator-5554" not in json.dumps(found)


@pytest.mark.parametrize("serial", ["", "-s", "a b", "a;b", "$(x)", "a/b", "a" * 200, "ü"])
def test_a_serial_that_is_none_is_refused(serial: str) -> None:
    with pytest.raises(DeviceError, match="expected"):
        Adb(serial)
    with pytest.raises(DeviceError, match="expected"):
        serial_of(f"adb://{serial}")


def test_a_mask_that_is_none_is_refused() -> None:
    assert tool_argv("t", "g", [], mask="0f", limit_s=5)[:4] == ["timeout", "5", "taskset", "0f"]
    with pytest.raises(MeasureError, match="mask"):
        tool_argv("t", "g", [], mask="f0; rm", limit_s=5)


def test_without_adb_or_as_a_worker_it_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="adb isn't installed"):
        Adb("emulator-5554", "no-such-adb")
    with pytest.raises(DeviceError, match=r"(?s)no Python.*--benchmark-model"), open_device("adb://emulator-5554"):
        pass


@pytest.fixture
def on_path(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{phone.folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("on_path")
def test_the_table_of_the_command_line(
    phone: Phone, binary: Path, model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgewise.bench_tools import show

    out = tmp_path / "out"
    asked: dict[str, Any] = {"threads": 4, "launches": 2, "mask": None, "out": out, "tick": lambda *a: None}
    table = bench_phone([model("net.tflite")], "adb://emulator-5554", binary, **asked)
    saved = json.loads((out / "tools.json").read_text())
    assert saved["files"] == table["files"]
    assert saved["raw"][0]["launches"][0]["inference_us"] == 7010
    (row,) = table["files"]
    assert row["mean_ms"]["low"] < row["mean_ms"]["value"] < row["mean_ms"]["high"]
    assert (row["p50_ms"]["value"], row["p90_ms"], row["p99_ms"]) == (6.95, None, None)
    show(table)
    assert "7.0" in capsys.readouterr().out
    with pytest.raises(MeasureError, match="--benchmark-model"):
        bench_phone([model("net.tflite")], "adb://emulator-5554", None, **asked)
    with pytest.raises(MeasureError, match="no such file"):
        bench_phone([tmp_path / "no.tflite"], "adb://emulator-5554", binary, **asked)
    with pytest.raises(MeasureError, match=r"expected a \.tflite"):
        bench_phone([binary], "adb://emulator-5554", binary, **asked)


def test_what_a_tool_cannot_honour_is_refused(binary: Path, model: Callable[[str], Path]) -> None:
    from edgewise.bench_tools import Tools, bench_with_tool

    def bench(tools: Tools, **asked: Any) -> Any:
        return bench_with_tool(
            [model("net.tflite")], asked, asked.pop("inputs", None), tools, None, lambda *about: None
        )

    assert bench(Tools(), device=None, threads=2) is None  # nobody asked for another tool
    assert bench(Tools(), device="ssh://host") is None
    for tools, asked, words in (
        (Tools(binary), {"device": "local"}, "for a phone"),
        (Tools(mask="f0"), {}, "for a phone"),
        (Tools(binary, trtexec="t"), {"device": "adb://x"}, "got both"),
        (Tools(trtexec="t"), {"device": "ssh://host"}, "on the machine"),
        (Tools(trtexec="t"), {"threads": 2}, "trtexec can't honour threads"),
        (Tools(binary), {"device": "adb://x", "precision": 0.1}, "can't honour precision"),
        (Tools(binary), {"device": "adb://x", "inputs": Path("x.npy")}, "can't honour inputs"),
    ):
        with pytest.raises(MeasureError, match=words):
            bench(tools, **asked)


def test_an_average_of_one_launch_has_no_ends() -> None:
    one = mean_of([2.0])
    assert one is not None
    assert (one.value, one.low, one.high) == (2.0, 0.0, float("inf"))
    assert mean_of([]) is None
