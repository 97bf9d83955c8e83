"""The command line: what it prints where, its exit codes, and what it never does."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

import edgewise
from edgewise import console, gating, pipeline
from edgewise.bench.gate import EXIT_CODES, Check, Verdict
from edgewise.cli import app
from edgewise.console import Lines
from edgewise.deploy.runtimes import get
from edgewise.errors import DataError, DeviceError, RecipeError
from edgewise.init import FAMILIES
from edgewise.pipeline import Ran, RunResult
from edgewise.recipe_file import LoadedRecipe, load_recipe

RECIPE = """\
name: small
task: {kind: digits}
teacher: {model: {kind: cifar_resnet, depth: 8}, train: {epochs: 1}}
stages: [{kind: quantize}]
"""

Pipeline = Callable[[LoadedRecipe, Path, console.Console], RunResult]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pipeline], None]:
    """Put something else where the pipeline is: the command line around it is what is tested."""
    return lambda work: monkeypatch.setattr(pipeline, "run", work)


def verdict(status: Any = "PASS") -> Verdict:
    checks = (
        Check("a-int8", "min_speedup", "PASS", 1.5, "x", 2.25, 2.0, 2.5, 24, "block pairs"),
        Check("a-int8", "max_p99_ms", status, 3.0, "", n=100, counted="runs", needed_n=459, note="100 runs"),
    )
    return Verdict(status, EXIT_CODES[status], checks, ("b-int8 is SLOWER",), {"min_speedup": 1.5})


def judged(found: Verdict) -> gating.Judged:
    return gating.Judged("tiny", found, None, {})


def finished(_loaded: LoadedRecipe, out: Path, told: console.Console) -> RunResult:
    told.stage("teacher")
    told.tick(1, 2, "epoch 1/2")
    told.stage("teacher", seconds=1.25)
    told.stage("export", reused=True, seconds=0.0)
    told.warn("look here")
    print("a library speaks")
    stages = (Ran("teacher", "k1", 1.25, False, out / "1"), Ran("export", "k2", 0.0, True, out / "2"))
    return RunResult(out, stages, out / "report.html", verdict("FAIL").to_json())


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import json, sys\n"
        "from edgewise.cli import main\n"
        "for words in [[], ['run'], ['report'], ['gate'], ['bench'], ['doctor'], ['init']]:\n"
        "    sys.argv = ['edgewise', *words, '--help']\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "sys.argv = ['edgewise', '--version']\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = ['torch', 'numpy', 'yaml', 'edgewise.recipe', 'onnxruntime', 'openvino']\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, version, heavy = done.stdout.splitlines()
    assert version == f"edgewise {edgewise.__version__}"
    assert json.loads(heavy) == []


def test_python_m_edgewise() -> None:
    done = subprocess.run([sys.executable, "-m", "edgewise", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"edgewise {edgewise.__version__}\n"


def test_run_prints_results_on_stdout_and_progress_on_stderr(
    recipe: Path, tmp_path: Path, pretend: Callable[[Pipeline], None]
) -> None:
    pretend(finished)
    done = call("run", recipe, "--for", "x86", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr  # a FAIL is for 'gate' to turn into a code
    assert "verdict: FAIL" in done.stdout
    assert f"report: {tmp_path / 'out' / 'report.html'}" in done.stdout
    assert "1 stages made, 1 reused" in done.stdout
    assert "2.25×" in done.stdout
    assert "library" not in done.stdout
    lines = done.stderr.splitlines()
    assert "teacher: done in 1.2 s" in lines
    assert "export: reused" in lines
    assert "warning: look here" in lines
    assert "a library speaks" in lines
    assert any(line.startswith("deploy.targets: onnxruntime int8; openvino int8 (") for line in lines)


def test_run_json_is_the_summary_and_nothing_else(
    recipe: Path, tmp_path: Path, pretend: Callable[[Pipeline], None]
) -> None:
    pretend(finished)
    done = call("run", recipe, "--out", tmp_path / "out", "--json")
    value = json.loads(done.stdout)
    assert [stage["name"] for stage in value["stages"]] == ["teacher", "export"]
    assert value["verdict"]["status"] == "FAIL"


def test_stdout_is_kept_clean_even_of_native_prints(recipe: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from edgewise import cli, pipeline\n"
        "from edgewise.pipeline import RunResult\n"
        "def run(loaded, out, console):\n"
        "    os.write(1, b'from C')\n"
        "    return RunResult(out, (), None, None)\n"
        "pipeline.run = run\n"
        f"sys.argv = ['edgewise', 'run', {str(recipe)!r}, '--json']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout)["folder"] == "runs/small"
    assert "from C" in done.stderr


def test_the_default_folder_is_named_after_the_recipe(recipe: Path, pretend: Callable[[Pipeline], None]) -> None:
    folders = []
    pretend(lambda loaded, out, told: folders.append(out) or finished(loaded, out, told))  # type: ignore[func-returns-value]
    call("run", recipe)
    assert folders == [Path("runs/small")]


def failing(error: BaseException) -> Pipeline:
    def work(loaded: LoadedRecipe, out: Path, told: console.Console) -> RunResult:
        raise error

    return work


def wrapped(cause: str) -> Exception:
    """As a library reports a full disk: its own error type, the cause in the text."""
    return RuntimeError(f"Error while serializing: I/O error: {cause}")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("no samples", where="task", hint="give some"), 2, "error: task: no samples\n  next: give some"),
        (DeviceError("no answer"), 5, "error: no answer"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x/model"),
            2,
            "error: the disk is full: x/model\n  next: free",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), 2, "error: the disk is full: x"),
        (wrapped("No space left on device (os error 28)"), 2, "error: the disk is full\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: permission denied: /x\n  next: choose"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 2, "error: the file system is read-only: /x"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x"), 2, "error: not a directory: /x"),
        (MemoryError(), 2, "error: not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted: finished stages are kept"),
        (ValueError("odd"), 70, "error: internal error: ValueError: odd\n  next: run again with --debug"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 2, "error: no such file: /x"),
    ],
    ids=lambda value: f"{type(value).__name__}" if isinstance(value, BaseException) else None,
)
def test_errors_are_said_in_words_and_codes(
    recipe: Path, pretend: Callable[[Pipeline], None], error: BaseException, code: int, said: str
) -> None:
    pretend(failing(error))
    done = call("run", recipe)
    assert done.exit_code == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_really_full_disk(recipe: Path, pretend: Callable[[Pipeline], None]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")

    def work(loaded: LoadedRecipe, out: Path, told: console.Console) -> RunResult:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")
        raise AssertionError("it was written")

    pretend(work)
    done = call("run", recipe)
    assert done.exit_code == 2
    assert "error: the disk is full" in done.stderr


@pytest.mark.parametrize("words", [("--debug", "run"), ("run", "--debug")])
def test_debug_shows_the_traceback_and_keeps_the_code(
    recipe: Path, pretend: Callable[[Pipeline], None], words: tuple[str, ...]
) -> None:
    pretend(failing(ValueError("odd")))
    done = call(*words, recipe)
    assert done.exit_code == 70
    assert "Traceback" in done.stderr
    pretend(failing(DeviceError("gone")))
    assert call(*words, recipe).exit_code == 5


def test_an_interrupt_from_outside_ends_with_130(recipe: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "from edgewise import cli, pipeline\n"
        "def run(loaded, out, console):\n"
        "    console.stage('teacher')\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(30)\n"
        "pipeline.run = run\n"
        f"sys.argv = ['edgewise', 'run', {str(recipe)!r}]\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 130
    assert done.stderr.endswith("finished stages are kept, and the same command goes on from there\n")
    assert "Traceback" not in done.stderr


def test_usage_errors_exit_with_2(recipe: Path, tmp_path: Path) -> None:
    assert call("run").exit_code == 2
    assert call("run", recipe, "--fro", "phone").exit_code == 2
    assert call("walk").exit_code == 2
    missing = call("run", tmp_path / "smal.yaml")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "no such file" in missing.stderr
    assert "small.yaml" in missing.stderr
    profile = call("run", recipe, "--for", "jetsn")
    assert profile.exit_code == 2
    assert "did you mean 'jetson'?" in profile.stderr


def test_mistakes_in_a_recipe_are_all_told(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("epochs", "epoch").replace("depth: 8", "depth: 9"))
    done = call("run", recipe)
    assert done.exit_code == 2
    assert "teacher.model.depth (line 3)" in done.stderr
    assert "did you mean 'epochs'?" in done.stderr


@pytest.mark.parametrize(("status", "code"), [("PASS", 0), ("FAIL", 1), ("INVALID", 3), ("INCONCLUSIVE", 4)])
def test_gate_makes_the_verdict_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str, code: int
) -> None:
    monkeypatch.setattr(gating, "gate_run", lambda folder, budget, **said: judged(verdict(status)))
    done = call("gate", tmp_path)
    assert done.exit_code == code
    assert done.stdout.rstrip().endswith(f"verdict: {status}")
    assert "warning: b-int8 is SLOWER" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "speed-up" in line)
    *head, interval, limit, n = re.split(r"\s{2,}", row)
    assert head == ["a-int8", "speed-up", "PASS", "2.25×"]
    assert re.fullmatch(r"2\.00.* to 2\.50.", interval)
    assert (limit, n) == ("at least 1.50×", "24 block pairs")
    assert "needs about 459 runs" in done.stdout
    as_json = call("gate", tmp_path, "--json")
    assert as_json.exit_code == code
    assert json.loads(as_json.stdout)["status"] == status


def test_gate_writes_junit_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gating, "gate_run", lambda folder, budget, **said: judged(verdict("FAIL")))
    out = tmp_path / "junit.xml"
    assert call("gate", tmp_path, "--junit", out).exit_code == 1
    (suite,) = ElementTree.parse(out).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")


def test_gate_and_report_of_what_is_no_run(tmp_path: Path) -> None:
    for command in ("gate", "report"):
        done = call(command, tmp_path)
        assert done.exit_code == 2
        assert str(tmp_path) in done.stderr
        assert done.stdout == ""


def test_report_names_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("report.html", "report.md", ".lock", "run.json"):
        (tmp_path / name).touch()
    monkeypatch.setattr(pipeline, "report", lambda folder: folder / "report.html")
    said = call("report", tmp_path).stdout.splitlines()
    assert said == [str(tmp_path / "report.html"), str(tmp_path / "report.md")]
    value = json.loads(call("report", tmp_path, "--json").stdout)
    assert value["report"] == str(tmp_path / "report.html")


@pytest.mark.parametrize("family", FAMILIES)
def test_init_writes_a_recipe_that_is_valid(tmp_path: Path, family: str) -> None:
    out = tmp_path / "start.yaml"
    done = call("init", family, "--out", out)
    assert done.exit_code == 0
    assert done.stdout.strip() == str(out)
    if family == "huggingface":  # there is no data that everybody has
        with pytest.raises(RecipeError, match=r"task\.tokenizer .*expected a folder or a file, got nothing"):
            load_recipe(out)
        for name in ("train.tsv", "test.tsv"):
            (tmp_path / name).touch()
        (tmp_path / "encoder").mkdir()
    for profile in (None, "phone"):
        recipe = load_recipe(out, profile=profile).recipe
        assert recipe.teacher.model.kind == family
        assert recipe.budget is not None
    assert "#" in out.read_text()


def test_init_never_overwrites(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    done = call("init", "vit", "--out", out)
    assert done.exit_code == 2
    assert out.read_text() == "mine"
    assert "did you mean 'vit'?" in call("init", "vitt").stderr
    assert call("init", "vit", "--out", tmp_path / "no" / "x.yaml").exit_code == 2


def test_init_names_the_file_after_the_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init", "mobilenet_v2").stdout == "mobilenet_v2.yaml\n"
    assert load_recipe(Path("mobilenet_v2.yaml")).recipe.name == "mobilenet_v2"


def test_progress_in_a_log_is_a_line_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = Lines(clock=lambda: now)
    lines.stage("teacher")
    for step in range(1000):
        now += 1.5
        lines.tick(step + 1, 1000, "epoch 1/1")
    lines.stage("teacher", seconds=now)
    lines.stage("fast")
    for step in range(1000):  # in no time: not worth a line
        lines.tick(step + 1, 1000, "epoch 1/1")
    said = capsys.readouterr().err.splitlines()
    percent = [int(match[1]) for line in said if (match := re.search(r"(\d+) % epoch", line))]
    # 150 s a tenth: each minute speaks in between.
    assert {10, 20, 30, 40, 50, 60, 70, 80, 90} <= set(percent)
    assert len(percent) <= 31
    assert said[-1] == "fast …"


def test_bars_leave_no_trace_but_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(console.make_console(json=True), Lines)
    bars = console.make_console()
    assert isinstance(bars, console.Bars)
    bars.stage("teacher")
    bars.tick(1, 2, "[red]not markup[/red]")
    bars.stage("teacher", seconds=2.0)
    bars.line("/runs/[a]/b")
    bars.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "teacher: done in 2.0 s" in shown
    assert "/runs/[a]/b" in shown
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(console.make_console(), Lines)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x (N, 2, 4, 4) -> its mean (N, 2)."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("x", kind, ["n", 2, 4, 4])],
        [helper.make_tensor_value_info("y", kind, ["n", 2])],
        [helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path_factory.mktemp("onnx") / "mean.onnx"
    onnx.save(model, path)
    return path


def test_bench_measures_a_file(onnx_file: Path, tmp_path: Path) -> None:
    missing = get("onnxruntime").missing()
    if missing:
        pytest.skip(missing)
    done = call("bench", onnx_file, "--json", "--out", tmp_path / "raw")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)["files"]
    assert row["name"] == "mean.onnx"
    assert row["size_bytes"] == onnx_file.stat().st_size
    assert 0 < row["p50_ms"]["low"] <= row["p50_ms"]["value"] <= row["p50_ms"]["high"]
    assert row["p50_ms"]["value"] <= row["p90_ms"]["value"]
    assert row["load_ms"] > 0
    assert row["error"] is None
    assert (tmp_path / "raw" / "measurements.json").exists()


def test_bench_says_what_it_can_not_measure(onnx_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "model.txt"
    text.touch()
    wrong = tmp_path / "x.npy"
    wrong.write_bytes(b"no numpy")
    ir = tmp_path / "model.xml"
    ir.touch()
    for words, said in (
        ([tmp_path / "no.onnx"], "no such file"),
        ([tmp_path], "no run is here"),
        ([text], "expected one of .onnx, .xml, .tflite, .engine, got '.txt'"),
        ([onnx_file, "--inputs", wrong], "expected a .npy file"),
        ([onnx_file, "--inputs", tmp_path / "no.npy"], "no such file"),
        ([onnx_file, "--threads", "4096"], "threads"),
        *([([ir], "weights are missing")] if get("openvino").missing() is None else []),
    ):
        done = call("bench", *words)
        assert done.exit_code == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_shell_completion_knows_the_profiles() -> None:
    environment = {
        **os.environ,
        "_EDGEWISE_COMPLETE": "complete_bash",
        "COMP_WORDS": "edgewise run x.yaml --for j",
        "COMP_CWORD": "4",
    }
    code = "from edgewise.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["jetson"]
