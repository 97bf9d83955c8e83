"""SingleStream beside the tools that everybody trusts: LoadGen, benchmark_app and litert-benchmark.

    python benchmarks/bench/parity.py FOLDER [--rounds 60] [--runs 40] [--first] [--json OUT.json]

FOLDER holds one model as onnxruntime.onnx, openvino.xml (.bin) and litert.tflite; many ms an inference make the ratio
mean something. All run with one thread, one stream and float32, batch 1, on one sample. On a machine that others use,
--first asks the system for real-time priority (root), for ours and for the tools alike.

One round is ours, the tool, ours again: what drifts slowly cancels. Its ratio is the tool's p50 over the p50 of both of
our halves; the table has the 10 %-trimmed mean of the rounds' ratios with a 95 % bootstrap interval, and the same of
their minima, which a busy machine moves less. LoadGen drives the very session that we drive, in one process, turn by
turn. The other two are programs of their own: each round starts them anew, so that the difference between two processes
is among their rounds, while ours stays open; every --reopen rounds it is opened anew, too.

What can't be asked of all alike: benchmark_app takes its latency from the request's own clock, which leaves out the
copies of input and output that our time includes; it reads our input. litert-benchmark makes its own uniform numbers,
and runs them by CompiledModel where we run the Interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.bench import stats
from edgewise.bench.devices.base import Worker
from edgewise.bench.devices.local import LOCAL_DEVICE

FILES = {"onnxruntime": "onnxruntime.onnx", "openvino": "openvino.xml", "litert": "litert.tflite"}
LIMIT_S = 600.0
Times = tuple[float, float]  # p50 and minimum in ms


@contextlib.contextmanager
def ours(runtime: str, path: Path, inputs: Path) -> Iterator[Worker]:
    """A worker with the file open and warm."""
    asked = {"path": str(path), "inputs": str(inputs), "threads": 1, "batch": 1, "precision": "float32"}
    with contextlib.closing(LOCAL_DEVICE.worker(path.name, 1)) as worker:
        worker.ask("import", limit_s=LIMIT_S, runtime=runtime)
        worker.ask("load", limit_s=LIMIT_S, **asked)
        worker.ask("first", limit_s=LIMIT_S, **asked)
        worker.ask("warmup", limit_s=LIMIT_S, seconds=0.5)
        yield worker


def block(worker: Worker, runs: int, engine: str = "edgewise") -> list[int]:
    """Latencies in ns of one SingleStream run."""
    asked = {"kind": "single_stream", "engine": engine, "streams": 1, "count": runs, "max_s": LIMIT_S}
    reply = worker.ask("scenario", limit_s=2 * LIMIT_S, expected_ns=1_000_000, **asked)
    return list(reply["latencies_ns"])


def benchmark_app(path: Path, inputs: Path, shape: str, runs: int, folder: Path) -> Times:
    """OpenVINO's own tool, synchronous, with its input set anew each time."""
    command = [
        tool("benchmark_app"),
        "-m",
        str(path),
        "-d",
        "CPU",
        "-api",
        "sync",
        "-hint",
        "none",
        "-niter",
        str(runs),
    ]
    command += ["-nthreads", "1", "-nstreams", "1", "-infer_precision", "f32", "-pin", "NO", "-inference_only", "False"]
    command += [
        "-ip",
        "f32",
        "-op",
        "f32",
        "-data_shape",
        shape,
        "-shape",
        shape,
        "-i",
        str(inputs),
        "-report_type",
        "no_counters",
    ]
    command += ["-json_stats", "-report_folder", str(folder)]
    run(command)
    found = json.loads((folder / "benchmark_report.json").read_text())["execution_results"]
    return float(found["latency (ms)"]), float(found["min latency"])


def litert_benchmark(path: Path, runs: int, folder: Path) -> Times:
    """LiteRT's own tool."""
    out = folder / "litert.json"
    run(
        [
            tool("litert-benchmark"),
            "--model",
            str(path),
            "--num_threads",
            "1",
            "--num_runs",
            str(runs),
            "--warmup_runs",
            "10",
            "--result_json",
            str(out),
        ]
    )
    found = json.loads(out.read_text())["latency"]
    return float(found["median_ms"]), float(found["min_ms"])


def tool(name: str) -> str:
    """The program beside this Python, or on the path."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}") or name


def run(command: list[str]) -> None:
    """Run a program, silent unless it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def compare(
    name: str, runtime: str, path: Path, inputs: Path, theirs: Callable[[Worker], Times], args: argparse.Namespace
) -> dict[str, Any]:
    """All rounds of one tool."""
    pairs: list[tuple[Times, Times]] = []
    while len(pairs) < args.rounds:
        with ours(runtime, path, inputs) as worker:
            for _ in range(min(args.reopen, args.rounds - len(pairs))):
                before = block(worker, args.runs // 2)
                found = theirs(worker)
                both = np.array(before + block(worker, args.runs // 2)) / 1e6
                pairs.append(((float(np.median(both)), float(both.min())), found))
        print(f"{name}: {len(pairs)}/{args.rounds}", file=sys.stderr, flush=True)
    row: dict[str, Any] = {"tool": name, "file": path.name, "rounds": len(pairs), "runs": args.runs}
    for place, key in enumerate(("p50", "min")):
        mine = [np.array([pair[0][place]]) for pair in pairs]
        others = [np.array([pair[1][place]]) for pair in pairs]
        ratio = stats.paired_ratio([others], [mine])
        row[key] = None if ratio is None else vars(ratio)
        row[f"{key}_ours_ms"] = float(np.median(np.concatenate(mine)))
        row[f"{key}_theirs_ms"] = float(np.median(np.concatenate(others)))
    row["pairs"] = pairs
    return row


def main() -> None:
    """Compare with what is here, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=40, help="inferences a round on each side")
    parser.add_argument("--reopen", type=int, default=10, help="rounds before our process is started anew")
    parser.add_argument("--shape", default="1,3,224,224")
    parser.add_argument("--only", nargs="*", default=["loadgen", "benchmark_app", "litert-benchmark"])
    parser.add_argument("--first", action="store_true", help="before all other work of the machine")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.first:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with tempfile.TemporaryDirectory(prefix="edgewise-parity-") as temporary:
        folder = Path(temporary)
        inputs = folder / "inputs.npy"
        sizes = [int(size) for size in args.shape.split(",")]
        # Uniform in -1..1, as litert-benchmark draws them.
        np.save(inputs, np.random.default_rng(0).uniform(-1, 1, sizes).astype(np.float32))
        paths = {runtime: (args.folder / file).resolve() for runtime, file in FILES.items()}

        def loadgen(worker: Worker) -> Times:
            found = np.array(block(worker, args.runs, "loadgen")) / 1e6
            return float(np.median(found)), float(found.min())

        tools: dict[str, tuple[str, Callable[[Worker], Times]]] = {
            "loadgen": ("onnxruntime", loadgen),
            "benchmark_app": (
                "openvino",
                lambda _: benchmark_app(paths["openvino"], inputs, f"[{args.shape}]", args.runs, folder),
            ),
            "litert-benchmark": ("litert", lambda _: litert_benchmark(paths["litert"], args.runs, folder)),
        }
        rows = [
            compare(name, runtime, paths[runtime], inputs, theirs, args)
            for name, (runtime, theirs) in tools.items()
            if name in args.only
        ]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    print("| tool | file | rounds | its p50 | our p50 | its p50 / ours | its minimum / ours |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        ratios = " | ".join(
            f"{row[k]['value']:.4f} ({row[k]['low']:.4f} to {row[k]['high']:.4f})" for k in ("p50", "min")
        )
        times = f"{row['p50_theirs_ms']:.3f} ms | {row['p50_ours_ms']:.3f} ms"
        print(f"| {row['tool']} | {row['file']} | {row['rounds']} x {row['runs']} | {times} | {ratios} |")


if __name__ == "__main__":
    main()
