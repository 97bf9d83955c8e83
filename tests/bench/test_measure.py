"""Real processes: ONNX Runtime on small files, and a runtime that misbehaves on request."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.bench.ask import arithmetic
from edgewise.bench.config import Bench
from edgewise.bench.devices.local import LocalDevice
from edgewise.bench.measure import measure
from edgewise.bench.process import LOCAL, WorkerProcess
from edgewise.bench.record import FileUnderTest, Results, file_stem, load_results, results_from_json
from edgewise.errors import ArtifactError, DataError, MeasureError

QUICK = Bench(launches=2, max_launches=2, blocks=3, block_ms=3, warmup_s=0.01)

# A runtime whose "file" is the name of what it does wrong.
ODD = """
import os, sys, time
import numpy as np
from edgewise.deploy import runtimes
from edgewise.errors import MeasureError

NAME, SUFFIX = "odd", ".odd"

def missing():
    print("a library says hello on stdout")
    os.system("echo and so does its child")
    return None

class Session:
    outputs = (runtimes.TensorSpec("logits", (None, 5), "float32"),)

    def __init__(self, path, options):
        self.does, self.options = os.path.basename(path), options
        self.inputs = (runtimes.TensorSpec("input", (options.batch, 3, 4, 4), "float32"),)
        self.settings = {"threads": 7 if self.does == "threads" else options.threads}
        self.kept = None

    def run(self, feeds):
        x = feeds["input"]
        if self.does == "crash":
            print("about to crash", file=sys.stderr, flush=True)
            os.kill(os.getpid(), 11)
        if self.does == "killed":  # as the kernel does where memory runs out
            os.kill(os.getpid(), 9)
        if self.does == "greedy":
            self.kept = np.ones(1 << 50, np.uint8)
        if self.does == "hang":
            time.sleep(60)
        if self.does == "memory" and self.kept is None:
            self.kept = np.ones(100_000_000, np.uint8)
        if self.does == "late" and len(x) > 1:
            time.sleep(20)
            os.mkdir(os.environ["LATE"])
        out = x.reshape(len(x), -1)[:, :5].copy()
        if self.does == "mixes":  # answers that depend on who else is in the batch
            out = out + len(x)
        if self.does == "nan":
            out[0] = np.nan
        return {"logits": out}

    def close(self):
        self.kept = None

def open(path, options):
    if os.path.basename(path) == "fixed" and options.batch != 1:
        raise MeasureError("this file takes one sample at a time")
    return Session(path, options)
"""


@pytest.fixture
def odd(tmp_path: Path) -> tuple[str, ...]:
    """A command for workers that know the runtime "odd"."""
    (tmp_path / "odd_runtime.py").write_text(ODD)
    start = tmp_path / "start.py"
    start.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from edgewise.bench.agent import worker\n"
        "from edgewise.deploy import runtimes\n"
        "runtimes.MODULES['odd'] = 'odd_runtime'\n"
        "sys.exit(worker.main())\n"
    )
    return (sys.executable, str(start))


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.npy"
    np.save(path, np.random.default_rng(0).normal(size=(150, 3, 4, 4)).astype(np.float32))
    return path


def _file(name: str, path: Path | str, runtime: str = "onnxruntime", **other: Any) -> FileUnderTest:
    size = Path(path).stat().st_size if Path(path).exists() else 1
    return FileUnderTest(
        **{
            "name": name,
            "runtime": runtime,
            "precision": "float32",
            "role": "candidate",
            "path": str(path),
            "size_bytes": size,
            "sha256": "0" * 64,
            **other,
        }
    )


def _right(outputs: Any, targets: Any) -> Any:
    return (outputs.argmax(axis=1) == targets).astype(np.float32)


def _measure(files: list[FileUnderTest], samples: Path, out: Path, config: Bench = QUICK, **other: Any) -> Results:
    n = len(np.load(samples))
    targets = np.arange(n) % 5
    return measure(files, samples, targets, [f"s{i}" for i in range(n)], config, out, score=_right, **other)


def test_files_are_measured_and_answer_as_in_their_runtime(
    onnx_file: Callable[..., Path], samples: Path, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    ticks: list[tuple[int, int, str]] = []
    files = [_file("big", onnx_file("big.onnx", 600)), _file("small", onnx_file("small.onnx", 8))]
    (tmp_path / "broken.onnx").write_bytes(b"this is no graph")
    files.append(_file("broken", tmp_path / "broken.onnx"))
    results = _measure(files, samples, tmp_path / "out", tick=lambda *tick: ticks.append(tick))

    for name in ("big", "small"):
        measurement = results.measurements[name]
        assert measurement.error is None
        assert [launch.index for launch in measurement.launches] == [0, 1]
        for launch in measurement.launches:
            assert list(launch.phases) == ["import", "load", "first_inference", "warmup", "steady", "unload"]
            assert [block.round for block in launch.blocks] == [0, 1, 2]
            assert all(sum(block.samples_ns) <= block.wall_ns for block in launch.blocks)
            assert all(block.wall_ns >= 3e6 for block in launch.blocks)
            assert len(launch.warmup_ns) >= 3
            assert launch.settings["threads"] == 1
            assert all(phase.peak_bytes is None or phase.peak_bytes > 10**7 for phase in launch.phases.values())
        inputs = np.load(samples)
        session = onnxruntime.InferenceSession(results.file(name).path, providers=["CPUExecutionProvider"])
        expected = np.concatenate([session.run(None, {"input": inputs[i : i + 1]})[0] for i in range(150)])
        outputs = results.outputs(name)
        assert outputs is not None
        assert outputs.dtype == np.float32
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
        scores = results.scores(name)
        assert scores is not None
        assert scores.tolist() == _right(expected, np.arange(150) % 5).tolist()
        assert results.answers[name].mean_score == pytest.approx(scores.mean())
        assert results.answers[name].batch == 100

    broken = results.measurements["broken"]
    assert broken.launches == ()
    assert broken.error is not None
    assert "broken" in broken.error
    assert results.scores("broken") is None
    assert (tmp_path / "out/ids.txt").read_text().split() == [f"s{i}" for i in range(150)]
    done, total, _ = zip(*ticks, strict=True)
    assert list(done) == sorted(set(done))
    assert done[-1] == total[-1] == 3 * (2 * (1 + 3) + 1)
    assert load_results(tmp_path / "out") == results


def test_blocks_take_turns_in_an_order_that_changes(
    onnx_file: Callable[..., Path], samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    asked: list[tuple[str, str]] = []
    real = WorkerProcess.ask

    def ask(self: WorkerProcess, do: str, **request: Any) -> dict[str, Any]:
        asked.append((do, self.file))
        return real(self, do, **request)

    monkeypatch.setattr(WorkerProcess, "ask", ask)
    path = onnx_file("net.onnx")
    names = ["a", "b", "c"]
    config = Bench(launches=1, max_launches=1, blocks=6, block_ms=1, warmup_s=0)
    _measure([_file(name, path) for name in names], samples, tmp_path / "out", config)
    blocks = [file for do, file in asked if do == "block"]
    rounds = [tuple(blocks[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(one) == names for one in rounds)
    assert len(set(rounds)) > 1
    # All are warmed up before the first block, none is closed before the last.
    kinds = [do for do, _ in asked]
    assert max(i for i, do in enumerate(kinds) if do == "warmup") < kinds.index("block")
    assert kinds.index("close") > max(i for i, do in enumerate(kinds) if do == "block")


def test_what_a_library_prints_does_not_disturb_and_others_survive(
    odd: tuple[str, ...], samples: Path, tmp_path: Path
) -> None:
    names = ("fine", "crash", "killed", "greedy", "threads", "nan", "fixed", "mixes")
    files = [_file(name, name, runtime="odd") for name in names]
    results = _measure(
        files,
        samples,
        tmp_path / "out",
        Bench(launches=1, max_launches=1, blocks=2, block_ms=1, warmup_s=0),
        device=LocalDevice(odd),
    )
    errors = {name: results.measurements[name].error for name in names}
    assert [name for name in names if errors[name]] == ["crash", "killed", "greedy", "threads"]
    assert "crash: the process died during 'first', by signal 11" in str(errors["crash"])
    assert "about to crash" in str(errors["crash"])
    assert "killed: the process died during 'first', by signal 9" in str(errors["killed"])
    assert "too little memory" in str(errors["killed"])
    assert "Unable to allocate 1.00 PiB" in str(errors["greedy"])
    assert "asked for threads 1, the runtime says 7" in str(errors["threads"])
    assert {name: results.answers[name].batch for name in ("fine", "fixed", "mixes")} == {
        "fine": 100,
        "fixed": 1,
        "mixes": 1,
    }
    inputs = np.load(samples).reshape(150, -1)[:, :5]
    fine, mixes, nan = (results.outputs(name) for name in ("fine", "mixes", "nan"))
    assert fine is not None
    assert mixes is not None
    assert nan is not None
    np.testing.assert_array_equal(fine, inputs)
    np.testing.assert_array_equal(mixes, inputs + 1)
    assert not results.answers["nan"].finite
    nan_scores = results.scores("nan")
    assert nan_scores is not None
    assert not nan_scores[np.isnan(nan).any(axis=1)].any()


def test_a_file_that_only_takes_single_samples_answers_one_by_one(
    onnx_file: Callable[..., Path], samples: Path, tmp_path: Path
) -> None:
    """The input's batch is open, a Reshape inside isn't: the runtime's own error at batch 100."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    files = [
        _file("free", onnx_file("free.onnx")),
        _file("fixed", onnx_file("fixed.onnx", reshape=(1, 48))),
    ]
    results = _measure(files, samples, tmp_path / "out", QUICK.model_copy(update={"launches": 1, "max_launches": 1}))
    assert {name: answers.error for name, answers in results.answers.items()} == {"free": None, "fixed": None}
    assert [results.answers[file.name].batch for file in files] == [100, 1]
    np.testing.assert_allclose(results.outputs("fixed"), results.outputs("free"), rtol=1e-4, atol=1e-4)


def test_an_error_while_files_answer_stops_those_that_still_do(
    odd: tuple[str, ...], samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATE", str(tmp_path / "late went on"))
    files = [_file("fine", "fine", runtime="odd")] + [_file(f"late {i}", "late", runtime="odd") for i in range(3)]

    def broken(outputs: Any, targets: Any) -> Any:
        raise KeyboardInterrupt

    config = Bench(launches=1, max_launches=1, blocks=2, block_ms=1, warmup_s=0)
    with pytest.raises(KeyboardInterrupt):
        measure(
            files, samples, np.arange(150), ["x"] * 150, config, tmp_path / "o", score=broken, device=LocalDevice(odd)
        )
    assert not (tmp_path / "late went on").exists()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_worker_ends_with_its_parent_in_the_middle_of_a_request(
    odd: tuple[str, ...], samples: Path, tmp_path: Path
) -> None:
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import contextlib\nfrom edgewise.bench.process import WorkerProcess\n"
        f"with contextlib.closing(WorkerProcess('x', 1, {odd!r})) as worker:\n"
        "    worker.ask('import', limit_s=60, runtime='odd')\n"
        "    worker.ask('load', limit_s=60, path='hang', threads=1, precision='float32', batch=1)\n"
        "    print(worker._process.pid, flush=True)\n"
        f"    worker.ask('first', limit_s=60, inputs={str(samples)!r}, batch=1)\n"
    )
    with subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert _runs(pid)
        process.kill()
    # The file hangs for a minute; what the kernel kills is gone at once, or a little later on a busy machine.
    deadline = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def test_a_worker_whose_parent_is_gone_already_does_nothing() -> None:
    done = subprocess.run(
        list(LOCAL),
        input='{"do": "close"}\n',
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "EDGEWISE_PARENT": "1"},
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_a_file_in_the_current_directory_is_no_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('this is not the library')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('nor is this')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", *sys.path])  # as `python -m edgewise` has it
    with contextlib.closing(WorkerProcess("x", 1)) as worker:
        assert worker.ask("import", limit_s=60, runtime="onnxruntime")["type"] == "import"


@pytest.mark.parametrize(
    ("runtime", "precision", "asked"),
    [
        ("onnxruntime", "float32", "float32"),
        ("openvino", "int8", "float32"),
        ("openvino", "float16", "default"),
        ("tensorrt", "int8", "default"),
        ("tensorrt", "float32", "default"),
    ],
)
def test_arithmetic_is_asked_for_where_a_runtime_lets_one(runtime: str, precision: str, asked: str) -> None:
    assert arithmetic(_file("a", "a", runtime=runtime, precision=precision)) == asked


def test_a_hanging_file_is_given_up(odd: tuple[str, ...], samples: Path) -> None:
    with contextlib.closing(WorkerProcess("slow one", 1, odd)) as worker:
        worker.ask("import", limit_s=60, runtime="odd")
        worker.ask("load", limit_s=60, path="hang", threads=1, precision="float32", batch=1)
        with pytest.raises(MeasureError, match="slow one: no answer to 'first' within"):
            worker.ask("first", limit_s=0.2, inputs=str(samples), batch=1)


def test_nothing_measured_at_all_is_an_error(odd: tuple[str, ...], samples: Path, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="not one file"):
        _measure([_file("a", "crash", runtime="odd")], samples, tmp_path / "out", device=LocalDevice(odd))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not tell peaks of memory")
def test_memory_of_a_phase_is_what_it_allocates(odd: tuple[str, ...], samples: Path) -> None:
    ballast = np.ones(500_000_000, np.uint8)  # neither this nor the peak that it leaves behind may show in the child
    del ballast
    with contextlib.closing(WorkerProcess("memory", 1, odd)) as worker:
        asked = {"path": "memory", "threads": 1, "precision": "float32", "batch": 1, "inputs": str(samples)}
        worker.ask("import", limit_s=60, runtime="odd")
        load = worker.ask("load", limit_s=60, **asked)["phase"]
        first = worker.ask("first", limit_s=60, **asked)["phase"]
        closed = worker.ask("close", limit_s=60)["phase"]
    assert load["peak_bytes"] < 150e6
    for one in (load, first, closed):
        assert one["resident_bytes"] == sum(one[f"{kind}_bytes"] for kind in ("anonymous", "file", "shared"))
    assert first["anonymous_bytes"] - load["anonymous_bytes"] == pytest.approx(100e6, abs=2e6)
    assert first["peak_bytes"] - load["resident_bytes"] == pytest.approx(100e6, abs=2e6)
    assert closed["resident_bytes"] < load["peak_bytes"] + 5e6


def test_impossible_wishes_are_refused_before_anything_runs(samples: Path, tmp_path: Path) -> None:
    file = _file("a", tmp_path / "a.onnx")
    cpus = len(os.sched_getaffinity(0))
    with pytest.raises(MeasureError, match=r"(?s)at most .* threads.*next: ask for"):
        _measure([file], samples, tmp_path, Bench(threads=cpus + 1))
    with pytest.raises(MeasureError, match="two files are called a"):
        _measure([file, file], samples, tmp_path)
    with pytest.raises(MeasureError, match="got none"):
        _measure([], samples, tmp_path)
    with pytest.raises(DataError, match="150 inputs, 3 targets"):
        measure([file], samples, np.arange(3), ["x"] * 150, QUICK, tmp_path, score=_right)
    with pytest.raises(DataError, match="can't read the inputs"):
        measure([file], tmp_path / "no.npy", np.arange(3), ["x"] * 3, QUICK, tmp_path, score=_right)


def test_some_samples_are_drawn_and_named(onnx_file: Callable[..., Path], samples: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    config = QUICK.model_copy(update={"accuracy_samples": 40, "launches": 1, "max_launches": 1})
    results = _measure([_file("a", onnx_file("a.onnx"))], samples, tmp_path / "out", config)
    ids = [int(name[1:]) for name in (tmp_path / "out/ids.txt").read_text().split()]
    assert ids == sorted(set(ids))
    assert len(ids) == 40
    assert max(ids) > 60  # not simply the first
    assert results.answers["a"].samples == 40


def test_the_worker_ends_with_a_sentinel_and_answers_nonsense_with_an_error() -> None:
    def talk(text: str) -> list[dict[str, Any]]:
        done = subprocess.run(list(LOCAL), input=text, capture_output=True, text=True, timeout=60, check=False)
        return [json.loads(line) for line in done.stdout.splitlines()]

    assert talk("") == [{"type": "end", "rc": 0}]
    assert talk('{"do": "close"}\n')[-1] == {"type": "end", "rc": 0}
    for nonsense in ("{", "[]", '{"do": "dance"}', '{"do": "block", "ms": 1}', '{"do": "import", "runtime": "no"}'):
        error, end = talk(nonsense + "\n")
        assert error["type"] == "error"
        assert end == {"type": "end", "rc": 1}


def test_the_agent_runs_on_python_3_8() -> None:
    pytest.importorskip("vermin", reason="vermin is not installed")
    from edgewise import errors
    from edgewise.bench.agent import worker
    from edgewise.deploy import runtimes

    carried = [worker.__file__, errors.__file__, *Path(runtimes.__file__).parent.glob("*.py")]
    assert len(carried) >= 8
    done = subprocess.run(
        [sys.executable, "-c", "import vermin; vermin.main()", "-t=3.8-", "--violations", *map(str, carried)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_results_of_another_format_or_none_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="can't read measurements"):
        load_results(tmp_path)
    with pytest.raises(ArtifactError, match="expected measurements of format 2, got 99"):
        results_from_json({"format": 99}, tmp_path)
    with pytest.raises(ArtifactError, match="no measurements"):
        results_from_json({"format": 2, "files": [{}]}, tmp_path)


def test_names_become_safe_and_different_file_names() -> None:
    names = ["a", "a/b", "a b", "../../etc/passwd", "<script>", "ü", "", "."]
    stems = [file_stem(name) for name in names]
    assert len(set(stems)) == len(names)
    assert stems[0] == "a"
    assert all("/" not in stem and stem.isascii() and not stem.startswith(".") for stem in stems)
