"""Results made up on purpose, and small ONNX files that really run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.bench.config import Bench
from edgewise.bench.provenance import provenance
from edgewise.bench.record import Answers, Block, FileUnderTest, Launch, Measurement, Phase, Results, file_stem

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
    """``made_up({"name": {ms, size, scores, role, ...}}) -> Results``, scores on disk, the float files given.

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
            launches = [_launch(i, random, ms, runs, peak, cut) for i in range(row.get("launches", 0 if error else 3))]
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
def scores() -> Callable[[int, int], Any]:
    """``scores(lost, n)``: n scores against an always right reference, ``lost`` of them wrong."""

    def make(lost: int, n: int = 2000) -> Any:
        return (np.arange(n) >= lost).astype(np.float32)

    return make


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
