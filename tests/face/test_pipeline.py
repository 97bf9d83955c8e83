"""The pipeline as a user meets it: whole runs in processes of their own, killed, repeated, damaged."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

RUNTIMES = ("onnxruntime", "openvino", "litert")
RECIPE = """
name: tiny
task: {kind: digits}
teacher:
  model: {kind: cifar_resnet, depth: 14, width: 8}
  train: {epochs: 2, batch_size: 64, optimizer: {kind: sgd, lr: 0.1}, checkpoint_every: 3}
student:
  model: {kind: cifar_resnet, depth: 8, width: 16}
stages:
  - {kind: prune, macs_ratio: 0.7}
  - kind: distill
    fit: {epochs: 2, batch_size: 64, optimizer: {kind: adamw, lr: 0.01}, checkpoint_every: 3}
    losses:
      - {kind: kd, weight: 0.9, temperature: 4.0}
      - {kind: at, layers: [layer1, layer3]}
  - kind: quantize
    calibration_samples: 64
    fit: {epochs: 1, batch_size: 64, optimizer: {kind: sgd, lr: 0.001}, checkpoint_every: 3}
deploy:
  calibration_samples: 64
  targets:
    - {runtime: onnxruntime, precisions: [int8]}
    - {runtime: openvino, precisions: [int8]}
    - {runtime: litert, precisions: [int8]}
    - {runtime: tensorrt, precisions: [float16, int8]}
bench: {launches: 1, max_launches: 1, blocks: 2, block_ms: 5, warmup_s: 0.05}
budget: {max_accuracy_drop_pp: 100}
"""
STAGES = [
    *("samples", "student", "teacher", "1-prune", "2-distill", "3-quantize"),
    *("export-teacher", "export-student", "export-quantized", "export-half", "export-signed"),
    *(f"{runtime}-{form}" for runtime in RUNTIMES for form in ("float32-teacher", "float32", "int8")),
    *("tensorrt-float16", "tensorrt-int8", "measure", "layers"),
]
QUICK = ("samples", "student")
TRAINED = {"teacher", "2-distill", "3-quantize"}
UNTIMED = [stage for stage in STAGES if stage != "measure"]


def edgewise(*arguments: object, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgewise", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, timeout=600, **options)  # type: ignore[call-overload,no-any-return]


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    assert done.returncode == 0, done.stderr
    return {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}


def digests(run: Path) -> dict[str, str]:
    found = {}
    for record in run.glob("stages/*/artifact.json"):
        artifact = json.loads(record.read_text())
        found[artifact["name"]] = artifact["digest"]
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def finished(workplace: Path) -> Path:
    """One uninterrupted run that the tests here share; they copy it before they damage it."""
    stages = summary(edgewise("run", "tiny.yaml", "--out", "whole", "--json", cwd=workplace))
    assert list(stages) == STAGES
    assert not any(stage["reused"] for stage in stages.values())
    return workplace / "whole"


@pytest.fixture
def copied(finished: Path) -> Iterator[Path]:
    copy = finished.with_name("copy")
    shutil.copytree(finished, copy)
    yield copy
    shutil.rmtree(copy, ignore_errors=True)


def test_a_finished_run_is_not_done_again_and_loads_no_torch(finished: Path) -> None:
    script = (
        "import sys; from edgewise.cli import main\n"
        "sys.argv = ['edgewise', 'run', 'tiny.yaml', '--out', 'whole', '--json']\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = [name for name in ('torch', 'nncf', 'onnx', 'openvino', 'matplotlib') if name in sys.modules]\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=finished.parent, text=True, capture_output=True)
    assert all(stage["reused"] for stage in summary(done).values())
    plain = edgewise("run", "tiny.yaml", "--out", "whole", cwd=finished.parent)
    assert plain.stderr.count("reused") >= len(STAGES)


def test_another_setting_redoes_only_what_hangs_on_it(copied: Path) -> None:
    changed = RECIPE.replace("lr: 0.001", "lr: 0.002").replace(
        "runtime: openvino, precisions: [int8]", "runtime: openvino"
    )
    (copied.parent / "changed.yaml").write_text(changed)
    stages = summary(edgewise("run", "changed.yaml", "--out", copied, "--json", cwd=copied.parent))
    redone = {name for name, stage in stages.items() if not stage["reused"]}
    assert redone == {"3-quantize", "export-quantized", "export-signed", "tensorrt-int8", "measure", "layers"} | {
        f"{r}-int8" for r in RUNTIMES
    }


def test_what_can_not_change_the_result_redoes_nothing(copied: Path) -> None:
    changed = RECIPE.replace("checkpoint_every: 3", "checkpoint_every: 5") + "# a comment\n"
    (copied.parent / "changed.yaml").write_text(changed)
    stages = summary(edgewise("run", "changed.yaml", "--out", copied, "--json", cwd=copied.parent))
    assert all(stage["reused"] for stage in stages.values())


def test_a_limit_on_parity_is_judged_without_measuring_again(copied: Path) -> None:
    (copied.parent / "strict.yaml").write_text(RECIPE.replace("deploy:", "deploy:\n  min_sqnr_db: 500"))
    before = digests(copied)
    done = edgewise("run", "strict.yaml", "--out", copied, cwd=copied.parent)
    assert done.returncode == 2
    assert "expected at least 500.0 dB" in done.stderr
    assert digests(copied) == before


def test_a_damaged_stamp_only_costs_a_new_report(copied: Path) -> None:
    for content in ("", "{}", "[1"):
        (copied / ".report").write_text(content)
        summary(edgewise("run", "tiny.yaml", "--out", copied, "--json", cwd=copied.parent))


def _until_in_the_middle_of(stage: str, run: Path, process: subprocess.Popen[str]) -> None:
    """Training: once there is a checkpoint to go on from. Other stages: a moment, most last longer; the first don't."""
    if stage not in (*TRAINED, *QUICK):
        time.sleep(0.1)
    while stage in TRAINED and process.poll() is None:
        if list(run.glob(f"stages/{stage}-*.partial/scratch/checkpoint.safetensors")):
            return
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_bytes(finished: Path) -> None:
    run, command = (
        finished.with_name("killed"),
        [sys.executable, "-m", "edgewise", "run", "tiny.yaml", "--out", "killed"],
    )
    for stage in STAGES:
        if stage in QUICK and stage in digests(run):
            continue  # over before the kill that was meant for the one before it
        process = subprocess.Popen(
            command, cwd=finished.parent, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        with process, process.stderr as lines:  # type: ignore[union-attr]
            for line in lines:
                if line.startswith(f"{stage} …"):
                    break
            _until_in_the_middle_of(stage, run, process)
            process.kill()
            assert process.wait() == -signal.SIGKILL, f"{stage} was over before it could be killed"
        if stage in TRAINED:
            assert list(run.glob(f"stages/{stage}-*.partial/scratch/checkpoint.safetensors"))
        before = STAGES[: STAGES.index(stage)]
        assert set(before) <= set(digests(run)), f"a finished stage was lost when {stage} was killed"
    assert (run / "stages").exists()
    stages = summary(edgewise("run", "tiny.yaml", "--out", "killed", "--json", cwd=finished.parent))
    assert all(stages[name]["reused"] for name in STAGES[: STAGES.index("measure")])
    whole, killed = digests(finished), digests(run)
    assert {name: killed[name] for name in UNTIMED} == {name: whole[name] for name in UNTIMED}
    assert not list(run.glob("stages/*.partial"))


def test_a_damaged_artifact_is_noticed_and_made_again(copied: Path) -> None:
    before = digests(copied)
    victim = next(copied.glob("stages/2-distill-*")) / "model.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(bytes(content))
    record = next(copied.glob("stages/export-student-*")) / "artifact.json"
    record.write_text(record.read_text().replace('"seconds": ', '"seconds": 1'))
    done = edgewise("run", "tiny.yaml", "--out", copied, "--json", cwd=copied.parent)
    stages = summary(done)
    assert {name for name, stage in stages.items() if not stage["reused"]} == {"2-distill", "export-student"}
    assert "model.safetensors" in done.stderr
    assert "made again" in done.stderr
    assert digests(copied) == before


def test_report_and_gate_work_from_the_folder_alone(copied: Path) -> None:
    (copied / "report.html").unlink()
    assert edgewise("report", copied, cwd=copied.parent).returncode == 0
    page = json.loads((copied / "report.json").read_text())
    assert {file["name"] for file in page["files"]} == {
        name for name in STAGES if "-float32" in name or "int8" in name
    } - {"tensorrt-int8"}
    assert (copied / "report.html").read_text().startswith("<!doctype html>")
    layers = {found["file"]: found for found in page["layers"]}
    assert set(layers) == {name for name in STAGES if "int8" in name or "float16" in name}
    assert all(len(found["rows"]) > 10 and not found["note"] for found in layers.values())
    assert len(page["agreement"]) == 3  # of three files
    codes = {}
    for name, budget in {"pass": "max_size_bytes: 100000000", "fail": "max_size_bytes: 1"}.items():
        (copied.parent / f"{name}.yaml").write_text(budget)
        codes[name] = edgewise("gate", copied, "--budget", f"{name}.yaml", cwd=copied.parent).returncode
    assert codes == {"pass": 0, "fail": 1}


def test_accuracy_in_the_report_is_that_of_the_runtime_on_the_same_samples(finished: Path) -> None:
    import onnxruntime

    page = json.loads((finished / "report.json").read_text())
    model = next(finished.glob("stages/onnxruntime-int8-*/model.onnx"))
    samples = next(finished.glob("stages/samples-*"))
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    inputs, targets = np.load(samples / "inputs.npy"), np.load(samples / "targets.npy")
    answers = np.concatenate([session.run(None, {"input": inputs[i : i + 1]})[0] for i in range(len(inputs))])
    told = next(file for file in page["files"] if file["name"] == "onnxruntime-int8")
    assert told["accuracy"]["value"] == pytest.approx((answers.argmax(1) == targets).mean())


BAD: dict[str, tuple[Callable[[str], str], str]] = {
    "impossible ratio": (lambda r: r.replace("macs_ratio: 0.7", "macs_ratio: 0.01"), "smallest"),
    "batch larger than the data": (lambda r: r.replace("batch_size: 64", "batch_size: 5000", 1), "batch"),
    "layer that isn't there": (lambda r: r.replace("layers: [layer1, layer3]", "layers: [layer9]"), "layer9"),
    "layer of another kind": (lambda r: r.replace("layers: [layer1, layer3]", "layers: [linear]"), "can't be computed"),
    "budget for a file that isn't made": (
        lambda r: r.replace("budget: {", "budget: {files: [onnxruntime-int], "),
        "no file is called onnxruntime-int",
    ),
    "more threads than CPUs": (lambda r: r.replace("bench: {", "bench: {threads: 4096, "), "bench.threads"),
    "ratio above one": (lambda r: r.replace("macs_ratio: 0.7", "macs_ratio: 1.7"), "macs_ratio"),
    "unknown key": (lambda r: r.replace("epochs: 2", "epocs: 2", 1), "epochs"),
    "learning rate that explodes": (lambda r: r.replace("lr: 0.1", "lr: 1.0e+30"), "no longer finite"),
    "user's task that isn't there": (
        lambda r: r.replace("{kind: digits}", "{kind: factory, factory: 'no.such:task'}"),
        "no",
    ),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_is_told_without_a_traceback_and_loses_nothing(copied: Path, mistake: str) -> None:
    change, told = BAD[mistake]
    before = digests(copied)
    assert change(RECIPE) != RECIPE
    (copied.parent / "bad.yaml").write_text(change(RECIPE))
    done = edgewise("run", "bad.yaml", "--out", copied, cwd=copied.parent)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error" in done.stderr
    assert told in done.stderr
    assert {name: digest for name, digest in digests(copied).items() if name in before} == before


def test_a_file_size_limit_stands_for_a_full_disk(workplace: Path) -> None:
    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the kernel then answers EFBIG, as a full disk answers ENOSPC

    done = edgewise("run", "tiny.yaml", "--out", "full", cwd=workplace, preexec_fn=little_room)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    again = summary(edgewise("run", "tiny.yaml", "--out", "full", "--json", cwd=workplace))
    assert list(again) == STAGES


def test_a_tensorrt_only_recipe_ends_with_bundles_and_a_report(workplace: Path, finished: Path) -> None:
    start, end = RECIPE.index("    - {runtime: onnxruntime"), RECIPE.index("    - {runtime: tensorrt")
    alone = RECIPE[:start] + RECIPE[end:].replace("budget: {max_accuracy_drop_pp: 100}", "")
    (workplace / "jetson.yaml").write_text(alone)
    shutil.copytree(finished, workplace / "jetson")
    stages = summary(edgewise("run", "jetson.yaml", "--out", "jetson", "--json", cwd=workplace))
    assert [name for name, stage in stages.items() if not stage["reused"]] == ["measure", "layers"]
    page = json.loads((workplace / "jetson" / "report.json").read_text())
    assert {bundle["name"]: bundle["built"] for bundle in page["bundles"]} == {
        "tensorrt-float16": False,
        "tensorrt-int8": False,
    }


def test_torchrun_trains_with_two_processes_and_one_writes(workplace: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    end = RECIPE.index("deploy:")
    recipe = RECIPE[:end].replace("  - kind: quantize", "#").split("#")[0]
    targets = "deploy: {targets: [{runtime: onnxruntime, precisions: [float32]}]}\n"
    (workplace / "two.yaml").write_text(
        recipe + targets + "bench: {launches: 1, max_launches: 1, blocks: 2, block_ms: 5, warmup_s: 0.05}\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    command = [*launcher, "-m", "edgewise", "run", "two.yaml", "--out", "two", "--json"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=workplace, text=True, capture_output=True, timeout=300, env=environment)
    stages = summary(done)  # one JSON document: one process speaks
    assert not any(stage["reused"] for stage in stages.values())
    history = json.loads(next((workplace / "two" / "stages").glob("2-distill-*/history.json")).read_text())
    assert history[-1]["loss"] < history[0]["loss"]
    assert not list((workplace / "two" / "stages").glob("*.partial"))


def test_a_folder_that_can_not_be_written_is_named(workplace: Path) -> None:
    (workplace / "file").write_text("in the way")
    done = edgewise("run", "tiny.yaml", "--out", "file/run", cwd=workplace)
    assert done.returncode == 2
    assert "file/run" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_runs_in_one_folder_are_refused(workplace: Path) -> None:
    from edgewise.artifact import locked

    with locked(workplace / "busy"):
        done = edgewise("run", "tiny.yaml", "--out", "busy", cwd=workplace)
    assert done.returncode == 2
    assert "another run" in done.stderr


def test_a_missing_runtime_is_told_before_any_training(workplace: Path) -> None:
    blocked = workplace / "blocked" / "ai_edge_litert"
    blocked.mkdir(parents=True, exist_ok=True)
    (blocked / "__init__.py").write_text("raise ImportError('not here')")
    for name in ("tflite_runtime",):
        (blocked.parent / name).mkdir(exist_ok=True)
        (blocked.parent / name / "__init__.py").write_text("raise ImportError('not here')")
    environment = {**os.environ, "PYTHONPATH": str(blocked.parent)}
    done = edgewise("run", "tiny.yaml", "--out", "missing", cwd=workplace, env=environment)
    assert done.returncode == 2, done.stderr
    assert "litert" in done.stderr
    assert "pip install" in done.stderr
    assert "teacher" not in done.stderr
