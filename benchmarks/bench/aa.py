"""False alarms and found slowdowns on a host that is busy on purpose.

    python benchmarks/bench/aa.py --comparisons 100 --out aa.jsonl

Each comparison measures one file three times, in turns: A, A again under another name, and B, which spins after each
inference until 5 % more time has gone than that inference took. A against A must not be called slower at a margin of
5 %, A against B must be. Where the launches run out before the interval can tell, it says so, and that counts as
neither.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from hosts import WIDTH, chain, file_of, loaded, machine, no_score, table

from edgewise.bench.compared import compare, undecided
from edgewise.bench.config import Bench
from edgewise.bench.devices.local import LocalDevice
from edgewise.bench.measure import measure
from edgewise.bench.numbers import busy
from edgewise.bench.stats import wilson

LAYERS = 100
RUNTIMES = {"A": "onnxruntime", "A again": "onnxruntime", "B": "slower"}
# ONNX Runtime, and 5 % on top of each inference.
SLOWER = """
import time
from edgewise.deploy.runtimes import ort

NAME, SUFFIX, missing = "slower", ".onnx", ort.missing

class Session:
    def __init__(self, session):
        self.session, self.inputs, self.outputs = session, session.inputs, session.outputs
        self.settings, self.close = session.settings, session.close

    def run(self, feeds):
        start = time.perf_counter_ns()
        found = self.session.run(feeds)
        end = start + (time.perf_counter_ns() - start) * 1.05
        while time.perf_counter_ns() < end:
            pass
        return found

def open(path, options):
    return Session(ort.open(path, options))
"""
START = """
import sys
sys.path.insert(0, {folder!r})
from edgewise.bench.agent import worker
from edgewise.deploy import runtimes
runtimes.MODULES["slower"] = "slower_runtime"
sys.exit(worker.main())
"""


def one(folder: Path, seed: int, margin: float) -> list[dict]:
    """Both comparisons of one measurement."""
    inputs = folder / "inputs.npy"
    np.save(inputs, np.random.default_rng(seed).normal(size=(8, 1, 16, WIDTH)).astype(np.float32))
    path = chain(folder / "A.onnx", LAYERS)
    files = [file_of(name, path, runtime=runtime) for name, runtime in RUNTIMES.items()]
    (folder / "slower_runtime.py").write_text(SLOWER)
    (folder / "start.py").write_text(START.format(folder=str(folder)))
    config = Bench(
        launches=3, max_launches=12, blocks=60, block_ms=4, warmup_s=0.05, accuracy_samples=1, sample_hz=0, seed=seed
    )
    pairs = [("A", "A again"), ("A", "B")]
    start = time.monotonic()
    results = measure(
        files,
        inputs,
        np.zeros(8, np.int64),
        [str(i) for i in range(8)],
        config,
        folder / "out",
        score=no_score,
        device=LocalDevice((sys.executable, str(folder / "start.py"))),
        unfinished=undecided(pairs, margin),
    )
    found = results.measurements
    rows = [asdict(compare(found[reference], found[name], margin)) for reference, name in pairs]
    took = time.monotonic() - start
    return [{**row, "seed": seed, "seconds": took, "busy": busy(found["A"])} for row in rows]


def report(rows: list[dict], command: str) -> str:
    """The table of all comparisons so far."""
    lines = []
    for name, what in (("A again", "the same file"), ("B", "5 % slower")):
        mine = [row for row in rows if row["candidate"] == name]
        n = len(mine)
        told = {kind: sum(row["found"] == kind for row in mine) for kind in ("slower", "not slower", "can't tell")}
        cells = []
        for count in told.values():
            share = wilson(count, n)
            cells.append(f"{count} ({100 * share.value:.0f} %, {100 * share.low:.1f} to {100 * share.high:.1f})")
        ratios = [row["ratio"]["value"] for row in mine]
        spread = "{:.3f} ({:.3f} to {:.3f})".format(*np.quantile(ratios, [0.5, 0.05, 0.95]))
        launches = np.mean([row["launches"] for row in mine])
        seconds = np.mean([row["seconds"] for row in mine])
        lines.append([what, n, *cells, spread, f"{launches:.1f}", f"{seconds:.0f} s"])
    head = ["A against", "n", "slower", "not slower", "can't tell", "ratio, median (5 to 95 %)", "launches", "time"]
    return f"{table(head, lines)}\n\n`{command}`, {machine()}; 95 % intervals by Wilson"


def main() -> None:
    """Compare, write down, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=100)
    parser.add_argument("--margin", type=float, default=0.05)
    parser.add_argument("--load", type=int, default=2, help="processes that keep the host busy")
    parser.add_argument("--first-seed", type=int, default=0, help="two runs at once must not draw the same")
    parser.add_argument("--out", type=Path, required=True, help="what was found, as JSON Lines; goes on where it was")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    with loaded(args.load):
        for seed in range(args.first_seed + len(rows) // 2, args.first_seed + args.comparisons):
            with tempfile.TemporaryDirectory() as folder:
                found = one(Path(folder), seed, args.margin)
            rows += found
            with args.out.open("a") as log:
                log.writelines(json.dumps(row) + "\n" for row in found)
            print(
                seed, *(f"{row['candidate']}: {row['found']} {row['ratio']['value']:.3f}" for row in found), flush=True
            )
    print(report(rows, f"python benchmarks/bench/aa.py --comparisons {args.comparisons} --load {args.load}"))


if __name__ == "__main__":
    main()
