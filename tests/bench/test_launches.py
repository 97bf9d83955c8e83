"""When launches end and what survives, on a device that answers by a script; real processes are in test_measure."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgewise.bench.compared import undecided
from edgewise.bench.config import Bench
from edgewise.bench.measure import measure
from edgewise.bench.process import PROTOCOL
from edgewise.bench.record import FileUnderTest, Results, load_results
from edgewise.bench.scenario_config import SingleStream
from edgewise.errors import DeviceError, MeasureError

CONFIG = Bench(launches=3, max_launches=6, blocks=4, block_ms=1, warmup_s=0, accuracy_samples=2)
Level = Callable[[str, int], float]


class _Worker:
    """Takes ``level(file, launch)`` ms a run, a little more or less."""

    def __init__(self, device: _Device, file: str) -> None:
        self.file, self.device = file, device
        self.launch = device.started[file]
        device.started[file] += 1
        self.level = device.level(file, self.launch) * 1e6
        self.random = np.random.default_rng([self.launch, *file.encode()])

    def ask(self, do: str, *, limit_s: float, **request: Any) -> dict[str, Any]:
        self.device.asked.append((do, self.file, self.launch))
        if self.device.fail is not None:
            self.device.fail(do, self.file, self.launch)
        phase = {"duration_ns": 1000}
        if do == "import":
            return {"phase": phase, "protocol": PROTOCOL}
        if do == "load":
            return {"phase": phase, "settings": self.device.settings(request), "page_cache": "warm"}
        if do == "warmup":
            return {"phase": phase, "samples_ns": [1000] * 3, "converged": True}
        if do == "block":
            samples = [int(value) for value in self.level * self.random.uniform(0.999, 1.001, 9)]
            wall = sum(samples)
            own = {"wall_ns": wall, "thread_cpu_ns": wall, "process_cpu_ns": wall, "nivcsw": 0, "settle_runs": 1}
            return {"samples_ns": samples, "start_ns": len(self.device.asked), **own}
        if do == "scenario":
            self.device.throttled = self.device.heats
            return {"latencies_ns": [1000] * request["count"], "duration_ns": 10**9, "stopped": ""}
        if do == "answers":
            np.save(request["out"], np.zeros((2, 3), np.float32))
            return {"batch": 2}
        return {"phase": phase, "steady": phase, "pss_bytes": 5}

    def kill(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing to free."""


class _Device:
    name = "script"

    def __init__(self, level: Level, fail: Callable[[str, str, int], None] | None = None) -> None:
        self.level, self.fail = level, fail
        self.asked: list[tuple[str, str, int]] = []
        self.started: Counter[str] = Counter()
        self.heats = self.throttled = False
        self.versions, self.boot = {"onnxruntime": "1.0"}, "a boot"
        self.settings: Callable[[dict[str, Any]], dict[str, Any]] = lambda request: {
            key: request[key] for key in ("threads", "batch", "precision")
        }

    def worker(self, file: str, threads: int) -> _Worker:
        return _Worker(self, file)

    def put(self, path: Path, *, beside: Sequence[Path] = ()) -> str:
        return str(path)

    def out(self, local: Path) -> str:
        return str(local)

    def get(self, remote: str, local: Path) -> None:
        """It is there."""

    def probe(self) -> dict[str, Any]:
        return {"device": {"machine": "script"}, "state": {"boot": self.boot}, "versions": dict(self.versions)}

    def runtimes(self) -> dict[str, str | None]:
        return {}

    @contextlib.contextmanager
    def sample(self, hz: float) -> Iterator[list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        before = {"t_ns": len(self.asked), "throttle": {"core_throttle_count": int(self.throttled)}}
        yield rows
        now = {"t_ns": len(self.asked), "throttle": {"core_throttle_count": int(self.throttled)}}
        rows += [before, now]

    def cpus(self) -> int:
        return 1

    def rounds(self, file: str) -> int:
        """Launches of ``file`` in which a block was timed."""
        return len({launch for do, name, launch in self.asked if do == "block" and name == file})


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[FileUnderTest]]:
    def make(*names: str, references: dict[str, str] | None = None) -> list[FileUnderTest]:
        found = []
        for name in names:
            path = tmp_path / f"{name}.onnx"
            path.write_text(name)
            reference = (references or {}).get(name)
            found.append(
                FileUnderTest(name, "onnxruntime", "float32", "candidate", str(path), 1, "0" * 64, reference=reference)
            )
        return found

    return make


def _measure(files: list[FileUnderTest], device: _Device, out: Path, config: Bench = CONFIG, **more: Any) -> Results:
    out.mkdir(exist_ok=True)
    inputs = out.parent / "inputs.npy"
    np.save(inputs, np.zeros((2, 1, 1, 1), np.float32))
    score = lambda outputs, targets: np.ones(len(targets), np.float32)  # noqa: E731
    return measure(files, inputs, np.zeros(2, np.int64), ["a", "b"], config, out, score=score, device=device, **more)


def _steady(file: str, launch: int) -> float:
    return 2.0


def _restless(file: str, launch: int) -> float:
    return 2.0 * (1 + 0.2 * (launch % 2))


def test_launches_end_where_the_p50_is_known_well_enough(
    files: Callable[..., list[FileUnderTest]], tmp_path: Path
) -> None:
    steady = _measure(files("a"), _Device(_steady), tmp_path / "steady")
    assert len(steady.measurements["a"].launches) == 3
    assert "precision_not_reached" not in steady.measurements["a"].flags
    restless = _measure(files("a"), _Device(_restless), tmp_path / "restless")
    assert len(restless.measurements["a"].launches) == 6
    assert "precision_not_reached" in restless.measurements["a"].flags
    rough = CONFIG.model_copy(update={"precision": 0.9})
    assert len(_measure(files("a"), _Device(_restless), tmp_path / "rough", rough).measurements["a"].launches) == 3
    assert {launch.page_cache for launch in steady.measurements["a"].launches} == {"warm"}
    assert {launch.pss_bytes for launch in steady.measurements["a"].launches} == {5}
    assert all(block.start_ns for launch in steady.measurements["a"].launches for block in launch.blocks)


def test_a_file_that_goes_on_takes_its_reference_along_and_no_other(
    files: Callable[..., list[FileUnderTest]], tmp_path: Path
) -> None:
    def level(file: str, launch: int) -> float:
        return _restless(file, launch) if file == "new" else 2.0

    measured = files("old", "new", "other", references={"new": "old"})
    ticks: list[tuple[int, int]] = []
    found = _measure(
        measured, _Device(level), tmp_path / "o", tick=lambda done, total, note: ticks.append((done, total))
    )
    assert {name: len(one.launches) for name, one in found.measurements.items()} == {"old": 6, "new": 6, "other": 3}
    assert ticks[-1][0] == ticks[-1][1]
    assert all(done <= total for done, total in ticks)


def test_twice_the_launches_by_default_and_never_fewer_than_asked_for() -> None:
    assert Bench(launches=4).most_launches == 8
    with pytest.raises(ValidationError, match="expected at least launches, 4, got 2"):
        Bench(launches=4, max_launches=2)


def test_blocks_come_in_an_order_and_then_in_its_reverse(
    files: Callable[..., list[FileUnderTest]], tmp_path: Path
) -> None:
    device = _Device(_steady)
    _measure(files("a", "b", "c"), device, tmp_path / "o")
    blocks = [file for do, file, launch in device.asked if do == "block"]
    rounds = [blocks[i : i + 3] for i in range(0, len(blocks), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert all(one == other[::-1] for one, other in zip(rounds[::2], rounds[1::2], strict=True))
    assert len({tuple(one) for one in rounds[::2]}) > 1


def test_a_link_cut_in_the_third_launch_loses_that_one_alone(
    files: Callable[..., list[FileUnderTest]], tmp_path: Path
) -> None:
    def cut(do: str, file: str, launch: int) -> None:
        if (do, file, launch) == ("block", "b", 2):
            raise DeviceError("the link broke")

    def crash(do: str, file: str, launch: int) -> None:
        if (do, file, launch) == ("block", "c", 1):
            raise MeasureError("the process died")

    def both(do: str, file: str, launch: int) -> None:
        cut(do, file, launch)
        crash(do, file, launch)

    out, asked = tmp_path / "o", files("a", "b", "c")
    with pytest.raises(DeviceError, match="the link broke"):
        _measure(asked, _Device(_steady, both), out)
    device = _Device(_steady)
    results = _measure(asked, device, out)
    assert {name: device.rounds(name) for name in "abc"} == {"a": 1, "b": 1, "c": 0}
    assert [launch.index for launch in results.measurements["a"].launches] == [0, 1, 2]
    assert [launch.index for launch in results.measurements["c"].launches] == [0]
    assert results.measurements["c"].error == "the process died"
    # What was timed before and after has its telemetry, one row a finished round here.
    assert results.telemetry == "telemetry.jsonl"
    rows = [json.loads(line) for line in (out / "telemetry.jsonl").read_text().splitlines()]
    assert len(rows) >= 3
    assert load_results(out) == results
    # All is told: a further call measures anew.
    assert not (out / "launches").exists()
    again = _Device(_steady)
    _measure(asked, again, out)
    assert again.rounds("a") == 3


@pytest.mark.parametrize("change", ["bytes", "config", "inputs", "version", "own", "boot", "nothing"])
def test_only_the_same_question_goes_on_from_there(
    files: Callable[..., list[FileUnderTest]], tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(do: str, file: str, launch: int) -> None:
        if (do, launch) == ("block", 2):
            raise DeviceError("the link broke")

    out, asked, config = tmp_path / "o", files("a", "b"), CONFIG
    with pytest.raises(DeviceError):
        _measure(asked, _Device(_steady, cut), out)
    if change == "bytes":
        Path(asked[0].path).write_text("another file")
    if change == "config":
        config = CONFIG.model_copy(update={"block_ms": 2.0})
    device = _Device(_steady)
    if change == "version":
        device.versions["onnxruntime"] = "1.1"
    if change == "own":
        monkeypatch.setattr("edgewise.bench.kept.__version__", "0")
    if change == "boot":
        device.boot = "another boot"
    if change == "inputs":
        np.save(tmp_path / "inputs.npy", np.ones((2, 1, 1, 1), np.float32))
        score = lambda outputs, targets: np.ones(len(targets), np.float32)  # noqa: E731
        inputs, zeros = tmp_path / "inputs.npy", np.zeros(2, np.int64)
        measure(asked, inputs, zeros, ["a", "b"], config, out, score=score, device=device)
    else:
        # More launches are the same question: those that are there count.
        _measure(asked, device, out, config.model_copy(update={"launches": 4}))
    # Blocks pair within a round only: where one file is new, all are measured again.
    wanted = {"nothing": 2, "inputs": 3}.get(change, 4)
    assert (device.rounds("a"), device.rounds("b")) == (wanted, wanted)


@pytest.mark.parametrize("heats", [True, False])
def test_what_telemetry_tells_of_scenarios_stands_in_their_notes(
    files: Callable[..., list[FileUnderTest]], tmp_path: Path, heats: bool
) -> None:
    device = _Device(_steady)
    device.heats = heats
    config = CONFIG.model_copy(update={"scenarios": (SingleStream(repeats=1, min_queries=64, seconds=0.1),)})
    results = _measure(files("a"), device, tmp_path / "o", config)
    (found,) = results.measurements["a"].scenarios
    assert found.valid
    assert ("throttled" in found.note) == heats
    rows = [json.loads(line) for line in (tmp_path / "o" / "telemetry.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * (3 + 1)  # three rounds, and the scenarios
    assert load_results(tmp_path / "o") == results


def test_a_torn_record_counts_as_none(files: Callable[..., list[FileUnderTest]], tmp_path: Path) -> None:
    def cut(do: str, file: str, launch: int) -> None:
        if (do, launch) == ("block", 2):
            raise DeviceError("the link broke")

    out, asked = tmp_path / "o", files("a")
    with pytest.raises(DeviceError):
        _measure(asked, _Device(_steady, cut), out)
    kept = sorted((out / "launches").glob("*/*.json"))
    assert [path.name for path in kept] == ["0.json", "1.json"]
    kept[0].write_text(kept[0].read_text()[:100])
    kept[1].write_text('{"round": "x", "launch": {"index": 1}, "error": null}')
    device = _Device(_steady)
    _measure(asked, device, out)
    assert device.rounds("a") == 3


def test_a_setting_that_is_not_honoured_is_no_measurement(
    files: Callable[..., list[FileUnderTest]], tmp_path: Path
) -> None:
    for key, lie in (("threads", 4), ("batch", 8), ("precision", "bfloat16")):
        device = _Device(_steady)
        device.settings = lambda request, key=key, lie=lie: {"threads": 1, "batch": 1, key: lie}  # type: ignore[misc]
        with pytest.raises(MeasureError, match=f"asked for {key} .*, the runtime says {lie}"):
            _measure(files("a"), device, tmp_path / key)
        assert device.rounds("a") == 0


def test_a_comparison_goes_on_until_it_can_tell(files: Callable[..., list[FileUnderTest]], tmp_path: Path) -> None:
    def level(file: str, launch: int) -> float:
        swing = {"old": 0.0, "same": 0.0, "odd": 0.1, "far": 0.1}[file]
        return (8.0 if file == "far" else 2.0) * (1 + swing * (launch % 2))

    def launches(candidate: str) -> int:
        more = undecided([("old", candidate)], 0.05)
        device = _Device(level)
        _measure(files("old", candidate), device, tmp_path / candidate, unfinished=more)
        return device.rounds(candidate)

    assert launches("same") == 3
    assert launches("odd") == 6
    assert launches("far") == 3  # four times as slow: told long before its ratio is known to 2.5 %
