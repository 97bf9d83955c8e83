"""What the harness costs an inference: timed blocks of a null runtime against a bare loop over the same calls.

    python benchmarks/bench/overhead.py --pairs 300

In one process, blocks of both in turns, the order drawn each time. ``harness``: time of a block as the worker runs it,
divided by its inferences; ``told``: the median latency that it reports; ``bare``: the loop. Then from outside:
a real worker process, asked as ``measure`` asks it, for what it reports of the null runtime.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from hosts import machine, table

from edgewise.bench.agent import worker
from edgewise.bench.process import WorkerProcess
from edgewise.bench.stats import paired_mean_drop
from edgewise.deploy.runtimes import TensorSpec

BLOCK_MS = 20.0
NULL = """
from edgewise.deploy.runtimes import TensorSpec

NAME, SUFFIX = "null", ".null"

def missing():
    return None

class Session:
    inputs = (TensorSpec("input", (1, 4), "float32"),)
    outputs = (TensorSpec("output", (1, 4), "float32"),)

    def __init__(self, options):
        self.settings = {"threads": options.threads, "batch": options.batch}

    def run(self, feeds):
        return {"output": feeds["input"]}

    def close(self):
        pass

def open(path, options):
    return Session(options)
"""
START = """
import sys
sys.path.insert(0, {folder!r})
from edgewise.bench.agent import worker
from edgewise.deploy import runtimes
runtimes.MODULES["null"] = "null_runtime"
sys.exit(worker.main())
"""


class Null:
    """Answers with what it was fed."""

    inputs = (TensorSpec("input", (1, 4), "float32"),)
    outputs = (TensorSpec("output", (1, 4), "float32"),)

    def __init__(self):
        """It has nothing to set."""
        self.settings = {"threads": 1}

    def run(self, feeds):
        """As little as a session can do."""
        return {"output": feeds["input"]}

    def close(self):
        """Nothing is held."""


def bare(state: worker.State, count: int) -> float:
    """ns an inference in a plain loop."""
    run, feed = state.opened().run, state.feeds[0]
    start = time.perf_counter_ns()
    for _ in range(count):
        run(feed)
    return (time.perf_counter_ns() - start) / count


def pairs(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ns an inference by the harness, as it tells them, and bare: each (count,)."""
    state = worker.State()
    state.session = Null()
    state.feeds = [{"input": np.zeros((1, 4), np.float32)} for _ in range(64)]
    random = np.random.default_rng(0)
    harness, told, plain = [], [], []
    runs = len(worker.do_block(state, {"ms": BLOCK_MS})["samples_ns"])
    for _ in range(count):
        for which in random.permutation(2):
            if which:
                plain.append(bare(state, runs))
            else:
                block = worker.do_block(state, {"ms": BLOCK_MS})
                harness.append(block["wall_ns"] / len(block["samples_ns"]))
                told.append(float(np.median(block["samples_ns"])))
    return np.array(harness), np.array(told), np.array(plain)


def outside(blocks: int) -> np.ndarray:
    """The median latency in ns that a worker process reports, a block each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "null_runtime.py").write_text(NULL)
        (folder / "start.py").write_text(START.format(folder=name))
        np.save(folder / "inputs.npy", np.zeros((64, 4), np.float32))
        asked = {"path": "x", "inputs": str(folder / "inputs.npy"), "threads": 1, "batch": 1, "precision": "float32"}
        with contextlib.closing(WorkerProcess("null", 1, (sys.executable, str(folder / "start.py")))) as process:
            process.ask("import", limit_s=60, runtime="null")
            process.ask("load", limit_s=60, **asked)
            process.ask("first", limit_s=60, **asked)
            process.ask("warmup", limit_s=60, seconds=0.2)
            replies = [process.ask("block", limit_s=60, ms=BLOCK_MS) for _ in range(blocks)]
    return np.array([np.median(reply["samples_ns"]) for reply in replies])


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300)
    args = parser.parse_args()
    harness, told, plain = pairs(args.pairs)
    rows = []
    for name, values in (("harness, the whole loop", harness), ("harness, as it tells the latency", told)):
        gap = paired_mean_drop(values, plain)
        row = [np.median(values), np.median(plain), np.median(values - plain), gap.value, gap.low, gap.high]
        times = [f"{value / 1000:.2f}" for value in row]
        rows.append([name, args.pairs, *times[:4], f"{times[4]} to {times[5]}"])
    found = outside(args.pairs)
    rows.append(["a worker process, as it tells the latency", len(found), f"{np.median(found) / 1000:.2f}", *[""] * 4])
    head = ["µs an inference of a null runtime", "pairs", "median", "bare loop", "median gap", "mean gap", "95 %"]
    print(table(head, rows))
    print(f"\n`python benchmarks/bench/overhead.py --pairs {args.pairs}`, {machine()}")


if __name__ == "__main__":
    main()
