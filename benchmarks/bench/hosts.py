"""What the benchmarks of the bench share: a host that is busy on purpose, files of known work, tables."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgewise.bench.record import FileUnderTest

WIDTH = 128


@contextlib.contextmanager
def loaded(processes: int) -> Iterator[None]:
    """``processes`` that compute in spells of random length, as builds and browsers do."""
    context = multiprocessing.get_context("spawn")
    busy = [context.Process(target=_spells, args=(seed,), daemon=True) for seed in range(processes)]
    for one in busy:
        one.start()
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.join()


def _spells(seed: int) -> None:
    draw = random.Random(seed)
    data = np.ones((200, 200), np.float32)
    parent = os.getppid()
    while os.getppid() == parent:  # whoever kills the benchmark wants its load gone, too
        end = time.monotonic() + draw.expovariate(1 / 0.3)
        while time.monotonic() < end:
            data @ data
        time.sleep(draw.expovariate(1 / 0.1))


def chain(path: Path, layers: int) -> Path:
    """An ONNX file (N, 1, 16, WIDTH) of so many equal layers in a row, all of the same weights."""
    square, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))
    nodes = [
        helper.make_node("MatMul", [f"x{i}", "w"], ["output" if i == layers - 1 else f"x{i + 1}"])
        for i in range(layers)
    ]
    nodes[0].input[0] = "input"
    shape = ["batch", 1, 16, WIDTH]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(square.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


def file_of(name: str, path: Path, reference: str | None = None, runtime: str = "onnxruntime") -> FileUnderTest:
    """``path`` as the bench takes it."""
    return FileUnderTest(
        name=name,
        runtime=runtime,
        precision="float32",
        role="candidate",
        path=str(path),
        size_bytes=path.stat().st_size if path.exists() else 0,
        sha256="0" * 64,
        reference=reference,
    )


def no_score(outputs: object, targets: np.ndarray) -> np.ndarray:
    """Nobody asks what the files answer."""
    return np.zeros(len(targets), np.float32)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine() -> str:
    """Where this ran, in a line."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return f"{os.cpu_count()} x {names[0] if names else platform.processor()}, Linux {platform.release()}"
