"""Results made up on purpose, and small ONNX files that really run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.bench.config import Bench
from edgewise.bench.provenance import provenance
from edgewise.bench.record import (
    AgreementRow,
    Answers,
    Block,
    BundleRow,
    Context,
    Energy,
    FileUnderTest,
    GoalRow,
    JourneyRow,
    Launch,
    LayerRow,
    LayersRow,
    Measurement,
    OthersRow,
    ParityRow,
    Phase,
    PlanRow,
    Results,
    ScenarioResult,
    file_stem,
)
from edgewise.bench.slices import keep, named

PHASES = ("import", "load", "first_inference", "warmup", "steady", "unload")


def _launch(index: int, random: np.random.Generator, ms: float, runs: int, peak: int, cut: float) -> Launch:
    blocks = []
    for turn in range(8):
        samples = tuple(int(value) for value in ms * 1e6 * np.exp(random.normal(0, 0.01, runs)))
        cpu = sum(samples)
        waited = tuple(int(value * cut) for value in samples)
        blocks.append(Block(turn, waited, sum(waited), cpu, cpu, 0, 1))
    phases = {name: Phase(5_000_000, peak, peak - 1_000_000, peak // 2) for name in PHASES}
    return Launch(index, phases, {"threads": 1, "precision": "float32"}, (int(ms * 1e6),) * 3, True, tuple(blocks))


@pytest.fixture
def made_up(tmp_path: Path) -> Callable[..., Results]:
    """``made_up({"name": {ms, size, scores, role, ...}}) -> Results``, scores on disk, the float files given."""
    return _made_up_in(tmp_path)


def _made_up_in(tmp_path: Path) -> Callable[..., Results]:
    """What makes results up in a folder.

    ``teacher`` 10 ms, 1,000,000 bytes; ``student`` 4 ms, 400,000 bytes; both right on all 2,000 samples. ``cut``: how
    many times longer than its CPU time an inference took, because the scheduler gave the CPU to others.
    """

    def make(candidates: dict[str, dict[str, Any]], runs: int = 60) -> Results:
        always = np.ones(2000, np.float32)
        rows = {
            "teacher": {"ms": 10.0, "size": 1_000_000, "scores": always, "role": "reference", "precision": "float32"},
            "student": {"ms": 4.0, "size": 400_000, "scores": always, "role": "parent", "precision": "float32"},
            **candidates,
        }
        random = np.random.default_rng(0)
        files, measurements, answers = [], {}, {}
        (tmp_path / "answers").mkdir(exist_ok=True)
        for name, row in rows.items():
            role = row.get("role", "candidate")
            files.append(
                FileUnderTest(
                    name=name,
                    runtime=row.get("runtime", "onnxruntime"),
                    precision=row.get("precision", "int8"),
                    role=role,
                    path=f"/models/{name}.onnx",
                    size_bytes=row.get("size", 100_000),
                    sha256="0" * 64,
                    reference=None if role == "reference" else row.get("reference", "teacher"),
                    parent="student" if role == "candidate" else None,
                )
            )
            error = row.get("error")
            ms, peak, cut = row.get("ms", 2.0), row.get("peak", 50_000_000), row.get("cut", 1.0)
            count = row.get("launches", 0 if error else 3)
            launches = [_launch(i, random, ms, row.get("runs", runs), peak, cut) for i in range(count)]
            measurements[name] = Measurement(
                name, 1, row.get("threads", 1), tuple(launches), tuple(row.get("flags", ())), error
            )
            scores = np.asarray(row.get("scores", always), np.float32)
            stem = file_stem(name)
            np.save(tmp_path / f"answers/{stem}.scores.npy", scores)
            answers[name] = Answers(
                file=name,
                samples=len(scores),
                mean_score=float(scores.mean()),
                finite=row.get("finite", True),
                batch=100,
                outputs=f"answers/{stem}.npy",
                scores=f"answers/{stem}.scores.npy",
                error=error,
            )
        config = Bench().model_dump(mode="json")
        return Results(tuple(files), measurements, answers, "ids.txt", config, provenance(), folder=tmp_path)

    return make


@pytest.fixture
def rich(tmp_path: Path) -> tuple[Results, Any, Context]:
    """Results, verdict and context with something in every part of a report, and names that are no markup."""
    return _rich(tmp_path)


@pytest.fixture(scope="session")
def rich_in() -> Callable[[Path], tuple[Results, Any, Context]]:
    """The same, in the folder that is asked for."""
    return _rich


def _rich(folder: Path) -> tuple[Results, Any, Context]:
    made_up = _made_up_in(folder)
    from edgewise.bench.gate import gate
    from edgewise.bench.gate.config import Budget, ScenarioLimit, SliceLimit, Waiver

    evil = "<script>window.caught=1</script>|`$x$` & co"
    results = made_up(
        {
            "small": {"scores": _lost(20), "runtime": "openvino", "flags": ["contended", "drift"], "cut": 1.5},
            evil: {"scores": _lost(25), "ms": 6.0, "runtime": "litert"},
            "dead": {"error": "dead: the process died <b>badly</b>"},
            "lame": {"error": "lame: one launch | died", "launches": 2, "ms": 4.0},
            "few": {"launches": 1, "runs": 1},
        }
    )
    origin = 77_000_000_000
    for name, found in results.measurements.items():
        launches = [
            replace(
                launch,
                pss_bytes=40_000_000,
                blocks=tuple(
                    replace(block, start_ns=origin + 9_000_000_000 * launch.index + 200_000_000 * block.round)
                    for block in launch.blocks
                ),
            )
            for launch in found.launches
        ]
        loads = tuple(_scenario(*row) for row in LOADS) if name == "small" else ()
        energy = Energy("INA3221", f"VDD_IN {evil}", 0.0123, 0.0119, 0.0127, 4.86, 3, evil) if name == "small" else None
        results.measurements[name] = replace(found, launches=tuple(launches), scenarios=loads, energy=energy)
    rows = [
        {
            "t_ns": origin + i * 10**9,
            "temp_c": {"cpu": 40 + i, "gpu": 39},
            "freq_khz": [1_500_000 if i < 6 else 900_000, 0],
            "freq_max_khz": [1_500_000, 1_500_000],
            "power_w": {"VDD_IN": 5.5, "CPU": 2.0 + i / 4},
        }
        for i in range(9)
    ]
    (results.folder / "telemetry.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"t_ns": 1, "te')
    results = keep(
        replace(results, telemetry="telemetry.jsonl"), {"class": named([f"{i % 3} {evil}" for i in range(2000)])}
    )
    budget = Budget(
        max_accuracy_drop_pp=1.1,
        min_speedup=4,
        max_p50_ms=1,
        max_p99_ms=5,
        slices=SliceLimit(by="class", max_accuracy_drop_pp=1),
        scenarios={"server 300": ScenarioLimit(min_qps=100)},
        waivers=(Waiver(file=evil, check="max_p50_ms", reason=f"known {evil}", owner="me", expires=date(2999, 1, 2)),),
    )
    layers = LayersRow(
        f"torch, {evil}",
        16,
        (LayerRow("input", 41.25, 0.01, (3, 8, 8)), LayerRow(f"conv {evil}", 4.75, 2.5, (8, 8)), LayerRow("end", None)),
        3,
        f"conv {evil}",
        "4.8 dB; what it reads still had 41.2 dB",
        2,
        10.0,
    )
    context = Context(
        name=evil,
        created="2026-01-02T03:04:05+00:00",
        recipe_text="name: <script>",
        journey=(
            JourneyRow("teacher", 855_770, 125_750_000, 0.9, 0.89, 0.91, 2000, 1_000_000, evil, ("teacher",)),
            JourneyRow("1-prune", files=("student",)),
        ),
        parity={
            "small": (ParityRow("torch", 2000, 61.25, 3, 0.1),),
            "teacher": (ParityRow("torch", 9, math.inf, 0, 0.0),),
        },
        integer={"small": "20 of 20"},
        bundles=(BundleRow("tensorrt", False, "no GPU here", ("a.onnx",)),),
        notes=(evil,),
        versions={"torch": "2.13"},
        commands=(f"edgewise run {evil}",),
        integer_macs_share={"small": 0.9375},
        float_layers={"small": tuple(f"layer{i} {evil}" for i in range(8))},
        failed={"tensorrt-int8": f"ended by SIGSEGV {evil}"},
        picked="small",
        picked_why="p50 2 ms, the fastest",
        layers={"small": layers},
        agreement=(AgreementRow("small", evil, 2000, 1990), AgreementRow("small", "lame", 2000, 1900, layers)),
        plan=(
            PlanRow("conv1", "float32", 123_456, 12.5, 40, 31.25, 4, 500),
            PlanRow(evil, "int8", 1, None, 0, 9.5, 9, 500),
        ),
        plan_note="1 layer stays in float",
        goals=(GoalRow("1-prune", "0.5 of the p50", "0.62", False), GoalRow(evil, "half", "n/a", None)),
        others=(
            OthersRow("distill", {"f1": {"value": 0.912, "low": 0.9, "high": 0.923}}),
            OthersRow(
                evil, {"f1": {"value": 0.5, "low": 0.4, "high": 0.6}, evil: {"value": -1.0, "low": -1.0, "high": -1.0}}
            ),
        ),
    )
    return results, gate(budget, results, context.failed), context


# Kind, name, in flight, queries a second asked for, queries.
LOADS = (
    ("single_stream", "single stream", 1, None, 700),
    ("server", "server 300", 2, 300.0, 900),
    ("offline", "offline", 4, None, 50),
    *(("sweep", "sweep", flight, None, 200 * flight) for flight in (1, 2, 4)),
)


def _scenario(kind: str, name: str, flight: int, target: float | None, queries: int) -> ScenarioResult:
    latencies = tuple(int(2_000_000 * flight**0.5 + 1_000 * (i % 97)) for i in range(queries))
    rate = 500.0 * flight**0.5
    return ScenarioResult(
        kind,
        name,
        {"streams": flight, "p99_ms": 20.0 if kind == "server" else None},
        flight,
        target,
        queries,
        1,
        10**9,
        latencies,
        rate,
        0.97 * rate,
        1.04 * rate,
        2_200_000.0 * flight**0.5 if queries >= 662 else None,
        valid=kind != "offline",
        note="" if kind != "offline" else "too few queries <b>",
    )


@pytest.fixture
def scores() -> Callable[[int, int], Any]:
    """``scores(lost, n)``: n scores against an always right reference, ``lost`` of them wrong."""

    return _lost


def _lost(lost: int, n: int = 2000) -> Any:
    return (np.arange(n) >= lost).astype(np.float32)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[..., Path]:
    """``onnx_file(name, width, fixed_batch=None)``: (N, 3, 4, 4) to (N, 5) by way of ``width`` hidden units.

    ``reshape``: flattened by a Reshape to this shape, whatever the input's batch says.
    """
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx import helper, numpy_helper

    def make(
        name: str, width: int = 16, fixed_batch: int | None = None, seed: int = 0, reshape: Sequence[int] | None = None
    ) -> Path:
        random = np.random.default_rng(seed)
        first = random.normal(size=(48, width)).astype(np.float32)
        second = random.normal(size=(width, 5)).astype(np.float32)
        batch = fixed_batch or "batch"
        weights = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
        flatten = helper.make_node("Flatten", ["input"], ["flat"])
        if reshape is not None:
            weights.append(numpy_helper.from_array(np.array(reshape, np.int64), "shape"))
            flatten = helper.make_node("Reshape", ["input", "shape"], ["flat"])
        graph = helper.make_graph(
            [
                flatten,
                helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
                helper.make_node("Relu", ["hidden"], ["active"]),
                helper.make_node("MatMul", ["active", "second"], ["logits"]),
            ],
            "net",
            [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [batch, 3, 4, 4])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, 5])],
            weights,
        )
        path = tmp_path / name
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
        return path

    return make


@pytest.fixture
def plant(tmp_path: Path) -> Callable[[Mapping[str, str]], str]:
    """``plant({path: text})`` puts files below a root, as a device has them; the root's path."""

    def make(tree: Mapping[str, str]) -> str:
        for name, text in tree.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(tmp_path)

    return make
