"""What the harness reads of a model that allocates a known number of bytes, against getrusage's peak.

    python benchmarks/bench/memory.py --launches 10

The model is a runtime of ten lines whose first inference allocates and touches its bytes; the worker is the real one.
``launched by``: the peak of the process that starts it, which ``ru_maxrss`` inherits and VmHWM does not.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from hosts import machine, table

from edgewise.bench.process import WorkerProcess
from edgewise.bench.stats.interval import t_quantile

RUNTIME = """
import resource
import numpy as np
from edgewise.deploy.runtimes import TensorSpec

NAME, SUFFIX = "known", ".known"

def missing():
    return None

class Session:
    inputs = (TensorSpec("input", (1, 4), "float32"),)
    outputs = (TensorSpec("output", (1, 4), "float32"),)

    def __init__(self, size, options):
        self.size, self.kept, self.before = size, None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.settings = {"threads": options.threads}

    def run(self, feeds):
        if self.kept is None:
            self.kept = np.ones(self.size, np.uint8)
            self.settings["maxrss_kb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before
            print("maxrss", self.settings["maxrss_kb"], flush=True)
        return {"output": feeds["input"]}

    def close(self):
        self.kept = None

def open(path, options):
    return Session(int(path), options)
"""
START = """
import sys
sys.path.insert(0, {folder!r})
from edgewise.bench.agent import worker
from edgewise.deploy import runtimes
runtimes.MODULES["known"] = "known_runtime"
sys.exit(worker.main())
"""
# What launches a worker: it grows to its peak, shrinks again, and measures.
LAUNCH = """
import json, sys
import numpy as np
ballast = np.ones({peak}, np.uint8)
del ballast
sys.path.insert(0, {here!r})
from memory import measured
print(json.dumps(measured({folder!r}, {size})))
"""


def measured(folder: str, size: int) -> tuple[float, float]:
    """MB that a file of ``size`` bytes takes in its first inference: by the harness, and by ``ru_maxrss``."""
    asked = {"path": str(size), "threads": 1, "batch": 1, "precision": "float32", "inputs": f"{folder}/inputs.npy"}
    with contextlib.closing(WorkerProcess("known", 1, (sys.executable, f"{folder}/start.py"))) as worker:
        worker.ask("import", limit_s=60, runtime="known")
        load = worker.ask("load", limit_s=60, **asked)["phase"]
        first = worker.ask("first", limit_s=60, **asked)["phase"]
        said = worker._said()
        worker.ask("close", limit_s=60)
    kilobytes = int(said.rpartition("maxrss ")[2].split()[0])
    return (first["peak_bytes"] - load["resident_bytes"]) / 1e6, 1024 * kilobytes / 1e6


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", type=int, default=10)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "known_runtime.py").write_text(RUNTIME)
        (Path(folder) / "start.py").write_text(START.format(folder=folder))
        np.save(Path(folder) / "inputs.npy", np.zeros((64, 4), np.float32))
        for size in (10, 100, 400):
            for peak in (0, 500):
                here = str(Path(__file__).parent)
                script = LAUNCH.format(peak=peak * 10**6, here=here, folder=folder, size=size * 10**6)
                found = []
                for _ in range(args.launches):
                    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
                    found.append([float(value) for value in said.stdout.strip().strip("[]").split(",")])
                ours, theirs = np.array(found).T
                half = t_quantile(len(ours) - 1, 0.95) * ours.std(ddof=1) / np.sqrt(len(ours))
                spread = f"{ours.min():.2f} to {ours.max():.2f}"
                mean = f"{ours.mean():.2f} ± {half:.2f} MB"
                rows.append(
                    [
                        f"{size} MB",
                        f"a peak of {peak} MB" if peak else "a small process",
                        len(ours),
                        mean,
                        spread,
                        f"{np.median(theirs):.1f} MB",
                    ]
                )
    head = ["allocates", "launched by", "launches", "read, mean and 95 %", "least to most", "ru_maxrss reads, median"]
    print(table(head, rows))
    print(f"\n`python benchmarks/bench/memory.py --launches {args.launches}`, {machine()}")


if __name__ == "__main__":
    main()
